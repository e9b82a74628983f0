"""From predictions to numbers. Knows answers, not what kind of model gave them.

Accuracies are sums and counts until the very end; every one comes with its number of questions and images, its
interval (resampling images, see `statistics`) and the level of chance.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np

from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.vocab import GROUPS, QUESTION_TYPES
from vqa_bench.scoring.calibration import calibration
from vqa_bench.scoring.predictions import Prediction, correct_of, images_of
from vqa_bench.scoring.statistics import accuracy_interval, chance_level

Key = TypeVar("Key", bound=Hashable)

NUM_COUNTS, NUM_SHAPES, NUM_SIZES, NUM_MATERIALS, NUM_COLORS = 11, 3, 2, 2, 8

NUM_CANDIDATES: dict[str, int] = dict.fromkeys(QUESTION_TYPES, 2) | {
    "count": NUM_COUNTS,
    "query_shape": NUM_SHAPES,
    "query_size": NUM_SIZES,
    "query_material": NUM_MATERIALS,
    "query_color": NUM_COLORS,
}
"""CLEVR's question types -> number of answers that are possible at all; those not named here are yes or no."""

PROGRAM_LENGTHS = ((1, 4), (5, 8), (9, 12), (13, 16), (17, 20), (21, None))
"""Questions are counted together whose programs have from so many to so many nodes (None: any more); CLEVR's have 2
to 24."""


def summarise(predictions: Sequence[Prediction], *, answers: Answers = CLEVR_ANSWERS, seed: int = 0) -> dict[str, Any]:
    """All numbers of one evaluation, JSON-able.

    `overall`, each of `groups`, `types`, `program_lengths` ("5-8", nodes), `num_objects` (of the scene) and `answers`
    (the right one) that occurs hold n (questions), images, correct, accuracy, low, high (95 %) and chance. `decoding`
    holds n, correct and accuracy of the three ways to read an answer from the model; `trie_mass` holds n and mean. What
    only byte models have is None where no prediction has it. `calibration`: see there. `confusion`: `labels`, those of
    the candidates that are right or given anywhere, and `counts`, a row a right answer, a column a given one. Fractions
    throughout, never percent.

    Raises UserError for no prediction.
    """
    by_bytes = [p for p in predictions if p.trie_mass is not None]
    masses = [p.trie_mass for p in predictions if p.trie_mass is not None]

    def split_by(key: Callable[[Prediction], Key | None], order: Callable[[Key], Any]) -> dict[str, Any]:
        return _split_by(predictions, key, order, answers=answers, seed=seed)

    return {
        **accuracies(predictions, answers, seed=seed),
        "program_lengths": split_by(_length_class, lambda name: int(name.split("-")[0].rstrip("+"))),
        "num_objects": split_by(lambda p: p.num_objects, int),
        "answers": split_by(lambda p: p.answer, answers.index.__getitem__),
        "decoding": {
            "likelihood": _share_right(predictions, lambda p: p.prediction),
            "constrained_greedy": _share_right(predictions, lambda p: p.constrained_greedy),
            "free_greedy": _share_right(by_bytes, lambda p: p.free_greedy),
        },
        "trie_mass": {"n": len(masses), "mean": sum(masses) / len(masses)} if masses else None,
        "calibration": calibration(predictions, answers),
        "confusion": _confusion(predictions, answers),
    }


def accuracies(predictions: Sequence[Prediction], answers: Answers, *, seed: int = 0) -> dict[str, Any]:
    """`overall`, `groups` and `types` of `summarise`, CLEVR's own first, in its order."""
    return {
        "overall": _accuracy(predictions, answers=answers, seed=seed),
        "groups": _split_by(predictions, lambda p: p.group, _place_in(GROUPS), answers=answers, seed=seed),
        "types": _split_by(
            predictions, lambda p: p.question_type, _place_in(QUESTION_TYPES), answers=answers, seed=seed
        ),
    }


def _place_in(known: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """A sort key: as in `known`, all others behind by name."""
    return lambda name: (known.index(name) if name in known else len(known), name)


def _split_by(
    predictions: Sequence[Prediction],
    key: Callable[[Prediction], Key | None],
    order: Callable[[Key], Any],
    *,
    answers: Answers,
    seed: int,
) -> dict[str, Any]:
    """The accuracy of the predictions of each key, which becomes text; those of the key None are left out."""
    members: dict[Key, list[Prediction]] = {}
    for prediction in predictions:
        found = key(prediction)
        if found is not None:
            members.setdefault(found, []).append(prediction)
    return {str(name): _accuracy(members[name], answers=answers, seed=seed) for name in sorted(members, key=order)}


def _length_class(prediction: Prediction) -> str | None:
    """Which of `PROGRAM_LENGTHS` a question's program has."""
    length = prediction.program_length
    if length is None:
        return None
    low, high = next((low, high) for low, high in PROGRAM_LENGTHS if high is None or length <= high)
    return f"{low}+" if high is None else f"{low}-{high}"


def _accuracy(predictions: Sequence[Prediction], *, answers: Answers, seed: int) -> dict[str, Any]:
    correct, images = correct_of(predictions), images_of(predictions)
    interval = accuracy_interval(correct, images, seed=seed)
    return {
        "n": len(predictions),
        "images": len(set(images)),
        "correct": int(correct.sum()),
        "accuracy": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "chance": chance_level([_possible(p.question_type, answers) for p in predictions]),
    }


def _possible(question_type: str, answers: Answers) -> int:
    """How many of the candidates can be the answer to a question of that type; all where it is not CLEVR's."""
    return min(NUM_CANDIDATES.get(question_type, len(answers)), len(answers))


def _confusion(predictions: Sequence[Prediction], answers: Answers) -> dict[str, Any]:
    from sklearn.metrics import confusion_matrix  # takes a second to import

    right = [answers.index[p.answer] for p in predictions]
    given = [answers.index[p.prediction] for p in predictions]
    counts = confusion_matrix(right, given, labels=range(len(answers)))
    occurring = np.union1d(right, given)
    labels = [answers.names[place] for place in occurring]
    return {"labels": labels, "counts": counts[np.ix_(occurring, occurring)].tolist()}


def _share_right(
    predictions: Sequence[Prediction], answer_by: Callable[[Prediction], str | None]
) -> dict[str, Any] | None:
    """How often one way of answering is right; None without predictions. An answer that did not end is wrong."""
    if not predictions:
        return None
    correct = sum(answer_by(prediction) == prediction.answer for prediction in predictions)
    return {"n": len(predictions), "correct": correct, "accuracy": correct / len(predictions)}
