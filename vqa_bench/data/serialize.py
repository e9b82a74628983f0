"""Serialises a CLEVR folder: encodes every image once and writes images and questions as one shard.

The bytes of a shard are a function of the folder, the encoding and the choice of the development split, whatever the
number of worker processes. This file knows nothing of sequences, models or torch.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.clevr import ClevrFolder
from vqa_bench.data.encodings import codec_versions
from vqa_bench.data.folders import new_folder
from vqa_bench.data.image_pool import EncodedImage, ImagePool
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
from vqa_bench.data.shards import IMAGE_SCHEMA, QUESTION_SCHEMA, ImageRow, QuestionRow, write_rows
from vqa_bench.data.source_split import NO_ROW, SourceSplit, survey
from vqa_bench.data.spec import Spec
from vqa_bench.data.split_plan import UNLABELLED, Choice, carve_dev, choose_splits, places_of_split
from vqa_bench.errors import UserError

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
    keep_unasked: bool = False,
    answers: Answers = CLEVR_ANSWERS,
    progress: Progress | None = None,
) -> Manifest:
    """Writes a shard of a CLEVR folder. It appears at `out` when it is complete, or not at all.

    The questions are read once, piece by piece, and all of them are checked before the first image is opened. Memory
    does not grow with the number of questions, and by some hundred bytes (its name, size and hash) with each image.

    Args:
        source: a folder in the layout of the CLEVR release.
        spec: how images become bytes.
        out: path of the shard, which must not exist.
        workers: number of processes that encode images, at least 1.
        dev_fraction: part of the training images that become the split `dev`, in [0, 1); 0 for no such split.
        dev_seed: which images these are.
        splits: which splits of `split_plan.SOURCE_OF_SPLIT` to write; None for all that the folder has.
        allow_missing: leave out questions whose image file is missing, and count them, instead of raising.
        keep_unasked: write images that no question asks about too, and with them splits that have images alone: as
            `unlabelled` CLEVR's own test split, which has no answers.
        answers: the candidates, which every question's answer must be one of.
        progress: told about each image.

    Returns:
        The shard's manifest.

    Raises:
        UserError: `out` exists; no CLEVR folder; a split it does not have; a question without an image (unless
            `allow_missing`); an invalid question, or one with an answer that is no candidate; an image file that is
            not whole.
    """
    if workers < 1:
        raise UserError(f"expected at least 1 worker, got {workers}")
    if not 0 <= dev_fraction < 1:
        raise UserError(f"expected a dev fraction in [0, 1), got {dev_fraction}")
    clevr = ClevrFolder(source, images_only=keep_unasked, answers=answers)
    choices = choose_splits(
        clevr.splits, clevr.image_splits, wanted=splits, dev=dev_fraction > 0, keep_unasked=keep_unasked
    )
    with new_folder(out) as folder, ImagePool(workers) as pool:
        sources = _survey(clevr, choices, folder, pool=pool, allow_missing=allow_missing, keep_unasked=keep_unasked)
        carved = next((sources[choice.source] for choice in choices if choice.name in ("train", "dev")), None)
        dev = frozenset() if carved is None else carve_dev(carved.images, dev_fraction, dev_seed)
        places = {name: places_of_split(name, sources[origin].images, dev=dev) for name, origin in choices}
        total = sum(map(len, places.values()))
        # One stream of images for all splits: while a split's questions are written, the workers are at the next one.
        paths = (path for name, origin in choices for path in sources[origin].paths(places[name]))
        writer = _Writer(clevr=clevr, folder=folder, encoded=pool.encode(spec, paths), total=total, progress=progress)
        infos = {name: writer.write_split(name, sources[origin], places[name]) for name, origin in choices}
        for spill in folder.glob(f"*{_SPILL_ENDING}"):
            spill.unlink()
        return write_manifest(
            folder,
            spec=str(spec),
            source=writer.source_info(),
            dev=DevInfo(fraction=dev_fraction, seed=dev_seed) if dev else None,
            codecs=codec_versions(),
            splits=infos,
            answers=answers,
        )


_SPILL_ENDING = ".questions"


def _survey(
    clevr: ClevrFolder,
    choices: Sequence[Choice],
    folder: Path,
    *,
    pool: ImagePool,
    allow_missing: bool,
    keep_unasked: bool,
) -> dict[str, SourceSplit]:
    """Reads the splits that are needed; everything that can be wrong with the JSON is found here."""
    sources = {}
    for name, origin in choices:
        if origin in sources:
            continue
        sources[origin] = survey(
            clevr,
            origin,
            folder / f"{origin}{_SPILL_ENDING}",
            pool=pool,
            allow_missing=allow_missing,
            keep_unasked=keep_unasked,
            asked=name not in UNLABELLED,
        )
        if not sources[origin].images:
            expected = "images" if keep_unasked else "questions about images"
            raise UserError(f"expected {expected} in split {origin} of {clevr.root}, got none")
    return sources


@dataclass
class _FilesRead:
    """Size and SHA-256 of each image of a source split that was read, 40 bytes an image; a size of -1 for the rest."""

    sizes: np.ndarray  # (images,) int64
    hashes: np.ndarray  # (images, 32) uint8

    @classmethod
    def none_of(cls, images: int) -> "_FilesRead":
        return cls(np.full(images, -1), np.zeros((images, 32), np.uint8))

    def add(self, place: int, image: EncodedImage) -> None:
        self.sizes[place] = image.file_size
        self.hashes[place] = np.frombuffer(image.sha256, np.uint8)


@dataclass(kw_only=True)
class _Writer:
    """Writes the splits of one shard into `folder` and remembers every file of the source that was read.

    encoded: the images of all splits, in the order in which the splits are written.
    """

    clevr: ClevrFolder
    folder: Path
    encoded: Iterator[EncodedImage]
    total: int
    progress: Progress | None
    done: int = 0
    sources: dict[str, SourceSplit] = field(default_factory=dict)
    images_read: dict[str, _FilesRead] = field(default_factory=dict)
    json_read: dict[str, FileInfo] = field(default_factory=dict)

    def write_split(self, name: str, source: SourceSplit, places: np.ndarray) -> SplitInfo:
        """Writes a split of the shard, of the images at some places of `source.images`."""
        for path in source.json_files:
            self.json_read.setdefault(path.relative_to(self.clevr.root).as_posix(), file_info(path))
        self.sources[source.split] = source
        self.images_read.setdefault(source.split, _FilesRead.none_of(len(source.images)))
        image_lengths, question_lengths = array("q"), array("q")
        images = self._image_rows(source, places, image_lengths)
        write_rows(self.folder / name / "images.arrow", IMAGE_SCHEMA, images)
        questions = _question_rows(source, places, question_lengths)
        write_rows(self.folder / name / "questions.arrow", QUESTION_SCHEMA, questions)
        return SplitInfo(
            source_split=source.split,
            images=len(image_lengths),
            questions=len(question_lengths),
            image_bytes=ByteLengths.of(np.array(image_lengths)),
            question_bytes=ByteLengths.of(np.array(question_lengths)),
            missing_images=source.missing_images,
            missing_questions=source.missing_questions,
            unasked_images=source.unasked_images,
        )

    def source_info(self) -> SourceInfo:
        """What was read; the fingerprint goes through it in the order of the names, without a list of them."""
        return SourceInfo(
            name=self.clevr.root.resolve().name,
            fingerprint=fingerprint(self._files_read()),
            json_files={name: info.sha256 for name, info in self.json_read.items()},
        )

    def _files_read(self) -> Iterator[tuple[str, int, str]]:
        """Name, size and SHA-256: `images/…` first, then `questions/…` and `scenes/…`."""
        for prefix, split in sorted((f"images/{split}/", split) for split in self.sources):
            read = self.images_read[split]
            for name, size, sha256 in zip(self.sources[split].images, read.sizes, read.hashes, strict=True):
                if size >= 0:
                    yield prefix + name, int(size), sha256.tobytes().hex()
        yield from ((name, info.bytes, info.sha256) for name, info in sorted(self.json_read.items()))

    def _image_rows(self, source: SourceSplit, places: np.ndarray, lengths: array) -> Iterator[ImageRow]:
        read = self.images_read[source.split]
        for place in places.tolist():
            image = next(self.encoded)
            read.add(place, image)
            lengths.append(len(image.bytes))
            self.done += 1
            if self.progress is not None:
                self.progress(self.done, self.total)
            index = int(source.image_index[place])
            yield ImageRow(source.images[place], index, image.bytes, image.width, image.height)


def _question_rows(source: SourceSplit, places: np.ndarray, lengths: array) -> Iterator[QuestionRow]:
    row_of_image = np.full(len(source.images), NO_ROW)
    row_of_image[places] = np.arange(len(places))
    for row in source.questions(row_of_image):
        lengths.append(len(row.question.encode()))
        yield row
