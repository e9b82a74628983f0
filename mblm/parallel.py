"""Fully sharded data parallelism: every layer, stage and the model itself become units of PyTorch's FSDP 2.

DistributedDataParallel needs nothing of this. Knows the model's methods, not how a training loop is built.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from mblm.model.mblm import MBLM

# What the model and its stages are entered by, beside `forward`: parameters are gathered for these too.
MODEL_METHODS = ("loss_sums", "shared_loss_sums")
STAGE_METHODS = ("prefix", "branch", "step")


def shard(model: MBLM, **options: Any) -> MBLM:
    """Shard a model in place over the processes and return it; `options` go to `fully_shard` (mesh, mp_policy, …).

    Gathering parameters is a collective call, so the model makes the same calls whatever is weighted: batches may
    differ in content, not in shape, and with checkpoint chunks each has as many local sequences with a loss as chunks.
    Decoding and saving need the whole model: gather its state dict (`torch.distributed.checkpoint.state_dict`) first.

    Layers are units of their own where a stage has `layers` (or is a list of them), so that one is gathered at a time.
    """
    model.same_calls = True
    for stage in model.stage_models:
        layers = getattr(stage, "layers", None)
        if isinstance(layers, nn.ModuleList):
            for layer in layers:
                _unit(layer, ("step",), options)
        _unit(stage, STAGE_METHODS, options)
    _unit(model, MODEL_METHODS, options)
    return model


def _unit(module: nn.Module, methods: tuple[str, ...], options: dict[str, Any]) -> None:
    fully_shard(module, **options)
    for name in methods:
        if hasattr(module, name):
            register_fsdp_forward_method(module, name)
