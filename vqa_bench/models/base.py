"""What every model of the benchmark is: it makes its own batches and gives the summed loss of one.

Shapes: B images, K questions of an image (short rows filled up, `present` says where), n = B·K, A candidates, R bytes
in a patch of the first stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from mblm import LossSums
from vqa_bench.config import CellConfig
from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.collate import Batch
from vqa_bench.data.loading import Group
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.errors import UserError


class VQAModel(nn.Module, ABC):
    """Everything that answers. `built` is what the training data decided (JSON-able), saved beside the weights.

    blind: whether it sees no image. answers: the candidates of the data it was made for, A of them.
    """

    blind: bool

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__()
        self.cell, self.built = cell, built
        self.answers = Answers(tuple(built["answers"])) if "answers" in built else CLEVR_ANSWERS

    @classmethod
    @abstractmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        """What the data decides about the model, for `built`."""

    @property
    @abstractmethod
    def collate(self) -> Callable[[SplitReader, Sequence[Group]], Batch]:
        """Makes a batch on the CPU. It is what a worker process is sent, so weights should not hang on it."""

    @abstractmethod
    def forward(self, batch: Any) -> LossSums:
        """Loss summed over the weighted targets of a batch, and their count."""

    def check(self, shard: Shard) -> None:
        """Raises UserError if something in the shard can never become a batch."""

    @property
    def takes_any_answers(self) -> bool:
        """Whether it can be asked for other candidates than those it was trained on."""
        return False

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def answers_of(shard: Shard) -> dict[str, Any]:
    """What every model's `built` says of the candidates: nothing where they are CLEVR's."""
    return {} if shard.answers == CLEVR_ANSWERS else {"answers": list(shard.answers.names)}


def check_answers(model: VQAModel, shard: Shard, answers: Answers | None = None) -> Answers:
    """The candidates that a model is asked for on a shard: the shard's own, or those given in their place.

    Raises UserError for others than the model's own where these mean something to it by their place or letter only.
    """
    asked, given = (shard.answers, str(shard.path)) if answers is None else (answers, "a list")
    if asked != model.answers and not model.takes_any_answers:
        raise UserError(
            f"expected the {len(model.answers)} answers that {model.cell.name} was trained on, in their order, as it "
            f"knows them by {'letter' if model.cell.model.kind == 'mblm' else 'place'} only, got {given} with "
            f"{_difference(asked, model.answers)}; name its own with --answers, or train on data with these"
        )
    return asked


def _difference(asked: Answers, known: Answers) -> str:
    """The first thing in which one list of candidates is not the other."""
    unknown = [name for name in asked.names if name not in known.index]
    if unknown:
        return f"{len(asked)}, of which {unknown[0]!r} is new"
    return "the same in another order" if len(asked) == len(known) else f"{len(asked)} of them"
