"""Causal attention over keys and values kept in segments that several rows may share.

A prefix that is read once (an image) is one segment of b rows; what follows it (its questions, their answers) are
further segments of more rows. Queries of n rows attend to a segment of b rows by grouping n/b rows together, so shared
keys and values are neither repeated nor copied. Exact: the softmax runs over all segments at once.

Shapes: n rows, S query positions, H heads, E channels of a head, T key positions of a segment.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mblm.model.segments import attend_segments, attend_with_dropout
from mblm.model.short import attend_short, is_short

# Up to so many weights a query, one plain array of them is quicker on a CPU than a pass over each segment; and than
# PyTorch's blockwise kernel where float32 products run in bfloat16 (`set_float32_matmul_precision("medium")`), which
# makes that kernel take 50 times longer.
SHORT = 512
# Positions that a growing segment has room for at the least.
MIN_ROOM = 16
# What PyTorch's CUDA kernels take in one call: rows, an axis of a grid (pytorch issues 142228 and 146704), and numbers
# that flash attention's backward can tell apart, which counts queries in blocks of 128 and channels as 32 at least
# (found in PriorLabs/TabPFN, pull request 1184).
MOST_ROWS, MOST_NUMBERS = 2**16 - 1, 2**31 - 1
QUERY_BLOCK, LEAST_CHANNELS = 128, 32
# All but cuDNN's, which PyTorch takes first on some GPUs: it plans every new shape anew, for tens of milliseconds
# (huggingface/transformers, pull request 48163), and batches of questions and growing keys have very many shapes.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Room:
    """Space behind the positions of a segment, so that one more is written and not copied with all before it.

    keys, values (b, capacity, H, E); used: positions that are taken. Only the segment that ends where the room is taken
    may grow into it; another one that continues the same past copies first, so no state ever changes.
    """

    def __init__(self, keys: Tensor, values: Tensor, more: int = 0) -> None:
        b, T, H, E = keys.shape
        self.used = T
        self.keys = torch.empty(b, T + max(T // 4, more, MIN_ROOM), H, E, dtype=keys.dtype, device=keys.device)
        self.values = torch.empty_like(self.keys)
        self.keys[:, :T], self.values[:, :T] = keys, values

    def fits(self, after: Segment, more: int) -> bool:
        """Whether `more` positions have room right behind a segment that ends here."""
        if self.keys.is_inference() and not torch.is_inference_mode_enabled():
            return False  # PyTorch allows no writing to it from here
        return after.keys.shape[1] == self.used and self.used + more <= self.keys.shape[1]

    def grow(self, keys: Tensor, values: Tensor) -> Segment:
        """Everything so far and these positions behind it."""
        start, self.used = self.used, self.used + keys.shape[1]
        self.keys[:, start : self.used], self.values[:, start : self.used] = keys, values
        return self.segment()

    def segment(self) -> Segment:
        return Segment(self.keys[:, : self.used], self.values[:, : self.used], room=self)


@dataclass(frozen=True)
class Segment:
    """Keys and values of consecutive positions: (b, T, H, E), with the real ones marked in `real` (b, T) or all."""

    keys: Tensor
    values: Tensor
    real: Tensor | None = None
    room: Room | None = None

    @property
    def rows(self) -> int:
        return self.keys.shape[0]

    def select(self, rows: Tensor) -> Segment:
        """The given rows of a segment that is not shared."""
        return Segment(self.keys[rows], self.values[rows], None if self.real is None else self.real[rows])

    def after(self, past: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """All segments with this one last, joined to the one before where both belong to the same rows."""
        if not past:
            return (self.with_room(),)
        if past[-1].rows != self.rows or past[-1].real is not None or self.real is not None:
            return (*past, self)
        last, more = past[-1], self.keys.shape[1]
        if torch.is_grad_enabled():  # what a gradient is saved of is never written to
            joined = Segment(torch.cat((last.keys, self.keys), dim=1), torch.cat((last.values, self.values), dim=1))
            return (*past[:-1], joined)
        room = last.room
        if room is None or not room.fits(last, more):
            room = Room(last.keys, last.values, more)
        return (*past[:-1], room.grow(self.keys, self.values))

    def with_room(self) -> Segment:
        """The same positions where more can be written behind them; the projection they are a part of is let go."""
        if self.real is not None or torch.is_grad_enabled():
            return self
        return Room(self.keys, self.values).segment()


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Plain causal attention, (n, S, H, E) each → (n, S, H, E), at scale E^-1/2."""
    S = q.shape[1]
    if torch.is_grad_enabled() and q.requires_grad and is_short(q, dropout):
        return attend_short(q, k, v)
    if S <= SHORT and _rounds_products(q):
        return _dense(q, k, v, _future(S, q.device), dropout)
    return fused_attention(q, k, v, dropout=dropout, causal=True)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, dropout: float = 0.0, causal: bool = False
) -> Tensor:
    """PyTorch's own attention at scale E^-1/2, as many rows a call as its kernels can take.

    q (n, S, H, E), k and v (n, T, H, E) → (n, S, H, E); mask (n, 1, 1, T): true at keys to read.
    """
    rows = rows_at_once(q)
    if rows < len(q):
        masks = (None,) * -(-len(q) // rows) if mask is None else mask.split(rows)
        parts = zip(q.split(rows), k.split(rows), v.split(rows), masks, strict=True)
        return torch.cat([fused_attention(*part, dropout=dropout, causal=causal) for part in parts])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, mask, dropout_p=dropout, is_causal=causal)
    return attended.transpose(1, 2)


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU `fused_attention` runs `KERNELS` in here; entering takes a while, so a stage does it once."""
    return sdpa_kernel(KERNELS) if device.type == "cuda" else nullcontext()


def rows_at_once(q: Tensor) -> int:
    """How many rows of (n, S, H, E) queries one call of a CUDA kernel can take; all of them elsewhere."""
    if q.device.type != "cuda":
        return len(q)
    _, S, H, E = q.shape
    numbers = -(-S // QUERY_BLOCK) * QUERY_BLOCK * H * max(E, LEAST_CHANNELS)
    return max(1, min(MOST_ROWS, MOST_NUMBERS // numbers))


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
        return fused_attention(q, joined[0].keys, joined[0].values, dropout=dropout)
    n, S = q.shape[:2]
    own_hidden = _unreal(own)
    if own_hidden is None and len(past) == 1 and past[0].keys.shape[:2] == (1, 1) and is_short(q, dropout):
        return attend_short(q, own.keys, own.values, past[0].keys[0, 0], past[0].values[0, 0])
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


def _unreal(segment: Segment) -> Tensor | None:
    """True at keys that are not real: (b, 1, 1, T)."""
    return None if segment.real is None else ~segment.real[:, None, None]
