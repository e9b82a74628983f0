"""What the baselines have in common as models of the benchmark: words and pictures in, a logit a candidate out.

The models themselves are in `baselines.py` beside this file.

Shapes: B images, K questions of an image (short rows filled up, `present` says where), A candidates, c x i x j what a
picture is to the model: 3 x height x width, or its features.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.text import WordVocabulary
from mblm import LossSums
from vqa_bench.config import CellConfig
from vqa_bench.data.collate import Batch, places
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import Group
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.models.base import VQAModel, answers_of

MAX_CACHED_BYTES = 1 << 30  # decoded pictures are kept in memory up to this size


@dataclass(frozen=True)
class ClassifierBatch(Batch):
    """tokens (B, K, T) word ids with lengths (B, K), 0 where absent; images (B, c, i, j); question types (B·K)."""

    tokens: Tensor
    lengths: Tensor
    images: Tensor | None
    types: list[str]


class ImageSource(Protocol):
    """What a sighted baseline is shown of a split's images. Light to pickle: the copy reads its splits again."""

    def __call__(self, split: SplitReader, rows: Sequence[int]) -> Tensor:
        """The images of the given rows, (B, c, i, j)."""


class Pictures:
    """Decoded pictures in [0, 1], each split's decoded once while all of them fit."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._kept: WeakKeyDictionary[SplitReader, dict[int, np.ndarray]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Pictures], tuple[str]]:
        return Pictures, (self._encoding,)

    def __call__(self, split: SplitReader, rows: Sequence[int]) -> Tensor:
        pictures = np.stack([self._picture(split, row) for row in rows])
        return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255

    def _picture(self, split: SplitReader, row: int) -> np.ndarray:
        """(H, W, 3) uint8."""
        kept = self._kept.setdefault(split, {})
        if row in kept:
            return kept[row]
        picture = np.asarray(parse_spec(self._encoding).decode(split.image_bytes(row).tobytes()))
        if picture.nbytes * len(split) <= MAX_CACHED_BYTES:
            kept[row] = picture
        return picture


def picture_size(cell: CellConfig, shard: Shard) -> dict[str, Any]:
    """What `built` says of the decoded pictures of a cell that has an encoding: `image_size`, (height, width)."""
    assert cell.encoding is not None, "only a cell with an encoding has pictures"
    picture = parse_spec(cell.encoding).decode(shard.split("train").image_bytes(0).tobytes())
    return {"image_size": [picture.height, picture.width]}


class _Words(NamedTuple):
    """Of a split: ids of all words (questions, T) and how many (questions,)."""

    tokens: Tensor
    lengths: Tensor


class ClassifierCollate:
    """Batches of words and pictures; each split's questions are cut into words once.

    Light to pickle: the copy reads its splits again. images: None for a model that sees no pictures.
    """

    def __init__(self, words: WordVocabulary, images: ImageSource | None) -> None:
        self._words, self._images = words, images
        self._read: WeakKeyDictionary[SplitReader, _Words] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[ClassifierCollate], tuple[WordVocabulary, ImageSource | None]]:
        return ClassifierCollate, (self._words, self._images)

    def __call__(self, split: SplitReader, groups: Sequence[Group]) -> ClassifierBatch:
        found, read = places(split, groups), self._words_of(split)
        rows, present = found["rows"], found["present"]
        lengths = read.lengths[rows]
        return ClassifierBatch(
            **found,
            tokens=read.tokens[rows, : int(lengths.max())].long(),
            lengths=lengths * present,
            images=None if self._images is None else self._images(split, [group.image for group in groups]),
            types=[split.question_type[row] for row in rows.flatten().tolist()],
        )

    def _words_of(self, split: SplitReader) -> _Words:
        read = self._read.get(split)
        if read is None:
            tokens, lengths = self._words.encode(split.question)
            read = self._read[split] = _Words(tokens.to(torch.int32), lengths)
        return read


class Classifier(VQAModel):
    """A baseline that gives a logit a candidate from words, and for a sighted one from what its source shows of images.

    image_shape: (c, i, j) of one picture; None for a blind model.
    """

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        self.words = WordVocabulary.from_dict(built["words"])
        self.image_shape = None if self.blind else self._image_shape()
        self._collate = ClassifierCollate(self.words, None if self.blind else self._image_source())

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        questions = shard.split("train").question
        return {"words": WordVocabulary.build(questions).to_dict()} | answers_of(shard)

    @property
    def collate(self) -> ClassifierCollate:
        return self._collate

    def forward(self, batch: ClassifierBatch) -> LossSums:
        logits, targets = self._logits(batch)[batch.present], batch.targets[batch.present]
        return LossSums(F.cross_entropy(logits, targets, reduction="sum"), batch.present.sum())

    def log_probs(self, batch: ClassifierBatch) -> Tensor:
        """(B·K, A) natural logs."""
        return self._logits(batch).flatten(0, 1).double().log_softmax(-1)

    @abstractmethod
    def _logits(self, batch: ClassifierBatch) -> Tensor:
        """(B, K, A)."""

    def _image_shape(self) -> tuple[int, int, int]:
        """Of a decoded picture; only a sighted model is asked."""
        height, width = self.built["image_size"]
        return 3, height, width

    def _image_source(self) -> ImageSource:
        """Decoded pictures; only a sighted model is asked."""
        return Pictures(cast(str, self.cell.encoding))


class CountedClassifier(Classifier):
    """A baseline without gradients: `fit` once instead of steps."""

    @abstractmethod
    def fit(self, split: SplitReader) -> None:
        """Take in the questions of a split and their answers."""
