"""Serialises a CLEVR folder: encodes every image once and writes images and questions as one shard.

The bytes of a shard are a function of the folder, the encoding and the choice of the development split, whatever the
number of worker processes. This file knows nothing of sequences, models or torch.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import features

from vqa_bench.data.clevr import ClevrFolder, SplitSource
from vqa_bench.data.image_pool import ImagePool
from vqa_bench.data.manifest import (
    ByteLengths,
    DevInfo,
    FileInfo,
    Manifest,
    SourceInfo,
    SplitInfo,
    file_info,
    fingerprint,
    write_manifest,
)
from vqa_bench.data.shards import IMAGE_SCHEMA, QUESTION_SCHEMA, ImageRow, QuestionRow, new_folder, write_rows
from vqa_bench.data.spec import Spec
from vqa_bench.errors import UserError

SOURCE_OF_SPLIT = {"train": "train", "dev": "train", "test": "val"}
"""Split of a shard → split of the release. The official val is the test set: CLEVR's own test set has no answers."""

CODECS = ("pil", "zlib", "zlib_ng", "libjpeg_turbo", "webp")

Progress = Callable[[int, int], None]
"""Called with the number of images done and the number of all."""


def serialize(
    source: Path,
    spec: Spec,
    out: Path,
    *,
    workers: int,
    dev_fraction: float = 0.05,
    dev_seed: int = 0,
    splits: Sequence[str] | None = None,
    allow_missing: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Writes a shard of a CLEVR folder. It appears at `out` when it is complete, or not at all.

    Args:
        source: a folder in the layout of the CLEVR release.
        spec: how images become bytes.
        out: path of the shard, which must not exist.
        workers: number of processes that encode images, at least 1.
        dev_fraction: part of the training images that become the split `dev`, in [0, 1); 0 for no such split.
        dev_seed: which images these are.
        splits: which of `train`, `dev` and `test` to write; None for all that the folder has.
        allow_missing: leave out questions whose image file is missing, and count them, instead of raising.
        progress: told about each image.

    Returns:
        The shard's manifest.

    Raises:
        UserError: `out` exists; no CLEVR folder; a split it does not have; a question without an image (unless
            `allow_missing`); an invalid question; an image file that is not whole.
    """
    if workers < 1:
        raise UserError(f"expected at least 1 worker, got {workers}")
    if not 0 <= dev_fraction < 1:
        raise UserError(f"expected a dev fraction in [0, 1), got {dev_fraction}")
    with new_folder(out) as folder, ImagePool(workers) as pool:
        plans = _plan(
            ClevrFolder(source),
            splits,
            dev_fraction=dev_fraction,
            dev_seed=dev_seed,
            allow_missing=allow_missing,
        )
        total = sum(len(plan.images) for plan in plans)
        writer = _Writer(source=source, spec=spec, folder=folder, pool=pool, total=total, progress=progress)
        infos = {plan.name: writer.write_split(plan) for plan in plans}
        carved = dev_fraction > 0 and any(plan.source.split == "train" for plan in plans)
        return write_manifest(
            folder,
            spec=str(spec),
            source=writer.source_info(),
            dev=DevInfo(fraction=dev_fraction, seed=dev_seed) if carved else None,
            codecs={name: version for name in CODECS if (version := features.version(name)) is not None},
            splits=infos,
        )


def carve_dev(images: Sequence[str], fraction: float, seed: int) -> frozenset[str]:
    """The training images that are set aside for development: at least one, unless the fraction is 0.

    Ranked by a hash of seed and name, so the choice depends on no listing order and no version of a generator.

    Raises:
        UserError: none would be left to train on.
    """
    if fraction == 0:
        return frozenset()
    count = max(1, round(len(images) * fraction))
    if count >= len(images):
        raise UserError(
            f"expected a dev fraction that leaves images to train on, got {fraction} of {len(images)}; lower it"
        )
    ranked = sorted(images, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return frozenset(ranked[:count])


@dataclass(frozen=True)
class _SplitPlan:
    """One split of the shard: its name, what it is taken from, and which of the images there, in writing order."""

    name: str
    source: SplitSource
    images: tuple[str, ...]


def _plan(
    clevr: ClevrFolder,
    splits: Sequence[str] | None,
    *,
    dev_fraction: float,
    dev_seed: int,
    allow_missing: bool,
) -> list[_SplitPlan]:
    """What goes into which split of the shard; everything that can be wrong with the JSON is found here."""
    possible = [name for name, origin in SOURCE_OF_SPLIT.items() if origin in clevr.splits]
    if dev_fraction == 0 and "dev" in possible:
        possible.remove("dev")
    wanted = possible if splits is None else [name for name in SOURCE_OF_SPLIT if name in splits]
    unknown = sorted(set(wanted if splits is None else splits) - set(possible))
    if unknown or not wanted:
        raise UserError(
            f"expected splits that {clevr.root} can give ({', '.join(possible) or 'none'}), "
            f"got {', '.join(unknown) or 'none'}"
        )
    sources = {
        origin: clevr.read_split(origin, allow_missing=allow_missing)
        for origin in dict.fromkeys(SOURCE_OF_SPLIT[name] for name in wanted)
    }
    for origin, source in sources.items():
        if not source.images:
            raise UserError(f"expected questions about images in split {origin} of {clevr.root}, got none")
    dev = carve_dev(sources["train"].images, dev_fraction, dev_seed) if "train" in sources else frozenset()
    plans = []
    for name in wanted:
        source = sources[SOURCE_OF_SPLIT[name]]
        images = tuple(image for image in source.images if name == "test" or (image in dev) == (name == "dev"))
        plans.append(_SplitPlan(name, source, images))
    return plans


@dataclass(kw_only=True)
class _Writer:
    """Writes the splits of one shard into `folder` and remembers every file of `source` that was read."""

    source: Path
    spec: Spec
    folder: Path
    pool: ImagePool
    total: int
    progress: Progress | None
    done: int = 0
    files_read: dict[str, FileInfo] = field(default_factory=dict)
    json_files: dict[str, str] = field(default_factory=dict)

    def write_split(self, plan: _SplitPlan) -> SplitInfo:
        for path in plan.source.json_files:
            name = path.relative_to(self.source).as_posix()
            if name not in self.json_files:
                self.files_read[name] = file_info(path)
                self.json_files[name] = self.files_read[name].sha256
        image_lengths: list[int] = []
        write_rows(self.folder / plan.name / "images.arrow", IMAGE_SCHEMA, self._image_rows(plan, image_lengths))
        question_lengths: list[int] = []
        write_rows(self.folder / plan.name / "questions.arrow", QUESTION_SCHEMA, _question_rows(plan, question_lengths))
        return SplitInfo(
            source_split=plan.source.split,
            images=len(image_lengths),
            questions=len(question_lengths),
            image_bytes=ByteLengths.of(np.array(image_lengths)),
            question_bytes=ByteLengths.of(np.array(question_lengths)),
            missing_images=len(plan.source.missing_images),
            missing_questions=plan.source.missing_questions,
            unasked_images=len(plan.source.unasked_images),
        )

    def source_info(self) -> SourceInfo:
        return SourceInfo(
            name=self.source.resolve().name, fingerprint=fingerprint(self.files_read), json_files=self.json_files
        )

    def _image_rows(self, plan: _SplitPlan, lengths: list[int]) -> Iterator[ImageRow]:
        index_of = {question.image_filename: question.image_index for question in plan.source.questions}
        names = [f"images/{plan.source.split}/{image}" for image in plan.images]
        encoded = self.pool.encode(self.spec, [self.source / name for name in names])
        for image, name, result in zip(plan.images, names, encoded, strict=True):
            self.files_read[name] = FileInfo(bytes=result.file_size, sha256=result.sha256)
            lengths.append(len(result.bytes))
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
            yield ImageRow(image, index_of[image], result.bytes, result.width, result.height)


def _question_rows(plan: _SplitPlan, lengths: list[int]) -> Iterator[QuestionRow]:
    row_of = {image: row for row, image in enumerate(plan.images)}
    for question in plan.source.questions:
        if question.image_filename not in row_of:
            continue
        lengths.append(len(question.question.encode()))
        yield QuestionRow(
            question.question_index,
            row_of[question.image_filename],
            question.question,
            question.answer,
            question.question_type,
            question.family_index,
            question.program,
            plan.source.num_objects.get(question.image_filename),
        )
