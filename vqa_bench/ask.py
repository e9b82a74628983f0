"""One question about one picture to a trained model: the seam between a run and whoever wants to talk to it.

The picture is encoded and the sequence built by the very code that trains and evaluates. Knows neither the command
line nor how an answer is shown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image

from vqa_bench.config import MajorityConfig
from vqa_bench.data.answers import Answers
from vqa_bench.data.encodings import Spec, parse_spec
from vqa_bench.data.image_pool import ImagePool
from vqa_bench.data.loading import Group
from vqa_bench.data.manifest import MANIFEST_NAME
from vqa_bench.data.memory import MemorySplit
from vqa_bench.data.sequences import Part, Sequencer
from vqa_bench.data.shards import ImageRow, QuestionRow, open_shard
from vqa_bench.data.vocab import QUESTION_TYPES
from vqa_bench.errors import UserError
from vqa_bench.models import ByteModel, Classifier, VQAModel
from vqa_bench.runs import RESULT, read_json
from vqa_bench.scoring.answering import score_in_batches
from vqa_bench.scoring.score import Scores

UNKNOWN_WORD = 1  # the id that a classifier gives to every word that its training questions did not have
SAME_PROPORTIONS = 0.02  # relative; the paper's own 62×41 pixels of 480×320 are 0.8 % away
ONE = np.zeros(1, np.int64)  # the row of the one question
UNTYPED = "asked"  # the type of a question that no data set has


class Size(NamedTuple):
    """Of a picture, in pixels."""

    width: int
    height: int


class ReadPart(NamedTuple):
    """A part of a sequence: its ids with their start, end and padding, (L,) int64."""

    part: Part
    ids: np.ndarray


@dataclass(frozen=True)
class Answered:
    """What a model says to a question.

    names: the A candidates. log_probs (A,): in nats; a byte model's are the raw sums over an answer's bytes and end.
    mass: the probability of the candidates together. free: what the model writes if nothing binds it, None if it does
    not come to an end. parts: the sequence that was read, and the likeliest answer as it would be written. Models that
    write no bytes have None, None and (). notes: what a reader should know, a sentence each.
    """

    names: tuple[str, ...]
    log_probs: tuple[float, ...]
    mass: float | None
    free: str | None
    parts: tuple[ReadPart, ...]
    notes: tuple[str, ...]

    @property
    def probabilities(self) -> tuple[float, ...]:
        """Of the candidates, normalised over them."""
        highest = max(self.log_probs)
        weights = [math.exp(value - highest) for value in self.log_probs]
        return tuple(weight / math.fsum(weights) for weight in weights)

    @property
    def ranked(self) -> list[tuple[str, float]]:
        """Candidates with their probabilities, the likeliest first."""
        return sorted(zip(self.names, self.probabilities, strict=True), key=lambda pair: -pair[1])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the bytes, JSON-able; candidates from the likeliest on."""
        log_probs = dict(zip(self.names, self.log_probs, strict=True))
        answers = [{"answer": n, "probability": p, "log_prob": log_probs[n]} for n, p in self.ranked]
        return {"answers": answers, "mass": self.mass, "free": self.free, "notes": list(self.notes)}


def ask(
    model: VQAModel,
    picture: Image.Image | ImageRow,
    question: str,
    *,
    answers: Answers | None = None,
    question_type: str | None = None,
    trained_on: Size | None = None,
) -> Answered:
    """Show a model a picture in its own encoding, or one that is encoded already, and ask it a question.

    answers: other candidates than the model's own, for one that takes any. question_type: one of the data set's, for a
    model that counts answers by it. trained_on: the size of the pictures that the model knows, if that is known.

    Raises UserError for a question that is empty or does not fit, a picture that the encoding does not take or that
    gives more bytes than the model has room for, and for candidates that the model cannot be asked about.
    """
    asked = _candidates(model, answers)
    _check_question(model, question, asked)
    _check_type(model, question_type)
    image = _encoded(model, picture) if isinstance(picture, Image.Image) else picture
    # The right answer is not known: the batch holds a candidate, which no score looks at.
    row = QuestionRow(0, 0, question, asked.names[0], question_type or UNTYPED, None, "[]", None)
    split = MemorySplit([image], [row], asked)
    ((_, scores),) = score_in_batches(model, split, [[Group(0, ONE)]], device=_device(model), answers=asked)
    log_probs = tuple(scores.log_probs[0].tolist())
    notes = (*_notes_on_picture(model, image, trained_on), *_notes_on_words(model, question))
    if not isinstance(model, ByteModel):
        return Answered(asked.names, log_probs, None, None, (), notes)
    assert scores.mass is not None, "byte models have one"
    form, best = model.cell.sequence.answer, asked.names[int(scores.log_probs[0].argmax())]
    return Answered(
        names=asked.names,
        log_probs=log_probs,
        mass=float(scores.mass[0]),
        free=_free(scores, asked, form),
        parts=_parts(model.sequencer, image.bytes, question, asked.written(best, form)),
        notes=notes,
    )


def encode_file(model: VQAModel, path: Path) -> ImageRow:
    """An image file in the model's encoding, read as `serialize` reads it: upright, whole and still.

    Raises UserError for anything else. A blind model's picture is not opened.
    """
    if model.blind:
        return ImageRow(path.name, 0, b"", 0, 0)
    if not path.is_file():
        raise UserError(f"expected an image file, got {path}, which is none")
    (encoded,) = ImagePool(1).encode(_spec(model), [path])
    return ImageRow(path.name, 0, encoded.bytes, encoded.width, encoded.height)


def shard_of(run: Path) -> Path | None:
    """The shard that a run was tested on, None where it was not, or where the shard does not lie where it lay then."""
    stated = read_json(run / RESULT).get("shard") if (run / RESULT).is_file() else None
    path = None if stated is None else run / stated["path"]
    return path if path is not None and (path / MANIFEST_NAME).is_file() else None


def pictures_of(run: Path) -> Size | None:
    """The size of the pictures that a run was tested on, before they were encoded; None where nothing says it."""
    shard = shard_of(run)
    if shard is None:
        return None
    images = open_shard(shard).split(read_json(run / RESULT)["shard"]["split"]).images
    return Size(images.column("width")[0].as_py(), images.column("height")[0].as_py())


def _candidates(model: VQAModel, answers: Answers | None) -> Answers:
    asked = model.answers if answers is None else answers
    if asked != model.answers and not model.takes_any_answers:
        raise UserError(
            f"expected the {len(model.answers)} answers that {model.cell.name} was trained on, got {len(asked)} "
            "others; leave them out, or ask a byte model that writes its answers as text"
        )
    return asked


def _check_question(model: VQAModel, question: str, asked: Answers) -> None:
    """UserError for what can never become a batch of this model."""
    if not any(letter.isalnum() for letter in question):
        raise UserError(f"expected a question, got {question!r}; ask in words")
    if not isinstance(model, ByteModel):
        return
    sequencer, form = model.sequencer, model.cell.sequence.answer
    answer = max(len(sequencer.text(asked.written(name, form))) for name in asked.names)
    room = (sequencer.context - sequencer.image_length - answer) // sequencer.parts.count("question")
    longest, got = room // sequencer.patch_size * sequencer.patch_size - 2, len(question.encode())
    if got > longest:
        raise UserError(
            f"expected a question of at most {max(longest, 0)} bytes, what {model.cell.name} has room for beside an "
            f"image and an answer, got {got}; ask a shorter one"
        )


def _check_type(model: VQAModel, question_type: str | None) -> None:
    """UserError unless a model that answers by a question's type is told one that it has counted."""
    if not isinstance(model.cell.model, MajorityConfig) or not model.cell.model.per_type:
        return
    types = model.built.get("types", QUESTION_TYPES)
    if question_type not in types:
        got = "none" if question_type is None else repr(question_type)
        raise UserError(
            f"expected the question's type, as {model.cell.name} counts answers by it and reads no words, got {got}; "
            f"give one of {', '.join(types)}"
        )


def _encoded(model: VQAModel, picture: Image.Image) -> ImageRow:
    data = b"" if model.blind else _spec(model).encode(picture)
    return ImageRow("picture", 0, data, picture.width, picture.height)


def _device(model: VQAModel) -> torch.device:
    return next((tensor.device for tensor in chain(model.parameters(), model.buffers())), torch.device("cpu"))


def _spec(model: VQAModel) -> Spec:
    return parse_spec(cast(str, model.cell.encoding))


def _parts(sequencer: Sequencer, image: bytes, question: str, answer: bytes) -> tuple[ReadPart, ...]:
    ids = {
        "image": sequencer.image(image),
        "question": sequencer.text(question.encode()),
        "answer": sequencer.text(answer),
    }
    return tuple(ReadPart(part, ids[part]) for part in sequencer.parts)


def _free(scores: Scores, asked: Answers, form: str) -> str | None:
    """What was written freely, as text: a letter as the answer that it stands for, if it stands for one."""
    assert scores.free is not None, "byte models write"
    written = scores.free[0]
    if written is None:
        return None
    spelled = {asked.written(name, form): name for name in asked.names}
    return spelled.get(written, written.decode("utf-8", errors="replace"))


def _notes_on_picture(model: VQAModel, image: ImageRow, trained_on: Size | None) -> list[str]:
    """What the encoding does to a picture of another shape than those that the model knows."""
    if model.blind:
        return ["This model is blind: it answers without looking at the picture."]
    size = _spec(model).size
    native = size is None
    expected = trained_on if trained_on is not None else Size(*size) if size is not None else None
    if expected is None or (image.width, image.height) == expected:
        return []
    ratio = image.width * expected.height / (image.height * expected.width)
    if not native and abs(ratio - 1) <= SAME_PROPORTIONS:
        return []
    shown = f"The picture is {image.width}×{image.height} pixels"
    if trained_on is None:
        return [f"{shown}: it is stretched to the encoding's {expected.width}×{expected.height}."]
    what = "of another size" if native else "of other proportions"
    return [f"{shown}, {what} than the {expected.width}×{expected.height} of those that the model knows."]


def _notes_on_words(model: VQAModel, question: str) -> list[str]:
    """What a model that reads whole words does not know."""
    if not isinstance(model, Classifier):
        return []
    tokens, _ = model.words.encode([question])
    unknown = int((tokens == UNKNOWN_WORD).sum())
    return [f"{unknown} of {tokens.shape[1]} words are new to this model."] if unknown else []
