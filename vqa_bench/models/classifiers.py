"""The baselines as cells of the benchmark: words and pictures in, a logit a candidate out.

Shapes: B images, K questions of an image (short rows filled up, `present` says where), n = B·K, A candidates, R bytes
in a patch of the first stage.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.cnn_lstm import CNNLSTM
from baselines.lstm import QuestionLSTM
from baselines.majority import Majority
from baselines.text import WordVocabulary
from mblm import LossSums
from vqa_bench.config import CellConfig, CNNLSTMConfig, LSTMConfig, MajorityConfig
from vqa_bench.data.collate import Batch, places
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import Group
from vqa_bench.data.questions import questions_of
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.data.vocab import ANSWERS, QUESTION_TYPES
from vqa_bench.models.base import VQAModel

MAX_CACHED_BYTES = 1 << 30  # decoded pictures are kept in memory up to this size


@dataclass(frozen=True)
class ClassifierBatch(Batch):
    """tokens (B, K, T) word ids with lengths (B, K), 0 where absent; images (B, 3, H, W) in [0, 1]; question types."""

    tokens: Tensor
    lengths: Tensor
    images: Tensor | None
    types: list[str]


class _Read(NamedTuple):
    """What was read of a split: ids of all words (questions, T) and how many (questions,); pictures by their row."""

    split: SplitReader
    tokens: Tensor
    lengths: Tensor
    pictures: dict[int, np.ndarray]


class ClassifierCollate:
    """Batches of words and pictures; each split's questions are cut into words once, its pictures decoded once.

    Light to pickle: the copy reads its splits again. encoding: None for a model that sees no pictures.
    """

    def __init__(self, words: WordVocabulary, encoding: str | None) -> None:
        self._words, self._encoding = words, encoding
        self._seen: list[_Read] = []

    def __reduce__(self) -> tuple[type[ClassifierCollate], tuple[WordVocabulary, str | None]]:
        return ClassifierCollate, (self._words, self._encoding)

    def __call__(self, split: SplitReader, groups: Sequence[Group]) -> ClassifierBatch:
        found, read = places(split, groups), self._read(split)
        rows, present = found["rows"], found["present"]
        lengths = read.lengths[rows]
        images = None
        if self._encoding is not None:
            pictures = np.stack([self._picture(read, group.image) for group in groups])
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        return ClassifierBatch(
            **found,
            tokens=read.tokens[rows, : int(lengths.max())].long(),
            lengths=lengths * present,
            images=images,
            types=[split.question_type[row] for row in rows.flatten().tolist()],
        )

    def _read(self, split: SplitReader) -> _Read:
        for read in self._seen:
            if read.split is split:
                return read
        tokens, lengths = self._words.encode(split.question)
        self._seen.append(_Read(split, tokens.to(torch.int32), lengths, {}))
        return self._seen[-1]

    def _picture(self, read: _Read, row: int) -> np.ndarray:
        """The decoded picture (H, W, 3) uint8, kept while all of the split's fit."""
        if row in read.pictures:
            return read.pictures[row]
        spec = parse_spec(cast(str, self._encoding))
        picture = np.asarray(spec.decode(read.split.image_bytes(row).tobytes()))
        if picture.nbytes * len(read.split) <= MAX_CACHED_BYTES:
            read.pictures[row] = picture
        return picture


class Classifier(VQAModel):
    """A baseline that gives a logit a candidate: words, and for a sighted one the decoded picture."""

    net: nn.Module

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        self.words = WordVocabulary.from_dict(built["words"])
        self._collate = ClassifierCollate(self.words, None if self.blind else cell.encoding)

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        train = shard.split("train")
        built: dict[str, Any] = {"words": WordVocabulary.build(train.question).to_dict()}
        if cell.encoding is not None:
            picture = parse_spec(cell.encoding).decode(train.image_bytes(0).tobytes())
            built["image_size"] = [picture.height, picture.width]
        return built

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


class CNNLSTMModel(Classifier):
    """CNN over the picture, LSTM over the question."""

    blind = False

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        options = cast(CNNLSTMConfig, cell.model).model_dump(exclude={"kind"})
        height, width = built["image_size"]
        self.net = CNNLSTM(vocab_size=len(self.words), num_answers=len(ANSWERS), image_size=(height, width), **options)

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        return cast(Tensor, self.net(batch.images, batch.tokens, batch.lengths))


class LSTMModel(Classifier):
    """The question alone."""

    blind = True

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        options = cast(LSTMConfig, cell.model).model_dump(exclude={"kind"})
        self.net = QuestionLSTM(vocab_size=len(self.words), num_answers=len(ANSWERS), **options)

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        logits = self.net(batch.tokens.flatten(0, 1), batch.lengths.flatten())
        return cast(Tensor, logits.unflatten(0, batch.lengths.shape))


class MajorityModel(Classifier):
    """Counted, not trained: `fit` instead of steps."""

    blind = True

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        per_type = cast(MajorityConfig, cell.model).per_type
        self.net = Majority(len(ANSWERS), QUESTION_TYPES if per_type else None)

    def fit(self, split: SplitReader) -> None:
        """Count the answers of a split."""
        answers = torch.from_numpy(questions_of(split).answers.astype(np.int64))
        cast(Majority, self.net).update(split.question_type, answers)

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        return cast(Tensor, self.net(batch.types)).unflatten(0, batch.present.shape)
