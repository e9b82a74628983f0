"""mamba-ssm's scan on an imagined GPU: no kernel runs, but what its kernels read, write, keep and multiply is counted.

Three operations stand for its kernels: the states of all chunks, the outputs behind them, and the gradients of both.
States are made anew in the backward pass, as mamba-ssm makes them (its `ssd_combined.py`). Inside `fused_scan` a model
with the kernel `triton` runs; it knows the scan's arguments, neither models nor what is counted.

Shapes: b rows, l positions, h heads of p channels, n state size, c chunks of q positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from mblm.model import kernels

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

torch.library.define(
    "imagined::scan_states",
    "(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor? state, int q) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "imagined::scan_outputs",
    "(Tensor x, Tensor dt, Tensor decays, Tensor B, Tensor C, Tensor D, Tensor starts, int q) -> Tensor",
)
torch.library.define(
    "imagined::scan_backward",
    "(Tensor grad_y, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor D, Tensor decays, Tensor starts, "
    "Tensor? grad_after, int q) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
_ops = torch.ops.imagined


@torch.library.impl("imagined::scan_states", "Meta")
def _states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, state: Tensor | None, q: int) -> tuple[Tensor, ...]:
    """The state at every chunk's start (b, c, h, p, n), the one behind (b, h, p, n), log decays (b, h, c, q)."""
    b, length, h, p = x.shape
    c, n = -(-length // q), B.shape[-1]
    shapes = ((b, c, h, p, n), (b, h, p, n), (b, h, c, q))
    return tuple(x.new_empty(shape, dtype=torch.float32) for shape in shapes)


@torch.library.impl("imagined::scan_outputs", "Meta")
def _outputs(x: Tensor, dt: Tensor, decays: Tensor, B: Tensor, C: Tensor, D: Tensor, starts: Tensor, q: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.impl("imagined::scan_backward", "Meta")
def _backward(
    grad_y: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    decays: Tensor,
    starts: Tensor,
    grad_after: Tensor | None,
    q: int,
) -> Gradients:
    """Of x, dt, A, B, C, D and the state before the first position."""
    found = [torch.empty_like(value, memory_format=torch.contiguous_format) for value in (x, dt, A, B, C, D)]
    return (*found, torch.empty_like(starts[:, 0]))  # type: ignore[return-value]


# FLOPs by the formula of `vqa_bench.estimate.flops`, its chunks as long as these.


@register_flop_formula(_ops.scan_states)
def _states_flops(x: torch.Size, dt: Any, A: Any, B: torch.Size, state: Any, q: int, **_: Any) -> int:
    return 2 * _positions(x, q) * x[2] * x[3] * B[-1]


@register_flop_formula(_ops.scan_outputs)
def _outputs_flops(x: torch.Size, dt: Any, decays: Any, B: torch.Size, *rest: Any, **_: Any) -> int:
    q, inner, n = rest[-1], x[2] * x[3], B[-1]
    return 2 * _positions(x, q) * (q * n + q * inner + inner * n)


@register_flop_formula(_ops.scan_backward)
def _backward_flops(grad_y: torch.Size, x: Any, dt: Any, A: Any, B: torch.Size, *rest: Any, **_: Any) -> int:
    q, h, inner, n = rest[-1], grad_y[2], grad_y[2] * grad_y[3], B[-1]
    return 2 * _positions(grad_y, q) * (3 * q * n + 2 * q * inner + 4 * inner * n + 2 * q * h)


def _positions(x: torch.Size, q: int) -> int:
    """Of all rows, the last chunk filled up."""
    return x[0] * -(-x[1] // q) * q


class _Scan(Function):
    """Keeps what mamba-ssm's keeps: the output and log decays beside the inputs, no states."""

    @staticmethod
    def forward(ctx: Any, q: int, state: Tensor | None, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        x, dt, A, B, C, D = inputs
        starts, after, decays = _ops.scan_states(x, dt, A, B, state, q)
        y = _ops.scan_outputs(x, dt, decays, B, C, D, starts, q)
        ctx.q = q
        ctx.save_for_backward(*inputs, state, decays, y)
        return y, after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_after: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, D, state, _, _ = ctx.saved_tensors
        starts, _, decays = _ops.scan_states(x, dt, A, B, state, ctx.q)
        *grads, grad_state = _ops.scan_backward(grad_y, x, dt, A, B, C, D, decays, starts, grad_after, ctx.q)
        return (None, None if state is None else grad_state, *grads)


def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    *,
    D: Tensor,
    initial_states: Tensor | None,
    return_final_states: bool,
) -> tuple[Tensor, Tensor]:
    """In the place of mamba-ssm's `mamba_chunk_scan_combined`, as `mblm.model.kernels.fused_ssd` calls it."""
    assert return_final_states
    return _Scan.apply(chunk_size, initial_states, x, dt, A, B, C, D)


@contextmanager
def fused_scan() -> Iterator[None]:
    """Take mamba-ssm to be installed; for use inside `ImaginedGPU`."""
    with mock.patch.object(kernels, "_fused_scan", return_value=_scan):
        yield
