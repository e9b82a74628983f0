"""A cell's training: its model built, given weights to begin from, trained and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vqa_bench import launch
from vqa_bench.config import CellConfig
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.models import MODELS, ByteModel, CountedClassifier, VQAModel, build
from vqa_bench.progress import Progress, silent
from vqa_bench.runs import TRAINED, load_model, save_model, write_json
from vqa_bench.train.keep import is_trained
from vqa_bench.train.loop import optimise
from vqa_bench.train.vqa import VQATask


def train(
    cell: CellConfig, shard: Shard, run: Path, *, initial: Path | None = None, report: Progress = silent
) -> VQAModel:
    """Train a cell on the shard's train split, from the last checkpoint in the run's folder if there is one.

    initial: where the weights to begin from are, for a cell with `init: pretrained`. Returns the model that was kept,
    on the CPU, in evaluation mode; its weights are in the folder.

    Raises UserError where the data does not suit the cell, and where the loss stops being finite.
    """
    if is_trained(run):
        return load_model(run)
    if cell.train is None:
        _count(cell, shard, run)
    else:

        def make_task(rank: int, world: int) -> VQATask:
            model = new_model(cell, shard)
            return VQATask(model, shard, rank=rank, world=world, facts=begin(model, initial))

        optimise(make_task, cell.train, run, seed=cell.seed, name=cell.name, report=report)
    return load_model(run)


def new_model(cell: CellConfig, shard: Shard) -> VQAModel:
    """A cell's model as it is before training, the same every time."""
    torch.manual_seed(cell.seed)
    return build(cell, MODELS[cell.model.kind].decide(cell, shard))


def begin(model: VQAModel, initial: Path | None) -> dict[str, Any]:
    """Give a model the weights to begin from and freeze what is to stay; what was taken, for the result."""
    pretrained = model.cell.pretrained
    if pretrained is None:
        return {"initial": None}
    from vqa_bench.models.initial import freeze, load_initial

    source = pretrained.path if initial is None else initial
    if source is None:
        raise UserError(f"expected the weights of the pretraining run {pretrained.run}, got none; pretrain first")
    assert isinstance(model, ByteModel), "the configuration allows `pretrained` for byte models only"
    found = load_initial(model, source, pretrained.config)
    frozen = freeze(model, pretrained.freeze)
    held = [f"{len(frozen)} tensors stayed frozen: {', '.join(pretrained.freeze)}"] if frozen else []
    notes = [*found.notes, *held]
    return {"initial": {"source": pretrained.run or str(source), "sha256": found.sha256, "notes": notes}}


def _count(cell: CellConfig, shard: Shard, run: Path) -> None:
    """A model that is counted, not trained by steps."""
    model = new_model(cell, shard)
    assert isinstance(model, CountedClassifier), "the configuration requires `train` of every other model"
    model.fit(shard.split("train"))
    if launch.is_main():
        save_model(run, model)
        write_json(run / TRAINED, {"initial": None})
    launch.barrier()
