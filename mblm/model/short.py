"""Causal attention of very many very short sequences on a CPU, with hand-written gradients.

The local stage has one sequence a patch: thousands of a handful of positions. There PyTorch's blockwise kernel spends
its time on starting blocks and on clearing gradients; one batched product a head works on the projection where it lies.
All sequences may follow one shared position (a start), whose keys and values are neither repeated nor copied.

Shapes: n sequences, S positions, H heads, E channels of a head; e is 1 with a shared position before them, else 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LONGEST = 32  # positions; beyond, arrays of weights grow large and blocks are worth starting
MANY = 512  # sequences


class _AttendShort(Function):
    """See `attend_short`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, key: Tensor | None, value: Tensor | None) -> Tensor:
        n, S, H, E = q.shape
        e = 0 if key is None else 1
        future = torch.zeros(S, S, dtype=q.dtype, device=q.device)
        future.masked_fill_(torch.ones_like(future, dtype=torch.bool).triu(1), float("-inf"))
        weights = q.new_empty(H, n, S, e + S)
        out = q.new_empty(n, S, H, E)
        for h in range(H):
            scores = torch.baddbmm(future, q[:, :, h], k[:, :, h].transpose(1, 2), alpha=E**-0.5)
            if key is not None:
                scores = torch.cat(((q[:, :, h] @ (key[h] * E**-0.5))[..., None], scores), dim=-1)
            torch.softmax(scores, dim=-1, out=weights[h])
            attended = torch.bmm(weights[h, ..., e:], v[:, :, h])
            out[:, :, h] = attended if value is None else attended.addcmul_(weights[h, ..., :1], value[h])
        ctx.save_for_backward(q, k, v, key, value, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, key, value, weights = ctx.saved_tensors
        n, S, H, E = q.shape
        e = 0 if key is None else 1
        grads = q.new_empty(n, S, 3, H, E)  # side by side, as the projection that all three come from
        grad_key, grad_value = (None, None) if key is None else (torch.empty_like(key), torch.empty_like(value))
        for h in range(H):
            out, weight = grad[:, :, h], weights[h]
            pull = torch.bmm(out, v[:, :, h].transpose(1, 2))  # gradient of the weights
            if value is not None:
                pull = torch.cat(((out @ value[h])[..., None], pull), dim=-1)
            scores = weight * pull
            scores.addcmul_(weight, scores.sum(-1, keepdim=True), value=-1).mul_(E**-0.5)
            grad_q = torch.bmm(scores[..., e:], k[:, :, h])
            grads[:, :, 0, h] = grad_q if key is None else grad_q.addcmul_(scores[..., :1], key[h])
            grads[:, :, 1, h] = torch.bmm(scores[..., e:].transpose(1, 2), q[:, :, h])
            grads[:, :, 2, h] = torch.bmm(weight[..., e:].transpose(1, 2), out)
            if grad_key is not None and grad_value is not None:
                grad_key[h] = torch.einsum("ns,nse->e", scores[..., 0], q[:, :, h])
                grad_value[h] = torch.einsum("ns,nse->e", weight[..., 0], out)
        return (*grads.unbind(2), grad_key, grad_value)


def is_short(q: Tensor, dropout: float) -> bool:
    """Whether `attend_short` is the quicker way, and exact in this type; a compiler has ways of its own."""
    if torch.compiler.is_compiling():
        return False
    fits = len(q) >= MANY and q.shape[1] <= LONGEST and dropout == 0
    return fits and q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64)


def attend_short(q: Tensor, k: Tensor, v: Tensor, key: Tensor | None = None, value: Tensor | None = None) -> Tensor:
    """Causal attention at scale E^-1/2, (n, S, H, E) each; all look at the shared `key` and `value` (H, E) too."""
    out: Tensor = _AttendShort.apply(q, k, v, key, value)
    return out
