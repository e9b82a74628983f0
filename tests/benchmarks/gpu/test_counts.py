"""Counts are those of torch's own counter and of tensors that are really there, also where nothing is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.counts import Counts, count_step
from benchmarks.gpu.imagined import CUDA, ImaginedGPU
from benchmarks.gpu.shapes import MILLION, ONE_S, ONE_T, TINY, TWO_ST, PaperShape, build
from benchmarks.gpu.speed_cases import useful_flops
from benchmarks.gpu.training import Training, random_batch

FLOAT = 4
SMALL = {
    "S": replace(ONE_S, hidden_dims=(32,), num_layers=(2,), seq_lens=(256,), widths=TINY),
    "S/T": replace(TWO_ST, hidden_dims=(32, 32), num_layers=(1, 1), seq_lens=(64, 8), widths=TINY),
    "recomputed": replace(
        MILLION, hidden_dims=(32,) * 3, num_layers=(1,) * 3, seq_lens=(32, 8, 4), checkpoint_chunks=(2, 2), widths=TINY
    ),
}


def real(shape: PaperShape) -> Training:
    return Training(build(shape, "cpu", "torch"), half=False)


def imagined(shape: PaperShape, *, half: bool = False, rows: int = 2) -> Counts:
    with ImaginedGPU():
        return count_step(Training(build(shape, "meta", "torch"), half=half), random_batch(rows, shape.context, "cpu"))


def test_operations_of_a_product() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    with Counts() as counts:
        product = a @ b
        product.t()[1:].relu_()
        product.expand(4, 3, 7) + 1
    calls = {work.name: work for work in counts.calls}
    assert set(calls) == {"mm", "relu_", "add"}  # views are free
    assert counts.launches == 3
    assert (calls["mm"].flops, counts.flops) == (2 * 3 * 5 * 7, 2 * 3 * 5 * 7)
    assert (calls["mm"].read, calls["mm"].written) == (FLOAT * (15 + 35), FLOAT * 21)
    assert calls["relu_"].read == calls["relu_"].written == FLOAT * 18
    assert (calls["add"].read, calls["add"].written) == (FLOAT * 21, FLOAT * 84)  # repeated elements are read once


def test_a_table_is_read_no_further_than_it_is_looked_up() -> None:
    table, rows = torch.ones(1000, 4), torch.tensor([1, 2])
    with Counts() as counts:
        table[rows]
    (work,) = counts.calls
    assert work.read == 2 * 8 + 2 * 4 * FLOAT


def test_causal_attention_counts_its_half() -> None:
    q = torch.ones(1, 2, 8, 16)
    flops = []
    for causal in (False, True):
        with Counts() as counts:
            nn.functional.scaled_dot_product_attention(q, q, q, is_causal=causal)
        flops.append(counts.flops)
    assert flops == [2 * 2 * 2 * 8 * 8 * 16, 2 * 2 * 2 * 16 * (8 * 9 / 2)]


def test_inference_counts_as_any_forward() -> None:
    module, x = chain("cpu")
    found = []
    for mode in (torch.inference_mode, torch.no_grad):
        with mode(), Counts() as counts:
            module(x.unflatten(0, (4, 8)))
        found.append((counts.flops, counts.launches))
    assert found == [(4 * 2 * 32 * 16 * 16, 4)] * 2


def test_memory_at_its_fullest() -> None:
    with Counts() as counts:
        first = torch.zeros(100)
        second = first + 1
        del first
        third = second * 2
        del second
        counts.finish()
    assert counts.peak == 2 * 100 * FLOAT
    assert counts.live == 100 * FLOAT == third.nbytes
    assert sum(counts.peak_by.values()) == counts.peak


def chain(device: torch.device | str) -> tuple[nn.Module, Tensor]:
    return nn.Sequential(*(nn.Linear(16, 16, device=device) for _ in range(4))), torch.empty(32, 16, device=device)


def test_what_is_kept_for_backward_is_memory_on_any_device() -> None:
    found = []
    for device in ("cpu", "meta"):
        module, x = chain(device)
        with Counts() as counts:
            module(x).square().sum().backward()
            counts.finish()
        found.append((counts.peak, counts.live, counts.flops, counts.moved, counts.launches))
    assert found[0] == found[1]
    assert found[0][1] == 4 * (16 * 16 + 16) * FLOAT  # gradients stay


@pytest.mark.parametrize("name", SMALL)
def test_a_step_counts_the_flops_that_torch_counts(name: str) -> None:
    training, batch = real(SMALL[name]), random_batch(2, SMALL[name].context, "cpu")
    counts = count_step(training, batch)
    with FlopCounterMode(display=False) as torchs:
        training.step(batch)
    assert torchs.get_total_flops() >= counts.flops > 0.9 * torchs.get_total_flops()  # torch counts all of attention


@pytest.mark.parametrize("name", SMALL)
def test_an_imagined_step_is_the_real_one(name: str) -> None:
    shape = SMALL[name]
    there = count_step(real(shape), random_batch(2, shape.context, "cpu"))
    here = imagined(shape)
    # A GPU takes other operations for the norm's gradient than a CPU.
    assert here.flops == pytest.approx(there.flops, rel=0.02)
    assert here.peak == pytest.approx(there.peak, rel=0.02)
    weights = FLOAT * sum(parameter.numel() for parameter in real(shape).model.parameters())
    assert here.peak_by["weights", ""] == weights
    assert here.peak_by["AdamW", ""] == pytest.approx(2 * weights, rel=0.01)


def test_counted_flops_are_those_that_follow_from_the_shape() -> None:
    shape = replace(ONE_T, hidden_dims=(64,), num_layers=(2,), seq_lens=(128,), widths=replace(TINY, heads=4, head=16))
    assert imagined(shape).flops == pytest.approx(useful_flops(shape, 2), rel=0.1)  # attention's backward adds a fifth


def test_half_precision_moves_the_products() -> None:
    kinds = {
        half: {work.kind for work in imagined(SMALL["S/T"], half=half).calls if work.name in ("mm", "addmm")}
        for half in (False, True)
    }
    assert kinds[False] == {"float32"}
    assert "bfloat16" in kinds[True]


def test_recomputing_takes_flops_and_spares_memory() -> None:
    recomputed = SMALL["recomputed"]
    long = replace(recomputed, seq_lens=(32, 4, 4), num_layers=(1, 1, 2), checkpoint_chunks=(2, 2))
    kept = imagined(replace(long, checkpoint_chunks=None))
    spared = imagined(long)
    assert spared.flops > 1.1 * kept.flops
    assert spared.peak < kept.peak


def test_an_imagined_gpu_is_left_without_a_trace() -> None:
    with ImaginedGPU():
        assert torch.empty(1, device="cuda").is_meta
        assert torch.zeros(2).device == CUDA
        with torch.autocast("cuda", torch.bfloat16):
            assert (torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype == torch.bfloat16
    assert torch.zeros(2).device.type == "cpu"
    assert not torch.is_autocast_enabled("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("half", [False, True])
def test_an_imagined_step_is_the_one_on_a_gpu(half: bool) -> None:
    shape = SMALL["S/T"]
    training = Training(build(shape, "cuda", "torch"), half=half)
    there = count_step(training, random_batch(2, shape.context, "cuda"))
    here = imagined(shape, half=half)
    assert here.flops == pytest.approx(there.flops, rel=0.02)
    assert here.peak == pytest.approx(there.peak, rel=0.05)
