"""One optimiser step as training takes it: the summed loss, backward, clipping and AdamW, on whatever device.

Knows the model and how the harness optimises, neither shapes nor clocks; see `_Loop._update` in `vqa_bench.train.loop`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mblm import MBLM, LossSums
from vqa_bench.train.optimisation import parameter_groups, scale_and_clip

HALF = torch.bfloat16
BYTE_VALUES = 256
LEARNING_RATE = 1e-4  # at which a few steps on random bytes do no harm
BETAS, CLIP = (0.9, 0.95), 1.0  # the paper's
Loss = Callable[..., LossSums]


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

    def __init__(self, model: MBLM, *, half: bool, loss: Loss | None = None) -> None:
        """half: run the forward under autocast to bfloat16, the weights staying float32.

        loss: of the tensors of a batch; the model's `loss_sums` by default.
        """
        self.model, self.half = model.train(), half
        self.loss: Loss = model.loss_sums if loss is None else loss
        self.optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=LEARNING_RATE, betas=BETAS, fused=True)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self, batch: Sequence[Tensor]) -> float:
        """Take one; the mean loss in nats of a weighted byte, before it."""
        with torch.autocast(batch[0].device.type, HALF, enabled=self.half):
            sums = self.loss(*batch)
        # Outside, as PyTorch asks: gradients then have the types of what they are of.
        sums.total.backward()
        targets = float(sums.targets)
        scale_and_clip(self.model, 1 / targets, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(sums.total.detach()) / targets

    def state(self) -> Iterable[Tensor]:
        """The optimiser's tensors."""
        return (value for one in self.optimizer.state.values() for value in one.values() if isinstance(value, Tensor))
