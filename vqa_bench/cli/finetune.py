"""The command `finetune`: a cell of a file, begun from weights whose shape it takes.

It only makes another cell of it; that is then filled like every other.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_bench.cli.arguments import positive
from vqa_bench.cli.cells import add_running, run_cells
from vqa_bench.errors import UserError

if TYPE_CHECKING:
    from vqa_bench.config import CellConfig


def add_finetune(parser: argparse.ArgumentParser) -> None:
    """`finetune CONFIG CELL --from SOURCE`."""
    parser.add_argument("config", type=Path)
    parser.add_argument("cell", help="the name of the cell; its model is replaced by one of the weights' shape")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        required=True,
        metavar="SOURCE",
        help="a run, a folder with model.safetensors and config.json, or a .pth of the reference",
    )
    parser.add_argument(
        "--reference-config",
        type=Path,
        metavar="FILE",
        help="what a .pth was trained with (default: the YAML or JSON file of its name beside it, else config.yaml)",
    )
    parser.add_argument(
        "--patches",
        type=positive,
        metavar="N",
        help="positions of the first stage, the first of seq_lens (default: as many as the weights have)",
    )
    parser.add_argument("--learning-rate", type=float, metavar="X", help="default: the cell's")
    parser.add_argument("--steps", type=positive, metavar="N", help="default: the cell's")
    parser.add_argument(
        "--freeze",
        nargs="+",
        metavar="PATTERN",
        help="parameters that are not trained, such as 'stage_models.0.*' (default: the cell's)",
    )
    parser.add_argument("--name", help="of the new cell (default: CELL-from-SOURCE)")
    add_running(parser)
    parser.set_defaults(run=_finetune)


def _finetune(options: argparse.Namespace) -> int:
    from vqa_bench.config import load_matrix
    from vqa_bench.config.experiment import faults_across

    config = load_matrix(options.config)
    train = {"learning_rate": options.learning_rate, "steps": options.steps}
    cell = finetune_cell(
        config.cell(options.cell),
        options.source,
        reference_config=options.reference_config,
        patches=options.patches,
        freeze=options.freeze,
        train={name: value for name, value in train.items() if value is not None},
        name=options.name,
    )
    faults = faults_across([cell], None)
    if faults:
        raise UserError("; ".join(faults))
    return run_cells(options, config.model_copy(update={"cells": [cell], "pretrain": ()}), only=[cell.name])


def finetune_cell(
    cell: CellConfig,
    source: Path,
    *,
    reference_config: Path | None = None,
    patches: int | None = None,
    freeze: list[str] | None = None,
    train: dict[str, Any] | None = None,
    name: str | None = None,
) -> CellConfig:
    """A cell like `cell` that begins from the weights of `source`, and has a model of their shape.

    patches: positions of the first stage. train: settings laid over the cell's. None keeps what the weights or the cell
    have; dropout, kernels and checkpoint chunks are the cell's where its stages are of the weights' kinds. Raises
    UserError for a cell of another kind than mblm, for weights that are none, and for wrong settings.
    """
    from vqa_bench.config import CellConfig, MBLMConfig, parse
    from vqa_bench.models.initial import model_config_of
    from vqa_bench.models.shape import with_shape

    if not isinstance(cell.model, MBLMConfig):
        raise UserError(f"expected a cell with a model of kind mblm, got {cell.name} of kind {cell.model.kind}")
    assert cell.train is not None, "the configuration requires `train` of a byte model"
    model = with_shape(cell.model, model_config_of(source, reference_config))
    if patches is not None:
        model = model.model_copy(update={"seq_lens": [patches, *model.seq_lens[1:]]})
    if freeze is None:
        freeze = [] if cell.pretrained is None else list(cell.pretrained.freeze)
    changes: dict[str, Any] = {
        "name": f"{cell.name}-from-{_slug(source)}" if name is None else name,
        "title": f"{cell.title}, from {_stem(source)}",
        "model": model.model_dump(),
        "init": "pretrained",
        "pretrained": {"path": source, "config": reference_config, "freeze": freeze},
        "train": cell.train.model_dump() | (train or {}),
    }
    return parse(CellConfig, cell.model_dump() | changes, "finetune")


def _stem(source: Path) -> str:
    """What weights are called: a file without its ending, or a folder."""
    path = source.resolve()
    return path.name if path.is_dir() else path.stem


def _slug(source: Path) -> str:
    """The same as a part of a cell's name."""
    return re.sub(r"[^a-z0-9._-]+", "-", _stem(source).lower()).strip("-") or "weights"
