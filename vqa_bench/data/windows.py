"""Windows of text to batches of ids, and which of their bytes a masked model is to find out.

A batch is made on the CPU in narrow types, by processes that know no model; `to` widens it where the model is. Must not
know models, or how the windows were chosen.

Shapes: B windows, L ids of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from vqa_bench.data.books import WindowPlan
from vqa_bench.data.vocab import PAD

# The third word of a mask's seed, so that no mask is drawn with the numbers of another, or of an epoch's order.
_STREAMS = {"training": 1, "evaluation": 2}


class Window(NamedTuple):
    """Some bytes (length,) uint8, a view of their file, and their number among those that it is drawn from."""

    number: int
    content: np.ndarray


@dataclass(frozen=True)
class WindowBatch:
    """ids (B, L): bytes and, behind a window shorter than others, padding; int16 until moved by `to`.

    hidden (B, L): which bytes a masked model is to find out, bool; None for a causal model. padded: whether there is
    any padding.
    """

    ids: Tensor
    hidden: Tensor | None
    padded: bool

    def to(self, device: torch.device) -> Self:
        # From pinned memory the copy runs beside the computation; from other memory this changes nothing.
        beside = device.type == "cuda"
        hidden = None if self.hidden is None else self.hidden.to(device, non_blocking=beside)
        return replace(self, ids=self.ids.to(device, non_blocking=beside).long(), hidden=hidden)

    def pin_memory(self) -> Self:
        """In page-locked memory; what the loader calls where it is asked to pin."""
        hidden = None if self.hidden is None else self.hidden.pin_memory()
        return replace(self, ids=self.ids.pin_memory(), hidden=hidden)


@dataclass(frozen=True)
class Masking:
    """Which bytes of a window are hidden: each by itself, with probability `rate`.

    A function of (seed, stream, number of the window): the same on every process, in every batch and every start.
    """

    rate: float
    seed: int
    stream: Literal["training", "evaluation"]

    def hidden(self, window: Window) -> np.ndarray:
        """(length,) bool."""
        random = np.random.default_rng((self.seed, window.number, _STREAMS[self.stream]))
        return random.random(len(window.content), np.float32) < self.rate


def training_windows(plan: WindowPlan, step: int) -> list[Window]:
    """This process's windows of a step, numbered as the plan's samples: through all epochs and processes."""
    return [Window(sample, plan.split.window(plan.start(sample), plan.length)) for sample in plan.samples(step)]


def collate_windows(windows: Sequence[Window], *, masking: Masking | None) -> WindowBatch:
    """A batch of at least one window, each padded to the longest."""
    lengths = [len(window.content) for window in windows]
    shape = (len(windows), max(lengths))
    ids = np.full(shape, PAD, np.int16)
    hidden = None if masking is None else np.zeros(shape, np.bool_)
    for row, window in enumerate(windows):
        ids[row, : lengths[row]] = window.content
        if masking is not None and hidden is not None:
            hidden[row, : lengths[row]] = masking.hidden(window)
    return WindowBatch(
        ids=torch.from_numpy(ids),
        hidden=None if hidden is None else torch.from_numpy(hidden),
        padded=min(lengths) < max(lengths),
    )
