"""Whether a score depends on anything but its own question: what shared its batch, how it was padded, who scored it.

Some questions are scored again in other company and held against the predictions of the evaluation. Knows batches and
scores, not what kind of model answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vqa_bench import launch
from vqa_bench.data.answers import Answers
from vqa_bench.data.loading import Group, spread
from vqa_bench.data.questions import questions_of
from vqa_bench.data.shards import SplitReader
from vqa_bench.errors import SharedError
from vqa_bench.models import VQAModel
from vqa_bench.scoring.answering import DECIMALS, score_in_batches
from vqa_bench.scoring.batches import BatchSize, in_batches
from vqa_bench.scoring.predictions import Prediction
from vqa_bench.scoring.score import Scores

WORLDS = (2, 3)  # numbers of processes whose shares are scored
SMALL = 3  # images in a small batch

Scored = Iterable[tuple[np.ndarray, Scores]]
"""Batch by batch: the rows (n,) of questions, and their scores."""


class InvarianceError(SharedError):
    """A score depends on something that it must not depend on. Raised on every process of a launch."""


@dataclass(frozen=True)
class _Deviation:
    """How far m scores of a check are from the predictions of their questions, (m,) each.

    delta: the largest change of a log-probability, nats. flipped: whether another answer is ahead now. lead: by how
    much the predicted answer was ahead of the one that is now, nats; 0 where it is the same.
    """

    question_index: np.ndarray
    delta: np.ndarray
    flipped: np.ndarray
    lead: np.ndarray

    @property
    def excess(self) -> np.ndarray:
        """What the tolerance is held against; a score that is no number is infinitely far."""
        return np.nan_to_num(np.maximum(self.delta, self.lead), nan=np.inf)


def check(
    model: VQAModel,
    split: SplitReader,
    predictions: Sequence[Prediction],
    *,
    questions: int,
    tolerance: float,
    answers: Answers | None = None,
    size: BatchSize | None = None,
) -> dict[str, Any]:
    """Score questions again in other batches, paddings, orders and shares, and compare with their predictions.

    Returns `questions`, `tolerance`, and over all checks and for each of `checks`: `max_abs_delta`, the largest change
    of a log-probability (nats), and `flipped`, how many questions got another answer. All is compared as it is rounded
    in the predictions.

    Every process of a launch calls this; the main one scores, the others get its result. predictions: of all questions
    of the split. questions: how many are scored again, pairs of neighbours spread evenly over the split, at most all.
    answers: the candidates, None for the model's own. size: that of the evaluation; None takes what the cell says.

    Raises InvarianceError, on every process, where a log-probability changes by more than `tolerance`, or an answer
    becomes another though it led by more than that.
    """
    found: dict[str, Any] | None = None
    fault: str | None = None
    if launch.is_main():
        with launch.alone():
            size = BatchSize.of(model.cell.evaluate.images_per_batch) if size is None else size
            again = _Again(model.to(launch.device()).eval(), split, answers, size, _chosen(split, questions))
            known = _Known(split, again.rows, predictions, answers or model.answers)
            deviations = {name: known.compare(scored) for name, scored in again.checks()}
            found = _summary(deviations, len(again.rows), tolerance)
            fault = _fault(deviations, tolerance)
    found, fault = launch.broadcast((found, fault))
    if fault is not None:
        raise InvarianceError(fault)
    assert found is not None, "the main process found something or failed"
    return found


def _chosen(split: SplitReader, questions: int) -> np.ndarray:
    """The rows of the questions that are scored again: pairs that follow each other image by image, spread evenly, so
    that most share their image with another one."""
    rows = np.concatenate(split.questions_of_image)
    if questions >= len(rows):
        return rows
    pairs = rows[: len(rows) // 2 * 2].reshape(-1, 2)
    return pairs[spread(len(pairs), -(-questions // 2))].flatten()[:questions]


@dataclass(frozen=True)
class _Again:
    """The chosen questions, scored again in every other way that an evaluation may come to.

    model: in evaluation mode, on its device. size: that of the evaluation, which is never changed here.
    """

    model: VQAModel
    split: SplitReader
    answers: Answers | None
    size: BatchSize
    rows: np.ndarray

    def checks(self) -> Iterator[tuple[str, Scored]]:
        """Each check's name and its scores, which are made as they are read."""
        single = self._groups(1)
        together = self._groups(len(self.rows)) if self.size.questions is None else single  # where more does not fit
        images = self.size.images
        yield "one question", self._score([group] for group in single)
        for name, at_once in (("small batches", SMALL), ("usual batches", images), ("large batches", 2 * images)):
            yield name, self._score_cut(together, at_once)
        yield "more padding", self._score([*batch, self._longest(batch)] for batch in _cut(together, images - 1))
        yield "reversed order", self._score(_reversed(_cut(together, images)))
        for world in WORLDS:  # batches small enough that every process has several
            at_once = max(1, min(images, len(together) // (2 * world)))
            for_each = (self._score_cut(together, at_once, rank=rank, world=world) for rank in range(world))
            yield f"{world} processes", (scored for share in for_each for scored in share)
        if not self.model.blind:
            yield "image not shared", self._score(_cut(single, images))

    def _groups(self, most: int) -> list[Group]:
        """The questions by image, at most so many of them in a group."""
        images = self.split.image_of_question[self.rows]
        return [
            Group(int(self.split.image_of_question[rows[0]]), rows[first : first + most])
            for rows in np.split(self.rows, np.flatnonzero(np.diff(images)) + 1)
            for first in range(0, len(rows), most)
        ]

    def _longest(self, batch: list[Group]) -> Group:
        """The longest question of the split, once more often than any image of the batch has questions.

        Beside it every shorter question is padded, and every other image has a place without a question.
        """
        row = int(questions_of(self.split).lengths.argmax())
        times = 1 + max(len(group.questions) for group in batch)
        return Group(int(self.split.image_of_question[row]), np.full(times, row))

    def _score(self, batches: Iterable[list[Group]]) -> Scored:
        return score_in_batches(self.model, self.split, batches, device=launch.device(), answers=self.answers)

    def _score_cut(self, groups: list[Group], images: int, *, rank: int = 0, world: int = 1) -> Scored:
        """As an evaluation does it with so many images at once, in one of several processes."""

        def work(batch: list[Group]) -> tuple[np.ndarray, Scores]:
            return next(iter(self._score([batch])))

        return in_batches(self.model, self.split, groups, BatchSize.of(images), work, rank=rank, world=world)


def _cut(groups: list[Group], at_once: int) -> list[list[Group]]:
    """Batches of so many groups, at least one."""
    return [groups[first : first + max(1, at_once)] for first in range(0, len(groups), max(1, at_once))]


def _reversed(batches: list[list[Group]]) -> Iterator[list[Group]]:
    """The last question first."""
    for batch in reversed(batches):
        yield [Group(group.image, group.questions[::-1]) for group in reversed(batch)]


class _Known:
    """What the evaluation said about n chosen questions: log_probs (n, A), and the answer (n,) that is ahead."""

    def __init__(
        self, split: SplitReader, rows: np.ndarray, predictions: Sequence[Prediction], answers: Answers
    ) -> None:
        self._place = np.full(len(split.question_index), -1)
        self._place[rows] = np.arange(len(rows))
        self._question_index = split.question_index[rows]
        wanted = set(self._question_index.tolist())
        kept = {p.question_index: p for p in predictions if p.question_index in wanted}
        ordered = [kept[index] for index in self._question_index.tolist()]
        self._log_probs = np.array([p.log_probs for p in ordered])
        self._answer = np.array([answers.index[p.prediction] for p in ordered])

    def compare(self, scored: Scored) -> _Deviation:
        """How far the scores of a check are from this; every chosen question must be among them."""
        parts = [(self._place[rows], scores.log_probs.numpy()) for rows, scores in scored]
        places = np.concatenate([part for part, _ in parts])  # (m,), -1 for a question that was only company
        log_probs = np.concatenate([part for _, part in parts])[places >= 0].round(DECIMALS)  # (m, A)
        places = places[places >= 0]
        assert len(np.unique(places)) == len(self._question_index), "a check scores every question"
        known, answer, now = self._log_probs[places], self._answer[places], log_probs.argmax(1)
        every = np.arange(len(places))
        return _Deviation(
            question_index=self._question_index[places],
            delta=np.abs(log_probs - known).max(1),
            flipped=now != answer,
            lead=known[every, answer] - known[every, now],
        )


def _summary(deviations: dict[str, _Deviation], questions: int, tolerance: float) -> dict[str, Any]:
    checks = {
        name: {"max_abs_delta": float(found.delta.max()), "flipped": _flipped(found)}
        for name, found in deviations.items()
    }
    return {
        "questions": questions,
        "tolerance": tolerance,
        "max_abs_delta": max(found["max_abs_delta"] for found in checks.values()),
        "flipped": _flipped(*deviations.values()),
        "checks": checks,
    }


def _flipped(*deviations: _Deviation) -> int:
    """How many questions got another answer in one of the checks."""
    return len({index for found in deviations for index in found.question_index[found.flipped].tolist()})


def _fault(deviations: dict[str, _Deviation], tolerance: float) -> str | None:
    """The worst change in words, None where all are within the tolerance."""
    name, found = max(deviations.items(), key=lambda item: float(item[1].excess.max()))
    worst = int(found.excess.argmax())
    if found.excess[worst] <= tolerance:
        return None
    answered = f" and another answer than the one ahead by {found.lead[worst]:.3g}" if found.flipped[worst] else ""
    return (
        f"expected log-probabilities that change by {tolerance:g} nats at most in other batches, got a change of "
        f"{found.delta[worst]:.3g}{answered} for question_index {found.question_index[worst]} in the check '{name}'; "
        "mend the model, or raise the tolerance (evaluate.tolerance, --tolerance) if its arithmetic is that coarse"
    )
