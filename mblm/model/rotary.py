"""Queries, keys and values by one projection, the first two turned by their positions: hand-written gradients.

A pair of channels is turned like a complex number. In float32 and float64 it is one: pairs are neighbouring channels,
turned in one pass in place. Half precision has no complex numbers; there the pairs of a head are channels j and
j + E/2, as checkpoints have them, so that each pass reads and writes whole lines of memory. Either order serves, if
queries and keys have the same one. Every function here is tested against its plain form.

Shapes: n rows, S positions, D width, H heads, E channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mblm.model.embedding import remade_frequencies, rotary_angles, rotary_frequencies


class Rotary(nn.Module):
    """Angles of the rotary embedding (base 10,000)."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.register_buffer("inv_freq", rotary_frequencies(head_dim))

    def _apply(self, fn: Any, recurse: bool = True) -> Rotary:
        super()._apply(fn, recurse)
        self.inv_freq = remade_frequencies(self.head_dim, self.inv_freq)
        return self

    def forward(self, positions: Tensor) -> Tensor:
        """Cosine and sine of each angle, positions.shape + (1, 1, E/2, 2), for `rotary_heads`."""
        angles = rotary_angles(positions[..., None, None, None], self.inv_freq)
        return torch.stack((angles.cos(), angles.sin()), dim=-1)


def pairs_neighbours(kind: torch.dtype) -> bool:
    """Whether pairs are neighbouring channels in numbers of this type: those that complex numbers are made of."""
    return kind in (torch.float32, torch.float64)


class _RotaryHeads(Function):
    """One projection to queries, keys and values, turned in place as complex numbers; see `rotary_heads`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turns: Tensor | None, heads: int) -> tuple[Tensor, ...]:
        qkv = F.linear(x, weight)
        if turns is not None:
            _turn_(qkv, turns, heads)
        ctx.save_for_backward(x, weight, turns)
        ctx.heads = heads
        return qkv.unflatten(-1, (3, heads, -1)).unbind(2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, turns = ctx.saved_tensors
        grad = _side_by_side(grads).flatten(2)  # (n, S, 3·H·E)
        if turns is not None:
            _turn_(grad, turns * turns.new_tensor((1, -1)), ctx.heads)
        return grad @ weight, grad.flatten(0, 1).T @ x.flatten(0, 1), None, None


def _side_by_side(grads: tuple[Tensor, ...]) -> Tensor:
    """Three gradients (n, S, H, E) as one (n, S, 3, H, E): where they lie so already (`attend_short`), as they are."""
    first, (n, S, H, E) = grads[0], grads[0].shape
    base = first._base
    if base is not None and base.shape == (n, S, 3, H, E) and base.is_contiguous():
        size = H * E * first.element_size()
        if all(grad._base is base and grad.data_ptr() == base.data_ptr() + i * size for i, grad in enumerate(grads)):
            return base
    return torch.stack(grads, dim=2)


def _turn_(qkv: Tensor, turns: Tensor, heads: int) -> None:
    """Turn the pairs of channels of q and k in place, in one pass."""
    pairs = qkv.unflatten(-1, (3, heads, -1, 2))[:, :, :2]  # (n, S, 2, H, E/2, 2)
    torch.view_as_complex(pairs).mul_(torch.view_as_complex(turns))


class _HalfRotaryHeads(Function):
    """Two projections, to queries with keys and to values, the first turned out of place; see `rotary_heads`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, turns: Tensor, heads: int) -> tuple[Tensor, ...]:
        turned = len(weight) * 2 // 3
        qk, v = F.linear(x, weight[:turned]), F.linear(x, weight[turned:])
        qk = _turned_halves(qk.unflatten(-1, (2, heads, -1)), turns)
        ctx.save_for_backward(x, weight, turns)
        return *qk.unbind(2), v.unflatten(-1, (heads, -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, turns = ctx.saved_tensors
        turned = len(weight) * 2 // 3
        q, k, v = grads
        back = q.new_empty(*q.shape[:2], 2, *q.shape[2:])  # (n, S, 2, H, E)
        for index, grad in enumerate((q, k)):
            _turn_halves(grad, turns[..., 0, :, :], sign=-1, out=back[:, :, index])
        grad_qk, grad_v, rows = back.flatten(2).flatten(0, 1), v.flatten(2).flatten(0, 1), x.flatten(0, 1)
        grad_x = torch.addmm(grad_v @ weight[turned:], grad_qk, weight[:turned]).view(x.shape)
        return grad_x, torch.cat((grad_qk.T @ rows, grad_v.T @ rows)), None, None


def _turned_halves(x: Tensor, turns: Tensor) -> Tensor:
    out = torch.empty_like(x)
    _turn_halves(x, turns, sign=1, out=out)
    return out


def _turn_halves(x: Tensor, turns: Tensor, *, sign: int, out: Tensor) -> None:
    """Turn the pairs j and j + E/2 of (…, E) by turns (…, E/2, 2), for sign -1 backwards, into `out`."""
    (cos, sin), (first, second) = turns.unbind(-1), x.chunk(2, dim=-1)
    into_first, into_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=into_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=into_second).addcmul_(first, sin, value=sign)


def turn(x: Tensor, turns: Tensor) -> Tensor:
    """The rotation of `rotary_heads` in plain operations, on queries or keys alone.

    x (n, S, H, E) and turns (…, S, 1, E/2, 2) → (n, S, H, E).
    """
    neighbours = pairs_neighbours(x.dtype)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1) if neighbours else x.chunk(2, dim=-1)
    cos, sin = turns.unbind(-1)
    turned = first * cos - second * sin, second * cos + first * sin
    return (torch.stack(turned, dim=-1).flatten(-2) if neighbours else torch.cat(turned, dim=-1)).to(x.dtype)


def turn_both(q: Tensor, k: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """`turn` of queries and keys whose pairs are channels j and j + E/2, (n, S, H, E) each: few operations for both.

    They come back in the order of `pairs_neighbours`, as from `rotary_heads`.
    """
    neighbours = pairs_neighbours(q.dtype)
    if torch.compiler.is_compiling():  # a compiler fuses the plain form, and knows no complex numbers
        if neighbours:
            q, k = (x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) for x in (q, k))
        first, second = turn(torch.stack((q, k), dim=2), turns).unbind(2)
        return first, second
    pairs = torch.stack([x.unflatten(-1, (2, -1)).transpose(-1, -2) for x in (q, k)], dim=2)  # (n, S, 2, H, E/2, 2)
    product = torch.view_as_real(torch.view_as_complex(pairs.to(turns.dtype)) * torch.view_as_complex(turns))
    if not neighbours:
        product = product.transpose(-1, -2)
    first, second = product.to(q.dtype, memory_format=torch.contiguous_format).flatten(-2).unbind(2)
    return first, second


def rotary_heads(x: Tensor, weight: Tensor, turns: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (n, S, H, E) of (n, S, D) by a weight (3·H·E, D), the first two rotated.

    turns: cosine and sine for each pair of channels, (S, 1, 1, E/2, 2), or (n, S, 1, 1, E/2, 2) where rows stand at
    positions of their own; None for no positions. Which channels are pairs, `pairs_neighbours` says for x's type.
    """
    if torch.compiler.is_compiling():  # a compiler fuses the plain form
        q, k, v = F.linear(x, weight).unflatten(-1, (3, heads, -1)).unbind(2)
        return (q, k, v) if turns is None else (*(turn(part, turns[..., 0, :, :]) for part in (q, k)), v)
    halves = turns is not None and not pairs_neighbours(x.dtype)
    q, k, v = (_HalfRotaryHeads if halves else _RotaryHeads).apply(x, weight, turns, heads)
    return q, k, v
