"""What there is to train: cells and pretraining runs, each with data, a folder, and the key it is known by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vqa_bench.config import (
    PRETRAIN_FOLDER,
    CellConfig,
    CustomModelConfig,
    CustomStageConfig,
    HierarchyConfig,
    PretrainConfig,
    PretrainedConfig,
)
from vqa_bench.data.answers import CLEVR_ANSWERS
from vqa_bench.data.books import Books
from vqa_bench.data.manifest import FileInfo, file_info
from vqa_bench.data.shards import Shard
from vqa_bench.matrix.locks import FOLDER
from vqa_bench.plugins import loaded

QUESTIONS = "/questions.arrow"  # the end of the names of a shard's files that no encoding changes

Key = dict[str, str]
"""What a run was made of, as SHA-256: its `outcome` (the configuration), `data`, `initial` weights, `plugins`, and the
`answers` where they are not CLEVR's."""


@dataclass(frozen=True)
class Pretraining:
    """A pretraining run with its books and its folder."""

    config: PretrainConfig
    books: Books
    run: Path

    @property
    def key(self) -> Key:
        """What a finished run must have been made of to be taken as this one."""
        made_of = {"outcome": digest(self.config.outcome()), "data": files_digest(self.books.manifest.files)}
        return made_of | _plugins(self.config.model)

    @property
    def needs(self) -> str | None:
        """The label of the run that must be finished before this one."""
        return None

    @property
    def label(self) -> str:
        """What this is called among everything that is trained into one results folder."""
        return f"{PRETRAIN_FOLDER}/{self.config.name}"

    @property
    def lock(self) -> Path:
        """The file that whoever trains this holds."""
        return self.run.parent.parent / FOLDER / f"{self.label}.lock"


@dataclass(frozen=True)
class Cell:
    """A cell with its shard and its run folder.

    Attributes:
        initial_key: SHA-256 of what says which weights it begins from; None from scratch.
        pretraining: the folder of the pretraining run it begins from, None where it begins from something else.
    """

    config: CellConfig
    shard: Shard
    run: Path
    initial_key: str | None = None
    pretraining: Path | None = None

    @property
    def key(self) -> Key:
        """What a finished run must have been made of to be taken as this cell's."""
        files = self.shard.manifest.files
        if self.config.encoding is None:  # it sees questions only, and those are the same in every encoding's shard
            files = {name: info for name, info in files.items() if name.endswith(QUESTIONS)}
        made_of = {"outcome": digest(self.config.outcome()), "data": files_digest(files)} | _plugins(self.config.model)
        if self.shard.answers != CLEVR_ANSWERS:  # no file of the shard tells one list of candidates from another
            made_of["answers"] = digest(self.shard.answers.names)
        return made_of if self.initial_key is None else made_of | {"initial": self.initial_key}

    @property
    def needs(self) -> str | None:
        """The label of the run that must be finished before this one."""
        return None if self.pretraining is None else f"{PRETRAIN_FOLDER}/{self.pretraining.name}"

    @property
    def label(self) -> str:
        """What this is called among everything that is trained into one results folder."""
        return self.config.name

    @property
    def lock(self) -> Path:
        """The file that whoever trains this holds."""
        return self.run.parent / FOLDER / f"{self.label}.lock"


Trainable = Cell | Pretraining


def _plugins(model: Any) -> dict[str, str]:
    """What a plugin's model or stages are made of, for the key of a run that has any."""
    stages = model.stages if isinstance(model, HierarchyConfig) else []
    custom = isinstance(model, CustomModelConfig) or any(isinstance(stage, CustomStageConfig) for stage in stages)
    return {"plugins": digest(loaded())} if custom else {}


def digest(value: Any) -> str:
    """SHA-256 of something JSON-able."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_digest(files: dict[str, FileInfo]) -> str:
    """SHA-256 over the hashes of the files that a manifest names."""
    return digest({name: info.sha256 for name, info in files.items()})


def weights_digest(source: PretrainedConfig) -> str:
    """SHA-256 over the weights at a path, with the configuration beside them.

    Raises UserError where there are none.
    """
    assert source.path is not None, "only weights at a path are there before the first run"
    from vqa_bench.models.initial import files_of

    return digest([_sha256(file, file.stat().st_mtime_ns) for file in files_of(source.path, source.config)])


@lru_cache
def _sha256(file: Path, changed: int) -> str:
    """Of a file as it was at a time of change: many cells begin from one."""
    return file_info(file).sha256
