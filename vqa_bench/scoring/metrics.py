"""Predictions as records, their file, and the numbers made of them. Knows answers, not what kind of model gave them.

Accuracies are sums and counts until the very end; every one comes with its number of questions and images, its
interval (resampling images, see `statistics`) and the level of chance.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, Strict, ValidationError, model_validator

from vqa_bench.data.vocab import ANSWERS, GROUP_OF_TYPE, GROUPS, QUESTION_TYPES
from vqa_bench.errors import UserError
from vqa_bench.scoring.statistics import accuracy_interval, chance_level

NUM_COUNTS, NUM_SHAPES, NUM_SIZES, NUM_MATERIALS, NUM_COLORS = 11, 3, 2, 2, 8

NUM_CANDIDATES: dict[str, int] = dict.fromkeys(QUESTION_TYPES, 2) | {
    "count": NUM_COUNTS,
    "query_shape": NUM_SHAPES,
    "query_size": NUM_SIZES,
    "query_material": NUM_MATERIALS,
    "query_color": NUM_COLORS,
}
"""Question type -> number of answers that are possible at all; those not named here are yes or no."""


# A list will do for the tuple, so that `tensor.tolist()` fits; strictness stays for everything else.
LogProbs = Annotated[tuple[FiniteFloat, ...], Strict(False), Field(min_length=len(ANSWERS), max_length=len(ANSWERS))]

_ANSWER_INDEX = {answer: index for index, answer in enumerate(ANSWERS)}


class Prediction(BaseModel):
    """One answered question: a line of `predictions.jsonl`.

    `log_probs` are the scores of all candidates in the order of `ANSWERS` (nats, each the sum over an answer's
    bytes and its end); `prediction` is the best of them. `constrained_greedy` is where taking the best byte each
    time leads among the candidates, `free_greedy` without that constraint (any text; None if it did not end),
    `trie_mass` the probability of all candidates together. The last two are None for a model that writes no bytes.

    Raises pydantic's ValidationError for a value of another type, a number that is not finite and a record that
    contradicts itself.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    question_index: Annotated[int, Field(ge=0)]
    image: Annotated[str, Field(min_length=1)]
    question_type: str
    group: str
    answer: str
    prediction: str
    log_probs: LogProbs
    constrained_greedy: str
    free_greedy: str | None
    trie_mass: Annotated[FiniteFloat, Field(ge=0)] | None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.question_type not in GROUP_OF_TYPE:
            raise ValueError(f"expected a question_type among {', '.join(QUESTION_TYPES)}, got {self.question_type!r}")
        if self.group != GROUP_OF_TYPE[self.question_type]:
            expected = GROUP_OF_TYPE[self.question_type]
            raise ValueError(f"expected group {expected!r} for {self.question_type}, got {self.group!r}")
        for name in ("answer", "prediction", "constrained_greedy"):
            if getattr(self, name) not in _ANSWER_INDEX:
                raise ValueError(f"expected one of the {len(ANSWERS)} answers as {name}, got {getattr(self, name)!r}")
        if self.log_probs[_ANSWER_INDEX[self.prediction]] < max(self.log_probs):
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
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(prediction.model_dump_json() + "\n" for prediction in ordered)
    os.replace(partial, path)


def read_predictions(path: Path) -> list[Prediction]:
    """The records of a file by `write_predictions`; errors as `iterate_predictions`."""
    return list(iterate_predictions(path))


def iterate_predictions(path: Path) -> Iterator[Prediction]:
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
                prediction = Prediction.model_validate_json(line)
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


def summarise(predictions: Sequence[Prediction], *, seed: int = 0) -> dict[str, Any]:
    """All numbers of one evaluation, JSON-able.

    `overall`, each of `groups` and each of `types` that occurs hold n (questions), images, correct, accuracy, low,
    high (95 %) and chance. `decoding` holds n, correct and accuracy of the three ways to read an answer from the
    model; `trie_mass` holds n and mean. What only byte models have is None where no prediction has it. Fractions
    throughout, never percent.

    Raises UserError for no prediction.
    """
    groups = {name: [p for p in predictions if p.group == name] for name in GROUPS}
    types = {name: [p for p in predictions if p.question_type == name] for name in QUESTION_TYPES}
    by_bytes = [p for p in predictions if p.trie_mass is not None]
    masses = [p.trie_mass for p in predictions if p.trie_mass is not None]
    return {
        "overall": _accuracy(predictions, seed=seed),
        "groups": {name: _accuracy(members, seed=seed) for name, members in groups.items() if members},
        "types": {name: _accuracy(members, seed=seed) for name, members in types.items() if members},
        "decoding": {
            "likelihood": _share_right(predictions, lambda p: p.prediction),
            "constrained_greedy": _share_right(predictions, lambda p: p.constrained_greedy),
            "free_greedy": _share_right(by_bytes, lambda p: p.free_greedy),
        },
        "trie_mass": {"n": len(masses), "mean": sum(masses) / len(masses)} if masses else None,
    }


def correct_of(predictions: Sequence[Prediction]) -> np.ndarray:
    """(N,) booleans: is the likeliest candidate the right answer."""
    return np.array([p.prediction == p.answer for p in predictions], dtype=bool)


def images_of(predictions: Sequence[Prediction]) -> np.ndarray:
    """(N,) names of the images that the questions are about: the clusters of every interval."""
    return np.array([p.image for p in predictions])


def _accuracy(predictions: Sequence[Prediction], *, seed: int) -> dict[str, Any]:
    correct, images = correct_of(predictions), images_of(predictions)
    interval = accuracy_interval(correct, images, seed=seed)
    return {
        "n": len(predictions),
        "images": len(set(images)),
        "correct": int(correct.sum()),
        "accuracy": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "chance": chance_level([NUM_CANDIDATES[p.question_type] for p in predictions]),
    }


def _share_right(
    predictions: Sequence[Prediction], answer_by: Callable[[Prediction], str | None]
) -> dict[str, Any] | None:
    """How often one way of answering is right; None without predictions. An answer that did not end is wrong."""
    if not predictions:
        return None
    correct = sum(answer_by(prediction) == prediction.answer for prediction in predictions)
    return {"n": len(predictions), "correct": correct, "accuracy": correct / len(predictions)}


def _first_fault(error: ValidationError) -> str:
    """The first of pydantic's complaints in one line: where, what was expected, what was got."""
    fault = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if not field:
        return message
    return f"{field}: {message}, got {str(fault['input'])[:60]!r}"
