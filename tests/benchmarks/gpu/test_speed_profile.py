"""Where a step's time goes: kinds of operations, kernels counted once, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu import shapes, speed_profile
from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import build
from benchmarks.gpu.speed_cases import Windows
from benchmarks.gpu.speed_profile import describe, kind_of, profile_work
from benchmarks.gpu.speed_step import profile_step

CPU = torch.device("cpu")
TINY = Device(CPU, tiny=True)
CEILINGS = {"matmul": 1e15, "copy": 2e12}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mm", speed_profile.PRODUCTS),
        ("aten::addmm", speed_profile.PRODUCTS),
        ("aten::mul", speed_profile.PASSES),
        ("aten::copy_", speed_profile.COPIES),
        ("aten::_flash_attention_backward", speed_profile.ATTENTION),
        ("aten::_scaled_dot_product_cudnn_attention", speed_profile.ATTENTION),
        ("aten::_fused_adamw_", speed_profile.UPDATE),
        ("MambaChunkScanCombinedFn", speed_profile.SCAN),
        ("triton_poi_fused_mul_0", speed_profile.PASSES),
    ],
)
def test_kinds_of_operations(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


def test_a_profile_finds_products_and_the_backend_of_attention() -> None:
    a, q = torch.randn(700, 700), torch.randn(1, 2, 16, 8)

    def work() -> None:
        torch.mm(a, a)
        with sdpa_kernel(SDPBackend.MATH):
            F.scaled_dot_product_attention(q, q, q, is_causal=True)

    work()
    found = profile_work(TINY, work)
    assert found["kinds"][speed_profile.PRODUCTS] > 0.5 * found["seconds"]
    assert found["operations"][0][0] == "aten::mm"
    assert found["seconds"] == pytest.approx(sum(found["kinds"].values()))
    assert found["attention"] == ["attention_math"]
    assert found["kernels"] == []


def event(
    key: str, kind: DeviceType, *, device: float = 0.0, cpu: float = 0.0, count: int = 1, note: bool = False
) -> Any:
    return SimpleNamespace(
        key=key,
        device_type=kind,
        self_device_time_total=device,
        self_cpu_time_total=cpu,
        count=count,
        is_user_annotation=note,
    )


def test_on_a_gpu_kernels_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    events = [
        event("aten::mm", DeviceType.CPU, device=600.0, cpu=20.0, count=2),
        event("aten::_scaled_dot_product_flash_attention", DeviceType.CPU, cpu=5.0),
        event("aten::_scaled_dot_product_flash_attention_backward", DeviceType.CPU, cpu=5.0),
        event("aten::_flash_attention_forward", DeviceType.CPU, device=100.0, cpu=3.0),
        event("cudaLaunchKernel", DeviceType.CPU, cpu=50.0, count=4),
        event("gemm_kernel", DeviceType.CUDA, device=600.0, count=2),
        event("flash_fwd_kernel", DeviceType.CUDA, device=100.0),
        event("lonely_kernel", DeviceType.CUDA, device=300.0),
        event("Optimizer.step#AdamW.step", DeviceType.CPU, device=900.0, note=True),
        event("Optimizer.step#AdamW.step", DeviceType.CUDA, device=900.0, note=True),
    ]
    activities: list[Any] = []

    @contextmanager
    def profile(activities: list[Any], _seen: list[Any] = activities) -> Iterator[Any]:
        _seen += activities
        yield SimpleNamespace(key_averages=lambda: events)

    monkeypatch.setattr(speed_profile, "profile", profile)
    gpu: Any = SimpleNamespace(is_cuda=True, synchronize=lambda: None)
    found = profile_work(gpu, lambda: None)
    assert len(activities) == 2
    assert found["seconds"] == pytest.approx(1e-3)
    assert found["launches"] == 4
    assert found["kinds"] == {speed_profile.PRODUCTS: pytest.approx(6e-4), speed_profile.ATTENTION: pytest.approx(1e-4)}
    assert [name for name, _, _ in found["kernels"]] == ["gemm_kernel", "lonely_kernel", "flash_fwd_kernel"]
    assert found["attention"] == ["flash_attention"]
    # Of a step of 2 ms kernels run for half; products and attention, 0.7 ms, do 0.35 TFLOP at 1 PFLOP/s: half of it.
    text = " ".join(describe(found | {"moved": 10**9}, step=2e-3, flops=0.35e12, ceilings=CEILINGS))
    assert "Kernels run for 50% of the step's 2 ms, 4 launches of 250.0 µs" in text
    assert "matrix products 60%, attention 10%, kernels of no operation 30%" in text
    assert "reach 50% of the matrix rate; with nothing else the step would take 35% of its time" in text
    assert "move 1 GB, each read and written for itself: at the rate of a copy 25% of the step" in text
    assert "goes to waiting for launches (50% of the step)" in text


def test_a_profiled_step_says_what_it_moves() -> None:
    case = Windows(shape=shapes.TWO_TT.tiny(), batch=2)
    found = profile_step(TINY, case)
    assert found["batch"] == 2
    weights = sum(parameter.nbytes for parameter in build(case.shape, CPU).parameters())
    assert found["moved"] > 6 * weights  # read and written: weights and two moments
    assert found["launches"] > 100


def test_a_profiler_without_kernels_says_so() -> None:
    found = {"seconds": 0.0, "launches": 0, "kinds": {}, "operations": [], "kernels": [], "attention": []}
    assert describe(found, step=1.0, flops=1.0, ceilings=CEILINGS) == [
        "The profiler recorded no kernel: what limits the step is not known."
    ]
