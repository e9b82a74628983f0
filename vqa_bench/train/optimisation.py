"""AdamW's groups, the learning rate of every step, the moving average of the weights. Plain functions and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vqa_bench.config import LoopConfig


def make_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices and convolutions decay; gains, biases, start vectors, embeddings and Mamba-2's A, D and dt do not.

    The latter three are vectors, an entry a head, as gains and biases are; mamba-ssm spares them too.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in trainable(model):
        (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    """The parameters that are not frozen."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Linear warm-up over `warmup` of the steps, then half a cosine to zero; `step` counts from 0."""
    warm = max(round(config.warmup * config.steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(config.steps - warm, 1)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same for all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def scale_and_clip(model: nn.Module, factor: float, clip: float | None) -> float:
    """Multiply every gradient by `factor`, and by less where their norm would then be above `clip`; in one pass.

    Returns the norm before clipping, which may not be finite.
    """
    gradients: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    found = factor * float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    # As torch's clip_grad_norm_ has it, with its guard against a norm of zero.
    torch._foreach_mul_(gradients, factor if clip is None else factor * min(1.0, clip / (found + 1e-6)))
    return found


class MovingAverage:
    """An exponential moving average of the trained weights, one tensor for each, beside the model's own.

    In the beginning it forgets faster, min(decay, (1 + t) / (10 + t)) after t updates, so that the weights a model
    began with do not linger in it (as TensorFlow's ExponentialMovingAverage counts).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._average = [parameter.detach().clone() for parameter in trainable(model)]

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after `step` updates before this one."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, list(trainable(model)), 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average with the model's weights; a second call puts everything back, bit for bit."""
        for average, parameter in zip(self._average, trainable(model), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The averages by their parameters' names."""
        return dict(zip(self._names, self._average, strict=True))
