"""Causal attention over keys and values kept in segments that several rows may share.

A prefix that is read once (an image) is one segment of b rows; what follows it (its questions, their answers) are
further segments of more rows. Queries of n rows attend to a segment of b rows by grouping n/b rows together, so shared
keys and values are neither repeated nor copied. Exact: the softmax runs over all segments at once.

Shapes: n rows, S query positions, H heads, E channels of a head, T key positions of a segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


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
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    return attended.transpose(1, 2)


def attend(q: Tensor, past: tuple[Segment, ...], own: Segment, *, dropout: float = 0.0) -> Tensor:
    """Attention of (n, S, H, E) queries to all of `past` and causally to `own` (n rows, S positions)."""
    if not past:
        # Positions past a row's length come last, so causality alone hides them from the real ones.
        return causal_attention(q, own.keys, own.values, dropout=dropout)
    n, S, _, E = q.shape
    q = q * E**-0.5
    scores = [_scores(q, segment) for segment in past]
    own_scores = _scores(q, own)
    if S > 1:
        future = torch.ones(S, S, dtype=torch.bool, device=q.device).triu(1)
        own_scores = own_scores.masked_fill(future, float("-inf"))
    scores.append(own_scores)
    segments = (*past, own)
    # One softmax over segments of different row counts: they share the maximum and the sum, (n, S, H).
    highest = torch.stack([_to_rows(s.detach().amax(-1), n, S) for s in scores]).amax(0)
    total = torch.zeros((), dtype=q.dtype, device=q.device)
    attended = torch.zeros((), dtype=q.dtype, device=q.device)
    for segment, score in zip(segments, scores, strict=True):
        weights = torch.exp(score - _to_segment(highest, segment.rows)[..., None])  # (b, H, n/b·S, T)
        total = total + _to_rows(weights.sum(-1), n, S)
        weights = F.dropout(weights, dropout, dropout > 0)
        values = segment.values.transpose(1, 2)  # (b, H, T, E)
        attended = attended + (weights @ values).transpose(1, 2).reshape(q.shape)
    return attended / total[..., None]


def _scores(q: Tensor, segment: Segment) -> Tensor:
    """(n, S, H, E) against a segment of b rows: (b, H, n/b·S, T), -inf where a key is not real."""
    b = segment.rows
    grouped = q.reshape(b, -1, *q.shape[2:]).transpose(1, 2)  # (b, H, n/b·S, E)
    scores = grouped @ segment.keys.permute(0, 2, 3, 1)
    if segment.real is not None:
        scores = scores.masked_fill(~segment.real[:, None, None], float("-inf"))
    return scores


def _to_rows(x: Tensor, n: int, S: int) -> Tensor:
    """(b, H, n/b·S) → (n, S, H)."""
    return x.transpose(1, 2).reshape(n, S, x.shape[1])


def _to_segment(x: Tensor, b: int) -> Tensor:
    """(n, S, H) → (b, H, n/b·S)."""
    return x.reshape(b, -1, x.shape[-1]).transpose(1, 2)
