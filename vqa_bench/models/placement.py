"""How a model runs, whatever it is: its layers compiled, its weights shared out, its kernels named."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mblm import MBLM
from mblm.model.hierarchy import Hierarchy
from mblm.model.mamba import MambaStage
from mblm.parallel import shard
from vqa_bench.errors import UserError


def kernels_of(model: nn.Module) -> list[str | None] | None:
    """Who runs each stage's recurrence, None for a stage without one; None for a model without stages."""
    found = [part for part in model.modules() if isinstance(part, MBLM)]
    return list(found[0].kernels()) if found else None


def check_kernels(model: nn.Module, device: torch.device) -> None:
    """UserError where a stage asks for kernels that the device has not."""
    for part in model.modules():
        if isinstance(part, MambaStage):
            try:
                part.kernel_on(device)
            except RuntimeError as error:
                raise UserError(str(error)) from error


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every layer of every stage, whichever way the stage is entered; a model without stages as a whole."""
    hierarchies = [part for part in model.modules() if isinstance(part, Hierarchy)]
    if not hierarchies:
        model.compile(backend=backend)
    for hierarchy in hierarchies:
        for stage in hierarchy.stage_models:
            layers = getattr(stage, "layers", None)
            for layer in layers if isinstance(layers, nn.ModuleList) else [stage]:
                layer.compile(backend=backend)


def share_out(model: nn.Module) -> None:
    """Share weights, and with them gradients and moments, out over all processes (PyTorch's FSDP 2), in place."""
    # Said of every layer that ends in a reshape; nothing of ours writes into what a layer returns.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    inner = [part for part in model.modules() if isinstance(part, MBLM)]
    for part in inner:
        shard(part)
    if not inner:
        fully_shard(model)
    left = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    assert not left, f"{left[0]} and {len(left) - 1} more were not shared out"
