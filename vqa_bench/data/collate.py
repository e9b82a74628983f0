"""Groups of questions to batches of tensors: what every batch has, and the byte model's sequences with their weights.

A batch is made on the CPU in narrow types, by processes that know no model; `to` widens it where the model is. The loss
weights do not travel: they follow from the ids and from where the answers start.

Shapes: B images, K questions of an image (short rows filled up, `present` says where), L ids of the prefix, M ids of
the longest suffix, R bytes in a patch of the first stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from vqa_bench.data.loading import Group
from vqa_bench.data.questions import questions_of
from vqa_bench.data.sequences import PartWeights, Sequencer
from vqa_bench.data.shards import SplitReader
from vqa_bench.data.vocab import END_PART, PAD


@dataclass(frozen=True)
class Batch:
    """present (B, K): which places hold a question. rows (B, K): its row in the split. targets (B, K): its answer."""

    present: Tensor
    rows: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Self:
        # From pinned memory the copy runs beside the computation; from other memory this changes nothing.
        return self._each(lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def pin_memory(self) -> Self:
        """In page-locked memory; what the loader calls where it is asked to pin."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        tensors = {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class ByteBatch(Batch):
    """prefix (B, L): the image part, L = 0 where the layout shares none. suffixes (B, K, M); int16 until moved by `to`.

    answer_patches (B, K): whole patches of each suffix before its answer, at least 1.
    """

    prefix: Tensor
    suffixes: Tensor
    answer_patches: Tensor

    def to(self, device: torch.device) -> Self:
        moved = super().to(device)
        return replace(moved, prefix=moved.prefix.long(), suffixes=moved.suffixes.long())


def places(split: SplitReader, groups: Sequence[Group]) -> dict[str, Tensor]:
    """The fields of `Batch`; at least one question must be asked."""
    counts = np.array([len(group.questions) for group in groups])
    present = np.arange(counts.max()) < counts[:, None]
    rows = np.zeros(present.shape, np.int64)
    rows[present] = np.concatenate([group.questions for group in groups])
    targets = np.where(present, questions_of(split).answers[rows], 0).astype(np.int64)
    return {k: torch.from_numpy(v) for k, v in (("present", present), ("rows", rows), ("targets", targets))}


class ByteCollate:
    """Batches of byte sequences. Light to pickle: it holds no weights, and of a split only where its files are.

    The answers in them are the split's, whatever candidates the sequencer was made for.
    """

    def __init__(self, sequencer: Sequencer) -> None:
        self.sequencer = sequencer

    def __call__(self, split: SplitReader, groups: Sequence[Group]) -> ByteBatch:
        found, sequencer = places(split, groups), self.sequencer.answering(split.answers)
        images = sequencer.images([split.image_bytes(group.image) for group in groups])
        present = found["present"].numpy()
        at = np.flatnonzero(present)
        suffixes, starts = sequencer.suffixes(
            questions_of(split).take(found["rows"].numpy()[present]),
            at,
            present.size,
            images=images,
            image_of=at // present.shape[1],
        )
        return ByteBatch(
            **found,
            prefix=torch.from_numpy(images if sequencer.shares_prefix else images[:, :0]),
            suffixes=torch.from_numpy(suffixes).unflatten(0, present.shape),
            answer_patches=torch.from_numpy(starts // sequencer.patch_size).view(present.shape),
        )


def suffix_weights(batch: ByteBatch, sequencer: Sequencer, weights: PartWeights | None = None) -> Tensor:
    """The loss weight of every id of the suffixes, (B, K, M) float32: `Sequencer.weights` of each part.

    weights: of the parts; None for the sequencer's own.
    """
    weights = sequencer.config.weights if weights is None else weights
    copies = sequencer.parts.count("question")
    positions = torch.arange(batch.suffixes.shape[2], device=batch.suffixes.device)
    answers = (batch.answer_patches * sequencer.patch_size)[..., None]
    weight = torch.where(positions >= answers, weights.answer, weights.question)
    if not sequencer.shares_prefix:
        images = (answers - sequencer.image_length) // copies  # where they begin: all question parts are of one length
        inside = (positions >= images) & (positions < images + sequencer.image_length)
        weight = torch.where(inside, weights.image, weight)
    return weight * _is_weighted(batch.suffixes)


def prefix_weights(batch: ByteBatch, sequencer: Sequencer, weights: PartWeights | None = None) -> Tensor:
    """The loss weight of every id of the prefix in each of its sequences, (B, K, L) float32; weights: as above."""
    image = (sequencer.config.weights if weights is None else weights).image
    weight = image * _is_weighted(batch.prefix).float()
    return weight[:, None] * batch.present[..., None]


def _is_weighted(ids: Tensor) -> Tensor:
    """Bytes and ends; neither starts nor padding."""
    return (ids < PAD) | (ids == END_PART)
