"""Data sets, shards and packed books: found, or made once however many processes want them. Knows no cells."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vqa_bench.config import DataConfig, TextDataConfig
from vqa_bench.data.answers import CLEVR_ANSWERS, Answers, read_answers
from vqa_bench.data.books import Books, open_books
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.manifest import DevInfo, file_info
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import Shard, open_shard
from vqa_bench.errors import UserError
from vqa_bench.matrix.locks import FOLDER, alone
from vqa_bench.progress import progress


@dataclass(frozen=True)
class Source:
    """The data that a configuration names.

    Attributes:
        path: the folder in which it is, or will be.
        make: makes it there; None for data that somebody else has to bring.
        whole: a file that is in the folder once all of it is.
    """

    path: Path
    make: Callable[[], object] | None = None
    whole: str = "info.json"

    @property
    def is_there(self) -> bool:
        """Whether it need not be made any more."""
        return self.path.is_dir() if self.make is None else (self.path / self.whole).is_file()


FindSource = Callable[[DataConfig | TextDataConfig], Source]
"""From a configuration to its data: how data sets are made is known outside."""


@dataclass(frozen=True)
class Warehouse:
    """Where data sets and shards are kept, and who knows how to make them.

    Attributes:
        data: the folder of data sets; shards are in `shards` below it.
        find: says which data set a configuration means.
        workers: processes that encode images.
    """

    data: Path
    find: FindSource
    workers: int

    def source(self, config: DataConfig | TextDataConfig) -> Path:
        """The folder of a configuration's data, made if it is not there yet."""
        source = self.find(config)
        if source.make is not None and not source.is_there:
            with alone(self._lock(source.path.name), what=f"the making of {source.path}"):
                if not source.is_there:
                    source.make()
        return source.path

    def shard(self, config: DataConfig, spec: str) -> Shard:
        """A configuration's pictures and questions in an encoding, made if they are not there yet.

        Raises UserError if a shard is there that was made from other data, for other answers or with another dev split.
        """
        answers = CLEVR_ANSWERS if config.answers is None else read_answers(config.answers)
        source = self.source(config)
        out = self.shard_path(config, spec)
        if not out.exists():
            with alone(self._lock(f"shard-{out.name}"), what=f"the making of {out}"):
                if not out.exists():
                    self._serialize(source, spec, out, config, answers)
        shard = open_shard(out)
        _check_shard(shard, source, spec, config)
        _check_answers(shard, answers, config)
        return shard

    def books(self, config: TextDataConfig) -> Books:
        """A configuration's packed books, made if they are not there yet."""
        return open_books(self.source(config))

    def shard_if_there(self, config: DataConfig, spec: str) -> Shard | None:
        """The shard without making anything, None where it or the data under it is not there."""
        path = self.shard_path(config, spec)
        return open_shard(path) if path.exists() and self.find(config).is_there else None

    def books_if_there(self, config: TextDataConfig) -> Books | None:
        """The packed books without making anything, None where they are not there."""
        source = self.find(config)
        return open_books(source.path) if source.is_there else None

    def shard_path(self, config: DataConfig, spec: str) -> Path:
        """The folder of the shard of some data in an encoding."""
        encoding = "".join(c if c.isalnum() else "-" for c in str(parse_spec(spec)))
        return self.data / "shards" / f"{self.find(config).path.name}--{encoding}"

    def _lock(self, name: str) -> Path:
        return self.data / FOLDER / f"{name}.lock"

    def _serialize(self, source: Path, spec: str, out: Path, config: DataConfig, answers: Answers) -> None:
        with progress(f"serialize {source.name} as {spec}", "images") as report:
            serialize(
                source,
                parse_spec(spec),
                out,
                workers=self.workers,
                dev_fraction=config.dev_fraction,
                dev_seed=config.dev_seed,
                answers=answers,
                progress=report,
            )


def _check_shard(shard: Shard, source: Path, spec: str, config: DataConfig) -> None:
    """UserError unless the shard is all of the source, in the encoding, with the configured dev split."""
    manifest = shard.manifest
    same_source = all(
        (source / name).is_file() and file_info(source / name).sha256 == sha256
        for name, sha256 in manifest.source.json_files.items()
    )
    carved = "train" in manifest.splits and config.dev_fraction > 0
    dev = DevInfo(fraction=config.dev_fraction, seed=config.dev_seed) if carved else None
    whole = not any(info.missing_questions for info in manifest.splits.values())
    if manifest.spec != str(parse_spec(spec)) or not same_source or manifest.dev != dev or not whole:
        raise UserError(f"expected {shard.path} to hold {source} as {spec}, got other data; delete it to make it anew")


def _check_answers(shard: Shard, answers: Answers, config: DataConfig) -> None:
    """UserError unless the shard has the configured candidates, in their order."""
    if shard.answers != answers:
        wanted = "CLEVR's" if config.answers is None else f"those of {config.answers}"
        raise UserError(
            f"expected {shard.path} with the answers that the configuration names, {wanted} ({len(answers)}), got "
            f"{len(shard.answers)} that are not the same; change data.answers, or delete it to make it anew"
        )
