"""One optimiser step as training takes it: the summed loss, backward, clipping and AdamW, on whatever device.

Knows the model and how the harness optimises, neither shapes nor clocks; see `vqa_bench.train.loop`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from mblm import MBLM
from vqa_bench.train.optimisation import parameter_groups, scale_and_clip

BYTE_VALUES = 256
LEARNING_RATE, BETAS, CLIP = 1e-3, (0.9, 0.95), 1.0  # the paper's pretraining


class Batch(NamedTuple):
    """ids and loss weights, (B, L) each."""

    ids: Tensor
    weights: Tensor


def random_batch(rows: int, length: int, device: torch.device | str, *, answer: int | None = None) -> Batch:
    """Random bytes of which all have a weight, or the last `answer` of each row."""
    ids = torch.randint(BYTE_VALUES, (rows, length), device=device)
    weights = torch.ones(rows, length, device=device)
    if answer is not None:
        weights[:, :-answer] = 0
    return Batch(ids, weights)


class Training:
    """A model and its AdamW, whose state is there from the beginning, as every step but the first finds it."""

    def __init__(self, model: MBLM, *, half: bool) -> None:
        """half: run forward and backward under autocast to bfloat16, the weights staying float32."""
        self.model, self.half = model.train(), half
        self.optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=LEARNING_RATE, betas=BETAS, fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, batch: Batch) -> float:
        """Take one; the mean loss in nats of a weighted byte, before it."""
        device = batch.ids.device.type
        with torch.autocast(device, torch.bfloat16) if self.half else nullcontext():
            sums = self.model.loss_sums(*batch)
            sums.total.backward()
        targets = float(sums.targets)
        scale_and_clip(self.model, 1 / targets, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(sums.total.detach()) / targets

    def state(self) -> Iterable[Tensor]:
        """The optimiser's tensors."""
        return (value for one in self.optimizer.state.values() for value in one.values() if isinstance(value, Tensor))
