"""The baselines as cells of the benchmark: words and pictures in, a logit a candidate out.

Shapes: B images, K questions of an image (short rows filled up, `present` says where), n = B·K, A candidates, R bytes
in a patch of the first stage.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

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


class Classifier(VQAModel):
    """A baseline that gives a logit a candidate: words, and for a sighted one the decoded picture."""

    net: nn.Module

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        self.words = WordVocabulary.from_dict(built["words"])
        self._pictures: dict[int, np.ndarray] = {}
        self._pictures_of: SplitReader | None = None

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        train = shard.split("train")
        built: dict[str, Any] = {"words": WordVocabulary.build(train.question).to_dict()}
        if cell.encoding is not None:
            picture = parse_spec(cell.encoding).decode(train.image_bytes(0).tobytes())
            built["image_size"] = [picture.height, picture.width]
        return built

    @property
    def collate(self) -> Callable[[SplitReader, Sequence[Group]], ClassifierBatch]:
        return self._batch

    def _batch(self, split: SplitReader, groups: Sequence[Group]) -> ClassifierBatch:
        found = places(split, groups)
        rows, present = found["rows"], found["present"]
        tokens, lengths = self.words.encode([split.question[row] for row in rows.flatten().tolist()])
        lengths = lengths.view_as(rows) * present
        images = None
        if not self.blind:
            pictures = np.stack([self._picture(split, group.image) for group in groups])
            images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        types = [split.question_type[row] for row in rows.flatten().tolist()]
        return ClassifierBatch(
            **found, tokens=tokens.unflatten(0, rows.shape), lengths=lengths, images=images, types=types
        )

    def forward(self, batch: ClassifierBatch) -> LossSums:
        logits, targets = self._logits(batch)[batch.present], batch.targets[batch.present]
        return LossSums(F.cross_entropy(logits, targets, reduction="sum"), batch.present.sum())

    def log_probs(self, batch: ClassifierBatch) -> Tensor:
        """(B·K, A) natural logs."""
        return self._logits(batch).flatten(0, 1).double().log_softmax(-1)

    @abstractmethod
    def _logits(self, batch: ClassifierBatch) -> Tensor:
        """(B, K, A)."""

    def _picture(self, split: SplitReader, row: int) -> np.ndarray:
        """The decoded picture (H, W, 3) uint8, kept while all of them fit."""
        if self._pictures_of is not split:
            self._pictures, self._pictures_of = {}, split
        if row not in self._pictures:
            spec = parse_spec(cast(str, self.cell.encoding))
            picture = np.asarray(spec.decode(split.image_bytes(row).tobytes()))
            if picture.nbytes * len(split) > MAX_CACHED_BYTES:
                return picture
            self._pictures[row] = picture
        return self._pictures[row]


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
