"""Which implementation runs the state-space recurrence: ours in PyTorch, or mamba-ssm's fused kernels on a GPU.

Asked for and missing is an error; what `auto` came to is there to be recorded. Nothing is imported before it is needed.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Kernel = Literal["auto", "torch", "triton"]


@cache
def _fused_scan() -> Any:
    """mamba-ssm's Mamba-2 scan; ImportError says what is missing."""
    return importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined


@cache
def _has_fused_scan() -> bool:
    try:
        _fused_scan()
    except ImportError:
        return False
    return True


def resolve_kernel(kernel: Kernel, device: torch.device) -> Literal["torch", "triton"]:
    """What `kernel` means on a device: `auto` takes the fused kernels on CUDA where they are installed.

    Raises RuntimeError where `triton` is asked for and cannot run.
    """
    if kernel != "triton":
        fused = kernel == "auto" and device.type == "cuda" and _has_fused_scan()
        return "triton" if fused else "torch"
    if device.type != "cuda":
        raise RuntimeError(
            f"kernel 'triton': expected tensors on a CUDA device, got {device}; use kernel 'auto' or 'torch'"
        )
    try:
        _fused_scan()
    except ImportError as error:
        raise RuntimeError(
            f"kernel 'triton': mamba-ssm's ssd_combined cannot be imported ({error}); "
            "install it with `pip install 'vqa-bench[cuda]'`, or use kernel 'auto' or 'torch'"
        ) from error
    return "triton"


def fused_ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor | None, *, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """`mblm.model.ssd.ssd` by mamba-ssm's kernels: same shapes, same result up to rounding."""
    y, after = _fused_scan()(
        x, dt, A, B[:, :, None], C[:, :, None], chunk_size=chunk, D=D, initial_states=state, return_final_states=True
    )
    return y, after
