"""The elementwise parts of a layer with hand-written gradients: fewer passes over memory, same numbers.

On a CPU a narrow layer spends more time on elementwise passes than on matrix products, so the token shift and the
normalisation share theirs, the rotation is one pass in place, and a convolution is as many passes as it has taps.
Every function here is tested against its plain form.

Shapes: n rows, S positions, D width, H heads, E channels of a head, C channels and K taps of a convolution.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

FLOOR = 1e-8  # of the root mean square, as checkpoints expect
FEW = 2**17  # elements below which the number of operations costs more than their passes over memory


class _ShiftNorm(Function):
    """Shift, then x / max(rms(x), floor); see `shift_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor | None) -> Tensor:
        half = shift_from(x.shape[-1])
        early, late = x[..., :half], x[..., half:]
        # The shifted vector is never written out: its length follows from those of its halves.
        square = torch.linalg.vector_norm(early, dim=-1, keepdim=True).square_()
        late_square = torch.linalg.vector_norm(late, dim=-1, keepdim=True).square_()
        square[:, 1:] += late_square[:, :-1]
        if before is not None:
            square[:, 0] += torch.linalg.vector_norm(before[:, half:], dim=-1, keepdim=True).square_()
        scale = square.sqrt_().mul_(x.shape[-1] ** -0.5).clamp_(min=FLOOR).reciprocal_()
        y = torch.empty_like(x)
        torch.mul(early, scale, out=y[..., :half])
        torch.mul(late[:, :-1], scale[:, 1:], out=y[:, 1:, half:])
        y[:, 0, half:] = 0 if before is None else before[:, half:] * scale[:, 0]
        ctx.save_for_backward(y, scale)
        ctx.has_before = before is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        y, scale = ctx.saved_tensors
        half = shift_from(grad.shape[-1])
        along = _along(grad, y, scale)
        out = torch.empty_like(grad)
        early, late = out[..., :half], out[:, :-1, half:]
        torch.addcmul(grad[..., :half], y[..., :half], along, value=-1, out=early).mul_(scale)
        torch.addcmul(grad[:, 1:, half:], y[:, 1:, half:], along[:, 1:], value=-1, out=late).mul_(scale[:, 1:])
        out[:, -1, half:] = 0
        before = None
        if ctx.has_before:
            before = torch.zeros_like(out[:, 0])
            first = torch.addcmul(grad[:, 0, half:], y[:, 0, half:], along[:, 0], value=-1)
            before[:, half:] = first * scale[:, 0]
        return out, before


class _UnitNorm(Function):
    """x · unit_scale(x, eps) alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float | None) -> Tensor:
        scale = unit_scale(x, eps)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _unit_backward(grad, *ctx.saved_tensors), None


def shift_from(dim: int) -> int:
    """The first of the channels that the token shift delays."""
    return (dim + 1) // 2


def unit_scale(x: Tensor, eps: float | None = None) -> Tensor:
    """1 / max(rms, floor) over the last axis, (…, 1), or 1 / sqrt(rms² + eps)."""
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    if eps is not None:
        return rms.square_().add_(eps).rsqrt_()
    return rms.clamp_(min=FLOOR).reciprocal_()


def _along(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """What the gradient has of y = x · scale(x) itself; nothing where the floor holds and the scale is a constant."""
    if grad.device.type == "cpu":  # there a product of vectors is one pass, where multiplying and summing are two
        product = (grad.unsqueeze(-2) @ y.unsqueeze(-1)).squeeze(-1)
    else:
        product = (grad * y).sum(-1, keepdim=True)
    return product.div_(y.shape[-1]).masked_fill_(scale >= 1 / FLOOR, 0)


def _unit_backward(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Gradient of y = x · scale(x)."""
    return torch.addcmul(grad, y, _along(grad, y, scale), value=-1).mul_(scale)


def shift_norm(x: Tensor, before: Tensor | None = None) -> Tensor:
    """Token shift, then RMSNorm without its gain, (n, S, D) → (n, S, D).

    The shift delays the second half of the channels by one position; `before` (n, D) stands before the first.
    """
    if x.numel() < FEW or torch.compiler.is_compiling():  # fewer operations, or what a compiler fuses itself
        return unit_norm(_shifted(x, before))
    y: Tensor = _ShiftNorm.apply(x, before)
    return y


def shift_gained_norm(x: Tensor, before: Tensor | None, gain: Tensor) -> Tensor:
    """`shift_norm` times a gain (D,), for a few positions: without gradients one kernel for norm and gain on a GPU.

    There the floor is FLOOR² under the root, which is another number only where the root mean square is about FLOOR.
    """
    if torch.is_grad_enabled() or x.dtype != gain.dtype:
        return shift_norm(x, before) * gain
    return F.rms_norm(_shifted(x, before), gain.shape, gain, FLOOR**2)


def _shifted(x: Tensor, before: Tensor | None) -> Tensor:
    half = shift_from(x.shape[-1])
    ahead = x.new_zeros(len(x), 1, x.shape[-1] - half) if before is None else before[:, None, half:]
    late = ahead if x.shape[1] == 1 else torch.cat((ahead, x[:, :-1, half:]), dim=1)
    return torch.cat((x[..., :half], late), dim=-1)


def unit_norm(x: Tensor, eps: float | None = None) -> Tensor:
    """RMSNorm without its gain: the transformer's with a floor, or Mamba's with `eps` inside the root."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x * unit_scale(x, eps)
    y: Tensor = _UnitNorm.apply(x, eps)
    return y


def gained_linear(x: Tensor, gain: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear map of x·gain, in the cheaper order: (…, D) → (…, D_out).

    With many positions the gain goes into the weight: a pass over a matrix instead of one over every position.
    """
    if x.numel() // x.shape[-1] >= len(weight):
        return F.linear(x, weight * gain, bias)
    return F.linear(x * gain, weight, bias)


def added_linear(x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
    """x + linear(y), (n, S, D) each but y's width: the product is summed up where x was copied to."""
    if torch.is_autocast_enabled(x.device.type) or x.dtype != y.dtype:  # x stays in its own, wider type
        return x + cast(Tensor, linear(y))
    out = torch.addmm(x.flatten(0, 1), y.flatten(0, 1), linear.weight.T).view(x.shape)
    return out if linear.bias is None else out.add_(linear.bias)


class _RotaryHeads(Function):
    """One projection to queries, keys and values with rotary positions; see `rotary_heads`."""

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
    """Turn the pairs of channels of q and k in place: as complex numbers where there are such, one pass."""
    pairs = qkv.unflatten(-1, (3, heads, -1, 2))[:, :, :2]  # (n, S, 2, H, E/2, 2)
    if qkv.dtype == turns.dtype:
        torch.view_as_complex(pairs).mul_(torch.view_as_complex(turns))
        return
    (cos, sin), (even, odd) = turns.unbind(-1), pairs.unbind(-1)
    turned = even * sin
    even.mul_(cos).sub_(odd * sin)
    odd.mul_(cos).add_(turned)


def turn(pairs: Tensor, turns: Tensor) -> Tensor:
    """The rotation of `rotary_heads` on queries or keys alone, out of place.

    pairs (n, S, H, E/2, 2) and turns (…, S, 1, E/2, 2) → (n, S, H, E).
    """
    (cos, sin), (even, odd) = turns.unbind(-1), pairs.unbind(-1)
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(pairs.dtype)


def turn_both(q: Tensor, k: Tensor, turns: Tensor) -> tuple[Tensor, Tensor]:
    """`turn` of queries and keys whose pairs are channels j and j + E/2, (n, S, H, E) each: few operations for both."""
    pairs = torch.stack([x.unflatten(-1, (2, -1)).transpose(-1, -2) for x in (q, k)], dim=2)  # (n, S, 2, H, E/2, 2)
    if torch.compiler.is_compiling():  # a compiler fuses the plain form, and knows no complex numbers
        turned = turn(pairs, turns)
    else:
        product = torch.view_as_complex(pairs.to(turns.dtype)) * torch.view_as_complex(turns)
        turned = torch.view_as_real(product).flatten(-2).to(q.dtype)
    first, second = turned.unbind(2)
    return first, second


def rotary_heads(x: Tensor, weight: Tensor, turns: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (n, S, H, E) of (n, S, D) by a weight (3·H·E, D), the first two rotated.

    turns: cosine and sine for each pair of neighbouring channels, (S, 1, 1, E/2, 2), or (n, S, 1, 1, E/2, 2) where rows
    stand at positions of their own; None for no positions.
    """
    if torch.compiler.is_compiling():  # a compiler fuses the plain form
        q, k, v = F.linear(x, weight).unflatten(-1, (3, heads, -1)).unbind(2)
        if turns is not None:
            q, k = (turn(part.unflatten(-1, (-1, 2)), turns[..., 0, :, :]) for part in (q, k))
        return q, k, v
    q, k, v = _RotaryHeads.apply(x, weight, turns, heads)
    return q, k, v


class _CausalConv(Function):
    """Depthwise causal convolution and SiLU in one; see `causal_conv`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, lead: int) -> Tensor:
        y = torch.addcmul(bias, x[:, lead:], weight[:, -1])
        for lag in range(1, weight.shape[1]):
            late, early = _lagged(x, y, lag, lead)
            late.addcmul_(early, weight[:, -1 - lag])
        ctx.save_for_backward(x, weight, y)
        ctx.lead = lead
        return F.silu(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, y = ctx.saved_tensors
        lead = ctx.lead
        grad_y = torch.ops.aten.silu_backward(grad, y)
        grad_x = F.pad(grad_y * weight[:, -1], (0, 0, lead, 0))
        grad_weight = torch.empty_like(weight)
        grad_weight[:, -1] = (grad_y * x[:, lead:]).sum((0, 1))
        for lag in range(1, weight.shape[1]):
            late, early = _lagged(grad_x, grad_y, lag, lead)
            early.addcmul_(late, weight[:, -1 - lag])
            grad_weight[:, -1 - lag] = (late * _lagged(x, grad_y, lag, lead)[1]).sum((0, 1))
        return grad_x, grad_weight, grad_y.sum((0, 1)), None


def _lagged(x: Tensor, y: Tensor, lag: int, lead: int) -> tuple[Tensor, Tensor]:
    """The positions of y (n, S, C) that see one of x (n, lead + S, C) `lag` before them, and those of x they see."""
    return y[:, max(0, lag - lead) :], x[:, max(0, lead - lag) : max(0, x.shape[1] - lag)]


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor, lead: int = 0) -> Tensor:
    """SiLU of the depthwise convolution of (n, lead + S, C) with (C, K): the S outputs (n, S, C) after the lead.

    Position t sees x at t-K+1 … t, zeros before the first.
    """
    y: Tensor = _CausalConv.apply(x, weight, bias, lead)
    return y


class _GatedNorm(Function):
    """RMSNorm of y·silu(z) without its gain; see `gated_norm`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, eps: float) -> Tensor:
        open_ = gate.sigmoid()
        normed = (gate * open_).mul_(y)
        scale = unit_scale(normed, eps)
        normed *= scale
        ctx.save_for_backward(y, gate, open_, normed, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        y, gate, open_, normed, scale = ctx.saved_tensors
        grad = _unit_backward(grad, normed, scale)
        grad_y = (grad * gate).mul_(open_)
        slope = (1 - open_).mul_(gate).add_(1).mul_(open_)  # of silu
        return grad_y, slope.mul_(grad).mul_(y), None


def gated_norm(y: Tensor, gate: Tensor, eps: float) -> Tensor:
    """y·silu(gate), divided by its root mean square over the last axis (eps inside the root)."""
    normed: Tensor = _GatedNorm.apply(y, gate, eps)
    return normed
