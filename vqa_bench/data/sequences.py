"""Parts to ids: an image's bytes, a question and an answer become one sequence with loss weights.

A part is wrapped in its start id and an end id and padded to the first stage's patch, so that every part begins and
ends on a patch border. With an image-first layout the image's ids are the same for all of its questions: they are the
shared *prefix*, the rest is the *suffix*. This file knows no tables, no files and no models.

Shapes: R bytes in a patch of the first stage; ids are int64 arrays (length,).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vqa_bench.data.vocab import ANSWERS, END_PART, LETTERS, PAD, START_IMAGE, START_TEXT
from vqa_bench.errors import UserError

Part = Literal["question", "image", "answer"]
Layout = Literal["iqa", "qia", "qiqa"]

PARTS_OF: dict[str, tuple[Part, ...]] = {
    "iqa": ("image", "question", "answer"),
    "qia": ("question", "image", "answer"),
    "qiqa": ("question", "image", "question", "answer"),
}
"""The order of the parts in each layout; the image comes first where one prefix can serve all of its questions."""

MAX_QUESTION_BYTES = 205  # the longest question of the whole CLEVR release


class PartWeights(BaseModel):
    """The loss weight of each part's bytes and its end id (never of its start id)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: float = Field(default=0.0, ge=0)
    image: float = Field(default=0.0, ge=0)
    answer: float = Field(default=1.0, ge=0)


class SequenceConfig(BaseModel):
    """How parts become a sequence.

    align: the image's start id has a patch of its own, so that the image's first byte begins a patch (with
    `order=blockN` a patch is then a tile). image_bytes: room for the image, in bytes; None takes the longest image of
    the shard trained on, all splits. Every image part is padded to that room, so that a question's positions, and with
    them its scores, never depend on what else is in the batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layout: Layout = "iqa"
    answer: Literal["text", "letter"] = "letter"
    align: bool = True
    image_bytes: int | None = Field(default=None, ge=1)
    weights: PartWeights = PartWeights()


class Sample(NamedTuple):
    """One question as a sequence: prefix (may be empty) + suffix, the suffix's weights, where its answer starts."""

    prefix: np.ndarray
    suffix: np.ndarray
    prefix_weights: np.ndarray
    suffix_weights: np.ndarray
    answer_start: int


def answer_bytes(answer: str, form: str) -> bytes:
    """The bytes an answer is written with: its text, or its one letter."""
    return (LETTERS[answer] if form == "letter" else answer).encode("ascii")


def candidates(form: str) -> list[tuple[int, ...]]:
    """Every candidate's ids after the answer's start id, the end id included, in the order of `ANSWERS`."""
    return [(*answer_bytes(answer, form), END_PART) for answer in ANSWERS]


class Sequencer:
    """Builds sequences for one model's patch size and context.

    Raises UserError where a question, an image or the whole sequence does not fit.
    """

    def __init__(self, config: SequenceConfig, patch_size: int, context: int, image_bytes: int) -> None:
        self.config, self.patch_size, self.context = config, patch_size, context
        self.parts = PARTS_OF[config.layout]
        self.shares_prefix = self.parts[0] == "image"
        room = image_bytes if config.image_bytes is None else config.image_bytes
        lead = patch_size if config.align else 1
        self.image_length = self._padded(lead + room + 1)
        self._image_room = room
        questions = self.parts.count("question") * self._padded(MAX_QUESTION_BYTES + 2)
        answer = self._padded(max(map(len, candidates(config.answer))) + 1)
        longest = self.image_length + questions + answer
        if longest > context:
            raise UserError(
                f"expected a sequence of at most {context} bytes (the model's context), got {longest}: "
                f"{self.image_length} for an image of {room} bytes, {questions} for a question of "
                f"{MAX_QUESTION_BYTES} bytes in layout {config.layout}, {answer} for the answer; make the image "
                "smaller or the model's seq_lens longer"
            )

    def image(self, data: bytes | np.ndarray) -> np.ndarray:
        """The image part, always `image_length` ids."""
        values = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        if len(values) > self._image_room:
            raise UserError(
                f"expected an image of at most {self._image_room} bytes, got {len(values)}; set "
                "sequence.image_bytes to the longest image and train again, or use a smaller encoding"
            )
        lead = self.patch_size if self.config.align else 1
        ids = np.full(self.image_length, PAD, np.int64)
        ids[0] = START_IMAGE
        ids[lead : lead + len(values)] = values
        ids[lead + len(values)] = END_PART
        return ids

    def text(self, data: bytes) -> np.ndarray:
        """A question or answer part."""
        ids = np.full(self._padded(len(data) + 2), PAD, np.int64)
        ids[0] = START_TEXT
        ids[1 : 1 + len(data)] = np.frombuffer(data, np.uint8)
        ids[1 + len(data)] = END_PART
        return ids

    def suffix(self, text: str, answer: str, image: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, int]:
        """What follows the prefix (the whole sequence where none is shared): ids, weights, the answer's start.

        `image`: the image part, for layouts that do not begin with it.
        """
        make: dict[str, Callable[[], np.ndarray]] = {
            "question": lambda: self.text(text.encode()),
            "answer": lambda: self.text(answer_bytes(answer, self.config.answer)),
            "image": lambda: self._given(image),
        }
        names = self.parts[1:] if self.shares_prefix else self.parts
        parts = [make[name]() for name in names]
        weights = [self.weights(ids, name) for ids, name in zip(parts, names, strict=True)]
        ids = np.concatenate(parts)
        total = len(ids) + (self.image_length if self.shares_prefix else 0)
        if total > self.context:
            raise UserError(
                f"expected a sequence of at most {self.context} bytes (the model's context), got {total} with the "
                f"question {text[:60]!r}…; make the model's seq_lens longer"
            )
        return ids, np.concatenate(weights), len(ids) - len(parts[-1])

    def weights(self, ids: np.ndarray, part: Part) -> np.ndarray:
        """The loss weight of every id of parts of a kind: their bytes and ends, not their starts nor their padding."""
        weight = np.full(ids.shape, getattr(self.config.weights, part), np.float32)
        weight[(ids == PAD) | (ids == START_TEXT) | (ids == START_IMAGE)] = 0
        return weight

    def sample(self, image: bytes | np.ndarray, text: str, answer: str) -> Sample:
        """One question as one sequence, for looking at it and for tests."""
        part = self.image(image)
        suffix, weights, start = self.suffix(text, answer, part)
        prefix = part if self.shares_prefix else part[:0]
        return Sample(prefix, suffix, self.weights(prefix, "image"), weights, start)

    def _padded(self, length: int) -> int:
        return -(-length // self.patch_size) * self.patch_size

    @staticmethod
    def _given(image: np.ndarray | None) -> np.ndarray:
        assert image is not None, "a layout that does not begin with the image needs its part"
        return image
