"""Makes run folders like those of an evaluation, from made-up predictions."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.vqa_bench.scoring.predictions import make_prediction
from vqa_bench.data.vocab import ANSWERS, GROUP_OF_TYPE, QUESTION_TYPES
from vqa_bench.scoring.metrics import Prediction, summarise, write_predictions


def answers_of(questions: int, *, accuracy: float | dict[str, float], seed: int) -> list[Prediction]:
    """Predictions whose chance to be right depends on the group and, a little, on the image."""
    generator = np.random.default_rng(seed)
    of_image = np.random.default_rng(0).normal(0, 0.08, size=questions)  # the same images are hard for every model
    records = []
    for index in range(questions):
        group = GROUP_OF_TYPE[QUESTION_TYPES[index % len(QUESTION_TYPES)]]
        level = accuracy if isinstance(accuracy, float) else accuracy[group]
        is_right = generator.random() < np.clip(level + of_image[index // 10], 0, 1)
        answer = ANSWERS[index * 7 % len(ANSWERS)]
        wrong = ANSWERS[(index * 7 + 1) % len(ANSWERS)]
        records.append(make_prediction(index, answer=answer, prediction=answer if is_right else wrong))
    return records


def make_run(
    folder: Path,
    *,
    accuracy: float | dict[str, float],
    shuffled_accuracy: float | dict[str, float] | None = None,
    title: str | None = None,
    questions: int = 260,
    seed: int = 0,
    done: bool = True,
    **changes: Any,
) -> Path:
    """A run folder with result.json and predictions; blind if there is no `shuffled_accuracy`.

    `changes` replace or add keys of result.json.
    """
    folder.mkdir(parents=True)
    predictions = answers_of(questions, accuracy=accuracy, seed=seed)
    write_predictions(folder / "predictions.jsonl", predictions)
    shuffled = None
    if shuffled_accuracy is not None:
        exchanged = answers_of(questions, accuracy=shuffled_accuracy, seed=seed + 1)
        write_predictions(folder / "predictions-shuffled.jsonl", exchanged)
        shuffled = summarise(exchanged)
    blind = shuffled is None
    result = {
        "format": 1,
        "cell": folder.name,
        "title": folder.name if title is None else title,
        "model": {"kind": "lstm" if blind else "mblm", "parameters": 1_234_567, "blind": blind},
        "encoding": None if blind else "pixels:16x12,order=block4",
        "layout": None if blind else "iqa",
        "init": None,
        "seed": seed,
        "dataset": {"name": "mini", "questions": questions, "images": -(-questions // 10), "missing_images": 0},
        "train": {"seconds": 12.5},
        "metrics": summarise(predictions),
        "shuffled": shuffled,
    }
    (folder / "result.json").write_text(json.dumps(result | changes))
    if done:
        (folder / "DONE").touch()
    return folder
