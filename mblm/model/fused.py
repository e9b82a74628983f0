"""The elementwise parts of a layer with hand-written gradients: fewer passes over memory, same numbers.

On a CPU a narrow layer spends more time on elementwise passes than on matrix products, and so does any layer on a GPU
whose products run in half precision. So the token shift and the normalisation share theirs, what is normalised for a
product is written in the product's type and kept in no other, and a convolution is as many passes as it has taps.
Every function here is tested against its plain form. The rotation of queries and keys is in `mblm.model.rotary`.

Shapes: n rows, S positions, D width, C channels and K taps of a convolution.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mblm.model.precision import product_type

FLOOR = 1e-8  # of the root mean square, as checkpoints expect
FEW = 2**17  # elements below which the number of operations costs more than their passes over memory


class _ShiftNorm(Function):
    """Shift, then x / max(rms(x), floor), in a type of its own; see `shift_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor | None, kind: torch.dtype) -> Tensor:
        half = shift_from(x.shape[-1])
        early, late = x[..., :half], x[..., half:]
        # The shifted vector is never written out: its length follows from those of its halves.
        square = torch.linalg.vector_norm(early, dim=-1, keepdim=True).square_()
        late_square = torch.linalg.vector_norm(late, dim=-1, keepdim=True).square_()
        square[:, 1:] += late_square[:, :-1]
        if before is not None:
            square[:, 0] += torch.linalg.vector_norm(before[:, half:], dim=-1, keepdim=True).square_()
        scale = square.sqrt_().mul_(x.shape[-1] ** -0.5).clamp_(min=FLOOR).reciprocal_()
        y = torch.empty_like(x, dtype=kind)
        torch.mul(early, scale, out=y[..., :half])
        torch.mul(late[:, :-1], scale[:, 1:], out=y[:, 1:, half:])
        y[:, 0, half:] = 0 if before is None else before[:, half:] * scale[:, 0]
        ctx.save_for_backward(y, scale)
        ctx.has_before = before is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        y, scale = ctx.saved_tensors
        half = shift_from(grad.shape[-1])
        along = _along(grad, y, scale)
        out = torch.empty_like(grad, dtype=scale.dtype)  # that of x
        early, late = out[..., :half], out[:, :-1, half:]
        torch.addcmul(grad[..., :half], y[..., :half], along, value=-1, out=early).mul_(scale)
        torch.addcmul(grad[:, 1:, half:], y[:, 1:, half:], along[:, 1:], value=-1, out=late).mul_(scale[:, 1:])
        out[:, -1, half:] = 0
        before = None
        if ctx.has_before:
            before = torch.zeros_like(out[:, 0])
            first = torch.addcmul(grad[:, 0, half:], y[:, 0, half:], along[:, 0], value=-1)
            before[:, half:] = first * scale[:, 0]
        return out, before, None


class _ShiftNormBeside(_ShiftNorm):
    """x as it is and `_ShiftNorm` of it: in backward the gradients of both become one while they are written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: Tensor | None, kind: torch.dtype) -> Any:
        return x.view_as(x), _ShiftNorm.forward(ctx, x, before, kind)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (y, scale), (beside, grad) = ctx.saved_tensors, grads
        half = shift_from(grad.shape[-1])
        along = _along(grad, y, scale).mul_(scale)
        out = torch.empty_like(beside)
        early, late = out[..., :half], out[:, :-1, half:]
        torch.addcmul(beside[..., :half], grad[..., :half], scale, out=early)
        early.addcmul_(y[..., :half], along, value=-1)
        torch.addcmul(beside[:, :-1, half:], grad[:, 1:, half:], scale[:, 1:], out=late)
        late.addcmul_(y[:, 1:, half:], along[:, 1:], value=-1)
        out[:, -1, half:] = beside[:, -1, half:]
        before = None
        if ctx.has_before:
            before = torch.zeros_like(out[:, 0])
            before[:, half:] = grad[:, 0, half:] * scale[:, 0] - y[:, 0, half:] * along[:, 0]
        return out, before, None


class _UnitNorm(Function):
    """x · unit_scale(x, eps) alone, in a type of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float | None, kind: torch.dtype) -> Tensor:
        scale = unit_scale(x, eps)
        y = _scaled(x, scale, kind)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _unit_backward(grad, *ctx.saved_tensors), None, None


def shift_from(dim: int) -> int:
    """The first of the channels that the token shift delays."""
    return (dim + 1) // 2


def unit_scale(x: Tensor, eps: float | None = None) -> Tensor:
    """1 / max(rms, floor) over the last axis, (…, 1), or 1 / sqrt(rms² + eps)."""
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
    if eps is not None:
        return rms.square_().add_(eps).rsqrt_()
    return rms.clamp_(min=FLOOR).reciprocal_()


def _scaled(x: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """x · scale, rounded to another type in the pass that makes it."""
    return x * scale if kind == x.dtype else torch.mul(x, scale, out=torch.empty_like(x, dtype=kind))


def _along(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """What the gradient has of y = x · scale(x) itself; nothing where the floor holds and the scale is a constant."""
    if grad.device.type == "cpu" and grad.dtype == scale.dtype:
        # There a product of vectors is one pass, where multiplying and summing are two.
        product = (grad.unsqueeze(-2) @ y.unsqueeze(-1)).squeeze(-1)
    else:
        # Products of bfloat16 numbers are rounded as their factors were; of float16, they might overflow.
        factor = grad.float() if grad.dtype == torch.float16 else grad
        product = (factor * y).sum(-1, keepdim=True, dtype=scale.dtype)
    return product.div_(y.shape[-1]).masked_fill_(scale >= 1 / FLOOR, 0)


def _unit_backward(grad: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Gradient of y = x · scale(x)."""
    return torch.addcmul(grad, y, _along(grad, y, scale), value=-1).mul_(scale)


def shift_norm(x: Tensor, before: Tensor | None = None) -> Tensor:
    """Token shift, then RMSNorm without its gain, for a product: (n, S, D) → (n, S, D), under autocast in its type.

    The shift delays the second half of the channels by one position; `before` (n, D) stands before the first.
    """
    if x.numel() < FEW or torch.compiler.is_compiling():  # fewer operations, or what a compiler fuses itself
        return unit_norm(_shifted(x, before))
    y: Tensor = _ShiftNorm.apply(x, before, product_type(x))
    return y


def shift_norm_beside(x: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x for what is added to it, and `shift_norm` of it: under autocast a pass less in backward than apart."""
    plain = x.numel() < FEW or torch.compiler.is_compiling() or product_type(x) == x.dtype
    if plain or not (torch.is_grad_enabled() and x.requires_grad):
        return x, shift_norm(x, before)
    same, y = _ShiftNormBeside.apply(x, before, product_type(x))
    return same, y


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


def unit_norm(x: Tensor, eps: float | None = None, *, for_product: bool = False) -> Tensor:
    """RMSNorm without its gain: the transformer's with a floor, or Mamba's with `eps` inside the root.

    for_product: many of them come in the type that autocast multiplies in, as from `shift_norm`.
    """
    narrow = for_product and x.numel() >= FEW and not torch.compiler.is_compiling()
    kind = product_type(x) if narrow else x.dtype
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _scaled(x, unit_scale(x, eps), kind)
    y: Tensor = _UnitNorm.apply(x, eps, kind)
    return y


def gained_linear(x: Tensor, gain: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The linear map of x·gain, in the cheaper order: (…, D) → (…, D_out).

    With many positions the gain goes into the weight: a pass over a matrix instead of one over every position. So it
    does where x is rounded to the product's type already and, with its gain, would be again.
    """
    rounded = x.dtype != weight.dtype and x.numel() >= FEW
    if rounded or x.numel() // x.shape[-1] >= len(weight):
        return F.linear(x, weight * gain, bias)
    return F.linear(x * gain, weight, bias)


def added_linear(x: Tensor, y: Tensor, linear: nn.Linear) -> Tensor:
    """x + linear(y), (n, S, D) each but y's width: the product is summed up where x was copied to."""
    if torch.is_autocast_enabled(x.device.type) or x.dtype != y.dtype:  # x stays in its own, wider type
        return x + cast(Tensor, linear(y))
    out = torch.addmm(x.flatten(0, 1), y.flatten(0, 1), linear.weight.T).view(x.shape)
    return out if linear.bias is None else out.add_(linear.bias)


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
        grad_x = grad_y * weight[:, -1]
        grad_x = F.pad(grad_x, (0, 0, lead, 0)) if lead else grad_x  # padding by nothing copies
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


class _HalfGatedNorm(Function):
    """`_GatedNorm` behind a gate in half precision: SiLU and its slope are one pass each, and less is kept."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gate: Tensor, eps: float) -> Tensor:
        normed = F.silu(gate).mul_(y)
        scale = unit_scale(normed, eps)
        normed *= scale
        ctx.save_for_backward(y, gate, normed, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        y, gate, normed, scale = ctx.saved_tensors
        grad = _unit_backward(grad, normed, scale)
        grad_y = torch.mul(F.silu(gate), grad, out=torch.empty_like(y))
        grad_gate = torch.empty_like(gate)
        torch.ops.aten.silu_backward.grad_input(grad * y, gate, grad_input=grad_gate)
        return grad_y, grad_gate, None


def gated_norm(y: Tensor, gate: Tensor, eps: float) -> Tensor:
    """y·silu(gate), divided by its root mean square over the last axis (eps inside the root)."""
    half = gate.dtype in (torch.bfloat16, torch.float16)
    normed: Tensor = (_HalfGatedNorm if half else _GatedNorm).apply(y, gate, eps)
    return normed
