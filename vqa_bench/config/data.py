"""Where questions, pictures and text come from, as plain values."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from vqa_bench.config.base import Strict


class SynthConfig(Strict):
    """Data that the built-in generator makes. images: images a split, where not the preset's own."""

    preset: str
    seed: int = 0
    images: dict[str, int] | None = None


class DataConfig(Strict):
    """Where the questions and pictures come from: the generator (`synth`) or a CLEVR `folder`, one of the two."""

    synth: SynthConfig | None = None
    folder: Path | None = None
    dev_fraction: float = Field(default=0.05, ge=0, lt=1)
    dev_seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.synth is None) == (self.folder is None):
            raise ValueError("expected either `synth` or `folder`")
        return self


class SynthTextConfig(Strict):
    """Narrated scenes of the built-in generator; bytes: to train on, at least."""

    bytes: int = Field(ge=1)
    seed: int = 0


class TextDataConfig(Strict):
    """Byte files to pretrain on: the generator's (`synth_text`) or a `folder` of packed books, one of the two."""

    synth_text: SynthTextConfig | None = None
    folder: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TextDataConfig:
        if (self.synth_text is None) == (self.folder is None):
            raise ValueError("expected either `synth_text` or `folder`")
        return self
