"""Parts to ids: an image's bytes, a question and an answer become one sequence with loss weights.

A part is wrapped in its start id and an end id and padded to the first stage's patch, so that every part begins and
ends on a patch border. With an image-first layout the image's ids are the same for all of its questions: they are the
shared *prefix*, the rest is the *suffix*. This file knows no files and no models.

Everything exists twice, with the same result: one sample at a time, to be read and looked at (`sample`, ids int64),
and a batch at a time, to be quick (`images`, `suffixes`, ids int16).

Shapes: R bytes in a patch of the first stage, L ids of an image part, B images, n questions, M ids of the longest
suffix.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.questions import Questions
from vqa_bench.data.vocab import END_PART, PAD, START_IMAGE, START_TEXT
from vqa_bench.errors import UserError

Part = Literal["question", "image", "answer"]
Layout = Literal["iqa", "qia", "qiqa"]
Length = TypeVar("Length", int, np.ndarray)

PARTS_OF: dict[str, tuple[Part, ...]] = {
    "iqa": ("image", "question", "answer"),
    "qia": ("question", "image", "answer"),
    "qiqa": ("question", "image", "question", "answer"),
}
"""The order of the parts in each layout; the image comes first where one prefix can serve all of its questions."""

BATCH_TYPE = np.int16  # holds every id, and is small on the way to the device
MAX_QUESTION_BYTES = 205  # the longest question of the whole CLEVR release


class PartWeights(BaseModel):
    """The loss weight of each part's bytes and its end id (never of its start id)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    image: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    answer: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _something_to_learn(self) -> "PartWeights":
        if self.question == self.image == self.answer == 0:
            raise ValueError("expected a weight above 0 for at least one part, got none")
        return self


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


class Sequencer:
    """Builds sequences for one model's patch size and context; `answers` are the candidates that questions have.

    Raises UserError where a question, an image or the whole sequence does not fit.
    """

    def __init__(
        self,
        config: SequenceConfig,
        patch_size: int,
        context: int,
        image_bytes: int,
        *,
        answers: Answers = CLEVR_ANSWERS,
    ) -> None:
        self.config, self.patch_size, self.context = config, patch_size, context
        self.parts = PARTS_OF[config.layout]
        self.shares_prefix = self.parts[0] == "image"
        room = image_bytes if config.image_bytes is None else config.image_bytes
        self._lead = patch_size if config.align else 1  # ids before the image's first byte
        self.image_length = self._padded(self._lead + room + 1)
        self._image_room = room
        self._write_down(answers)
        self.check(MAX_QUESTION_BYTES)

    def answering(self, answers: Answers) -> "Sequencer":
        """This one for questions with other candidates."""
        if answers == self.answers:
            return self
        other = copy(self)
        other._write_down(answers)
        return other

    def check(self, question_bytes: int) -> None:
        """Raises UserError unless a question of so many bytes fits, whatever its image and its answer are."""
        questions = self.parts.count("question") * self._padded(question_bytes + 2)
        answer = self._answer_ids.shape[1]
        longest = self.image_length + questions + answer
        if longest > self.context:
            raise UserError(
                f"expected a sequence of at most {self.context} bytes (the model's context), got {longest}: "
                f"{self.image_length} for an image of {self._image_room} bytes, {questions} for a question of "
                f"{question_bytes} bytes in layout {self.config.layout}, {answer} for the answer; make the image "
                "smaller or the model's seq_lens longer"
            )

    def _write_down(self, answers: Answers) -> None:
        """Keep the parts of all answers: (A, ids of the longest), filled up with padding."""
        self.answers = answers
        parts = [self.text(answers.written(name, self.config.answer)) for name in answers.names]
        self._answer_lengths = np.array([len(ids) for ids in parts])
        self._answer_ids = np.full((len(parts), self._answer_lengths.max()), PAD, BATCH_TYPE)
        for row, ids in zip(self._answer_ids, parts, strict=True):
            row[: len(ids)] = ids

    def image(self, data: bytes | np.ndarray) -> np.ndarray:
        """The image part, always `image_length` ids."""
        values = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
        self._check_image(len(values))
        ids = np.full(self.image_length, PAD, np.int64)
        ids[0] = START_IMAGE
        ids[self._lead : self._lead + len(values)] = values
        ids[self._lead + len(values)] = END_PART
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
            "answer": lambda: self.text(self.answers.written(answer, self.config.answer)),
            "image": lambda: self._given(image),
        }
        names = self.parts[1:] if self.shares_prefix else self.parts
        parts = [make[name]() for name in names]
        weights = [self.weights(ids, name) for ids, name in zip(parts, names, strict=True)]
        ids = np.concatenate(parts)
        self._check_suffix(len(ids), text)
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

    # -- a batch at a time --------------------------------------------------------------------------------------------

    def lengths(self, asked: Questions) -> np.ndarray:
        """How many ids the whole sequence of each of n questions has, (n,) int64."""
        questions = self._padded(asked.lengths.astype(np.int64) + 2) * self.parts.count("question")
        return self.image_length + questions + self._answer_lengths[asked.answers]

    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """The image parts of B images (their bytes, uint8): (B, L) int16, each byte copied once."""
        ids = np.empty((len(pictures), self.image_length), BATCH_TYPE)
        ids[:, 0] = START_IMAGE
        ids[:, 1 : self._lead] = PAD
        for row, values in zip(ids, pictures, strict=True):
            self._check_image(len(values))
            end = self._lead + len(values)
            row[self._lead : end] = values
            row[end] = END_PART
            row[end + 1 :] = PAD
        return ids

    def suffixes(
        self, asked: Questions, rows: np.ndarray, height: int, *, images: np.ndarray, image_of: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What follows the prefix, for n questions: ids (height, M) int16, and where the answers start (height,).

        rows (n,): the row of the result that each question gets; all others are padding, and start at one patch.
        images (B, L), image_of (n,): the image parts and which of them each question has, used where none is shared.
        """
        texts = self._padded(asked.lengths + 2)  # (n,) ids in the part
        image = 0 if self.shares_prefix else self.image_length
        begins = texts * self.parts.count("question") + image  # (n,) of the answers
        lengths = begins + self._answer_lengths[asked.answers]
        longest = int(lengths.argmax())
        self._check_suffix(int(lengths[longest]), _text(asked, longest))
        ids = np.empty((height, int(lengths[longest])), BATCH_TYPE)
        if image == 0:
            ids.fill(PAD)
        else:  # padding only where not every row has its image
            ids[:, : texts.max()] = PAD
            ids[:, texts.min() + image :] = PAD
            empty = np.ones(height, bool)
            empty[rows] = False
            ids[empty] = PAD
            for row, begin, which in zip(rows.tolist(), texts.tolist(), image_of.tolist(), strict=True):
                ids[row, begin : begin + image] = images[which]
        first = rows * ids.shape[1]  # where each row begins in the flat ids
        for name, begin in self._text_parts(texts, begins):
            if name == "question":
                _write_questions(ids.reshape(-1), first + begin, asked)
            else:
                self._write_answers(ids.reshape(-1), first + begin, asked.answers)
        starts = np.full(height, self.patch_size, np.int64)
        starts[rows] = begins
        return ids, starts

    def _text_parts(self, texts: np.ndarray, answers: np.ndarray) -> list[tuple[Part, np.ndarray]]:
        """Where in the suffix each question and answer part begins, (n,) each."""
        parts: list[tuple[Part, np.ndarray]] = [("question", np.zeros_like(texts)), ("answer", answers)]
        if self.parts.count("question") == 2:
            parts.append(("question", answers - texts))
        return parts

    def _write_answers(self, flat: np.ndarray, begin: np.ndarray, answers: np.ndarray) -> None:
        columns = np.arange(self._answer_ids.shape[1])
        real = columns < self._answer_lengths[answers][:, None]  # rows end with their answer
        flat[(begin[:, None] + columns)[real]] = self._answer_ids[answers][real]

    def _check_image(self, length: int) -> None:
        if length > self._image_room:
            raise UserError(
                f"expected an image of at most {self._image_room} bytes, got {length}; set "
                "sequence.image_bytes to the longest image and train again, or use a smaller encoding"
            )

    def _check_suffix(self, length: int, text: str) -> None:
        total = length + (self.image_length if self.shares_prefix else 0)
        if total > self.context:
            raise UserError(
                f"expected a sequence of at most {self.context} bytes (the model's context), got {total} with the "
                f"question {text[:60]!r}…; make the model's seq_lens longer"
            )

    def _padded(self, length: Length) -> Length:
        return -(-length // self.patch_size) * self.patch_size

    @staticmethod
    def _given(image: np.ndarray | None) -> np.ndarray:
        assert image is not None, "a layout that does not begin with the image needs its part"
        return image


def _write_questions(flat: np.ndarray, begin: np.ndarray, asked: Questions) -> None:
    """The question parts of n questions into flat ids, at `begin` (n,); what is padding there stays."""
    flat[begin] = START_TEXT
    flat[begin + 1 + asked.lengths] = END_PART
    # Byte i of all bytes belongs to one question; how far it is from that question's first byte:
    ends = np.cumsum(asked.lengths)
    within = np.arange(ends[-1]) - np.repeat(ends - asked.lengths, asked.lengths)
    written = np.repeat(begin + 1, asked.lengths) + within
    flat[written] = asked.text[np.repeat(asked.begin, asked.lengths) + within]


def _text(asked: Questions, row: int) -> str:
    begin = asked.begin[row]
    return asked.text[begin : begin + asked.lengths[row]].tobytes().decode()
