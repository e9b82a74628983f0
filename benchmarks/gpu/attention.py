"""Which of PyTorch's attention kernels takes the shapes of a model's stages, which one runs, and how long each takes.

The same calls work on a CPU, which has fewer kernels. Knows shapes; neither models nor tables.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import PaperShape
from mblm.model.attention import attention_kernels

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
NAMES = {backend: name for name, backend in BACKENDS.items()}
# Warnings that name a kernel instead of a reason.
NO_REASON = ("not used because", "runtime disabled")
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Sequences:
    """What one stage gives to attention: `rows` sequences of `positions`, in `heads` heads of `channels`."""

    stage: str
    rows: int
    positions: int
    heads: int
    channels: int

    def inputs(self, kind: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Random queries, keys and values (rows, heads, positions, channels), lying as one projection makes them."""
        joint = torch.randn(self.rows, self.positions, 3, self.heads, self.channels, device=device, dtype=kind)
        return joint.requires_grad_().transpose(1, 3).unbind(2)


def stage_sequences(shape: PaperShape, batch: int) -> list[Sequences]:
    """Those of one call in each transformer stage of a model, on a batch of whole contexts with full loss.

    The first stage and those between read a start and all positions but the last, the local one all of them; where a
    stage is split into chunks, a call has the rows of one.
    """
    found = []
    chunks = (1, *(shape.checkpoint_chunks or ()), *(1,) * len(shape.seq_lens))
    for stage, (family, length, width) in enumerate(
        zip(shape.family.split("/"), shape.seq_lens, shape.hidden_dims, strict=True)
    ):
        if family != "T":
            continue
        local = stage == len(shape.seq_lens) - 1 > 0
        rows = math.ceil(batch * math.prod(shape.seq_lens[:stage]) / chunks[stage])
        heads, channels = width // shape.widths.head, shape.widths.head
        found.append(Sequences(f"{shape.name}, stage {stage + 1}", rows, length + local, heads, channels))
    return found


def measure_backends(sequences: Sequences, kind: torch.dtype, device: Device, *, repeats: int) -> dict[str, Any]:
    """`picked`: who runs; `seconds` of forward and backward of all who can; `refused`: the others, and why."""
    q, k, v = sequences.inputs(kind, device.torch_device)
    weight = torch.randn_like(q)

    def work() -> None:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        torch.autograd.grad(y, (q, k, v), weight)

    # What `scaled_dot_product_attention` itself asks first, among the kernels that a stage allows it.
    with attention_kernels(device.torch_device):
        choice = SDPBackend(torch._fused_sdp_choice(q, k, v, is_causal=True))
    found: dict[str, Any] = {"picked": NAMES[choice], "seconds": {}, "refused": {}}
    for name, backend in BACKENDS.items():
        with sdpa_kernel(backend):
            reason = _refusal(work)
            if reason is None:
                found["seconds"][name] = list(device.seconds(work, repeats=repeats).values)
            else:
                found["refused"][name] = reason
    return found


def _refusal(work: Callable[[], None]) -> str | None:
    """Why the one kernel that is allowed does not take it; None where it does."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            work()
        except torch.OutOfMemoryError:
            return OUT_OF_MEMORY
        except RuntimeError as error:  # each kernel refuses in words of its own
            said = [str(warning.message).split(" (Triggered")[0] for warning in caught]
            reasons = [text for text in said if not any(part in text for part in NO_REASON)]
            return "; ".join(dict.fromkeys(reasons)) or str(error).split(". ")[0]
    return None
