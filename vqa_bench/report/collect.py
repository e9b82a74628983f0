"""A folder of runs, read and put side by side in one frame. Knows run folders, not how a table or figure looks.

Runs are compared only on the same test set: the same questions with the same answers. Cells that were tested on
different ones stand in different blocks of the frame, each with its own chance level and blind baseline.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from vqa_bench.errors import UserError
from vqa_bench.scoring.metrics import iterate_predictions
from vqa_bench.scoring.statistics import paired_difference

COLUMNS = ("overall", "exist", "count", "compare_integer", "compare_attribute", "query")
"""Columns of accuracies in the order in which they are shown: all questions, then the groups."""

_NUMBERS = {"n": "Int64", "correct": "Int64", "accuracy": "Float64", "low": "Float64", "high": "Float64"}

FRAME_COLUMNS: dict[str, str] = (
    {"test_set": "Int64", "dataset": "string"}
    | dict.fromkeys(("questions", "images", "missing_images"), "Int64")
    | dict.fromkeys(("row", "title", "cell", "kind"), "string")
    | dict.fromkeys(("blind", "best_blind"), "boolean")
    | dict.fromkeys(("encoding", "layout", "init"), "string")
    | dict.fromkeys(("seed", "parameters"), "Int64")
    | {f"{column}_{number}": dtype for column in COLUMNS for number, dtype in _NUMBERS.items()}
    | dict.fromkeys(("vs_blind", "vs_blind_low", "vs_blind_high", "vs_blind_p"), "Float64")
)
"""Columns of the frame and their pandas types, all of which may be missing."""


class _Part(BaseModel):
    """A part of `result.json`: the keys a report needs; others are kept and not looked at."""

    model_config = ConfigDict(extra="allow")


class _Model(_Part):
    kind: str
    parameters: int
    blind: bool


class _Dataset(_Part):
    name: str
    missing_images: int


class _Accuracy(_Part):
    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    chance: float


class _Metrics(_Part):
    """The output of `scoring.metrics.summarise`; a group without a question is not in `groups`."""

    overall: _Accuracy
    groups: dict[str, _Accuracy]

    def column(self, name: str) -> _Accuracy | None:
        return self.overall if name == "overall" else self.groups.get(name)


class Result(_Part):
    """A run's `result.json`. `shuffled` are the metrics with images exchanged, None for a model without images."""

    format: Literal[1]
    cell: str
    title: str
    model: _Model
    encoding: str | None
    layout: str | None
    init: str | None
    seed: int
    dataset: _Dataset
    metrics: _Metrics
    shuffled: _Metrics | None


@dataclass(frozen=True)
class Answers:
    """A predictions file without its scores: N questions in the order of question_index.

    `correct` (N,) booleans, `images` (N,) names; `questions` is a digest of the indices and right answers, the same
    for two files that answer the same test set.
    """

    correct: NDArray[np.bool_]
    images: NDArray[np.str_]
    questions: str


@dataclass(frozen=True)
class Run:
    """A finished cell. `shuffled` are the answers of the same model to permuted images, None for a blind one."""

    folder: Path
    result: Result
    answers: Answers
    shuffled: Answers | None


@dataclass(frozen=True)
class Collection:
    """All runs below a folder: the finished ones, and the names of those without a DONE file."""

    runs: list[Run]
    unfinished: list[str]


def collect(results_dir: Path) -> Collection:
    """Read every run folder directly in `results_dir`, sorted by name. Every folder counts but hidden ones.

    Raises UserError if there is no such folder, no finished run in it, or a finished run is not whole.
    """
    if not results_dir.is_dir():
        raise UserError(f"expected a folder of runs at {results_dir}, got no such folder; run a matrix into it first")
    folders = sorted(path for path in results_dir.iterdir() if path.is_dir() and not path.name.startswith("."))
    unfinished = [folder.name for folder in folders if not (folder / "DONE").is_file()]
    runs = [_read_run(folder) for folder in folders if folder.name not in unfinished]
    if not runs:
        raise UserError(
            f"expected at least one finished run (a folder with a DONE file) in {results_dir}, "
            f"got {len(unfinished)} unfinished; run the matrix to its end"
        )
    names = [run.result.cell for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"expected one finished run a cell in {results_dir}, got several of {', '.join(twice)}; move one away"
        )
    return Collection(runs, unfinished)


def build_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row for chance, each cell and each cell with shuffled images, for every test set in turn.

    `test_set` numbers the blocks; `questions`, `images` and `missing_images` describe them; `row` is "chance",
    "cell" or "shuffled"; `vs_blind` is the paired difference to the best blind cell (`best_blind`). Fractions, not
    percent; what does not exist is missing. Blind cells come first, then those that see, each by rising accuracy.
    """
    test_sets = enumerate(_by_test_set(runs))
    rows = [{"test_set": number} | row for number, test_set in test_sets for row in _rows_of(test_set)]
    return pd.DataFrame(rows, columns=list(FRAME_COLUMNS)).astype(FRAME_COLUMNS)


def _read_run(folder: Path) -> Run:
    path = folder / "result.json"
    if not path.is_file():
        raise UserError(f"expected {path} in a run that is marked DONE, got no such file; run the cell again")
    try:
        result = Result.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"{path}: {where}: {fault['msg']}; run the cell again") from None
    answers = _read_answers(folder / "predictions.jsonl", result.metrics)
    shuffled = None
    if result.shuffled is not None:
        shuffled = _read_answers(folder / "predictions-shuffled.jsonl", result.shuffled)
        if shuffled.questions != answers.questions:
            raise UserError(f"expected the same questions in both predictions files of {folder}; run the cell again")
    return Run(folder, result, answers, shuffled)


def _read_answers(path: Path, metrics: _Metrics) -> Answers:
    """Read predictions and hold them against the numbers made of them earlier."""
    digest = hashlib.sha256()
    correct, images = [], []
    for prediction in iterate_predictions(path):
        digest.update(f"{prediction.question_index}\t{prediction.answer}\n".encode())
        correct.append(prediction.prediction == prediction.answer)
        images.append(prediction.image)
    stated = metrics.overall
    if (stated.n, stated.correct) != (len(correct), sum(correct)):
        raise UserError(
            f"expected {stated.correct} of {stated.n} right in {path} as result.json says, "
            f"got {sum(correct)} of {len(correct)}; run the cell again"
        )
    return Answers(np.array(correct), np.array(images), digest.hexdigest())


def _by_test_set(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that answered the same questions, together; within them in the order of the rows."""
    test_sets: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (not run.result.model.blind, run.answers.correct.sum(), run.result.cell)):
        test_sets.setdefault((run.result.dataset.name, run.answers.questions), []).append(run)
    return [test_sets[key] for key in sorted(test_sets)]


def _rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of one test set."""
    blind = [run for run in runs if run.result.model.blind]
    best_blind = blind[-1] if blind else None  # runs rise in accuracy
    test_set = {
        "dataset": runs[0].result.dataset.name,
        "questions": len(runs[0].answers.correct),
        "images": len(set(runs[0].answers.images)),
        "missing_images": runs[0].result.dataset.missing_images,
    }
    rows = [test_set | _chance_row(runs[0].result.metrics)]
    for run in runs:
        rows.append(test_set | _row(run, "cell", best_blind=best_blind))
        if run.shuffled is not None:
            rows.append(test_set | _row(run, "shuffled", best_blind=best_blind))
    return rows


def _row(run: Run, kind: Literal["cell", "shuffled"], *, best_blind: Run | None) -> dict[str, Any]:
    result = run.result
    answers, metrics, title = run.answers, result.metrics, result.title
    if kind == "shuffled":
        assert run.shuffled is not None
        assert result.shuffled is not None
        answers, metrics, title = run.shuffled, result.shuffled, f"{title}, images shuffled"
    row: dict[str, Any] = {
        "row": kind,
        "title": title,
        "cell": result.cell,
        "kind": result.model.kind,
        "blind": result.model.blind,
        "best_blind": run is best_blind,
        **{name: getattr(result, name) for name in ("encoding", "layout", "init", "seed")},
        "parameters": result.model.parameters,
    }
    for column in COLUMNS:
        entry = metrics.column(column)
        if entry is not None:
            row |= {f"{column}_{number}": getattr(entry, number) for number in _NUMBERS}
    return row | _versus_blind(answers, None if run is best_blind else best_blind)


def _chance_row(metrics: _Metrics) -> dict[str, Any]:
    row: dict[str, Any] = {"row": "chance", "title": "chance", "best_blind": False}
    for column in COLUMNS:
        entry = metrics.column(column)
        if entry is not None:
            row |= {f"{column}_n": entry.n, f"{column}_accuracy": entry.chance}
    return row


def _versus_blind(answers: Answers, best_blind: Run | None) -> dict[str, Any]:
    if best_blind is None:
        return {}
    # Shuffling exchanges images but not questions: the clusters are those of the test set as it is.
    difference = paired_difference(answers.correct, best_blind.answers.correct, best_blind.answers.images)
    return {
        "vs_blind": difference.estimate,
        "vs_blind_low": difference.low,
        "vs_blind_high": difference.high,
        "vs_blind_p": difference.p_value,
    }
