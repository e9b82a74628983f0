"""Answered questions as records, and their file. Knows answers, not what kind of model gave them; counts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, Strict, ValidationError, ValidationInfo, model_validator

from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.folders import whole_file
from vqa_bench.data.vocab import group_of
from vqa_bench.errors import UserError

# A list will do for the tuple, so that `tensor.tolist()` fits; strictness stays for everything else.
LogProbs = Annotated[tuple[FiniteFloat, ...], Strict(False)]
Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]


class Prediction(BaseModel):
    """One answered question: a line of `predictions.jsonl`.

    `program_length` is the number of nodes of the question's program, `num_objects` that of the objects in its scene,
    None where the data do not say. `log_probs` are the scores of all candidates in the order of `Answers.names` (nats,
    each the sum over an answer's bytes and its end); `prediction` is the best of them. `constrained_greedy` is where
    taking the best byte each time leads among the candidates, `free_greedy` without that constraint (any text; None if
    it did not end), `trie_mass` the probability of all candidates together. The last two are None for a model that
    writes no bytes.

    Which candidates there are is the validation's context, an `Answers`; without one CLEVR's. Raises pydantic's
    ValidationError for a value of another type, a number that is not finite and a record that contradicts itself.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    question_index: Count
    image: Name
    question_type: Name
    group: str
    program_length: Annotated[int, Field(ge=1)] | None
    num_objects: Count | None
    answer: str
    prediction: str
    log_probs: LogProbs
    constrained_greedy: str
    free_greedy: str | None
    trie_mass: Annotated[FiniteFloat, Field(ge=0)] | None

    @classmethod
    def among(cls, answers: Answers, **fields: Any) -> Self:
        """A record whose candidates are `answers`."""
        return cls.model_validate(fields, context=answers)

    @model_validator(mode="after")
    def _is_consistent(self, info: ValidationInfo) -> Self:
        answers = CLEVR_ANSWERS if info.context is None else info.context
        if self.group != group_of(self.question_type):
            expected = group_of(self.question_type)
            raise ValueError(f"expected group {expected!r} for {self.question_type}, got {self.group!r}")
        for name in ("answer", "prediction", "constrained_greedy"):
            if getattr(self, name) not in answers.index:
                raise ValueError(f"expected one of the {len(answers)} answers as {name}, got {getattr(self, name)!r}")
        if len(self.log_probs) != len(answers):
            raise ValueError(f"expected {len(answers)} log_probs, one an answer, got {len(self.log_probs)}")
        if self.log_probs[answers.index[self.prediction]] < max(self.log_probs):
            raise ValueError(f"expected the prediction with the highest of log_probs, got {self.prediction!r}")
        return self


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """One JSON object a line, sorted by question_index; the file appears when it is complete.

    Raises UserError if two predictions answer the same question.
    """
    ordered = sorted(predictions, key=lambda prediction: prediction.question_index)
    for before, after in pairwise(ordered):
        if before.question_index == after.question_index:
            raise UserError(f"expected one prediction a question, got two for question_index {after.question_index}")
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(prediction.model_dump_json() + "\n" for prediction in ordered)


def read_predictions(path: Path, answers: Answers = CLEVR_ANSWERS) -> list[Prediction]:
    """The records of a file by `write_predictions`; errors as `iterate_predictions`."""
    return list(iterate_predictions(path, answers))


def iterate_predictions(path: Path, answers: Answers = CLEVR_ANSWERS) -> Iterator[Prediction]:
    """The records of a file by `write_predictions`, one at a time: a full test set's scores fill gigabytes.

    Raises UserError naming the line for one that is no valid record or not in the order of question_index,
    and for a file that is missing or empty.
    """
    if not path.is_file():
        raise UserError(f"expected predictions at {path}, got no such file; evaluate the cell again")
    last_index = -1
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                prediction = Prediction.model_validate_json(line, context=answers)
            except ValidationError as error:
                raise UserError(f"{path}, line {number}: {_first_fault(error)}; evaluate the cell again") from None
            if prediction.question_index <= last_index:
                raise UserError(
                    f"{path}, line {number}: expected a question_index above {last_index}, "
                    f"got {prediction.question_index}; evaluate the cell again"
                )
            last_index = prediction.question_index
            yield prediction
    if last_index < 0:
        raise UserError(f"expected at least one prediction in {path}, got an empty file; evaluate the cell again")


def correct_of(predictions: Sequence[Prediction]) -> np.ndarray:
    """(N,) booleans: is the likeliest candidate the right answer."""
    return np.array([p.prediction == p.answer for p in predictions], dtype=bool)


def images_of(predictions: Sequence[Prediction]) -> np.ndarray:
    """(N,) names of the images that the questions are about: the clusters of every interval."""
    return np.array([p.image for p in predictions])


def _first_fault(error: ValidationError) -> str:
    """The first of pydantic's complaints in one line: where, what was expected, what was got."""
    fault = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if not field:
        return message
    return f"{field}: {message}, got {str(fault['input'])[:60]!r}"
