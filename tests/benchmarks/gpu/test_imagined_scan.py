"""mamba-ssm's scan without mamba-ssm: what is counted of it, and that models and gradients go through it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.counts import Counts, count_step
from benchmarks.gpu.imagined import ImaginedGPU
from benchmarks.gpu.imagined_scan import fused_scan
from benchmarks.gpu.shapes import LONG_ST, ONE_S, TINY, PaperShape, build
from benchmarks.gpu.training import Training, random_batch
from mblm.model import kernels
from vqa_bench.estimate import flops
from vqa_bench.estimate.load import Reading

b, length, h, p, n = 2, 300, 4, 8, 16
CHUNKS = -(-length // kernels.CHUNK)
STATE = h * p * n
SCAN = ("scan_states", "scan_outputs", "scan_backward")


def step_counts(shape: PaperShape, kernel: kernels.Kernel, *, half: bool = True) -> Counts:
    with ImaginedGPU(), fused_scan():
        return count_step(Training(build(shape, "meta", kernel), half=half), random_batch(b, shape.context, "cpu"))


def counts_of_one_scan() -> tuple[Counts, list[torch.Tensor]]:
    with ImaginedGPU(), fused_scan(), Counts() as counts:
        half, full = {"device": "meta", "dtype": torch.bfloat16}, {"device": "meta"}
        values = torch.empty(b, length, h, p, **half), torch.empty(b, length, h, **full), torch.empty(h, **full)
        x, dt, A = (value.requires_grad_() for value in values)
        B, C, D = (
            torch.empty(b, length, n, **half).requires_grad_(),
            torch.empty(b, length, n, **half).requires_grad_(),
            torch.empty(h, **full).requires_grad_(),
        )
        y, after = kernels.fused_ssd(x, dt, A, B, C, D, None)
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert (after.shape, after.dtype) == ((b, h, p, n), torch.float32)
        counts.restart()
        del after
        counts.finish()
        kept = counts.live
        y.square().sum().backward()
        assert kept < counts.peak  # states are made anew
    return counts, [x, dt, A, B, C, D]


def test_gradients_have_their_inputs_shapes_and_types() -> None:
    _, inputs = counts_of_one_scan()
    for tensor in inputs:
        assert tensor.grad is not None
        assert (tensor.grad.shape, tensor.grad.dtype) == (tensor.shape, tensor.dtype)


def test_flops_are_those_of_the_formula_with_longer_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(ONE_S, hidden_dims=(16,), num_layers=(1,), seq_lens=(length,), widths=TINY)
    counts = step_counts(shape, "triton")
    monkeypatch.setattr(flops, "CHUNK", kernels.CHUNK)
    inner = 2 * 16
    expected = flops._ssd(Reading(b, length), inner, TINY.d_state, inner // TINY.ssm_head).step()
    calls = {work.name: number for work, number in counts.calls.items() if work.name in SCAN}
    assert calls == {"scan_states": 2, "scan_outputs": 1, "scan_backward": 1}  # states once more in backward
    assert sum(work.flops * number for work, number in counts.calls.items() if work.name in SCAN) == expected


def test_bytes_are_inputs_outputs_and_states_once() -> None:
    counts, _ = counts_of_one_scan()
    backward = next(work for work in counts.calls if work.name == "scan_backward")
    x, dt, A, B, D, states, decays = (
        *(2 * b * length * h * p, 4 * b * length * h, 4 * h, 2 * b * length * n, 4 * h),
        *(4 * b * CHUNKS * STATE, 4 * b * h * CHUNKS * kernels.CHUNK),
    )
    assert backward.read == 2 * x + dt + A + 2 * B + D + states + decays + 4 * b * STATE  # and of the state behind
    assert backward.written == x + dt + A + 2 * B + D + 4 * b * STATE
    again = next(work for work in counts.calls if work.name == "scan_states")
    assert again.read == x + dt + A + B
    assert again.written == states + 4 * b * STATE + decays


def test_a_model_runs_by_it_also_in_pieces_that_are_recomputed() -> None:
    shape = replace(
        LONG_ST, hidden_dims=(16,) * 2, num_layers=(1, 1), seq_lens=(80, 2), checkpoint_chunks=(2,), widths=TINY
    )
    fused, plain = (step_counts(shape, kernel) for kernel in ("triton", "torch"))
    assert {work.name for work in fused.calls} >= set(SCAN)
    assert not {work.name for work in plain.calls} & set(SCAN)
    assert fused.launches < plain.launches
    assert fused.moved < plain.moved
    # Recomputed under the autocast of the forward: not one product in float32 that is in bfloat16 there.
    kinds = {work.kind for work in fused.calls if work.name == "mm" and work.flops > 0}
    assert kinds == {"bfloat16"}


def test_without_it_the_kernel_is_not_there() -> None:
    with ImaginedGPU(), pytest.raises(RuntimeError, match="mamba-ssm's ssd_combined cannot be imported"):
        kernels.resolve_kernel("triton", torch.device("cuda"))
