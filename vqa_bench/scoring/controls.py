"""What an answer is worth that looks at nothing: the commonest answer of each type of question.

Counted on the train split of a shard, asked about its test questions. Knows no model.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from vqa_bench.data.answers import Answers
from vqa_bench.data.shards import Shard
from vqa_bench.scoring.metrics import accuracies
from vqa_bench.scoring.predictions import Prediction

TRAIN = "train"


def controls(shard: Shard, predictions: Sequence[Prediction], answers: Answers) -> dict[str, Any] | None:
    """`majority`: the accuracies of the commonest training answer per type, on the questions of the predictions.

    None for a shard without a train split.
    """
    if TRAIN not in shard.manifest.splits:
        return None
    train = shard.split(TRAIN)
    commonest = majority(train.question_type, train.answer, answers)
    overall = majority(["" for _ in train.answer], train.answer, answers)[""]
    given = [p.model_copy(update={"prediction": commonest.get(p.question_type, overall)}) for p in predictions]
    return {"majority": accuracies(given, answers)}


def majority(types: Sequence[str], right: Sequence[str], answers: Answers) -> dict[str, str]:
    """Each type's commonest answer; of several the first among the candidates.

    "Q-type mode" of the CLEVR paper (arXiv 1612.06890, section 4.1).
    """
    counted: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for question_type, answer in zip(types, right, strict=True):
        counted[question_type][answer] += 1
    # An answer of the training data that is no candidate is nobody's.
    return {name: max(answers.names, key=lambda answer: counts[answer]) for name, counts in counted.items()}
