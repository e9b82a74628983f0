"""Who runs the recurrence: finding mamba-ssm's scan, how it is called, and what is said where it cannot run.

Its kernels need a GPU (`test_cuda.py`); here our recurrence plays them.
"""

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mblm.model import kernels
from mblm.model.ssd import ssd
from tests.mblm.reference import build, stages
from tests.mblm.test_mamba import b, block, h, n, p, random_inputs

CUDA = torch.device("cuda")
SCAN = "from mamba_ssm.ops.triton.layout import chunk\nmamba_chunk_scan_combined = ('scan', chunk)\n"


@pytest.fixture
def no_scan_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of mamba-ssm is imported or remembered, before and after."""

    def forget() -> None:
        kernels._fused_scan.cache_clear()
        kernels._has_fused_scan.cache_clear()

    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    forget()
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "mamba_ssm"]:
        del sys.modules[name]
    forget()


@pytest.fixture
def played_scan(no_scan_yet: None, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """mamba-ssm's signature, played by our recurrence: groups of B and C, states in and out; its calls."""
    calls = []

    def scan(
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        initial_states: Tensor | None = None,
        *,
        return_final_states: bool = False,
    ) -> tuple[Tensor, Tensor]:
        assert return_final_states
        assert B.shape == C.shape == (*x.shape[:2], 1, B.shape[-1])
        calls.append({"types": (x.dtype, B.dtype, C.dtype), "rows": len(x), "length": x.shape[1], "chunk": chunk_size})
        assert D is not None
        return ssd(x, dt, A, B.squeeze(2), C.squeeze(2), D, initial_states, chunk=chunk_size)

    module = types.ModuleType("mamba_ssm.ops.triton.ssd_combined")
    module.mamba_chunk_scan_combined = scan  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def write_package(folder: Path, init: str, scan: str) -> None:
    """A mamba-ssm on disk: its own `__init__`, and the module of its scan."""
    triton = folder / "mamba_ssm" / "ops" / "triton"
    triton.mkdir(parents=True)
    for package in (triton.parent, triton):
        (package / "__init__.py").touch()
    (folder / "mamba_ssm" / "__init__.py").write_text(init, encoding="utf-8")
    (triton / "layout.py").write_text("chunk = 256\n", encoding="utf-8")
    (triton / "ssd_combined.py").write_text(scan, encoding="utf-8")


@pytest.mark.usefixtures("no_scan_yet")
def test_a_package_that_cannot_be_imported_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is built without its CUDA extension, which only its Mamba-1 calls."""
    write_package(tmp_path, "import mamba_ssm.ops.triton.layout\nimport selective_scan_cuda\n", SCAN)
    monkeypatch.syspath_prepend(tmp_path)
    assert kernels._fused_scan() == ("scan", 256)
    assert kernels.resolve_kernel("auto", CUDA) == "triton"
    assert "mamba_ssm" not in sys.modules  # others find the package as it is
    with pytest.raises(ModuleNotFoundError, match="selective_scan_cuda"):
        importlib.import_module("mamba_ssm")


@pytest.mark.usefixtures("no_scan_yet")
def test_a_whole_package_is_imported_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "whole = True\n", SCAN)
    monkeypatch.syspath_prepend(tmp_path)
    assert kernels._fused_scan() == ("scan", 256)
    assert sys.modules["mamba_ssm"].whole


@pytest.mark.usefixtures("no_scan_yet")
@pytest.mark.parametrize("init", ["import selective_scan_cuda\n", ""], ids=["in part", "whole"])
def test_what_the_scan_itself_lacks_is_named(init: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, init, "import a_compiler_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert kernels.resolve_kernel("auto", CUDA) == "torch"
    with pytest.raises(RuntimeError, match=r"imported \(No module named 'a_compiler_that_is_not_there'\); install it"):
        kernels.resolve_kernel("triton", CUDA)
    assert ("mamba_ssm" in sys.modules) == (init == "")


@pytest.mark.usefixtures("no_scan_yet")
def test_a_kernel_that_is_asked_for_and_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    stage = block(kernel="triton").to_model(8, 1)
    with pytest.raises(RuntimeError, match=r"kernel 'triton': expected tensors on a CUDA device, got cpu"):
        stage(torch.randn(1, 3, 8))
    message = r"be imported \(No module named 'mamba_ssm'\); install it with `pip install 'vqa-bench\[cuda\]'`"
    with pytest.raises(RuntimeError, match=message):
        kernels.resolve_kernel("triton", CUDA)
    assert kernels.resolve_kernel("auto", CUDA) == "torch"
    assert build([5, 4], block=stages("ST")).kernels() == ["torch", None]


@pytest.mark.usefixtures("played_scan")
def test_kernels_for_devices_and_types() -> None:
    assert kernels.resolve_kernel("auto", CUDA) == "triton"
    assert kernels.resolve_kernel("auto", CUDA, torch.bfloat16) == "triton"
    assert kernels.resolve_kernel("triton", CUDA) == "triton"
    assert kernels.resolve_kernel("torch", CUDA) == "torch"
    assert kernels.resolve_kernel("auto", torch.device("cpu")) == "torch"
    assert kernels.resolve_kernel("auto", CUDA, torch.float64) == "torch"  # the fused one would round
    with pytest.raises(RuntimeError, match="at most 32 bits, got float64; use kernel 'torch'"):
        kernels.resolve_kernel("triton", CUDA, torch.float64)


def test_the_fused_scan_is_called_with_its_own_shapes(played_scan: list[dict]) -> None:
    inputs = random_inputs(70)
    torch.testing.assert_close(kernels.fused_ssd(*inputs), ssd(*inputs))
    torch.testing.assert_close(kernels.fused_ssd(*inputs[:-1], None), ssd(*inputs[:-1]))
    kernels.fused_ssd(*(tensor[:, :9] if tensor.ndim > 2 and at < 5 else tensor for at, tensor in enumerate(inputs)))
    assert [call["chunk"] for call in played_scan] == [256, 256, 64]
    assert {call["rows"] for call in played_scan} == {b}


def test_in_autocast_the_fused_scan_multiplies_in_its_type(played_scan: list[dict]) -> None:
    """The convolution before it leaves float32, while products elsewhere are bfloat16 and states float32."""
    inputs = [tensor.detach().float() for tensor in random_inputs(9)]
    expected, state = ssd(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y, after = kernels.fused_ssd(*inputs)
    assert played_scan[0]["types"] == (torch.bfloat16,) * 3
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    assert (y - expected).norm() < 0.02 * expected.norm()
    assert (after - state).norm() < 0.02 * state.norm()


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(
    ("rows", "length", "chunks", "calls"),
    [
        (7, 9, 3, [(2, 9), (2, 9), (3, 9)]),  # short rows, some at a time
        (1, 700, 1, [(1, 188), (1, 256), (1, 256)]),  # one row, chunk by chunk
        (2, 300, 1, [(1, 44), (1, 44), (1, 256), (1, 256)]),  # both
    ],
)
def test_more_than_the_kernels_can_address_is_several_calls(
    played_scan: list[dict],
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
    length: int,
    chunks: int,
    calls: list[tuple[int, int]],
    with_state: bool,
) -> None:
    torch.manual_seed(0)
    shapes = (
        (rows, length, h, p),
        (rows, length, h),
        (h,),
        (rows, length, n),
        (rows, length, n),
        (h,),
        (rows, h, p, n),
    )
    inputs = [torch.rand(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x, dt, A, B, C, D, state = inputs
    given = (x, dt, -A, B, C, D, state if with_state else None)
    expected = ssd(*given)
    monkeypatch.setattr(kernels, "MOST_CHUNKS", chunks)
    found = kernels.fused_ssd(*given)
    assert sorted((call["rows"], call["length"]) for call in played_scan) == calls
    torch.testing.assert_close(found, expected)
    weights = [torch.randn_like(tensor) for tensor in expected]
    right = torch.autograd.grad(expected, inputs if with_state else inputs[:-1], weights)
    torch.testing.assert_close(torch.autograd.grad(found, inputs if with_state else inputs[:-1], weights), right)


def test_the_most_entries_are_those_of_what_is_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "MOST_ENTRIES", 10 * 2048 * 128)
    x, narrow = torch.empty(1, 1, 32, 64), torch.empty(1, 1, 128)
    assert kernels._most_chunks(x, narrow, narrow, 64) == 10  # a chunk's state has 32·64·128 entries
    wide = torch.empty(1, 1, 2304)[..., :128]  # a view of the convolution's output
    assert kernels._most_chunks(x, wide, wide, 256) == 10 * 2048 * 128 // (256 * 2304)
    monkeypatch.setattr(kernels, "MOST_ENTRIES", 2**31 - 1)
    tiny = torch.empty(1, 1, 1, 1)
    assert kernels._most_chunks(tiny, tiny[..., 0], tiny[..., 0], 64) == 2**16 - 1
