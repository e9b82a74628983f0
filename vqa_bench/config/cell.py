"""One row of the matrix, and one pretraining run, as plain values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from vqa_bench.config.base import Strict, Title, overlay
from vqa_bench.config.data import TextDataConfig
from vqa_bench.config.model import BLIND, COUNTED, EITHER, ModelConfig, PretrainedModelConfig
from vqa_bench.config.training import TextTrainConfig, TrainConfig
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.sequences import SequenceConfig
from vqa_bench.errors import UserError

NAME = r"^[a-z0-9][a-z0-9._-]*$"


class EvaluateConfig(Strict):
    """How the test set is scored.

    images_per_batch: at most; their questions come along. shuffled: whether also with the images exchanged. bits:
    images whose sequences' bits per byte are measured, part by part; None takes all. check_invariance: questions that
    are scored again in other batches, where no log-probability may move by more than `tolerance` (nats). damage: images
    that are shown with damaged bytes too.
    """

    images_per_batch: int = Field(default=50, ge=1)
    shuffled: bool = True
    bits: int | None = Field(default=200, ge=0)
    check_invariance: int = Field(default=0, ge=0)
    tolerance: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    damage: int = Field(default=0, ge=0)


class PretrainedConfig(Strict):
    """Weights to begin from: a `run` named under the file's `pretrain`, or a `path`, one of the two.

    path: the folder of a run, a folder with `model.safetensors` and `config.json`, or the reference's `.pth`, whose
    own configuration is then the file `config`. freeze: patterns (as file names have them) of the byte model's
    parameters that are not trained. In a file, settings under `train` are laid over the cell's where it begins from
    these weights.
    """

    run: str | None = None
    path: Path | None = None
    config: Path | None = None
    freeze: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> PretrainedConfig:
        if (self.run is None) == (self.path is None):
            raise ValueError("expected either `run` or `path`")
        return self


class CellConfig(Strict):
    """One row of the matrix. encoding: how images become bytes; None for models that never see one.

    pretrained: what a cell with `init: pretrained` begins from; one with `init: scratch` has none.
    """

    name: str = Field(pattern=NAME)
    title: Title
    encoding: str | None = None
    sequence: SequenceConfig = SequenceConfig()
    model: ModelConfig
    init: Literal["scratch", "pretrained"] = "scratch"
    pretrained: PretrainedConfig | None = None
    train: TrainConfig | None = None
    evaluate: EvaluateConfig = EvaluateConfig()
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="before")
    @classmethod
    def _resolve_init(cls, data: Any) -> Any:
        """`pretrained` may stand in a base that cells of both kinds share."""
        if not isinstance(data, dict) or not isinstance(data.get("pretrained"), dict):
            return data
        if data.get("init", "scratch") == "scratch":
            return {key: value for key, value in data.items() if key != "pretrained"}
        pretrained = dict(data["pretrained"])
        train = pretrained.pop("train", None)
        resolved = data | {"pretrained": pretrained}
        return resolved if train is None else resolved | {"train": overlay(data.get("train"), train)}

    @field_validator("encoding")
    @classmethod
    def _canonical(cls, encoding: str | None) -> str | None:
        try:
            return None if encoding is None else str(parse_spec(encoding))
        except UserError as error:
            raise ValueError(str(error)) from error  # so that it is said with its place, beside all other faults

    @model_validator(mode="after")
    def _check(self) -> CellConfig:
        if self.model.kind not in BLIND | EITHER and self.encoding is None:
            raise ValueError(f"a model of kind {self.model.kind} sees images: expected an `encoding`")
        if (self.train is None) != (self.model.kind in COUNTED):
            expected = "`train`" if self.train is None else "no `train`"
            raise ValueError(f"expected {expected} for a model of kind {self.model.kind}")
        if (self.init == "pretrained") != (self.pretrained is not None):
            raise ValueError("init: pretrained: expected `pretrained` to say what to begin from")
        if self.evaluate.damage > 0 and getattr(self.model, "features", None) is not None:
            raise ValueError(
                "evaluate.damage: expected 0 for a model on extracted features, which damaged bytes have none of, got "
                f"{self.evaluate.damage}"
            )
        if self.init == "pretrained" and self.model.kind != "mblm":
            raise ValueError(f"init: pretrained: expected a model of kind mblm, got {self.model.kind}")
        return self

    def outcome(self) -> dict[str, Any]:
        """Everything that the weights and answers depend on, JSON-able: what a finished run is recognised by."""
        everything = self.model_dump(mode="json", exclude={"title", "pretrained", "train"})
        train = None if self.train is None else self.train.outcome()
        freeze = None if self.pretrained is None else self.pretrained.freeze
        return everything | {"train": train, "freeze": freeze}


class PretrainConfig(Strict):
    """A pretraining run on text. context: bytes of a window; None is all that the model holds."""

    name: str = Field(pattern=NAME)
    title: Title
    data: TextDataConfig
    model: PretrainedModelConfig
    context: int | None = Field(default=None, ge=1)
    train: TextTrainConfig
    seed: int = Field(default=0, ge=0, lt=2**32)

    @property
    def window(self) -> int:
        """Bytes of a window."""
        return math.prod(self.model.seq_lens) if self.context is None else self.context

    def outcome(self) -> dict[str, Any]:
        """Everything that the weights depend on, JSON-able: what a finished run is recognised by."""
        everything = self.model_dump(mode="json", exclude={"title", "data", "train"})
        return everything | {"train": self.train.outcome()}
