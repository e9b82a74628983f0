"""A folder of runs, read: the finished cells with their answers, the pretraining runs, the names of unfinished ones.

Knows run folders, neither how runs are compared nor how a table or figure looks.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqa_bench.config import PRETRAIN_FOLDER
from vqa_bench.data.answers import Answers
from vqa_bench.errors import UserError
from vqa_bench.report.schema import CellResult, Damage, Metrics, PretrainResult, read_result
from vqa_bench.scoring.predictions import iterate_predictions

DAMAGE = "damage.json"
_SIGNS_OF_A_RUN = ("provenance.json", "key.json", "result.json", "DONE")


@dataclass(frozen=True)
class Graded:
    """A predictions file without its scores: N questions in the order of question_index.

    `correct` (N,) booleans, `images` (N,) names; `questions` is a digest of the indices, the right answers and the
    candidates, the same for two files that answer the same test set: among fewer candidates it is easier to be right.
    """

    correct: NDArray[np.bool_]
    images: NDArray[np.str_]
    questions: str


@dataclass(frozen=True)
class Run:
    """A finished cell.

    `shuffled` are the answers of the same model to permuted images, None for a blind one; `damage` what it answered
    to damaged ones, None where that was not asked.
    """

    folder: Path
    result: CellResult
    answers: Graded
    shuffled: Graded | None
    damage: Damage | None = None


@dataclass(frozen=True)
class Collection:
    """All runs below a folder: the finished ones, and the names of those without a DONE file."""

    runs: list[Run]
    pretraining: list[PretrainResult]
    unfinished: list[str]


def collect(results_dir: Path) -> Collection:
    """Read every run folder directly in `results_dir`, and every pretraining run in its folder `pretrain`, by name.

    Hidden folders and folders that hold nothing of a run are passed over.

    Raises UserError if there is no such folder, no finished run in it, or a finished run is not whole.
    """
    if any((results_dir / sign).is_file() for sign in _SIGNS_OF_A_RUN):
        raise UserError(f"expected a folder of runs, got {results_dir}, which is a run; name the folder it is in")
    if not results_dir.is_dir():
        raise UserError(f"expected a folder of runs at {results_dir}, got no such folder; run a matrix into it first")
    finished, unfinished = _run_folders(results_dir)
    pretrained, waiting = _run_folders(results_dir / PRETRAIN_FOLDER)
    unfinished += [f"{PRETRAIN_FOLDER}/{name}" for name in waiting]
    if not finished and not pretrained:
        raise UserError(
            f"expected at least one finished run (a folder with a DONE file) in {results_dir}, "
            f"got {len(unfinished)} unfinished; run the matrix to its end"
        )
    runs = [read_run(folder) for folder in finished]
    names = [run.result.cell for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"expected one finished run a cell in {results_dir}, got several of {', '.join(twice)}; move one away"
        )
    pretraining = [read_result(folder, PretrainResult) for folder in pretrained]
    return Collection(runs, pretraining, unfinished)


def _run_folders(parent: Path) -> tuple[list[Path], list[str]]:
    """The folders of finished runs, and the names of unfinished ones, both sorted; nothing without such a folder."""
    if not parent.is_dir():
        return [], []
    folders = [
        folder
        for folder in sorted(parent.iterdir())
        if not folder.name.startswith(".") and any((folder / sign).is_file() for sign in _SIGNS_OF_A_RUN)
    ]
    finished = [folder for folder in folders if (folder / "DONE").is_file()]
    return finished, [folder.name for folder in folders if folder not in finished]


def read_run(folder: Path) -> Run:
    """One finished run, with its answers.

    Raises UserError if it is not finished, or not whole.
    """
    if not (folder / "DONE").is_file():
        raise UserError(f"expected a finished run (a folder with a DONE file), got {folder}; run the cell to its end")
    result = read_result(folder, CellResult)
    answers = _read_answers(folder / "predictions.jsonl", result.metrics, result.candidates)
    shuffled = None
    if result.shuffled is not None:
        shuffled = _read_answers(folder / "predictions-shuffled.jsonl", result.shuffled, result.candidates)
        if shuffled.questions != answers.questions:
            raise UserError(f"expected the same questions in both predictions files of {folder}; run the cell again")
    damage = read_result(folder, Damage, name=DAMAGE) if (folder / DAMAGE).is_file() else None
    return Run(folder, result, answers, shuffled, damage)


def _read_answers(path: Path, metrics: Metrics, candidates: Answers) -> Graded:
    """Read predictions and hold them against the numbers made of them earlier."""
    digest = hashlib.sha256(f"{candidates.names}\n".encode())
    correct, images = [], []
    for prediction in iterate_predictions(path, candidates):
        digest.update(f"{prediction.question_index}\t{prediction.answer}\n".encode())
        correct.append(prediction.prediction == prediction.answer)
        images.append(prediction.image)
    stated = metrics.overall
    if (stated.n, stated.correct) != (len(correct), sum(correct)):
        raise UserError(
            f"expected {stated.correct} of {stated.n} right in {path} as result.json says, "
            f"got {sum(correct)} of {len(correct)}; run the cell again"
        )
    return Graded(np.array(correct), np.array(images), digest.hexdigest())
