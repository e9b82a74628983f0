"""The baselines as cells of the benchmark: from each kind's configuration to the torch module that answers.

Shapes: B images, K questions of an image, A candidates.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from baselines.attention import StackedAttention
from baselines.fusion import ImageQuestionMLP
from baselines.image import FeatureEncoder, ImageEncoder, MapEncoder
from baselines.lstm import QuestionEncoder, QuestionLSTM
from baselines.majority import Majority
from baselines.words import BagOfWords, MeanOfWords
from vqa_bench.config import CellConfig
from vqa_bench.config.model import (
    BoWConfig,
    CNNBoWConfig,
    CNNLSTMConfig,
    CNNLSTMSAConfig,
    LSTMConfig,
    MajorityConfig,
    PooledFeaturesConfig,
)
from vqa_bench.data.questions import questions_of
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.data.vocab import QUESTION_TYPES
from vqa_bench.errors import UserError
from vqa_bench.models.classifiers import Classifier, ClassifierBatch, CountedClassifier, ImageSource, picture_size
from vqa_bench.models.features import FeatureFolder, FeatureInfo

SightedConfig = CNNLSTMConfig | CNNBoWConfig | CNNLSTMSAConfig


class Sighted(Classifier):
    """A baseline that sees the pictures through a small CNN of its own, or features that were extracted of them."""

    blind = False
    net: nn.Module

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        built = super().decide(cell, shard)
        features = cast(SightedConfig, cell.model).features
        if features is not None:
            return built | {"features": FeatureFolder(features.folder).info.to_dict()}
        return built | picture_size(cell, shard)

    def check(self, shard: Shard) -> None:
        super().check(shard)
        if self._options.features is not None:
            FeatureFolder(self._options.features.folder).check(shard)

    @property
    def _options(self) -> SightedConfig:
        return cast(SightedConfig, self.cell.model)

    def _image_shape(self) -> tuple[int, int, int]:
        if "features" in self.built:
            return FeatureInfo.from_dict(self.built["features"]).shape
        return super()._image_shape()

    def _image_source(self) -> ImageSource:
        features = self._options.features
        if features is None:
            return super()._image_source()
        encoding, expected = cast(str, self.cell.encoding), FeatureInfo.from_dict(self.built["features"])
        return FeatureFolder(features.folder, encoding=encoding, expected=expected)

    def _image_encoder(self) -> MapEncoder:
        options = self._options
        assert self.image_shape is not None
        if options.features is None:
            return ImageEncoder(image_size=self.image_shape[1:], channels=options.channels, strides=options.strides)
        if isinstance(options.features, PooledFeaturesConfig):
            return FeatureEncoder(shape=self.image_shape, width=options.features.width, pool=options.features.pool)
        return FeatureEncoder(shape=self.image_shape)

    def _lstm(self, options: CNNLSTMConfig | CNNLSTMSAConfig) -> QuestionEncoder:
        return QuestionEncoder(
            vocab_size=len(self.words),
            embedding=options.embedding,
            hidden=options.hidden,
            layers=options.layers,
            dropout=options.dropout,
        )

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        assert batch.images is not None
        images = batch.images.to(next(self.net.parameters()).dtype)  # features travel as float16
        return cast(Tensor, self.net(images, batch.tokens, batch.lengths))


class CNNLSTMModel(Sighted):
    """CNN over the picture, LSTM over the question."""

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        options = cast(CNNLSTMConfig, cell.model)
        self.net = ImageQuestionMLP(
            self._image_encoder(),
            self._lstm(options),
            num_answers=len(self.answers),
            mlp_hidden=options.mlp_hidden,
            dropout=options.dropout,
        )


class CNNBoWModel(Sighted):
    """CNN over the picture, the mean of word vectors for the question."""

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        options = cast(CNNBoWConfig, cell.model)
        self.net = ImageQuestionMLP(
            self._image_encoder(),
            MeanOfWords(vocab_size=len(self.words), embedding=options.embedding),
            num_answers=len(self.answers),
            mlp_hidden=options.mlp_hidden,
            dropout=options.dropout,
        )


class CNNLSTMSAModel(Sighted):
    """CNN over the picture, LSTM over the question, which looks at positions of the picture."""

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        options = cast(CNNLSTMSAConfig, cell.model)
        self.net = StackedAttention(
            self._image_encoder(),
            self._lstm(options),
            num_answers=len(self.answers),
            attention_width=options.attention_width,
            looks=options.looks,
            mlp_hidden=options.mlp_hidden,
            dropout=options.dropout,
        )


class LSTMModel(Classifier):
    """The question alone."""

    blind = True

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        options = cast(LSTMConfig, cell.model).model_dump(exclude={"kind"})
        self.net = QuestionLSTM(vocab_size=len(self.words), num_answers=len(self.answers), **options)

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        return _of_words(self.net, batch)


class BoWModel(CountedClassifier):
    """The question's words, in no order: a logistic regression."""

    blind = True

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        self.net = BagOfWords(vocab_size=len(self.words), num_answers=len(self.answers))

    def fit(self, split: SplitReader) -> None:
        """Raises UserError where the regression does not converge."""
        options = cast(BoWConfig, self.cell.model)
        tokens, lengths = self.words.encode(split.question)
        try:
            self.net.fit(
                tokens,
                lengths,
                _answers(split),
                inverse_penalty=options.inverse_penalty,
                max_iterations=options.max_iterations,
            )
        except ValueError as error:
            raise UserError(f"{self.cell.name}: {error}; set model.max_iterations") from error

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        return _of_words(self.net, batch)


class MajorityModel(CountedClassifier):
    """Answers counted, of all questions or per type."""

    blind = True

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        super().__init__(cell, built)
        per_type = cast(MajorityConfig, cell.model).per_type
        self.net = Majority(len(self.answers), built.get("types", QUESTION_TYPES) if per_type else None)

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        """The types of questions are written down where they are not CLEVR's."""
        types = sorted(set(shard.split("train").question_type))
        return super().decide(cell, shard) | ({} if set(types) <= set(QUESTION_TYPES) else {"types": types})

    def fit(self, split: SplitReader) -> None:
        self.net.update(split.question_type, _answers(split))

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        return cast(Tensor, self.net(batch.types)).unflatten(0, batch.present.shape)


def _of_words(net: nn.Module, batch: ClassifierBatch) -> Tensor:
    """(B, K, A): logits of a module that knows questions only, one by one."""
    logits = net(batch.tokens.flatten(0, 1), batch.lengths.flatten())
    return cast(Tensor, logits.unflatten(0, batch.lengths.shape))


def _answers(split: SplitReader) -> Tensor:
    """(questions,) int64: the place of each right answer among the candidates."""
    return torch.from_numpy(questions_of(split).answers.astype(np.int64))
