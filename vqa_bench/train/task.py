"""What the loop trains: a model, its batches by number, and how it is judged. Knows no accelerate, no optimiser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import nn


class Movable(Protocol):
    """A batch."""

    def to(self, device: torch.device) -> Self: ...


class Amount(NamedTuple):
    """What is in a batch: samples (questions, windows) and bytes that the model reads, 0 where it reads none."""

    samples: int
    bytes: int


class Task(Protocol):
    """Something to train, as one of `world` processes sees it.

    Batches are functions of their number, never of what came before, so that training goes on anywhere.
    """

    @property
    def model(self) -> nn.Module:
        """`model(batch)` gives `mblm.LossSums`, summed over the weighted targets of the batch."""

    @property
    def unit(self) -> str:
        """What a sample is called, such as "questions"."""

    @property
    def batches_per_epoch(self) -> float:
        """How many batches (all processes together make one) see every sample once."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is worth keeping beside the weights about how the model came to be; JSON-able."""

    def batches(self, numbers: range, *, workers: int, pin: bool) -> Iterator[Any]:
        """This process's share of the batches of the given numbers, in order, on the CPU."""

    def amount(self, batch: Any) -> Amount:
        """What is in this process's share of a batch."""

    def name(self, number: int) -> str:
        """What this process's share of a batch holds, in words for an error."""

    def develop(self, model: nn.Module, device: torch.device) -> dict[str, tuple[float, float]]:
        """This process's share of the dev split: for each metric its sum and its count; `loss` must be there."""

    def save(self, folder: Path, model: nn.Module) -> None:
        """Write `model.safetensors` and `config.json` of a whole model into a folder that exists."""
