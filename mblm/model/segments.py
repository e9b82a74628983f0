"""One softmax over keys and values that lie in segments of different row counts, with hand-written gradients.

A segment: keys and values (b, T, H, E), where b divides n and each key row serves n/b neighbouring query rows. Shared
keys are neither repeated nor copied, and their gradients come summed.

Shapes: n rows, S query positions, H heads, E channels of a head, b rows and T positions of a segment.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


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


def attend_with_dropout(q: Tensor, segments: list[tuple[Tensor, Tensor, Tensor | None]], dropout: float) -> Tensor:
    """`attend_segments` with dropout on the attention weights, in plain operations: keys repeated for every row."""
    n, E = q.shape[0], q.shape[-1]
    scores, values = [], []
    for keys, segment_values, mask in segments:
        group = n // len(keys)
        score = torch.einsum("nshe,nthe->nhst", q, keys.repeat_interleave(group, 0)) * E**-0.5
        if mask is not None:
            if mask.ndim == 4:
                mask = mask.repeat_interleave(group, 0)
            score = score.masked_fill(mask, float("-inf"))
        scores.append(score)
        values.append(segment_values.repeat_interleave(group, 0))
    weights = F.dropout(torch.cat(scores, dim=-1).softmax(-1), dropout)
    return torch.einsum("nhst,nthe->nshe", weights, torch.cat(values, dim=1))


def _grouped(x: Tensor, b: int) -> Tensor:
    """(n, S, H, E) → (b, H, n/b·S, E)."""
    return x.reshape(b, -1, *x.shape[2:]).transpose(1, 2)


def _to_rows(x: Tensor, n: int, S: int) -> Tensor:
    """(b, H, n/b·S) → (n, S, H)."""
    return x.transpose(1, 2).reshape(n, S, x.shape[1])


def _to_segment(x: Tensor, b: int) -> Tensor:
    """(n, S, H) → (b, H, n/b·S)."""
    return x.reshape(b, -1, x.shape[-1]).transpose(1, 2)
