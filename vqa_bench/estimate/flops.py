"""Floating-point operations of a training step of a hierarchy, from what its stages read.

A multiply-add counts as two. Counted are the matrix products (and the convolution's taps); elementwise passes are not:
they cost time by their bytes, see speed.py. Attention counts the half that is causal.

Shapes: D width, H heads of E channels; of Mamba-2: I inner channels, N state size, h heads, q positions of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mblm.model.attention import SHORT
from mblm.model.embedding import TABLE_PAYS_FROM
from mblm.model.ssd import CHUNK
from vqa_bench.config import (
    CustomStageConfig,
    HierarchyConfig,
    MambaStageConfig,
    MBLMEncoderConfig,
    TransformerStageConfig,
)
from vqa_bench.data.vocab import VOCAB_SIZE
from vqa_bench.estimate.load import Load, Reading, StageLoad

StageConfig = TransformerStageConfig | MambaStageConfig | CustomStageConfig


@dataclass(frozen=True)
class Flops:
    """Of one direction each."""

    forward: float
    backward: float

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    def times(self, factor: float) -> Flops:
        return Flops(self.forward * factor, self.backward * factor)

    def step(self, *, recomputed: bool = False) -> float:
        """Forward and backward; what is recomputed runs forward twice."""
        return self.forward * (2 if recomputed else 1) + self.backward


NONE = Flops(0.0, 0.0)


def products(multiply_adds: float) -> Flops:
    """Of matrix products with weights: backward has two of the same size, for the input and for the weight."""
    return Flops(2 * multiply_adds, 4 * multiply_adds)


def hierarchy_flops(
    config: HierarchyConfig, load: Load, stage_parameters: Sequence[int], *, dense_attention: bool = False
) -> list[float]:
    """Of each stage with what feeds it, the head with the last one, forward and backward of a batch.

    stage_parameters: of each stage's own layers, what a custom stage is estimated by. dense_attention: count all
    pairs of positions, as the kernels that mask compute them and a counter sees them.
    """
    totals = []
    for stage, stage_load in enumerate(load.stages):
        work = _inputs(config, stage, stage_load)
        block = config.stages[stage]
        for reading in stage_load.readings:
            if isinstance(block, CustomStageConfig):
                work += products(stage_parameters[stage] * reading.rows * (reading.positions + reading.before))
                continue
            keys = keys_of(reading, causal=not (dense_attention or isinstance(config, MBLMEncoderConfig)))
            work += layer_flops(block, config.hidden_dims[stage], reading, keys).times(config.num_layers[stage])
        if stage == len(load.stages) - 1:
            work += products(load.targets * config.hidden_dims[-1] * VOCAB_SIZE)
        totals.append(work.step(recomputed=stage_load.chunks is not None))
    return totals


def layer_flops(block: TransformerStageConfig | MambaStageConfig, width: int, reading: Reading, keys: float) -> Flops:
    """Of one layer; `keys`: how many positions each position looks at, on average."""
    if isinstance(block, TransformerStageConfig):
        channels = block.heads * block.head_dim
        linear = 4 * width * channels + 2 * block.ff_multiplier * width**2
        return products(reading.total * linear) + products(reading.total * 2 * channels * keys)
    inner, state = block.expand * width, block.d_state
    heads = inner // block.head_dim
    projected = 2 * inner + 2 * state + heads
    linear = width * projected + inner * width + block.d_conv * (inner + 2 * state)
    return products(reading.total * linear) + _ssd(reading, inner, state, heads)


def _ssd(reading: Reading, inner: int, state: int, heads: int) -> Flops:
    """The recurrence by chunks, as mblm/model/ssd.py has it: its backward makes the weights and states' shares anew."""
    q = min(CHUNK, reading.positions)
    positions = reading.rows * math.ceil(reading.positions / q) * q
    forward = q * (state + inner)
    backward = q * (3 * state + 2 * inner + 2 * heads)
    if reading.positions > CHUNK or reading.before or reading.kept:  # else there is one chunk and no state
        forward += 2 * inner * state
        backward += 5 * inner * state
    return Flops(2 * positions * forward, 2 * positions * backward)


def _inputs(config: HierarchyConfig, stage: int, load: StageLoad) -> Flops:
    """What makes a stage's input: vectors of patches, and the projection of the stage above."""
    dims, N = config.hidden_dims, len(config.hidden_dims)
    work = NONE
    if stage < N - 1:
        work += products(patch_rows(config, stage, load) * dims[-1] * dims[stage])
    if stage > 0:
        work += products(load.conditioned * dims[stage] * dims[stage - 1])
    return work


def patch_rows(config: HierarchyConfig, stage: int, load: StageLoad) -> float:
    """How many byte vectors are projected into patches: those of every patch, or of a table made in each chunk."""
    size = math.prod(config.seq_lens[stage + 1 :])
    return table_size(size) * (load.chunks or 1) if by_table(load) else load.embedded * size


def by_table(load: StageLoad) -> bool:
    """Whether patch vectors are gathered from a table, see `PatchEmbedding`."""
    return load.embedded / (load.chunks or 1) >= TABLE_PAYS_FROM * VOCAB_SIZE


def table_size(patch_size: int) -> int:
    """Rows of a table of patch vectors."""
    return VOCAB_SIZE * patch_size


def keys_of(reading: Reading, *, causal: bool) -> float:
    """How many positions each position is multiplied with, on average.

    Where few continue a shared beginning, all of them are one product, blind to each other (`mblm.model.attention`).
    """
    if reading.group > 1 and reading.before + reading.group * reading.positions <= SHORT:
        return reading.before + reading.group * reading.positions
    return reading.before + ((reading.positions + 1) / 2 if causal else reading.positions)
