"""Which implementation runs the state-space recurrence: ours in PyTorch, or mamba-ssm's fused kernels on a GPU.

Asked for and missing is an error; what `auto` came to is there to be recorded. Nothing is imported before it is needed.

Shapes: b rows, l positions, h heads of p channels, n state size.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

Kernel = Literal["auto", "torch", "triton"]

PACKAGE, SCAN = "mamba_ssm", "mamba_ssm.ops.triton.ssd_combined"
# Positions of a chunk: as many as mamba-ssm's own layer takes, or fewer where all fit in one. No more than two numbers,
# as Triton tries every kernel anew for each.
CHUNK, SHORT_CHUNK = 256, 64
# CUDA's limit of a grid's second axis, on which the kernels lay chunks, and the most entries that can be told apart by
# 32 bits: beyond, the kernels' addresses wrap around, at times without an error (state-spaces/mamba, issue 1015).
MOST_CHUNKS, MOST_ENTRIES = 2**16 - 1, 2**31 - 1


@cache
def _fused_scan() -> Any:
    """mamba-ssm's Mamba-2 scan; ImportError says what is missing.

    Its package imports everything it has, Mamba-1's compiled extension and `transformers` among it, none of which the
    Mamba-2 scan calls. Where that fails, the scan's module and what it needs are imported all the same.
    """
    try:
        module = importlib.import_module(SCAN)
    except ImportError:
        spec = None if PACKAGE in sys.modules else importlib.util.find_spec(PACKAGE)
        if spec is None:
            raise
        module = _import_without_init(spec)
    return module.mamba_chunk_scan_combined


def _import_without_init(spec: ModuleSpec) -> ModuleType:
    """The scan's module under a package whose `__init__` is not run, and which is there for the import only.

    So `import mamba_ssm` fails for others as it did before; the submodules are the real ones and stay.
    """
    sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(SCAN)
    finally:
        del sys.modules[PACKAGE]


@cache
def _has_fused_scan() -> bool:
    try:
        _fused_scan()
    except ImportError:
        return False
    return True


def resolve_kernel(
    kernel: Kernel, device: torch.device, kind: torch.dtype = torch.float32
) -> Literal["torch", "triton"]:
    """What `kernel` means on a device and for a type of numbers.

    `auto` takes the fused kernels on CUDA where they are installed, except for float64, which they would round.
    Raises RuntimeError where `triton` is asked for and cannot run.
    """
    if kernel != "triton":
        fused = kernel == "auto" and device.type == "cuda" and kind != torch.float64 and _has_fused_scan()
        return "triton" if fused else "torch"
    if device.type != "cuda":
        raise RuntimeError(
            f"kernel 'triton': expected tensors on a CUDA device, got {device}; use kernel 'auto' or 'torch'"
        )
    if kind == torch.float64:
        raise RuntimeError("kernel 'triton': expected numbers of at most 32 bits, got float64; use kernel 'torch'")
    try:
        _fused_scan()
    except ImportError as error:
        raise RuntimeError(
            f"kernel 'triton': mamba-ssm's ssd_combined cannot be imported ({error}); "
            "install it with `pip install 'vqa-bench[cuda]'`, or use kernel 'auto' or 'torch'"
        ) from error
    return "triton"


def fused_ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`mblm.model.ssd.ssd` by mamba-ssm's kernels: same shapes, same result up to rounding.

    Products are of the type of x, or of autocast's where that is on, and y has it; factors in float32 are rounded to
    TF32, as Triton does by default. Decays and sums are float32, and so is the state.
    """
    kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    x, B, C = x.to(kind), B.to(kind), C.to(kind)
    rows, length = dt.shape[:2]
    chunk = SHORT_CHUNK if length <= SHORT_CHUNK else CHUNK
    chunks = -(-length // chunk)
    if rows * chunks > _most_chunks(x, B, C, chunk) and rows * chunks > 1:
        if rows > 1:
            return _apart((x, dt, B, C), A, D, state, rows // 2)
        return _one_after_another((x, dt, B, C), A, D, state, chunks // 2 * chunk)
    with torch.cuda.device_of(x):  # not every kernel is launched where its inputs are
        y, after = _fused_scan()(
            x, dt, A, B[:, :, None], C[:, :, None], chunk, D=D, initial_states=state, return_final_states=True
        )
    return y, after


def _most_chunks(x: Tensor, B: Tensor, C: Tensor, chunk: int) -> int:
    """How many chunks one call may have: what is largest a chunk are its state, or its positions with all between."""
    state = x.shape[2] * x.shape[3] * B.shape[-1]
    widest = max(chunk, *(tensor.stride(1) for tensor in (x, B, C)))
    return min(MOST_CHUNKS, MOST_ENTRIES // max(state, chunk * widest))


def _apart(timed: tuple[Tensor, ...], A: Tensor, D: Tensor, state: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    """`fused_ssd` of the first rows and of the others."""
    found = []
    for part in (slice(None, rows), slice(rows, None)):
        x, dt, B, C = (tensor[part] for tensor in timed)
        found.append(fused_ssd(x, dt, A, B, C, D, None if state is None else state[part]))
    y, after = (torch.cat(parts) for parts in zip(*found, strict=True))
    return y, after


def _one_after_another(
    timed: tuple[Tensor, ...], A: Tensor, D: Tensor, state: Tensor | None, positions: int
) -> tuple[Tensor, Tensor]:
    """`fused_ssd` of the first positions and, from the state behind them, of the others."""
    outputs = []
    for part in (slice(None, positions), slice(positions, None)):
        x, dt, B, C = (tensor[:, part] for tensor in timed)
        y, state = fused_ssd(x, dt, A, B, C, D, state)
        outputs.append(y)
    assert state is not None
    return torch.cat(outputs, dim=1), state
