"""Memory of a training step of a hierarchy: weights with what the optimiser keeps, and what forward keeps for backward.

Follows what each layer's gradient saves (mblm/model); a tenth here or there is not meant. Knows bytes, not seconds.

Shapes: D width, H heads of E channels, M = H·E; of Mamba-2: I inner channels, N state size, h heads, q positions of a
chunk; R bytes in a patch, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from mblm.model.attention import SHORT
from mblm.model.short import LONGEST, MANY
from mblm.model.ssd import CHUNK, SPAN
from vqa_bench.config import HierarchyConfig, LoopConfig, MambaStageConfig, MBLMEncoderConfig, TransformerStageConfig
from vqa_bench.data.vocab import VOCAB_SIZE
from vqa_bench.estimate.flops import StageConfig, by_table, keys_of, table_size
from vqa_bench.estimate.load import Load, Reading, Rules, StageLoad

FLOAT = 4
SLACK = 1.1  # what allocators hold beyond what is asked for: measured, see benchmarks/estimates.py
CUSTOM_WIDTHS = 16  # numbers that a layer of an unknown kind keeps of a position, in widths: a guess


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. activations: kept for backward; workspace: what comes and goes beside them."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float
    workspace: float
    grows: bool  # whether gradients are there while the activations grow

    @property
    def total(self) -> float:
        """At the peak: gradients appear as fast as activations go, unless they were there before."""
        lasting = self.weights + self.optimizer + self.average + self.workspace
        both = self.gradients + self.activations if self.grows else max(self.gradients, self.activations)
        return SLACK * (lasting + both)

    def to_dict(self) -> dict[str, float]:
        """JSON-able, with the total."""
        parts = {name: float(value) for name, value in asdict(self).items() if name != "grows"}
        return parts | {"total": float(self.total)}


NOTHING = Memory(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, grows=False)


@dataclass(frozen=True)
class Kept:
    """Bytes that a stage's forward leaves for its backward, what one layer of it works with, and bytes in all."""

    activations: float
    workspace: float
    traffic: float


def step_memory(
    parameters: int, trainable: int, config: LoopConfig, processes: int, *, activations: float, workspace: float
) -> Memory:
    """The whole of a process: AdamW's two moments, an average where there is one, all shared out under FSDP."""
    share = processes if config.parallel == "fsdp" else 1
    copies = 2 if processes > 1 and config.parallel == "ddp" else 1  # DDP sends gradients from buckets of its own
    half = 0.0 if config.precision == "no" else 2.0 * parameters  # autocast keeps what it has converted
    return Memory(
        weights=FLOAT * parameters / share + half,
        gradients=FLOAT * trainable * copies / share,
        optimizer=2 * FLOAT * trainable / share,
        average=0.0 if config.ema is None else FLOAT * parameters / share,
        activations=activations,
        workspace=workspace,
        grows=config.accumulate > 1 or processes > 1,
    )


def hierarchy_kept(config: HierarchyConfig, load: Load, rules: Rules, *, half: bool) -> Kept:
    """What a batch's forward and backward hold at the most; `half`: matrix products in a 16-bit type."""
    activations, workspace, traffic = 0.0, 0.0, 0.0
    for stage, stage_load in enumerate(load.stages):
        kept = _stage_kept(config, stage, stage_load, rules, half=half)
        head = load.targets * VOCAB_SIZE * FLOAT if stage == len(load.stages) - 1 else 0.0
        chunks = stage_load.chunks
        traffic += (kept.traffic + 3 * head) * (1 if chunks is None else 4 / 3)
        if chunks is None:
            activations += kept.activations + head
            workspace = max(workspace, kept.workspace, 2 * head)
        else:  # a piece is made anew as a whole
            activations += stage_load.sequences * config.hidden_dims[stage - 1] * FLOAT
            workspace = max(workspace, (kept.activations + kept.workspace + 3 * head) / chunks)
    return Kept(activations, workspace, traffic)


def _stage_kept(config: HierarchyConfig, stage: int, load: StageLoad, rules: Rules, *, half: bool) -> Kept:
    width, layers, block = config.hidden_dims[stage], config.num_layers[stage], config.stages[stage]
    inputs = _inputs_kept(config, stage, load)
    activations, workspace, traffic = inputs.activations, inputs.workspace, inputs.traffic
    for reading in load.readings:
        bidirectional = isinstance(config, MBLMEncoderConfig)
        layer = _layer_kept(block, width, reading, rules, half=half, bidirectional=bidirectional)
        ends = 3 * width * FLOAT * reading.total  # the stage's input, its last norm and its output
        activations += layers * layer.activations + ends
        workspace = max(workspace, layer.workspace)
        traffic += layers * layer.traffic + ends
    return Kept(activations, workspace, traffic)


def _layer_kept(
    block: StageConfig, width: int, reading: Reading, rules: Rules, *, half: bool, bidirectional: bool
) -> Kept:
    if isinstance(block, TransformerStageConfig):
        return _transformer_kept(block, width, reading, rules, half=half, bidirectional=bidirectional)
    if isinstance(block, MambaStageConfig):
        return _mamba_kept(block, width, reading, half=half)
    kept = reading.rows * (reading.positions + reading.before) * CUSTOM_WIDTHS * width * FLOAT
    return Kept(kept, 2 * kept, kept)


def _transformer_kept(
    block: TransformerStageConfig, D: int, reading: Reading, rules: Rules, *, half: bool, bidirectional: bool
) -> Kept:
    """Two normed inputs (in both types with autocast), queries, keys, values, what was attended, the two hidden ones.

    And the two projections' weights with the norms' gains in them.
    """
    M, hidden = block.heads * block.head_dim, block.ff_multiplier * D
    size = FLOAT // 2 if half else FLOAT
    a_position = 2 * D * (FLOAT + size * half) + (4 * M + 2 * hidden) * size
    if block.dropout > 0:
        a_position += hidden * (size + 1)
    weights = (6 * M * D + hidden * D) * FLOAT
    attention, copies = _attention_kept(block, reading, rules, size, bidirectional=bidirectional)
    kept = reading.total * (a_position + copies * M * size)
    return Kept(kept + attention + weights, 2 * (kept + attention), kept + 3 * attention + weights)


def _attention_kept(
    block: TransformerStageConfig, reading: Reading, rules: Rules, size: int, *, bidirectional: bool
) -> tuple[float, float]:
    """Bytes of the attention weights that are kept, and how many more copies of the heads."""
    S = reading.positions
    fused = reading.before == 0 and (not bidirectional or S > SHORT or not rules.cpu)
    short = rules.cpu and reading.rows >= MANY and S <= LONGEST and block.dropout == 0 and reading.before <= 1
    if fused and not short and (block.dropout == 0 or not rules.cpu):
        return 0.0, 0.0
    weights = reading.total * block.heads * keys_of(reading, causal=False)
    copies = 0.0 if short or fused else 2.0
    kept = 3.0 if block.dropout > 0 else 1.0  # weights before and after dropout, and what was dropped
    if block.dropout > 0 and reading.group > 1 and reading.before + reading.group * S > SHORT:
        copies += 2 * reading.before / max(S, 1)  # keys and values repeated for every row
    return weights * size * kept, copies


def _mamba_kept(block: MambaStageConfig, D: int, reading: Reading, *, half: bool) -> Kept:
    """The normed input, the projection, the convolution before and after, the chunks' states, and the gated output.

    The recurrence is in float32 whatever the rest is; its weights inside chunks come and go, span by span.
    """
    inner, N = block.expand * D, block.d_state
    heads = inner // block.head_dim
    q = min(CHUNK, reading.positions)
    total = reading.rows * math.ceil(reading.positions / q) * q
    projected, convolved = 2 * inner + 2 * N + heads, inner + 2 * N
    outside = D + projected + convolved + 3 * inner
    inside = convolved + inner * N / q + 3 * heads
    size = (FLOAT + 2) / 2 if half else FLOAT
    kept = total * (outside * size + inside * FLOAT)
    weights = (projected * D + inner * D) * FLOAT
    within = total * heads * q * FLOAT  # one array of a chunk's weights
    at_once = min(within, max(SPAN, reading.rows * heads * q * q) * FLOAT)
    return Kept(kept + weights, 2 * kept + 4 * at_once, kept + 6 * within + weights)


def _inputs_kept(config: HierarchyConfig, stage: int, load: StageLoad) -> Kept:
    """What makes a stage's input keeps: vectors of patches, and what the stage above gave."""
    dims, N = config.hidden_dims, len(config.hidden_dims)
    D, size = dims[stage], math.prod(config.seq_lens[stage + 1 :])
    above = load.sequences * dims[stage - 1] * FLOAT if stage > 0 else 0.0
    added = load.conditioned * D * FLOAT
    if stage == N - 1:
        return Kept(above, 2 * added, above + 2 * added)
    if by_table(load):
        chunks = load.chunks or 1
        kept = load.embedded * (24 * size + 4 * D * FLOAT) + dims[-1] * size * D * FLOAT * chunks
        table = table_size(size) * (D + 2) * FLOAT * chunks
        gathered = load.embedded * size * D * FLOAT
        return Kept(above + kept, 2 * table + 2 * added, above + kept + 4 * table + gathered)
    kept = load.embedded * (2 * size * dims[-1] + 3 * D) * FLOAT
    return Kept(above + kept, kept + 2 * added, above + kept + 2 * added)
