"""State-space duality: the recurrence of Mamba-2 as matrix products over chunks, with hand-written gradients.

Per head, with a_t = dt_t·A, the recurrence is S_t = exp(a_t)·S_{t-1} + dt_t·x_t⊗B_t and y_t = S_t·C_t + D·x_t
(Dao and Gu, arXiv 2405.21060). Within a chunk of Q positions that is one masked product, between chunks the states are
handed on; no loop runs over positions. The gradient is written out because the plain form would keep several
arrays of (Q, Q) for every chunk and head: here they are made anew in the backward pass, span by span.
Decays are accumulated in float32 at least, whatever the input's type.

Shapes: b rows, l positions, h heads of p channels, n state size, c chunks of q positions, m = b·c.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mblm.model.precision import wide_type

CHUNK = 64
# Chunks are worked on together while their (h, q, q) weights have at most so many entries: bounds memory, not results.
SPAN = 2**24


class Inputs(NamedTuple):
    """x (b, l, h, p), dt (b, l, h) after softplus, A (h,) negative, B and C (b, l, n), D (h,); l in whole chunks."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor

    def span(self, start: int, stop: int) -> Inputs:
        """The positions from `start` to before `stop`."""
        x, dt, B, C = (t[:, start:stop] for t in _timed(self))
        return Inputs(x, dt, self.A, B, C, self.D)


class _Chunks:
    """What forward and backward both need of a span: chunked inputs and the decays inside chunks."""

    def __init__(self, inputs: Inputs, q: int) -> None:
        x, dt, A, B, C, _ = inputs
        b, length, self.h, self.p = x.shape
        self.b, self.c, self.n = b, length // q, B.shape[-1]
        m = b * self.c
        self.x = x.reshape(m, q, self.h, self.p)
        self.B, self.C = B.reshape(m, q, -1), C.reshape(m, q, -1)
        self.dt = dt.reshape(m, q, self.h)
        cumulative = (self.dt * A).cumsum(1)  # (m, q, h): the log decay from the chunk's start up to each position
        self.since_start = cumulative.exp()
        self.to_end = (cumulative[:, -1:] - cumulative).exp()
        self.whole = self.since_start[:, -1]  # (m, h)
        by_head = cumulative.transpose(1, 2).contiguous()
        future = torch.ones(q, q, dtype=torch.bool, device=x.device).triu(1)
        between = by_head[..., :, None] - by_head[..., None, :]
        self.between = between.masked_fill_(future, float("-inf")).exp_()  # (m, h, q, q): decay from column to row
        self.scores = self.C @ self.B.transpose(1, 2)  # (m, q, q), the same for every head
        self.x_heads = self.x.transpose(1, 2).contiguous()  # (m, h, q, p)
        self.dt_heads = self.dt.transpose(1, 2)  # (m, h, q)

    def by_chunk(self, x: Tensor) -> Tensor:
        """(m, …) → (b, c, …)."""
        return x.view(self.b, self.c, *x.shape[1:])

    @property
    def inflow_weights(self) -> Tensor:
        """What each position's x⊗B weighs in the state at the chunk's end: (m, q, h)."""
        return self.dt * self.to_end


def _span_forward(
    inputs: Inputs, state: Tensor | None, q: int, *, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """y (b, l, h, p), the state at every chunk's start (b, c, h, p, n), and the state behind the span.

    No states where there is one chunk, nothing before it and nothing to `keep` behind it: short sequences, of which
    there may be very many, and whose states would be larger than all else of them.
    """
    k = _Chunks(inputs, q)
    weights = k.between.mul_(k.scores[:, None]).mul_(k.dt_heads[:, :, None])
    within = weights @ k.x_heads  # (m, h, q, p)
    if state is None and k.c == 1 and not keep:
        return torch.addcmul(within.transpose(1, 2), k.x, inputs.D[:, None]).reshape(inputs.x.shape), None, None
    arriving = (k.x * k.inflow_weights[..., None]).flatten(2).transpose(1, 2) @ k.B  # (m, h·p, n)
    arriving, whole = k.by_chunk(arriving).unflatten(2, (k.h, k.p)), k.by_chunk(k.whole)
    starts = torch.empty_like(arriving)
    state = torch.zeros_like(arriving[:, 0]) if state is None else state
    for chunk in range(k.c):
        starts[:, chunk] = state
        state = torch.addcmul(arriving[:, chunk], state, whole[:, chunk, :, None, None])
    carried = (k.C @ starts.view(len(k.C), -1, k.n).transpose(1, 2)).unflatten(2, (k.h, k.p))  # (m, q, h, p)
    y = carried.mul_(k.since_start[..., None]).add_(within.transpose(1, 2)).addcmul_(k.x, inputs.D[:, None])
    return y.view(inputs.x.shape), starts, state


class _ChunkGradients(NamedTuple):
    """Of a span's chunks, added up in place: x (m, q, h, p), dt and the log decays (m, q, h), B and C (m, q, n)."""

    x: Tensor
    dt: Tensor
    cumulative: Tensor
    B: Tensor
    C: Tensor


def _between_chunks(
    k: _Chunks, starts: Tensor, gy: Tensor, grad_state: Tensor
) -> tuple[_ChunkGradients, Tensor, Tensor]:
    """What the states carry: gradients by way of them, of the chunks' whole log decay (m, h), of the state before."""
    starts_flat = starts.view(len(k.C), -1, k.n)  # (m, h·p, n)
    grad_cumulative = torch.zeros_like(k.dt)

    # y's share from the state at the chunk's start
    decayed = gy * k.since_start[..., None]
    carried = (k.C @ starts_flat.transpose(1, 2)).unflatten(2, (k.h, k.p))
    grad_cumulative += (decayed * carried).sum(-1)
    decayed = decayed.flatten(2)
    grad_C = decayed @ starts_flat
    grad_starts = k.by_chunk(decayed.transpose(1, 2) @ k.C).unflatten(2, (k.h, k.p))

    # the states handed from chunk to chunk, backwards
    whole = k.by_chunk(k.whole)
    grad_arriving = torch.empty_like(starts)
    for chunk in reversed(range(k.c)):
        grad_arriving[:, chunk] = grad_state
        grad_state = torch.addcmul(grad_starts[:, chunk], grad_state, whole[:, chunk, :, None, None])
    grad_whole = (grad_arriving * starts).sum((-1, -2)).mul_(whole).view(k.whole.shape)
    grad_arriving = grad_arriving.view(len(k.C), -1, k.n)

    # what each position adds to the state at its chunk's end
    weights = k.inflow_weights
    grad_inflow = (k.B @ grad_arriving.transpose(1, 2)).unflatten(2, (k.h, k.p))  # (m, q, h, p)
    grad_B = (k.x * weights[..., None]).flatten(2) @ grad_arriving
    grad_weights = (grad_inflow * k.x).sum(-1)
    grad_dt = grad_weights * k.to_end
    grad_whole += (grad_weights := grad_weights.mul_(weights)).sum(1)
    grad_cumulative -= grad_weights
    grad_x = grad_inflow.mul_(weights[..., None])
    return _ChunkGradients(grad_x, grad_dt, grad_cumulative, grad_B, grad_C), grad_whole, grad_state


def _span_backward(
    inputs: Inputs, starts: Tensor | None, grad_y: Tensor, grad_state: Tensor | None, q: int
) -> tuple[Inputs, Tensor | None]:
    """Gradients of the inputs and of the state before the span, from those of y and of the state behind it."""
    k = _Chunks(inputs, q)
    gy = grad_y.reshape(k.x.shape)
    if starts is None or grad_state is None:
        grad_x, grad_dt, grad_cumulative, grad_B, grad_C = (
            torch.zeros_like(tensor) for tensor in (k.x, k.dt, k.dt, k.B, k.C)
        )
    else:
        found, grad_whole, grad_state = _between_chunks(k, starts, gy, grad_state)
        grad_x, grad_dt, grad_cumulative, grad_B, grad_C = found
        grad_cumulative[:, -1] += grad_whole

    # inside the chunk
    gy_heads = gy.transpose(1, 2).contiguous()
    pull = (gy_heads @ k.x_heads.transpose(2, 3)).mul_(k.between)  # (m, h, q, q): gradient of scores·dt
    grad_scores = torch.einsum("mhij,mhj->mij", pull, k.dt_heads)
    pull.mul_(k.scores[:, None])
    within = k.between.mul_(k.scores[:, None]).mul_(k.dt_heads[:, :, None])
    grad_x += (within.transpose(2, 3) @ gy_heads).transpose(1, 2)
    column = pull.sum(2).transpose(1, 2)  # (m, q, h)
    grad_dt += column
    grad_cumulative -= column * k.dt
    grad_cumulative += (pull @ k.dt_heads[..., None]).squeeze(-1).transpose(1, 2)
    grad_C += grad_scores @ k.B
    grad_B += grad_scores.transpose(1, 2) @ k.C

    grad_D = (gy * k.x).sum((0, 1, 3))
    grad_x.addcmul_(gy, inputs.D[:, None])
    grad_decay = grad_cumulative.flip(1).cumsum(1).flip(1)  # of a_t = dt_t·A
    grad_A = (grad_decay * k.dt).sum((0, 1))
    grad_dt.addcmul_(grad_decay, inputs.A)
    timed = zip((grad_x, grad_dt, grad_B, grad_C), _timed(inputs), strict=True)
    grad_x, grad_dt, grad_B, grad_C = (grad.view(tensor.shape) for grad, tensor in timed)
    return Inputs(grad_x, grad_dt, grad_A, grad_B, grad_C, grad_D), grad_state


def _timed(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return inputs.x, inputs.dt, inputs.B, inputs.C


def _spans(inputs: Inputs, q: int) -> list[tuple[int, int]]:
    b, length, h, _ = inputs.x.shape
    size = q * max(1, SPAN // (b * h * q * q))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


class _SSD(Function):
    """See `ssd`; lengths in whole chunks, everything of one type."""

    @staticmethod
    def forward(ctx: Any, q: int, keep: bool, state: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor | None]:
        inputs = Inputs(*tensors)
        outputs, starts = [], []
        spans = _spans(inputs, q)
        for place, span in enumerate(spans, start=1):
            y, start, state = _span_forward(inputs.span(*span), state, q, keep=keep or place < len(spans))
            outputs.append(y)
            starts.append(start)
        ctx.q = q
        ctx.save_for_backward(*tensors, *starts)
        return torch.cat(outputs, dim=1), state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        inputs, starts = Inputs(*saved[:6]), saved[6:]
        grads = []
        spans = _spans(inputs, ctx.q)
        with torch.autocast(grad_y.device.type, enabled=False):  # backward may be called inside of it
            for span, start in zip(reversed(spans), reversed(starts), strict=True):
                grad, grad_state = _span_backward(inputs.span(*span), start, grad_y[:, slice(*span)], grad_state, ctx.q)
                grads.append(grad)
        grads.reverse()
        x, dt, B, C = (torch.cat(parts, dim=1) for parts in zip(*map(_timed, grads), strict=True))
        A, D = (torch.stack(parts).sum(0) for parts in zip(*((g.A, g.D) for g in grads), strict=True))
        return (None, None, grad_state if ctx.needs_input_grad[2] else None, x, dt, A, B, C, D)


@overload
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor | None = None,
    *,
    keep: Literal[True] = True,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]: ...


@overload
def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    state: Tensor | None = None,
    *,
    keep: bool,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None]: ...


def ssd(
    x: Float[Tensor, "b l h p"],
    dt: Float[Tensor, "b l h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b l n"],
    C: Float[Tensor, "b l n"],
    D: Float[Tensor, " h"],
    state: Float[Tensor, "b h p n"] | None = None,
    *,
    keep: bool = True,
    chunk: int = CHUNK,
) -> tuple[Float[Tensor, "b l h p"], Float[Tensor, "b h p n"] | None]:
    """y and the state behind the last position; `state` is the one before the first (zeros by default).

    Without `keep` the state behind need not be made, and may be None. A position with dt = 0 leaves the state as it is.
    Computed in float32, or float64 where x is; y has x's type.
    """
    length = x.shape[1]
    kind = wide_type(x.dtype)
    q = min(chunk, length)
    pad = -length % q
    tensors = [t.to(kind) for t in (x, dt, A, B, C, D)]
    if pad:
        tensors = [F.pad(t, (0, 0) * (t.ndim - 2) + (0, pad)) if t.ndim > 1 else t for t in tensors]
    with torch.autocast(x.device.type, enabled=False):
        y, after = _SSD.apply(q, keep, None if state is None else state.to(kind), *tensors)
    return y[:, :length].to(x.dtype), after


def ssd_step(
    x: Float[Tensor, "b h p"],
    dt: Float[Tensor, "b h"],
    A: Float[Tensor, " h"],
    B: Float[Tensor, "b n"],
    C: Float[Tensor, "b n"],
    D: Float[Tensor, " h"],
    state: Float[Tensor, "b h p n"],
) -> tuple[Float[Tensor, "b h p"], Float[Tensor, "b h p n"]]:
    """One position of the recurrence."""
    kind = state.dtype
    dt = dt.to(kind)
    inflow = (x.to(kind) * dt[..., None])[..., None] * B.to(kind)[:, None, None]
    state = torch.addcmul(inflow, state, (dt * A.to(kind)).exp()[..., None, None])
    y = (state @ C.to(kind)[:, None, :, None]).squeeze(-1) + D.to(kind)[:, None] * x
    return y.to(x.dtype), state
