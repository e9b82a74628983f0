"""How well a text model compresses: its loss on every byte of a split, in bits.

The split is cut into windows one after another, each read on its own, so a window's first bytes are predicted from
little. Knows what gives a summed loss of a batch of windows, not what kind of model it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

from vqa_bench.data.books import BookSplit, evaluation_windows
from vqa_bench.data.windows import Masking, Window, collate_windows
from vqa_bench.progress import Progress, silent

MASK_SEED = 0  # of what is hidden in evaluation: the same for every model, whatever it was trained with


class TextLoss(NamedTuple):
    """Cross-entropy summed over the `bytes` that were predicted, in nats."""

    nats: float
    bytes: int

    @property
    def bits_per_byte(self) -> float | None:
        """Bits for each predicted byte; None where none was."""
        return None if self.bytes == 0 else self.nats / math.log(2) / self.bytes


@torch.no_grad()
def text_loss(
    model: nn.Module,
    split: BookSplit,
    window: int,
    *,
    batch: int,
    device: torch.device,
    mask_rate: float | None = None,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    report: Progress = silent,
) -> TextLoss:
    """This process's share of the loss on a split; all processes together read every byte once.

    A causal model predicts every byte. A masked one predicts those that are hidden from it, the same in any model.

    model: in evaluation mode, on `device`. window: bytes read together; the last window has what is left. batch:
    windows at a time. mask_rate: the model's, None for a causal one. limit: so many windows from the start of the
    split; None takes all.
    """
    places = evaluation_windows(split, window)[:limit].tolist()
    masking = None if mask_rate is None else Masking(mask_rate, MASK_SEED, "evaluation")
    mine = range(rank, len(places), world)
    nats, count = 0.0, 0
    for first in range(0, len(mine), batch):
        windows = [Window(number, split.window(*places[number])) for number in mine[first : first + batch]]
        sums = model(collate_windows(windows, masking=masking).to(device))
        nats += float(sums.total)
        count += int(sums.targets)
        report(min(first + batch, len(mine)), len(mine))
    return TextLoss(nats, count)
