"""Questions about one scene, in the release's schema: which families are asked, balanced answers, program and text.

The mix and the balance follow the public generator (read in facebookresearch/clevr-dataset-gen): families least used
come first, each asks at most once a scene, and an answer that has come too often in its family is refused. Knows
scenes in the release's schema; knows nothing of pictures and files.
"""

import random
from collections.abc import Mapping
from statistics import median
from typing import Any

from data_scripts.synth.draws import Filling, draw
from data_scripts.synth.families import FAMILIES, Family, Step
from data_scripts.synth.patterns import NAMES, SceneIndex
from data_scripts.synth.presets import Preset
from data_scripts.synth.programs import ATTRIBUTES, Scene, normalise_answer
from data_scripts.synth.text import ALL_SYNONYMS, SYNONYMS, compile_template, realise

PLAIN_DRAWS, DRAWS = 16, 64
"""Random draws of a family's holes on one scene before the next family has its turn."""

_TEMPLATES = tuple(tuple(compile_template(sentence) for sentence in family.frames.all) for family in FAMILIES)
_SHORT = tuple(len(family.frames.short) for family in FAMILIES)
"""How many of a family's templates, from the first, are short ones."""


class Balance:
    """How often each answer of one family has come, and which answers have come too often to be asked again.

    An answer is refused when its count exceeds 1.1 times the second largest count, or 5 times the median count (of at
    least 5); the public generator's rule. An answer of weight w counts one w-th.
    """

    def __init__(self, domain: tuple[str, ...], weights: Mapping[str, float] | None = None) -> None:
        self.counts = dict.fromkeys(domain, 0.0)
        self.refused: frozenset[str] = frozenset()
        self._weights = weights or {}

    def add(self, answer: str) -> None:
        """Count an answer."""
        self.counts[answer] += 1 / self._weights.get(answer, 1.0)
        counts = sorted(self.counts.values())
        limit = min(1.1 * counts[-2], 5 * max(median(counts), 5))
        self.refused = frozenset(answer for answer, count in self.counts.items() if count > limit)


class QuestionWriter:
    """Asks about one scene after the other, keeping the families' use and the answers in balance.

    One writer serves one block of scenes: what it asks depends on the scenes it has seen before.
    """

    def __init__(self, preset: Preset) -> None:
        self._preset = preset
        self._weights = {index: weight for index, weight in sorted(preset.weights.items()) if weight > 0}
        self._used = dict.fromkeys(self._weights, 0)
        self._balance = {
            index: Balance(_domain(family, preset.objects[1]), preset.answer_weights.get(family.type))
            for index, family in enumerate(FAMILIES)
            if index in self._weights
        }

    def ask(self, scene: Scene, rng: random.Random) -> list[dict[str, Any]]:
        """Up to `questions_per_image` questions of different families, without their `question_index`."""
        index = SceneIndex(scene, self._preset.max_attributes)
        questions: list[dict[str, Any]] = []
        texts: set[str] = set()
        for family in self._by_use(rng):
            if len(questions) == self._preset.questions_per_image:
                break
            question = self._ask_one(index, family, texts, rng)
            if question is None:
                continue
            texts.add(question["question"])
            self._used[family] += 1
            self._balance[family].add(question["answer"])
            questions.append(
                {
                    "image_index": scene["image_index"],
                    "image_filename": scene["image_filename"],
                    "split": scene["split"],
                    "question_family_index": family,
                    **question,
                }
            )
        return questions

    def _by_use(self, rng: random.Random) -> list[int]:
        """The families, those first that have been asked least; in random order where they are even."""
        families = list(self._weights)
        if not self._preset.plain:
            rng.shuffle(families)
        return sorted(families, key=lambda family: (self._used[family] + 1) / self._weights[family])

    def _ask_one(self, index: SceneIndex, family: int, texts: set[str], rng: random.Random) -> dict[str, Any] | None:
        """Question, answer and program of one family, or None where its draws have led to none."""
        plain = self._preset.plain
        templates = _TEMPLATES[family][: _SHORT[family]] if plain else _TEMPLATES[family]
        synonyms = SYNONYMS if plain else ALL_SYNONYMS
        for _ in range(PLAIN_DRAWS if plain else DRAWS):
            drawn = draw(index, family, rng, plain=plain)
            if drawn is None:
                continue
            answer = normalise_answer(drawn[0])
            if answer in self._balance[family].refused:
                continue
            filling = drawn[1]
            template = templates[int(rng.random() * len(templates))]
            text = realise(template, filling.phrases, filling.relations, rng, synonyms)
            limit = self._preset.max_question_bytes
            if text not in texts and (limit is None or len(text) <= limit):
                return {"question": text, "answer": answer, "program": write_program(FAMILIES[family], filling)}
        return None


def _domain(family: Family, most_objects: int) -> tuple[str, ...]:
    """The answers a family can give on scenes of so many objects."""
    if family.type == "count":
        return tuple(str(number) for number in range(most_objects + 1))
    if family.type.startswith("query_"):
        return ATTRIBUTES[family.type.removeprefix("query_")]
    return ("yes", "no")


def write_program(family: Family, filling: Filling) -> list[dict[str, Any]]:
    """The program of a filled family as nodes of the release's dialect; every branch has its own `scene` node."""
    nodes: list[dict[str, Any]] = []
    relations = iter(filling.relations)

    def add(function: str, *inputs: int, value: str | None = None) -> int:
        literals = [] if value is None else [value]
        nodes.append({"inputs": list(inputs), "function": function, "value_inputs": literals})
        return len(nodes) - 1

    def add_step(step: Step, current: int) -> int:
        if step.relate:
            current = add("relate", current, value=next(relations))
        elif step.same:
            current = add(f"same_{step.same}", current)
        if step.phrase:
            for name, value in zip(NAMES, filling.phrases[step.phrase], strict=True):
                if value is not None:
                    current = add(f"filter_{name}", current, value=value)
        return current if step.goal == "set" else add(step.goal, current)

    ends = []
    for steps in family.steps:
        current = add("scene")
        for step in steps:
            current = add_step(step, current)
        ends.append(current)
    current = add(family.join, *ends) if family.join else ends[0]
    for step in family.tail_steps:
        current = add_step(step, current)
    return nodes
