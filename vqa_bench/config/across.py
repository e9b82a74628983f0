"""What the cells and pretraining runs of a file must have in common, or must not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from vqa_bench.config.cell import CellConfig, PretrainConfig
from vqa_bench.config.model import CustomStageConfig, HierarchyConfig, StageConfig

PRETRAIN_FOLDER = "pretrain"
"""The folder of the pretraining runs among the results, beside those of the cells."""

# What a stage may have otherwise than the weights it begins from.
_FREE = ("dropout", "kernel")


def faults_of_names(cells: Sequence[CellConfig], pretrain: Sequence[PretrainConfig]) -> Iterator[str]:
    """Names given twice, or to a cell whose folder would be that of the pretraining runs."""
    for place, names in (("cells", [cell.name for cell in cells]), ("pretrain", [run.name for run in pretrain])):
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            yield f"{place}: expected every one to have its own name, got {', '.join(repeated)} more than once"
    if any(cell.name == PRETRAIN_FOLDER for cell in cells):
        yield f"cells: expected a name other than {PRETRAIN_FOLDER!r}, the folder of the pretraining runs"


def faults_of_content(cells: Sequence[CellConfig], pretrain: Sequence[PretrainConfig]) -> Iterator[str]:
    """Cells, or pretraining runs, that would give the same weights: one of the two is not what its author meant."""
    for place, entries in (("cells", cells), ("pretrain", pretrain)):
        first: dict[str, str] = {}
        for entry in entries:
            name = first.setdefault(_content(entry), entry.name)
            if name != entry.name:
                yield f"{place}: expected every one to differ in its content, got the same in {name} and {entry.name}"


def faults_of_initial_weights(cells: Sequence[CellConfig], pretrain: Sequence[PretrainConfig]) -> Iterator[str]:
    """Cells that begin from a run of the file which there is not, or whose weights do not fit them."""
    runs = {run.name: run for run in pretrain}
    for cell in cells:
        name = None if cell.pretrained is None else cell.pretrained.run
        if name is None:
            continue
        if name not in runs:
            expected = f"one of the pretraining runs {', '.join(runs)}" if runs else "a run under `pretrain`"
            yield f"cell {cell.name}: pretrained.run: expected {expected}, got {name!r}"
            continue
        for key, (wanted, got) in _differences(runs[name].model, cell.model).items():
            yield f"cell {cell.name}: model.{key}: expected {wanted} as in the run {name}, got {got}"


def _content(entry: CellConfig | PretrainConfig) -> str:
    """What the results of a cell or run depend on, but its name."""
    content = entry.outcome()
    del content["name"]
    beside = {"data"} if isinstance(entry, PretrainConfig) else {"pretrained"}
    return json.dumps([content, entry.model_dump(mode="json", include=beside)], sort_keys=True)


def _differences(run: Any, cell: Any) -> dict[str, tuple[Any, Any]]:
    """The settings in which a cell's model has other weights than the run's: key → of the run, of the cell."""
    wanted, got = _shape(run), _shape(cell)
    if wanted.keys() != got.keys():
        return {"stages": (f"{len(run.stages)} of them", len(cell.stages))}
    return {key: (wanted[key], got[key]) for key in wanted if wanted[key] != got[key]}


def _shape(model: HierarchyConfig) -> dict[str, Any]:
    """What the shapes of the weights depend on; not the first stage's length, which may be another."""
    shape = {
        "kind": getattr(model, "kind", None),
        "hidden_dims": model.hidden_dims,
        "seq_lens[1:]": model.seq_lens[1:],
        "num_layers": model.num_layers,
    }
    return shape | {f"stages.{at}": _stage(stage) for at, stage in enumerate(model.stages)}


def _stage(stage: StageConfig) -> dict[str, Any]:
    """Of a plugin's block nothing but its type is known here."""
    if isinstance(stage, CustomStageConfig):
        return {"kind": stage.kind, "block_type": stage.block.get("block_type")}
    return stage.model_dump(exclude=set(_FREE))
