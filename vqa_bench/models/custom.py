"""Models of plugins: a torch module on words and pictures, registered by name and named by a cell.

The harness makes the batches, the loss and the scores; a plugin only builds the module.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from vqa_bench.config import CellConfig, CustomModelConfig
from vqa_bench.data.registry import Registry
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.models.classifiers import Classifier, ClassifierBatch, picture_size


class Sizes(NamedTuple):
    """What a module is built for: words in the vocabulary, candidate answers, (height, width) of a picture.

    The picture is None where the cell has no encoding: such a model is blind.
    """

    words: int
    answers: int
    image: tuple[int, int] | None


class BuildModel(Protocol):
    """Builds a module; `options` are those of the configuration.

    The module is called with images (B, 3, height, width) in [0, 1] (None for a blind model), tokens (B, K, T) and
    lengths (B, K), 0 where a row of questions is filled up; it returns logits (B, K, A).
    """

    def __call__(self, options: dict[str, Any], sizes: Sizes) -> nn.Module: ...


MODELS: Registry[BuildModel] = Registry("model")
"""Models of plugins by their names, named in a configuration as `model: {kind: custom, name: NAME}`."""

register_model = MODELS.register


class CustomModel(Classifier):
    """A module of a plugin's own as a cell of the benchmark; blind where the cell has no encoding."""

    def __init__(self, cell: CellConfig, built: dict[str, Any]) -> None:
        self.blind = cell.encoding is None
        super().__init__(cell, built)
        config = cast(CustomModelConfig, cell.model)
        image = None if self.blind else cast(tuple[int, int], tuple(built["image_size"]))
        self.net = MODELS.expect(config.name)(dict(config.options), Sizes(len(self.words), len(self.answers), image))

    @classmethod
    def decide(cls, cell: CellConfig, shard: Shard) -> dict[str, Any]:
        return super().decide(cell, shard) | ({} if cell.encoding is None else picture_size(cell, shard))

    def _logits(self, batch: ClassifierBatch) -> Tensor:
        images = None if batch.images is None else batch.images.to(next(self.net.parameters()).dtype)
        logits = self.net(images, batch.tokens, batch.lengths)
        expected = (*batch.lengths.shape, len(self.answers))
        if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != expected:
            got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise UserError(
                f"{self.cell.name}: expected logits {expected} (images, questions, answers) of the model, got {got}"
            )
        return logits
