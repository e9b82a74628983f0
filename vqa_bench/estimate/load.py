"""What a hierarchy has to do for one batch: which stage reads how many sequences of how many positions.

The model's own rules, without its weights: an image is read once for its questions, and a later stage runs only on the
sequences that predict a weighted byte, as far as they are needed. Knows numbers of positions, neither FLOPs nor bytes.

Shapes: R bytes in a patch of the first stage, B images with K questions each, n sequences or windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F

from mblm.model.later import GROUP_PAYS_FROM, bounds_by_need
from mblm.model.short import LONGEST, MANY
from mblm.model.targets import Chain, chains, shared_chains
from vqa_bench.config import HierarchyConfig, MBLMEncoderConfig, TransformerStageConfig
from vqa_bench.data.collate import ByteBatch, prefix_weights, suffix_weights
from vqa_bench.data.sequences import Sequencer
from vqa_bench.data.vocab import PAD
from vqa_bench.estimate.samples import Samples

MOST_IDS = 2**22  # of the batch that is laid out; a larger one is extrapolated from fewer images


@dataclass(frozen=True)
class Reading:
    """`rows` sequences that read `positions` each, behind `before` that were read once for `group` of them.

    kept: others continue from the state behind them.
    """

    rows: float
    positions: float
    before: float = 0.0
    group: int = 1
    kept: bool = False

    @property
    def total(self) -> float:
        """Positions of all rows."""
        return self.rows * self.positions


@dataclass(frozen=True)
class StageLoad:
    """What one stage does: what it reads, what it embeds (patches, or bytes at the local stage).

    sequences: how many a stage above conditions; conditioned: positions of all of them. chunks: pieces that the
    sequences are split into, each recomputed in backward; None where nothing is recomputed.
    """

    readings: tuple[Reading, ...]
    embedded: float
    sequences: float = 0.0
    conditioned: float = 0.0
    chunks: int | None = None


@dataclass(frozen=True)
class Load:
    """One batch: its stages from the global to the local one, and how many bytes are predicted."""

    stages: tuple[StageLoad, ...]
    targets: float

    def scaled(self, factor: float) -> Load:
        """A batch of so many times the samples."""
        return Load(tuple(_scaled(stage, factor) for stage in self.stages), self.targets * factor)


@dataclass(frozen=True)
class Rules:
    """How this training runs the model. cpu: on a CPU, where beginnings are shared; same_calls: under FSDP."""

    cpu: bool = True
    same_calls: bool = False


def question_load(
    config: HierarchyConfig, sequencer: Sequencer, samples: Samples, images: int, rules: Rules = Rules()
) -> Load:
    """The load of a batch of `images` images with their questions."""
    K = samples.per_image
    ids = sequencer.image_length + K * (len(sequencer.parts) * 64 + sequencer.image_length * _copies(sequencer))
    taken = max(1, min(images, MOST_IDS // ids))
    batch = _batch(sequencer, samples, taken, K)
    R = sequencer.patch_size
    weights = suffix_weights(batch, sequencer)
    suffixes, padded = (_patches(x, R, fill) for x, fill in ((batch.suffixes.long(), PAD), (weights, 0)))
    S = suffixes.shape[2]
    if sequencer.shares_prefix:
        prefix = _patches(batch.prefix.long(), R, PAD)
        trunk = prefix_weights(batch, sequencer) if sequencer.config.weights.image > 0 else None
        chain = shared_chains(prefix, suffixes, padded, None if trunk is None else _patches(trunk, R, 0))
        done = prefix.shape[1]
        first = [Reading(taken, done + 1, kept=True)]
        first += [Reading(taken * K, S - 1, before=done + 1, group=K)] if S > 1 else []
        embedded = taken * done + taken * K * (S - 1)
    else:
        chain = chains(suffixes.flatten(0, 1), padded.flatten(0, 1))
        first, embedded = [Reading(taken * K, S)], taken * K * (S - 1)
    scale = images / taken
    head = _scaled(StageLoad(tuple(first), embedded), scale)
    later, targets = _later(config, chain, scale, rules)
    return Load((head, *later), targets)


def window_load(config: HierarchyConfig, windows: int, length: int, rules: Rules = Rules()) -> Load:
    """The load of a batch of text windows of `length` bytes, every byte (or a share of them, if masked) predicted."""
    lens, N = config.seq_lens, len(config.seq_lens)
    patch_bytes = [math.prod(lens[stage + 1 :]) for stage in range(N)]
    patches = math.ceil(length / patch_bytes[0])
    masked = isinstance(config, MBLMEncoderConfig)
    embedded = windows * (patches if masked else patches - 1)
    stages = [StageLoad((Reading(windows, patches),), embedded)]
    for stage in range(1, N):
        of_sequence = patch_bytes[stage - 1]
        rows = windows * (patches * patch_bytes[0] // of_sequence if masked else math.ceil(length / of_sequence))
        count = lens[stage] if masked or stage == N - 1 else lens[stage] - 1
        stages.append(_later_stage(config, stage, [(rows, count)], rules, starts=not masked))
    share = config.mask_rate if isinstance(config, MBLMEncoderConfig) else 1.0
    return Load(tuple(stages), windows * length * share)


def _later(config: HierarchyConfig, chain: Chain, scale: float, rules: Rules) -> tuple[list[StageLoad], float]:
    """The stages below the first for the weighted bytes of a chain, and how many those are."""
    targets = chain.targets(PAD)
    lens, N = config.seq_lens, len(config.seq_lens)
    if N == 1 or len(targets.ids) == 0:
        return [_later_stage(config, stage, [(1, 1)], rules) for stage in range(1, N)], len(targets.ids) * scale
    P = lens[-1]
    sources, is_start = targets.sources(chain)
    slots = torch.where(is_start, 0, sources % P + 1)
    leaves, where = torch.unique(sources // P, return_inverse=True)
    need = torch.zeros_like(leaves).scatter_reduce_(0, where, slots, "amax").sort().values
    stages = []
    for stage in range(1, N - 1):
        sequences = torch.unique_consecutive(leaves // math.prod(lens[stage : N - 1]))
        stages.append(_later_stage(config, stage, [(len(sequences) * scale, lens[stage] - 1)], rules))
    bounds = _bounds(config, need, scale, rules)
    groups = [((stop - start) * scale, int(need[stop - 1])) for start, stop in pairwise(bounds)]
    stages.append(_later_stage(config, N - 1, groups, rules))
    return stages, len(targets.ids) * scale


def _bounds(config: HierarchyConfig, need: torch.Tensor, scale: float, rules: Rules) -> list[int]:
    """Where local sequences sorted by need are cut into groups, as `LaterStages.losses` does."""
    rows = len(need)
    if config.checkpoint_chunks:
        count = min(config.checkpoint_chunks[-1], rows)
        return [rows * i // count for i in range(count + 1)]
    if rules.same_calls:
        return [0, rows]
    histogram = torch.bincount(need)
    least_gain = int(GROUP_PAYS_FROM // config.hidden_dims[-1] ** 2 / scale)
    return bounds_by_need(histogram.tolist(), least_gain)


def _later_stage(
    config: HierarchyConfig,
    stage: int,
    groups: Sequence[tuple[float, int]],
    rules: Rules,
    *,
    starts: bool = True,
) -> StageLoad:
    """A later stage that reads the first `count` inputs of so many rows, for every (rows, count) of `groups`."""
    chunks = None if not config.checkpoint_chunks else config.checkpoint_chunks[stage - 1]
    rows = sum(group[0] for group in groups)
    chunks = None if chunks is None else int(max(1, min(chunks, rows)))
    pieces = 1 if chunks is None or len(groups) > 1 else chunks
    readings = []
    for sequences, count in groups:
        if not starts:
            readings.append(Reading(sequences, count))
        elif _shares_start(config, stage, sequences / pieces, count, rules):
            readings.append(Reading(sequences, count, before=1))
        else:
            readings.append(Reading(sequences, count + 1))
    conditioned = sum(sequences * count for sequences, count in groups)
    return StageLoad(tuple(readings), conditioned, sequences=rows, conditioned=conditioned, chunks=chunks)


def _shares_start(config: HierarchyConfig, stage: int, rows: float, count: int, rules: Rules) -> bool:
    block = config.stages[stage]
    if not rules.cpu or rules.same_calls or not isinstance(block, TransformerStageConfig) or block.dropout > 0:
        return False
    return 0 < count <= LONGEST and rows >= MANY


def _batch(sequencer: Sequencer, samples: Samples, images: int, K: int) -> ByteBatch:
    """A batch as the collation makes it, of pictures and questions without meaning."""
    count = images * K
    parts = sequencer.images([np.zeros(samples.typical_image_bytes, np.uint8)] * images)
    at = np.arange(count)
    suffixes, starts = sequencer.suffixes(samples.asked(count), at, count, images=parts, image_of=at // K)
    return ByteBatch(
        present=torch.ones(images, K, dtype=torch.bool),
        rows=torch.zeros(images, K, dtype=torch.long),
        targets=torch.zeros(images, K, dtype=torch.long),
        prefix=torch.from_numpy(parts if sequencer.shares_prefix else parts[:, :0]),
        suffixes=torch.from_numpy(suffixes).unflatten(0, (images, K)),
        answer_patches=torch.from_numpy(starts // sequencer.patch_size).view(images, K),
    )


def _patches(x: torch.Tensor, R: int, fill: int) -> torch.Tensor:
    return F.pad(x, (0, -x.shape[-1] % R), value=fill).unflatten(-1, (-1, R))


def _copies(sequencer: Sequencer) -> int:
    return 0 if sequencer.shares_prefix and sequencer.config.weights.image == 0 else 1


def _scaled(stage: StageLoad, factor: float) -> StageLoad:
    return replace(
        stage,
        readings=tuple(replace(reading, rows=reading.rows * factor) for reading in stage.readings),
        embedded=stage.embedded * factor,
        sequences=stage.sequences * factor,
        conditioned=stage.conditioned * factor,
    )
