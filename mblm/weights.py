"""Stored weights into a fresh model: held against its own tensor by tensor, and given more vocabulary where asked.

Weights are taken whole or not at all: everything that is missing, unexpected or does not fit is listed in one error.
Knows the names and shapes of tensors, not what they compute, and nothing of the files they come from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from mblm.model.config import MBLMEncoderModelConfig, MBLMModelConfig
from mblm.model.encoder import MBLMEncoder
from mblm.model.mblm import MBLM

FAULTS_SHOWN = 20
# The tensors with one row for each id.
VOCABULARY = re.compile(r"token_embs_rev\.\d+\.embedding\.weight|to_logits\.(weight|bias)")
# Buffers that are stored although the configuration decides them: compared with the model's own, which stay.
FREQUENCIES = re.compile(r"stage_models\.\d+\.rotary_emb\.inv_freq")
FREQUENCY_TOLERANCE = 1e-5  # relative; another base or head width is off by far more
# Names of mambapy's Mamba-1, which the reference falls back to where mamba-ssm is missing; Mamba-2 has neither.
MAMBA_1 = re.compile(r"stage_models\.(\d+)\.layers\.\d+\.mixer\.(x_proj|dt_proj)\..*")


class CheckpointError(ValueError):
    """A checkpoint that is not what it was taken for; one line."""


Model = TypeVar("Model", bound=MBLM | MBLMEncoder, default=MBLM)
AnyConfig = MBLMModelConfig | MBLMEncoderModelConfig


def grow_vocabulary(model: Model, num_tokens: int, pad_token_id: int | None = None) -> Model:
    """A new model with more ids: same mode and device, its own memory, and everything it knew bit for bit.

    Every byte table and the head get rows, initialised as in a new model (a function of `torch.manual_seed`). A new
    pad id (None keeps the old) must be one of the new ids: its row is zero and never trained; the old pad's row stays
    as it is, zero, and trains from now on. Raises ValueError for fewer ids and for a pad id that has a meaning.
    """
    weights = {name: value.cpu() for name, value in model.state_dict().items()}
    source = f"this {type(model).__name__}"
    grown = filled(type(model), model.config, weights, num_tokens=num_tokens, pad_token_id=pad_token_id, source=source)
    grown.train(model.training)
    grown.to(model.to_logits.weight.device)
    return grown


@torch.no_grad()
def filled(
    architecture: type[Model],
    config: AnyConfig,
    weights: Mapping[str, Tensor],
    *,
    num_tokens: int | None = None,
    pad_token_id: int | None = None,
    dtype: torch.dtype | None = None,
    source: str,
) -> Model:
    """A new model on the CPU with stored weights, which are those of `config`.

    num_tokens, pad_token_id: as in `grow_vocabulary`. dtype: None keeps each tensor's own. source: where the weights
    come from, for errors. Raises ValueError for a vocabulary that cannot grow so, and as `check_weights` does.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype: expected a floating-point type such as torch.bfloat16, got {dtype}")
    rows = _hierarchy(config).num_tokens
    model = cast(Callable[[AnyConfig], Model], architecture)(_grown(config, num_tokens, pad_token_id))
    fresh = model.state_dict(keep_vars=True)
    expected = {name: value[:rows] if VOCABULARY.fullmatch(name) else value for name, value in fresh.items()}
    check_weights(expected, weights, source=source)
    state = dict(weights)
    for name, value in fresh.items():
        if VOCABULARY.fullmatch(name):
            state[name] = torch.cat((weights[name], value[rows:]))
        elif _is_constant(name, value):
            state[name] = value.clone()
    stored = {value.dtype for value in weights.values() if value.is_floating_point()}
    if dtype is not None or len(stored) == 1:
        model.to(stored.pop() if dtype is None else dtype)
    else:  # mixed precision stays mixed
        for name, value in fresh.items():
            value.data = value.data.to(weights[name].dtype)
    model.load_state_dict(state)  # copies, so that tied parameters stay tied
    return model


def _hierarchy(config: AnyConfig) -> MBLMModelConfig:
    return config.mblm_config if isinstance(config, MBLMEncoderModelConfig) else config


def _grown(config: AnyConfig, num_tokens: int | None, pad_token_id: int | None) -> AnyConfig:
    """The configuration with more ids and another pad id, each None for as it is."""
    if isinstance(config, MBLMEncoderModelConfig):
        return config.model_copy(update={"mblm_config": _grown(config.mblm_config, num_tokens, pad_token_id)})
    had, pad = config.num_tokens, config.pad_token_id
    rows = had if num_tokens is None else num_tokens
    new_pad = pad if pad_token_id is None else pad_token_id
    if rows < had:
        raise ValueError(f"num_tokens: expected at least the {had} there are, got {rows}: a vocabulary only grows")
    if new_pad != pad and not had <= new_pad < rows:
        raise ValueError(
            f"pad_token_id: expected the present {pad}, or a new id from {had} and below num_tokens {rows}, got "
            f"{new_pad}: the others have a meaning already"
        )
    return config.model_copy(update={"num_tokens": rows, "pad_token_id": new_pad})


def _is_constant(name: str, value: Tensor) -> bool:
    return FREQUENCIES.fullmatch(name) is not None and not isinstance(value, nn.Parameter)


def check_weights(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor], *, source: str) -> None:
    """Hold stored tensors against a model's own: names, shapes, floating point, finite values, rotary frequencies.

    Raises CheckpointError with every fault in one line (the first 20, and how many more), before anything is taken.
    """
    faults = [f"{name} {tuple(value.shape)} is missing" for name, value in expected.items() if name not in stored]
    faults += [f"{name} {tuple(value.shape)} is unexpected" for name, value in stored.items() if name not in expected]
    both = (name for name in expected if name in stored)
    faults += [f"{name}: {fault}" for name in both if (fault := _fault(name, expected[name], stored[name])) is not None]
    if not faults:
        return
    more = "" if len(faults) <= FAULTS_SHOWN else f"; and {len(faults) - FAULTS_SHOWN} more"
    stages = sorted({int(found[1]) + 1 for name in stored if (found := MAMBA_1.fullmatch(name))})
    hint = "check that these weights are whole and belong to this configuration"
    if stages:
        hint = (
            f"stage {', '.join(map(str, stages))} (from 1) was saved as Mamba-1, the reference's fallback without "
            f"mamba-ssm, and Mamba-2 cannot take its weights: register a block of your own for it, or train anew"
        )
    raise CheckpointError(f"{source} does not fit the model: {'; '.join(faults[:FAULTS_SHOWN])}{more}; {hint}")


def _fault(name: str, expected: Tensor, stored: Tensor) -> str | None:
    """What is wrong with one stored tensor, or None."""
    if stored.shape != expected.shape:
        return f"expected shape {tuple(expected.shape)}, got {tuple(stored.shape)}"
    if stored.is_floating_point() != expected.is_floating_point():
        kind = "floating point" if expected.is_floating_point() else expected.dtype
        return f"expected {kind}, got {stored.dtype}"
    if not stored.is_floating_point():
        return None
    if stored.numel() and not torch.stack(stored.aminmax()).isfinite().all():  # several times faster than all of them
        broken = int((~stored.isfinite()).sum())
        return f"expected finite values, got {broken} of {stored.numel()} that are not"
    if _is_constant(name, expected):
        tolerance = max(FREQUENCY_TOLERANCE, torch.finfo(stored.dtype).eps)
        off = float((stored.double() / expected.double() - 1).abs().max())
        if off > tolerance:
            return f"expected the model's rotary frequencies, got others, by up to {off:.1e} of their value"
    return None
