"""What the questions of a data set are like, as numbers: mix, entropy of answers, leakage, faults, variety.

Every function takes questions and scenes in the release's schema, so that real and generated ones are measured alike.
Knows nothing of how they were made, and of targets.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_scripts.synth.programs import GROUP_OF_TYPE, IllPosed, execute, question_type

Question = Mapping[str, Any]
FOLDS = 5
_CANONICAL = {
    "object": "thing",
    "ball": "sphere",
    "block": "cube",
    "big": "large",
    "tiny": "small",
    "metallic": "metal",
    "shiny": "metal",
    "matte": "rubber",
}
"""Each synonym by the word that the programs use."""


@dataclass(frozen=True)
class Asked:
    """One split: its questions in order, and its scenes by `image_index`."""

    questions: list[dict[str, Any]]
    scenes: dict[int, dict[str, Any]]


def read(folder: Path, split: str) -> Asked:
    """A split of a folder in the release's layout; raises FileNotFoundError where a file of it is missing."""
    questions = json.loads((folder / "questions" / f"CLEVR_{split}_questions.json").read_text(encoding="utf-8"))
    scenes = json.loads((folder / "scenes" / f"CLEVR_{split}_scenes.json").read_text(encoding="utf-8"))
    return Asked(questions["questions"], {scene["image_index"]: scene for scene in scenes["scenes"]})


def type_of(question: Question) -> str:
    """One of the 13 question types."""
    return question_type(question["program"])


def group_of(question: Question) -> str:
    """One of the five groups."""
    return GROUP_OF_TYPE[type_of(question)]


def shares(labels: Iterable[Hashable]) -> dict[Hashable, float]:
    """How many of a hundred each label is."""
    counts = Counter(labels)
    return {label: 100 * count / counts.total() for label, count in counts.items()}


def answers_by_type(questions: Iterable[Question]) -> dict[str, list[str]]:
    """The answers of each type, in order."""
    answers = defaultdict(list)
    for question in questions:
        answers[type_of(question)].append(question["answer"])
    return dict(answers)


def entropy(labels: Sequence[Hashable]) -> float:
    """Bits of the empirical distribution; too small for few labels by about (values - 1) / (2 n ln 2)."""
    p = np.array(list(Counter(labels).values())) / len(labels)
    return float(-(p * np.log2(p)).sum())


def entropy_of_size(labels: Sequence[Hashable], size: int, *, draws: int = 200, seed: int = 0) -> float:
    """The mean entropy of random subsets of one size, so that it can be held against another sample of that size."""
    if len(labels) <= size:
        return entropy(labels)
    rng = random.Random(seed)
    return float(np.mean([entropy(rng.sample(labels, size)) for _ in range(draws)]))


def leakage(questions: Sequence[Question], *, ngrams: int) -> dict[str, float]:
    """Percent answered right from the text alone: bag of word n-grams and logistic regression.

    Cross-validated over FOLDS folds that never share an image; "all" and each of the five groups.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    texts = [question["question"] for question in questions]
    answers = np.array([question["answer"] for question in questions])
    images = [question["image_index"] for question in questions]
    words = CountVectorizer(ngram_range=(1, ngrams), token_pattern=r"[a-zA-Z]+")
    model = make_pipeline(words, LogisticRegression(max_iter=2_000))
    guesses = cross_val_predict(model, texts, answers, groups=images, cv=GroupKFold(FOLDS))
    groups = np.array([group_of(question) for question in questions])
    right = {str(group): 100 * float((guesses == answers)[groups == group].mean()) for group in sorted(set(groups))}
    return {"all": 100 * float((guesses == answers).mean()), **right}


def canonical(text: str) -> str:
    """A text without the choice among synonyms: two texts that are equal so mean the same."""
    words = re.findall(r"[a-z]+|[,;:]", text.lower())
    singular = [word[:-1] if word.endswith("s") and word[:-1] in _CANONICAL else word for word in words]
    plain = [_CANONICAL.get(one, one) + "s" * (one != word) for word, one in zip(words, singular, strict=True)]
    joined = re.sub(r"\bto the (left|right)\b", r"\1", " ".join(plain))
    return re.sub(r"\bon the (left|right) side of\b", r"\1 of", joined)


@dataclass(frozen=True)
class Faults:
    """What must not occur, counted: questions, pairs of questions, images."""

    wrong: int  # the program gives another answer
    ill_posed: int
    contradictions: int  # a canonical text occurs on one scene with different answers
    repeated: int  # a text occurs twice on one scene
    not_ten: int  # images without exactly ten questions
    degenerate: int  # one of two intersected relations can be left out without changing the answer


def faults(asked: Asked) -> Faults:
    """Run every program on its scene and compare the texts of each scene."""
    wrong = ill_posed = degenerate = 0
    by_image: dict[int, list[Question]] = {index: [] for index in asked.scenes}
    for question in asked.questions:
        by_image[question["image_index"]].append(question)
        scene = asked.scenes[question["image_index"]]
        try:
            wrong += execute(question["program"], scene) != question["answer"]
        except IllPosed:
            ill_posed += 1
        degenerate += is_degenerate(question, scene)
    contradictions = repeated = 0
    for questions in by_image.values():
        meanings = {(canonical(question["question"]), question["answer"]) for question in questions}
        contradictions += len(meanings) - len({text for text, _ in meanings})
        repeated += len(questions) - len({question["question"] for question in questions})
    not_ten = sum(len(questions) != 10 for questions in by_image.values())
    return Faults(wrong, ill_posed, contradictions, repeated, not_ten, degenerate)


def is_degenerate(question: Question, scene: Mapping[str, Any]) -> bool:
    """Whether one side of the question's `intersect` alone gives its answer (the public generator's test)."""
    program = question["program"]
    for join, node in enumerate(program):
        if node.get("function") != "intersect":
            continue
        for kept in node["inputs"]:
            rewired = [dict(other) for other in program]
            rewired[join] = {"function": "union", "inputs": [kept, kept], "value_inputs": []}
            with contextlib.suppress(IllPosed):
                if execute(rewired, scene) == question["answer"]:
                    return True
    return False


def variety(questions: Sequence[Question]) -> dict[str, float]:
    """Lengths in bytes and in program nodes, different texts and words, and how evenly the families are used."""
    texts = [question["question"] for question in questions]
    lengths = [len(text) for text in texts]
    used = Counter(question["question_family_index"] for question in questions)
    words = {word for text in texts for word in re.findall(r"[a-z]+", text.lower())}
    nodes = [len(question["program"]) for question in questions]
    return {
        "questions": len(texts),
        "different texts, %": 100 * len(set(texts)) / len(texts),
        "different words": len(words),
        "bytes, mean": float(np.mean(lengths)),
        "bytes, most": max(lengths),
        "nodes, mean": float(np.mean(nodes)),
        "nodes, most": max(nodes),
        "families": len(used),
        "least used family, % of the mean": 100 * min(used[i] for i in range(90)) * 90 / len(texts),
        "most used family, % of the mean": 100 * max(used.values()) * 90 / len(texts),
    }


def scene_facts(scenes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What scenes are made of, and the least distances between their objects in world units."""
    numbers = Counter(len(scene["objects"]) for scene in scenes)
    things = [thing for scene in scenes for thing in scene["objects"]]
    gaps, margins = [], []
    for scene in scenes:
        places = np.array([thing["3d_coords"] for thing in scene["objects"]])
        i, j = np.triu_indices(len(places), 1)
        apart = (places[i] - places[j])[:, :2]
        gaps.append(np.hypot(*apart.T) - places[i, 2] - places[j, 2])
        for name in ("right", "behind"):
            margins.append(np.abs(apart @ np.array(scene["directions"][name][:2])))
    return {
        "objects, mean": len(things) / len(scenes),
        "rarest number of objects, %": 100 * min(numbers.values()) / len(scenes),
        "commonest number of objects, %": 100 * max(numbers.values()) / len(scenes),
        "small, %": 100 * sum(thing["size"] == "small" for thing in things) / len(things),
        "metal, %": 100 * sum(thing["material"] == "metal" for thing in things) / len(things),
        "least distance between outlines": float(np.concatenate(gaps).min()),
        "least distance along a direction": float(np.concatenate(margins).min()),
    }
