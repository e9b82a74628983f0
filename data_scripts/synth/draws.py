"""Fill the holes of a question family on one scene: random draws that are well-posed and meet the constraints.

A draw walks the skeleton, chooses a phrase or a relation at random where a hole is, and stops as soon as it cannot
work: on a scene of a few objects this is quicker than a search. Knows scenes as bit masks only; neither texts,
programs nor the balance of answers.

What a step holds (`Value`) is a set of objects as a bit mask, one object's index, a number, a truth value or an
attribute's value; None always means that the draw does not work.
"""

import random
from collections.abc import Sequence
from typing import Any

from data_scripts.synth.families import FAMILIES, Family, Step
from data_scripts.synth.patterns import BIT, NAMES, Pattern, SceneIndex, choose
from data_scripts.synth.programs import ATTRIBUTES, RELATIONS
from data_scripts.synth.text import Phrase, phrase_of

TRIVIAL_SHARE = 0.1
"""How much of the pairs of relation and pattern may be such that the relation removes none of the matching objects
(public generator)."""

Value = Any

_NULL = tuple(
    {phrase: sum(BIT[attribute] for attribute in left_out) for phrase, left_out in family.null.items()}
    for family in FAMILIES
)
"""For each family and phrase the attributes to leave out, as bits."""


class Filling:
    """One filling of a family's holes.

    phrases: the phrase of each number. picked: what each phrase led to (objects, one object, a count). relations: in
    the order in which the skeleton meets them.
    """

    __slots__ = ("phrases", "picked", "relations")

    def __init__(self) -> None:
        self.phrases: dict[int, Phrase] = {}
        self.picked: dict[int, Value] = {}
        self.relations: list[str] = []


def draw(
    index: SceneIndex, family_index: int, rng: random.Random, *, plain: bool = False
) -> tuple[bool | int | str, Filling] | None:
    """One random filling of a family's holes on a scene, with its answer; None where it does not work.

    Pools are those of the public generator. With `plain`, they favour short questions: patterns that match nothing
    name about half of the attributes, and a tenth of the draws, not of the pool, goes to trivial relations.
    """
    return _Draw(index, family_index, rng, plain).run()


class _Draw:
    """A draw under way: the scene, the family and what has been filled so far."""

    __slots__ = ("_family", "_filling", "_index", "_null", "_plain", "_rng")

    def __init__(self, index: SceneIndex, family_index: int, rng: random.Random, plain: bool) -> None:
        self._index = index
        self._family = FAMILIES[family_index]
        self._null = _NULL[family_index]
        self._rng = rng
        self._plain = plain
        self._filling = Filling()

    def run(self) -> tuple[bool | int | str, Filling] | None:
        family = self._family
        outputs: list[Value] = []
        for steps in family.steps:
            output = self._walk(steps, self._index.everything)
            if output is None:
                return None
            outputs.append(output)
        if not _allowed(family, outputs, self._filling):
            return None
        answer = _join(family.join, *outputs) if family.join else outputs[0]
        if family.tail_steps:
            answer = self._walk(family.tail_steps, answer)
            if answer is None or (family.join == "intersect" and self._degenerate(outputs, answer)):
                return None
        return answer, self._filling

    def _walk(self, steps: Sequence[Step], current: Value) -> Value:
        """What a branch makes of a set of objects; fills its holes on the way."""
        filling = self._filling
        for step in steps:
            if step.same:
                current = self._index.same(step.same, current)
            elif step.phrase:
                found = self._choose_related(step, current) if step.relate else self._choose_pattern(step, current)
                if found is None:
                    return None
                pattern, members = found
                filling.phrases[step.phrase] = pattern.phrase
                current = _reach(self._index, step.goal, pattern.matches & members)
                filling.picked[step.phrase] = current
            elif step.relate:
                relation = choose(RELATIONS, self._rng)
                filling.relations.append(relation)
                current = self._index.related[relation][current]
            else:
                current = _reach(self._index, step.goal, current)
        return current

    def _choose_related(self, step: Step, thing: int) -> tuple[Pattern, int] | None:
        """A relation to `thing` with a pattern among its members; the pattern and the members."""
        telling, trivial = self._index.related_pool(thing, self._null.get(step.phrase, 0), step.goal)
        if self._plain:
            share = TRIVIAL_SHARE if trivial else 0.0
        else:
            admitted = min(len(trivial), round(len(telling) * TRIVIAL_SHARE / (1 - TRIVIAL_SHARE)))
            share = admitted / (len(telling) + admitted) if admitted else 0.0
        pool = trivial if share and self._rng.random() < share else telling
        if not pool:
            return None
        relation, pattern = choose(pool, self._rng)
        self._filling.relations.append(relation)
        return pattern, self._index.related[relation][thing]

    def _choose_pattern(self, step: Step, current: int) -> tuple[Pattern, int] | None:
        """A pattern for a plain filter: one that the scene has or, where an empty result is fair, one it has not."""
        index, rng, number = self._index, self._rng, step.phrase
        only = self._family.only.get(number)
        if only is not None:
            phrase = phrase_of({only: choose(ATTRIBUTES[only], rng)})
            return Pattern(phrase, BIT[only], index.matches(phrase)), current
        null = self._null.get(number, 0)
        unique = step.goal == "unique"
        filled = step.filled or number in self._family.filled
        pool = index.pool(current, null, unique=unique, filled=filled)
        if not unique:
            absent = len(pool) if step.goal == "exist" else len(index.pool(current, null, unique=True, filled=filled))
            if rng.random() * (len(pool) + absent) < absent:
                pattern = index.absent_pattern(null, rng) if self._plain else index.random_pattern(null, rng)
                return None if pattern is None or (filled and not pattern.named) else (pattern, current)
        return (choose(pool, rng), current) if pool else None

    def _degenerate(self, related: Sequence[int], answer: Value) -> bool:
        """Whether one of two intersected relations could be left out without changing the answer."""
        step, *queries = self._family.tail_steps
        matches = self._index.matches(self._filling.phrases[step.phrase])
        for members in related:
            left: Value = members & matches
            if step.goal == "unique" and left.bit_count() != 1:
                continue
            for goal in (step.goal, *(query.goal for query in queries)):
                left = _reach(self._index, goal, left)
            if left == answer:
                return True
        return False


def _reach(index: SceneIndex, goal: str, current: int) -> Value:
    """What a goal makes of a set of objects, or of one object for the queries."""
    if goal == "set":
        return current
    if goal == "unique":
        return current.bit_length() - 1
    if goal == "count":
        return current.bit_count()
    if goal == "exist":
        return current != 0
    return index.values[current][NAMES.index(goal.removeprefix("query_"))]


def _join(join: str, left: Value, right: Value) -> Value:
    if join == "union":
        return left | right
    if join == "intersect":
        return left & right
    if join == "less_than":
        return left < right
    if join == "greater_than":
        return left > right
    return left == right  # equal_integer and the equal_<attribute>


def _allowed(family: Family, outputs: Sequence[Value], filling: Filling) -> bool:
    """Whether the constraints hold that join two phrases or two branches."""
    if family.distinct_branches and outputs[0] == outputs[1]:
        return False
    if family.distinct is not None:
        first, second = family.distinct
        if filling.picked[first] == filling.picked[second]:
            return False
    if family.unnested is not None:
        one, other = (filling.phrases[phrase] for phrase in family.unnested)
        return not (_refines(one, other) or _refines(other, one))
    return True


def _refines(special: Phrase, general: Phrase) -> bool:
    return all(theirs is None or theirs == mine for mine, theirs in zip(special, general, strict=True))
