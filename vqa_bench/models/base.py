"""What every model of the benchmark is: it makes its own batches and gives the summed loss of one.

Shapes: B images, K questions of an image (short rows filled up, `present` says where), n = B·K, A candidates, R bytes
in a patch of the first stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import nn

from mblm import LossSums
from vqa_bench.config import CellConfig
from vqa_bench.data.collate import Batch
from vqa_bench.data.loading import Group
from vqa_bench.data.shards import Shard, SplitReader


class VQAModel(nn.Module, ABC):
    """Everything that answers. `built` is what the training data decided (JSON-able), saved beside the weights."""

    blind: ClassVar[bool]

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__()
        self.cell, self.built = cell, built

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
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
