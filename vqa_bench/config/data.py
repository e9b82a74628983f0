"""Where questions, pictures and text come from, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from vqa_bench.config.base import Strict


class SynthConfig(Strict):
    """Data that the built-in generator makes. images: images a split, where not the preset's own."""

    preset: str
    seed: int = 0
    images: dict[str, int] | None = None


class CustomDataConfig(Strict):
    """Data that a plugin makes: what it was registered as, and its own options."""

    name: str
    options: dict[str, Any] = Field(default={})


class DataConfig(Strict):
    """Where the questions and pictures come from: the generator (`synth`), a CLEVR `folder`, or a plugin (`custom`).

    answers: a text file with the candidates, one a line, where a folder or a plugin has others than CLEVR's.
    """

    synth: SynthConfig | None = None
    folder: Path | None = None
    custom: CustomDataConfig | None = None
    answers: Path | None = None
    dev_fraction: float = Field(default=0.05, ge=0, lt=1)
    dev_seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        _expect_one("synth", "folder", "custom", config=self)
        if self.synth is not None and self.answers is not None:
            raise ValueError(
                f"expected `answers` for a folder or a plugin's data only, got {self.answers} for synth; leave it out, "
                "as those of the generator are CLEVR's"
            )
        return self


class SynthTextConfig(Strict):
    """Narrated scenes of the built-in generator; bytes: to train on, at least."""

    bytes: int = Field(ge=1)
    seed: int = 0


class TextDataConfig(Strict):
    """Byte files to pretrain on: the generator's (`synth_text`), a `folder` of packed books, or a plugin (`custom`)."""

    synth_text: SynthTextConfig | None = None
    folder: Path | None = None
    custom: CustomDataConfig | None = None

    @model_validator(mode="after")
    def _one_source(self) -> TextDataConfig:
        _expect_one("synth_text", "folder", "custom", config=self)
        return self


def _expect_one(*names: str, config: Strict) -> None:
    given = [name for name in names if getattr(config, name) is not None]
    if len(given) != 1:
        raise ValueError(f"expected one of {', '.join(names)}, got {' and '.join(given) or 'none'}")
