"""Made-up predictions for tests of metrics and reports: a model that is right with a given probability."""

import numpy as np

from vqa_bench.data.vocab import ANSWERS, GROUP_OF_TYPE, QUESTION_TYPES
from vqa_bench.scoring.predictions import Prediction


def make_prediction(index: int, *, answer: str, prediction: str, **changes: object) -> Prediction:
    """One record; ten questions share an image and the 13 types take turns, unless `changes` say otherwise."""
    question_type = QUESTION_TYPES[index % len(QUESTION_TYPES)]
    log_probs = [-5.0] * len(ANSWERS)
    log_probs[ANSWERS.index(prediction)] = -0.25
    fields = {
        "question_index": index,
        "image": f"CLEVR_val_{index // 10:06d}.png",
        "question_type": question_type,
        "group": GROUP_OF_TYPE[question_type],
        "program_length": 2 + index % 20,
        "num_objects": 3 + index // 10 % 8,
        "answer": answer,
        "prediction": prediction,
        "log_probs": log_probs,
        "constrained_greedy": prediction,
        "free_greedy": None,
        "trie_mass": None,
    }
    return Prediction(**(fields | changes))  # type: ignore[arg-type]


def make_predictions(questions: int, *, accuracy: float, seed: int, **changes: object) -> list[Prediction]:
    """`questions` records with answers that depend on the index only, right in about `accuracy` of them."""
    generator = np.random.default_rng(seed)
    records = []
    for index in range(questions):
        answer = ANSWERS[index * 7 % len(ANSWERS)]
        wrong = ANSWERS[(index * 7 + 1) % len(ANSWERS)]
        prediction = answer if generator.random() < accuracy else wrong
        records.append(make_prediction(index, answer=answer, prediction=prediction, **changes))
    return records
