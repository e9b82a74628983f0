"""The elementwise parts of a transformer layer with hand-written gradients: fewer passes over memory, same numbers.

On a CPU a narrow layer spends more time on elementwise passes than on matrix products, so the token shift and the
normalisation share theirs, the rotation works in place, and attention over shared segments keeps one array of weights.
Every function here is tested against its plain form.

Shapes: n rows, S positions, D width, H heads, E channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

FLOOR = 1e-8  # of the root mean square, as checkpoints expect


class _ShiftNorm(Function):
    """Shift, then x / max(rms(x), floor); see `shift_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor | None) -> Tensor:
        half = shift_from(x.shape[-1])
        y = torch.empty_like(x)
        y[..., :half] = x[..., :half]
        y[:, 1:, half:] = x[:, :-1, half:]
        y[:, 0, half:] = 0 if before is None else before[:, half:]
        scale = unit_scale(y)
        y *= scale
        ctx.save_for_backward(y, scale)
        ctx.has_before = before is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        y, scale = ctx.saved_tensors
        shifted = _unit_backward(grad, y, scale)
        half = shift_from(grad.shape[-1])
        before = None
        if ctx.has_before:
            before = torch.zeros_like(shifted[:, 0])
            before[:, half:] = shifted[:, 0, half:]
        out = torch.empty_like(shifted)
        out[..., :half] = shifted[..., :half]
        out[:, :-1, half:] = shifted[:, 1:, half:]
        out[:, -1, half:] = 0
        return out, before


class _UnitNorm(Function):
    """x / max(rms(x), floor) alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scale = unit_scale(x)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _unit_backward(grad, *ctx.saved_tensors)


def shift_from(dim: int) -> int:
    """The first of the channels that the token shift delays."""
    return (dim + 1) // 2


def unit_scale(x: Tensor) -> Tensor:
    """1 / max(rms, floor) over the last axis, (…, 1)."""
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    return rms.clamp_(min=FLOOR).reciprocal_()


def _unit_backward(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Gradient of y = x · scale(x); where the floor holds, the scale is a constant."""
    along = (grad * y).mean(-1, keepdim=True)
    along.masked_fill_(scale >= 1 / FLOOR, 0)
    return torch.addcmul(grad, y, along, value=-1).mul_(scale)


def shift_norm(x: Tensor, before: Tensor | None = None) -> Tensor:
    """Token shift, then RMSNorm without its gain, (n, S, D) → (n, S, D).

    The shift delays the second half of the channels by one position; `before` (n, D) stands before the first.
    """
    y: Tensor = _ShiftNorm.apply(x, before)
    return y


def unit_norm(x: Tensor) -> Tensor:
    """RMSNorm without its gain."""
    y: Tensor = _UnitNorm.apply(x)
    return y


class _Rotate(Function):
    """In-place rotation of the queries and keys of a fused (n, S, 3·H·E); see `rotate_`."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
        ctx.mark_dirty(qkv)
        ctx.save_for_backward(cos, sin)
        ctx.heads = heads
        _turn_(qkv, cos, sin, heads)
        return qkv

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        grad = grad.clone()
        _turn_(grad, cos, -sin, ctx.heads)
        return grad, None, None, None


def _turn_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    pairs = qkv.unflatten(-1, (3, heads, 2, -1))[:, :, :2]  # (n, S, 2, H, 2, E/2): q and k, their two halves
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    turned = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(turned)


def rotate_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> Tensor:
    """Rotary positions on the queries and keys of a fused projection (n, S, 3·H·E), half-split over a head, in place.

    cos, sin: (S, 1, 1, E/2), or (n, S, 1, 1, E/2) where rows stand at positions of their own.
    """
    y: Tensor = _Rotate.apply(qkv, cos, sin, heads)
    return y


class _Attend(Function):
    """One softmax over segments of keys and values with different row counts; see `attend_segments`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, masks: tuple[Tensor | None, ...], *kv: Tensor) -> Tensor:
        n, S, H, E = q.shape
        segments = list(zip(kv[::2], kv[1::2], strict=True))
        queries = (q * E**-0.5).contiguous()
        scores = []
        for (keys, _), mask in zip(segments, masks, strict=True):
            score = _grouped(queries, len(keys)) @ keys.permute(0, 2, 3, 1)  # (b, H, n/b·S, T)
            if mask is not None:
                score.masked_fill_(mask, float("-inf"))
            scores.append(score)
        # (n, S, H): what the segments of a row share.
        highest = torch.stack([_to_rows(score.amax(-1), n, S) for score in scores]).amax(0)
        total = torch.zeros_like(highest)
        out = torch.zeros_like(queries)
        for (_, values), score in zip(segments, scores, strict=True):
            score.sub_(_to_segment(highest, len(values))[..., None]).exp_()
            total += _to_rows(score.sum(-1), n, S)
            out += (score @ values.transpose(1, 2)).transpose(1, 2).reshape(n, S, H, E)
        out /= total[..., None]
        ctx.save_for_backward(queries, out, total, *kv, *scores)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        queries, out, total, *saved = ctx.saved_tensors
        kv, weights = saved[: len(saved) * 2 // 3], saved[len(saved) * 2 // 3 :]
        n, S, H, E = queries.shape
        scaled = grad / total[..., None]
        along = (scaled * out).sum(-1)  # (n, S, H)
        grad_queries = torch.zeros_like(queries)
        grads: list[Tensor] = []
        for keys, values, weight in zip(kv[::2], kv[1::2], weights, strict=True):
            b = len(keys)
            grouped = _grouped(scaled, b)  # (b, H, n/b·S, E)
            grad_values = weight.transpose(2, 3) @ grouped
            grad_scores = (grouped @ values.permute(0, 2, 3, 1)).sub_(_to_segment(along, b)[..., None]).mul_(weight)
            grad_queries += (grad_scores @ keys.transpose(1, 2)).transpose(1, 2).reshape(n, S, H, E)
            grad_keys = grad_scores.transpose(2, 3) @ _grouped(queries, b)
            grads += [grad_keys.transpose(1, 2), grad_values.transpose(1, 2)]
        return (grad_queries.mul_(E**-0.5), None, *grads)


def attend_segments(q: Tensor, segments: list[tuple[Tensor, Tensor, Tensor | None]]) -> Tensor:
    """Attention of (n, S, H, E) queries at scale E^-1/2 to all segments at once.

    A segment: keys and values (b, T, H, E), where b divides n and each key row serves n/b neighbouring query rows, and
    a mask, true where not to look, that broadcasts to (b, H, n/b·S, T).
    """
    kv = [tensor for keys, values, _ in segments for tensor in (keys, values)]
    y: Tensor = _Attend.apply(q, tuple(mask for _, _, mask in segments), *kv)
    return y


def _grouped(x: Tensor, b: int) -> Tensor:
    """(n, S, H, E) → (b, H, n/b·S, E)."""
    return x.reshape(b, -1, *x.shape[2:]).transpose(1, 2)


def _to_rows(x: Tensor, n: int, S: int) -> Tensor:
    """(b, H, n/b·S) → (n, S, H)."""
    return x.transpose(1, 2).reshape(n, S, x.shape[1])


def _to_segment(x: Tensor, b: int) -> Tensor:
    """(n, S, H) → (b, H, n/b·S)."""
    return x.reshape(b, -1, x.shape[-1]).transpose(1, 2)
