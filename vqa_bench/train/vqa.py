"""Training on questions about images: a cell's model on its shard's train split, judged on the dev split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqa_bench.data.loading import Group, TrainPlan, batches, evaluation_groups
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.data.vocab import PAD
from vqa_bench.errors import UserError
from vqa_bench.models import Batch, ByteBatch, VQAModel
from vqa_bench.runs import save_model
from vqa_bench.scoring.score import score
from vqa_bench.train.task import Amount


class VQATask:
    """One process's share of a cell's training; see `train.task.Task`.

    Raises UserError where the shard has too few images, or no dev split though the cell is to be judged on it.
    """

    unit = "questions"

    def __init__(
        self, model: VQAModel, shard: Shard, *, rank: int = 0, world: int = 1, facts: dict[str, Any] | None = None
    ) -> None:
        self.model, self.shard, self.rank, self.world = model, shard, rank, world
        self.facts = facts or {}
        cell = self.cell = model.cell
        assert cell.train is not None, "the configuration requires `train` of every model that is trained"
        self.plan = TrainPlan(
            shard.split("train"),
            cell.seed,
            cell.train.images_per_batch,
            cell.train.questions_per_image,
            rank=rank,
            world=world,
        )
        self.batches_per_epoch = float(self.plan.steps_per_epoch)
        if cell.train.dev is not None and "dev" not in shard.manifest.splits:
            raise UserError(
                f"expected a dev split in {shard.path} for train.dev, got {', '.join(shard.manifest.splits)}; set "
                "data.dev_fraction above 0, or leave train.dev out"
            )

    def batches(self, numbers: range, *, workers: int, pin: bool) -> Iterator[Batch]:
        return batches(self.plan.groups, partial(self._collate, self.plan.split), numbers, workers=workers, pin=pin)

    @property
    def _collate(self) -> Any:
        model = self.model
        assert isinstance(model, VQAModel)
        return model.collate

    def amount(self, batch: Batch) -> Amount:
        """Questions, and the ids that are read of images and questions, padding between parts included."""
        read = batch.prefix.numel() + int((batch.suffixes != PAD).sum()) if isinstance(batch, ByteBatch) else 0
        return Amount(int(batch.present.sum()), read)

    def name(self, number: int) -> str:
        names = self.plan.split.images.column("image_filename")
        return "images " + ", ".join(names[group.image].as_py() for group in self.plan.groups(number))

    @cached_property
    def _dev(self) -> SplitReader:
        """One reader for all evaluations: what a model keeps of a split, words and pictures, it keeps by its reader."""
        return self.shard.split("dev")

    @cached_property
    def _dev_groups(self) -> list[Group]:
        assert self.cell.train is not None
        assert self.cell.train.dev is not None, "the loop asks for dev where it is configured"
        return evaluation_groups(self._dev)[: self.cell.train.dev.samples]

    def develop(self, model: nn.Module, device: torch.device) -> dict[str, tuple[float, float]]:
        """`loss` of the weighted targets in nats, `accuracy` of the likeliest candidate."""
        assert isinstance(model, VQAModel)
        size, groups = self.cell.evaluate.images_per_batch, self._dev_groups
        parts = [groups[first : first + size] for first in range(0, len(groups), size)][self.rank :: self.world]
        loss = targets = right = asked = 0.0
        for made in batches(parts.__getitem__, partial(model.collate, self._dev), range(len(parts))):
            batch = made.to(device)
            with torch.inference_mode():
                sums = model(batch)
                answers = score(model, batch).log_probs.argmax(-1).view_as(batch.targets)
            loss, targets = loss + float(sums.total), targets + float(sums.targets)
            right += int((answers == batch.targets)[batch.present].sum())
            asked += int(batch.present.sum())
        return {"loss": (loss, targets), "accuracy": (right, asked)}

    def save(self, folder: Path, model: nn.Module) -> None:
        assert isinstance(model, VQAModel)
        save_model(folder, model)
