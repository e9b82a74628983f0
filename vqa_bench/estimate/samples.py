"""What a cell's samples look like before there is a batch: lengths of pictures, questions and windows.

From the shard where there is one; without data from the encoding's own arithmetic, or from a guess that says so. Knows
bytes, not models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from vqa_bench.config import CellConfig, TrainConfig
from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.questions import Questions, questions_of
from vqa_bench.data.sequences import Sequencer
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError

NATIVE_SIZE = (480, 320)  # CLEVR's pictures
QUESTIONS_PER_IMAGE = 10  # CLEVR's
# Quantiles 0, 1/10, …, 1 of the lengths in bytes of CLEVR's first 2,000 validation questions (mean 92), the longest of
# the whole release in the last place.
QUESTION_LENGTHS = (22, 47, 58, 68, 79, 90, 101, 112, 124, 142, 205)
PICTURES = "pictures"  # how a guess about them begins
SAMPLED = 4096  # questions that stand for all of a split


@dataclass(frozen=True)
class Samples:
    """The questions of a cell.

    image_bytes: room for the longest picture; typical_image_bytes: the median one. lengths, answers (n,): bytes of
    questions and places in `candidates`, from all over the split. per_image: questions that an image has in a batch.
    guesses: what none of the data says, a sentence each.
    """

    image_bytes: int
    typical_image_bytes: int
    lengths: np.ndarray
    answers: np.ndarray
    per_image: int
    guesses: tuple[str, ...] = ()
    candidates: Answers = CLEVR_ANSWERS

    def asked(self, count: int) -> Questions:
        """So many questions, text without meaning."""
        lengths, answers = (np.resize(values, count) for values in (self.lengths, self.answers))
        text = np.full(int(self.lengths.max()), ord("?"), np.uint8)
        return Questions(text, np.zeros(count, np.int64), lengths, answers)


def samples_of(cell: CellConfig, shard: Shard | None) -> Samples:
    """The samples of a cell, never failing for missing data."""
    wanted = cell.train.questions_per_image if isinstance(cell.train, TrainConfig) else None
    if shard is not None:
        return _measured(cell, shard, wanted)
    image, guesses = (0, ()) if cell.encoding is None else _picture_bytes(cell.encoding)
    if cell.sequence.image_bytes is not None:
        image, guesses = cell.sequence.image_bytes, ()
    random = np.random.default_rng(0)
    lengths = np.interp(random.random(SAMPLED), np.linspace(0, 1, len(QUESTION_LENGTHS)), QUESTION_LENGTHS)
    return Samples(
        image_bytes=image,
        typical_image_bytes=image,
        lengths=lengths.astype(np.int32),
        answers=random.integers(len(CLEVR_ANSWERS), size=SAMPLED),
        per_image=QUESTIONS_PER_IMAGE if wanted is None else min(wanted, QUESTIONS_PER_IMAGE),
        guesses=(*guesses, "questions as CLEVR's"),
    )


def fitted(cell: CellConfig, samples: Samples, patch_size: int, context: int) -> tuple[Sequencer, Samples]:
    """The sequencer of the samples, and these: a picture whose length is a guess is cut to what fits.

    Raises UserError where known lengths don't fit the context.
    """

    def make(room: int) -> Sequencer:
        return Sequencer(cell.sequence, patch_size, context, room, answers=samples.candidates)

    try:
        return make(samples.image_bytes), samples
    except UserError:
        if not samples.guesses or not samples.guesses[0].startswith(PICTURES):
            raise
    low, high = 1, samples.image_bytes
    make(low)  # a context that holds no picture at all is an error
    while high - low > 1:
        middle = (low + high) // 2
        try:
            make(middle)
            low = middle
        except UserError:
            high = middle
    guess = f"{PICTURES} of at most {low:,} bytes, all that the context has room for"
    cut = replace(samples, image_bytes=low, typical_image_bytes=low, guesses=(guess, *samples.guesses[1:]))
    return make(low), cut


def _measured(cell: CellConfig, shard: Shard, wanted: int | None) -> Samples:
    infos = shard.manifest.splits
    split = shard.split("train")
    questions = questions_of(split)
    count = len(questions.lengths)
    rows = np.arange(count) if count <= SAMPLED else np.random.default_rng(0).choice(count, SAMPLED, replace=False)
    info = infos["train"]
    per_image = math.ceil(info.questions / max(info.images, 1))
    return Samples(
        image_bytes=max(one.image_bytes.max for one in infos.values()),
        typical_image_bytes=info.image_bytes.median,
        lengths=questions.lengths[rows],
        answers=questions.answers[rows],
        per_image=per_image if wanted is None else min(wanted, per_image),
        candidates=shard.answers,
    )


def _picture_bytes(encoding: str) -> tuple[int, tuple[str, ...]]:
    """Bytes of a picture, exact where the spec tells, else those of noise, which compresses worst."""
    spec = parse_spec(encoding)
    exact = spec.max_bytes()
    if exact is not None:
        return exact, ()
    noise = np.random.default_rng(0).integers(256, size=(NATIVE_SIZE[1], NATIVE_SIZE[0], 3), dtype=np.uint8)
    if spec.size is not None:  # made at the encoding's own size, as scaling would smooth it
        noise = np.resize(noise, (spec.size[1], spec.size[0], 3))
        spec = replace(spec, crop=None)
    length = len(spec.encode(Image.fromarray(noise)))
    return length, (f"{PICTURES} of at most about {length:,} bytes, as noise has",)
