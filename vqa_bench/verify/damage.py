"""The check of a run's answers to damaged images. Knows the two files that say them, not how images are damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vqa_bench.data.answers import Answers
from vqa_bench.errors import UserError
from vqa_bench.runs import PREDICTIONS, read_json
from vqa_bench.scoring.damage import DAMAGE, DAMAGED_ANSWERS
from vqa_bench.scoring.predictions import Prediction, images_of
from vqa_bench.scoring.statistics import accuracy_interval
from vqa_bench.verify.checks import AGAIN, compare, parsed


class _DamageQuestions(BaseModel):
    """The first line of `damage.jsonl`."""

    questions: list[int]


class _DamageAnswers(BaseModel):
    """Each line after it."""

    damage: str
    level: float
    predictions: list[int]


def damage_faults(run: Path, predictions: Sequence[Prediction], answers: Answers) -> list[str]:
    """Where a number of a run's `damage.json` does not follow from the answers in `damage.jsonl`.

    predictions: those to undamaged images. Raises UserError where the files do not fit each other.
    """
    stated = read_json(run / DAMAGE)
    asked, *given = _lines(run / DAMAGED_ANSWERS)
    about = {prediction.question_index: prediction for prediction in predictions}
    questions = [about.get(index) for index in parsed(_DamageQuestions, asked, DAMAGED_ANSWERS).questions]
    known = [question for question in questions if question is not None]
    levels = stated.get("levels") if isinstance(stated, dict) else None
    if len(known) < len(questions) or not known or not isinstance(levels, list) or len(levels) != len(given):
        raise UserError(
            f"expected the same levels in {DAMAGE} and {DAMAGED_ANSWERS}, on questions of {PREDICTIONS}, got "
            f"others; {AGAIN}"
        )
    made = [_level(parsed(_DamageAnswers, line, DAMAGED_ANSWERS), known, answers) for line in given]
    # What a decoder made of the pictures is not in the answers.
    kept = [{key: value for key, value in level.items() if key in made[0]} for level in levels]
    images = len({question.image for question in known})
    expected = {"images": images, "questions": len(known), "levels": made}
    return compare(expected, {name: stated.get(name) for name in expected} | {"levels": kept}, "", again=AGAIN)


def _level(given: _DamageAnswers, questions: Sequence[Prediction], answers: Answers) -> dict[str, Any]:
    names = answers.names
    if len(given.predictions) != len(questions) or not all(0 <= at < len(names) for at in given.predictions):
        raise UserError(f"expected one of {len(names)} answers a question in {DAMAGED_ANSWERS}, got others; {AGAIN}")
    answered = [names[place] for place in given.predictions]
    if given.level == 0 and answered != [question.prediction for question in questions]:
        raise UserError(f"expected the answers of {PREDICTIONS} where nothing is damaged, got others; {AGAIN}")
    correct = [name == question.answer for name, question in zip(answered, questions, strict=True)]
    interval = accuracy_interval(correct, images_of(questions))
    return {
        "damage": given.damage,
        "level": given.level,
        "n": len(correct),
        "correct": sum(correct),
        "accuracy": interval.estimate,
        "low": interval.low,
        "high": interval.high,
    }


def _lines(path: Path) -> list[Any]:
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"expected a JSON object a line in {path}, got: {error}; {AGAIN}") from error
    if len(lines) < 2:
        raise UserError(f"expected questions and levels in {path}, got {len(lines)} lines; {AGAIN}")
    return lines
