"""The elementwise parts of a layer with hand-written gradients: fewer passes over memory, same numbers.

On a CPU a narrow layer spends more time on elementwise passes than on matrix products, so the token shift and the
normalisation share theirs, the rotation works in place, and a convolution is as many passes as it has taps.
Every function here is tested against its plain form.

Shapes: n rows, S positions, D width, H heads, E channels of a head, C channels and K taps of a convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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


def _unit_backward(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Gradient of y = x · scale(x); where the floor holds, the scale is a constant."""
    along = (grad * y).mean(-1, keepdim=True)
    along.masked_fill_(scale >= 1 / FLOOR, 0)
    return torch.addcmul(grad, y, along, value=-1).mul_(scale)


def shift_norm(x: Tensor, before: Tensor | None = None) -> Tensor:
    """Token shift, then RMSNorm without its gain, (n, S, D) → (n, S, D).

    The shift delays the second half of the channels by one position; `before` (n, D) stands before the first.
    """
    if x.shape[1] == 1 and before is not None:
        half = shift_from(x.shape[-1])
        return unit_norm(torch.cat((x[..., :half], before[:, None, half:]), dim=-1))
    y: Tensor = _ShiftNorm.apply(x, before)
    return y


def unit_norm(x: Tensor, eps: float | None = None) -> Tensor:
    """RMSNorm without its gain: the transformer's with a floor, or Mamba's with `eps` inside the root."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return x * unit_scale(x, eps)
    y: Tensor = _UnitNorm.apply(x, eps)
    return y


def gained_linear(x: Tensor, gain: Tensor, weights: list[Tensor], bias: Tensor | None = None) -> Tensor:
    """The linear map of x·gain by the weights (D_out, D) stacked, in the cheaper order: (…, D) → (…, ΣD_out).

    With many positions the gain goes into the weights: a pass over a matrix instead of one over every position.
    """
    if x.numel() // x.shape[-1] >= sum(len(weight) for weight in weights):
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        return F.linear(x, weight * gain, bias)
    x = x * gain
    outputs = [F.linear(x, weight, bias) for weight in weights]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


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
    if not (torch.is_grad_enabled() and qkv.requires_grad):
        _turn_(qkv, cos, sin, heads)
        return qkv
    y: Tensor = _Rotate.apply(qkv, cos, sin, heads)
    return y


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
