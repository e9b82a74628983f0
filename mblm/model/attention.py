"""Causal attention over keys and values kept in segments that several rows may share.

A prefix that is read once (an image) is one segment of b rows; what follows it (its questions, their answers) are
further segments of more rows. Queries of n rows attend to a segment of b rows by grouping n/b rows together, so shared
keys and values are neither repeated nor copied. Exact: the softmax runs over all segments at once.

Shapes: n rows, S query positions, H heads, E channels of a head, T key positions of a segment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

# Up to so many weights a query, one plain array of them is quicker on a CPU than a pass over each segment; and than
# PyTorch's blockwise kernel where float32 products run in bfloat16 (`set_float32_matmul_precision("medium")`), which
# makes that kernel take 50 times longer.
SHORT = 512


@dataclass(frozen=True)
class Segment:
    """Keys and values of consecutive positions: (b, T, H, E), with the real ones marked in `real` (b, T) or all."""

    keys: Tensor
    values: Tensor
    real: Tensor | None = None

    @property
    def rows(self) -> int:
        return self.keys.shape[0]

    def select(self, rows: Tensor) -> Segment:
        """The given rows of a segment that is not shared."""
        return Segment(self.keys[rows], self.values[rows], None if self.real is None else self.real[rows])

    def after(self, past: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """All segments with this one last, joined to the one before where both belong to the same rows."""
        if past and past[-1].rows == self.rows and past[-1].real is None and self.real is None:
            last = past[-1]
            joined = Segment(torch.cat((last.keys, self.keys), dim=1), torch.cat((last.values, self.values), dim=1))
            return (*past[:-1], joined)
        return (*past, self)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Plain causal attention, (n, S, H, E) each → (n, S, H, E), at scale E^-1/2."""
    S = q.shape[1]
    if S <= SHORT and _rounds_products(q):
        return _dense(q, k, v, _future(S, q.device), dropout)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    return attended.transpose(1, 2)


def attend(
    q: Tensor,
    past: tuple[Segment, ...],
    own: Segment,
    joined: tuple[Segment, ...],
    *,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of (n, S, H, E) queries to all of `past` and causally to `own` (n rows, S positions).

    `joined` is `own.after(past)`.
    """
    if not past:
        # Positions past a row's length come last, so causality alone hides them from the real ones.
        return causal_attention(q, own.keys, own.values, dropout=dropout)
    if q.shape[1] == 1 and len(joined) == 1:  # one more position, nothing shared: it looks at everything
        keys, values = joined[0].keys.transpose(1, 2), joined[0].values.transpose(1, 2)
        return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, dropout_p=dropout).transpose(1, 2)
    n, S = q.shape[:2]
    own_hidden = _unreal(own)
    if S > 1:
        future = _future(S, q.device)
        own_hidden = future if own_hidden is None else own_hidden | future
    if len(past) == 1 and past[0].real is None and past[0].keys.shape[1] + n // past[0].rows * S <= SHORT:
        return _attend_joined(q, past[0], own, own_hidden, dropout)
    segments = [*((s.keys, s.values, _unreal(s)) for s in past), (own.keys, own.values, own_hidden)]
    if dropout > 0:
        return attend_with_dropout(q, segments, dropout)
    return attend_segments(q, segments)


def _attend_joined(q: Tensor, shared: Segment, own: Segment, hidden: Tensor | None, dropout: float) -> Tensor:
    """`attend` where one dense product is cheapest: all branches of a row as one sequence, blind to each other."""
    b, T = shared.keys.shape[:2]
    (n, S), K = q.shape[:2], q.shape[0] // shared.rows
    blocks = torch.ones(b, K, S, K, S, dtype=torch.bool, device=q.device)
    same = torch.arange(K, device=q.device)
    within = torch.zeros((), dtype=torch.bool, device=q.device) if hidden is None else hidden
    blocks[:, same, :, same] = within.expand(n, 1, S, S).view(b, K, S, S).transpose(0, 1)
    mask = F.pad(blocks.view(b, 1, K * S, K * S), (T, 0), value=False)

    def joined(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat((x, y.reshape(b, K * S, *y.shape[2:])), dim=1)

    grouped = q.reshape(b, K * S, *q.shape[2:])
    attended = _dense(grouped, joined(shared.keys, own.keys), joined(shared.values, own.values), mask, dropout)
    return attended.reshape(q.shape)


def _dense(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, dropout: float) -> Tensor:
    """Attention in plain operations: (b, S, H, E) queries, (b, T, H, E) keys, `hidden` broadcasts to (b, H, S, T)."""
    queries, keys, values = (x.transpose(1, 2).contiguous() for x in (q * q.shape[-1] ** -0.5, k, v))
    bias = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, float("-inf"))
    weights = (queries @ keys.transpose(2, 3) + bias).softmax(-1)
    weights = F.dropout(weights, dropout, dropout > 0)
    return (weights @ values).transpose(1, 2)


def _rounds_products(x: Tensor) -> bool:
    """Whether products of float32 on this CPU run in bfloat16, as `set_float32_matmul_precision("medium")` allows."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return torch.get_float32_matmul_precision() == "medium"


def _future(S: int, device: torch.device) -> Tensor:
    """True where a key comes after the query: (S, S)."""
    return torch.ones(S, S, dtype=torch.bool, device=device).triu(1)


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


def _unreal(segment: Segment) -> Tensor | None:
    """True at keys that are not real: (b, 1, 1, T)."""
    return None if segment.real is None else ~segment.real[:, None, None]


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
