"""The manifest of a shard: what it was made from, what it holds, and the hash of every file.

No timestamps and no absolute paths, so that the same input gives the same manifest. CLEVR's own answers are not written
down: they are what a shard has that names none. Knows nothing of Arrow or images.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.errors import UserError

MANIFEST_NAME = "manifest.json"

RecordType = TypeVar("RecordType", bound="Record")


class Record(BaseModel):
    """Part of a manifest: nothing unknown, nothing converted, nothing changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ByteLengths(Record):
    """How many bytes the items of a split have; all zero if there are none."""

    min: int
    median: int
    p95: int
    max: int

    @classmethod
    def of(cls, lengths: np.ndarray) -> "ByteLengths":
        """Quantiles that are themselves lengths which occur; `lengths` (n,) integers."""
        if len(lengths) == 0:
            return cls(min=0, median=0, p95=0, max=0)
        low, median, p95, high = np.quantile(lengths, [0, 0.5, 0.95, 1], method="inverted_cdf")
        return cls(min=int(low), median=int(median), p95=int(p95), max=int(high))


class SplitInfo(Record):
    """One split of a shard.

    Attributes:
        source_split: the split of the source that it was taken from.
        missing_images: images of the source split that have questions but no file.
        missing_questions: questions of the source split left out because their image is missing.
        unasked_images: images of the source split left out because no question asks about them.
    """

    source_split: str
    images: int
    questions: int
    image_bytes: ByteLengths
    question_bytes: ByteLengths
    missing_images: int
    missing_questions: int
    unasked_images: int


class SourceInfo(Record):
    """Where a shard's data comes from.

    Attributes:
        name: name of the source folder.
        fingerprint: SHA-256 over the sorted names, sizes and SHA-256 of every file that was read.
        json_files: SHA-256 of each questions and scenes file that was read, by its path inside the folder.
    """

    name: str
    fingerprint: str
    json_files: dict[str, str]


class DevInfo(Record):
    """How the development split was carved out of the training images."""

    fraction: float
    seed: int


class FileInfo(Record):
    """Size and hash of one file of the shard."""

    bytes: int
    sha256: str


class Manifest(Record):
    """Everything about a shard that is not in its tables.

    Attributes:
        spec: the image encoding's text.
        codecs: versions of the libraries that wrote the image bytes.
        splits: by the shard's names: `train`, `dev`, `test`, `test_b`, `unlabelled`, `unlabelled_b`.
        files: every other file, by its path inside the shard.
        answers: the candidates in their order; None for CLEVR's.
    """

    format: Literal["vqa-bench shard"] = "vqa-bench shard"
    version: Literal[1] = 1
    spec: str
    source: SourceInfo
    dev: DevInfo | None
    codecs: dict[str, str]
    splits: dict[str, SplitInfo] = Field(min_length=1)
    files: dict[str, FileInfo]
    answers: list[str] | None = None

    @field_validator("answers")
    @classmethod
    def _are_candidates(cls, names: list[str] | None) -> list[str] | None:
        try:
            return names if names is None else list(Answers(tuple(names)).names)
        except UserError as error:
            raise ValueError(str(error)) from error

    @model_serializer(mode="wrap")
    def _without_clevrs(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A shard with CLEVR's answers says nothing of them, as did shards before there were others."""
        return {name: value for name, value in dump(self).items() if name != "answers" or value is not None}

    @model_validator(mode="after")
    def _has_all_tables(self) -> "Manifest":
        for split in self.splits:
            if re.fullmatch("[a-z][a-z_]*", split) is None:
                raise ValueError(f"expected a plain name of a split, got {split!r}")
            missing = {f"{split}/images.arrow", f"{split}/questions.arrow"} - set(self.files)
            if missing:
                raise ValueError(f"expected the hash of {min(missing)} among the files, got none")
        return self


def read_manifest(shard: Path) -> Manifest:
    """Reads a shard's manifest.

    Raises:
        UserError: not a folder with a manifest, or a manifest of another kind or version.
    """
    path = shard / MANIFEST_NAME
    if not path.is_file():
        raise UserError(f"expected a shard (a folder with {MANIFEST_NAME}), got {shard}; make one with `serialize`")
    return parse_manifest(Manifest, path, what="a shard", again="serialize again")


def parse_manifest(kind: type[RecordType], path: Path, *, what: str, again: str) -> RecordType:
    """Reads a manifest of a kind, of `what`.

    Raises:
        UserError: a manifest of another kind or version; says to do it `again`.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise UserError(
            f"expected the manifest of {what} of version 1, got {path} with {where}: {first['msg']}; {again}"
        ) from error


def write_manifest(
    folder: Path,
    *,
    spec: str,
    source: SourceInfo,
    dev: DevInfo | None,
    codecs: dict[str, str],
    splits: dict[str, SplitInfo],
    answers: Answers = CLEVR_ANSWERS,
) -> Manifest:
    """Hashes all files of a shard's folder and writes its manifest, the last file of a shard."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): file_info(path) for path in paths}
    names = None if answers == CLEVR_ANSWERS else list(answers.names)
    manifest = Manifest(spec=spec, source=source, dev=dev, codecs=codecs, splits=splits, files=files, answers=names)
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def file_info(path: Path) -> FileInfo:
    """Size and SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileInfo(bytes=path.stat().st_size, sha256=digest)


def fingerprint(files: Iterable[tuple[str, int, str]]) -> str:
    """SHA-256 over the names, sizes and hashes of files; names are paths inside their folder, and must rise."""
    digest, before = hashlib.sha256(), ""
    for name, size, sha256 in files:
        assert before < name, (before, name)
        digest.update(f"{name}\t{size}\t{sha256}\n".encode())
        before = name
    return digest.hexdigest()
