"""True claims about a scene, drawn at random: what narrated text states, asks and answers.

A claim can be turned into a program of `programs.py`, which on the scene gives its answer; the answers here come from
bit masks (object i is bit i), as a text of gigabytes has no time for programs. Knows nothing of words.
"""

import random
from typing import Any, NamedTuple

from data_scripts.synth.patterns import NAMES, SceneIndex, choose
from data_scripts.synth.programs import ATTRIBUTES, RELATIONS, Scene, normalise_answer
from data_scripts.synth.text import Phrase

ANYTHING: Phrase = (None, None, None, None)

Path = tuple[tuple[Phrase, str], ...]
"""A way to objects: a phrase, then the link to the next: a relation, `same_<attribute>`, or "" for the last.

Every phrase but the last picks exactly one object. (("ball", "left"), ("cube", "")) is the cubes left of the ball.
"""


class Claim(NamedTuple):
    """What the scene answers when `function` is asked of the objects that the paths lead to.

    function: the last function of the program. definite: whether the path's last phrase picks one object too, so that
    an exist can be worded about "the" object.
    """

    function: str
    paths: tuple[Path, ...]
    answer: str
    definite: bool = False


def plain(phrase: Phrase) -> Path:
    """The path to everything that a phrase matches."""
    return ((phrase, ""),)


def program_of(claim: Claim) -> list[dict[str, Any]]:
    """The claim as a program of the release's dialect."""
    nodes: list[dict[str, Any]] = []

    def add(function: str, *inputs: int, value: str | None = None) -> int:
        nodes.append({"inputs": list(inputs), "function": function, "value_inputs": [] if value is None else [value]})
        return len(nodes) - 1

    ends = []
    for path in claim.paths:
        current = add("scene")
        for phrase, link in path:
            for name, value in zip(NAMES, phrase, strict=True):
                if value is not None:
                    current = add(f"filter_{name}", current, value=value)
            if link:
                current = add("unique", current)
                current = add(link, current) if link.startswith("same_") else add("relate", current, value=link)
        ends.append(current)
    function = claim.function
    if function in ("count", "exist"):
        add(function, *ends)
    elif function.startswith("query_"):
        add(function, add("unique", *ends))
    elif function in ("equal_integer", "less_than", "greater_than"):
        add(function, *[add("count", end) for end in ends])
    else:
        query = function.replace("equal_", "query_")
        add(function, *[add(query, add("unique", end)) for end in ends])
    return nodes


class Facts:
    """Draws claims about one scene. A draw that does not work on the scene gives None."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self._index = SceneIndex(scene, 0)
        self._rng = rng
        self._names: dict[tuple[int, int | None], list[Phrase]] = {}
        self.things = len(scene["objects"])

    def total(self) -> Claim:
        """How many objects there are."""
        return Claim("count", (plain(ANYTHING),), str(self.things))

    def count(self) -> Claim | None:
        """How many objects a phrase matches, maybe in relation to another."""
        path, matches = self._group()
        return None if path is None else Claim("count", (path,), str(matches.bit_count()))

    def exist(self) -> Claim | None:
        """Whether a phrase matches anything, maybe in relation to another."""
        path, matches = self._group()
        return None if path is None else Claim("exist", (path,), normalise_answer(matches != 0))

    def relation(self) -> Claim | None:
        """Whether one object stands in some relation to another."""
        this, that = self._two()
        relation = choose(RELATIONS, self._rng)
        related = bool(self._index.related[relation][that] >> this & 1)
        if not related and self._rng.random() < 0.7:  # mostly what is so, sometimes what is not
            this, that, related = that, this, bool(self._index.related[relation][this] >> that & 1)
        return self.stands(this, relation, that, related=related)

    def stands(self, this: int, relation: str, that: int, *, related: bool = True) -> Claim | None:
        """That one object stands in a relation to another, or does not."""
        named, other = self.name(this), self.name(that)
        if named is None or other is None:
            return None
        return Claim("exist", (((other, relation), (named, "")),), normalise_answer(related), definite=True)

    def query(self) -> Claim | None:
        """An attribute of one object, which a phrase without it picks, maybe in relation to another."""
        thing = self._thing()
        attribute = int(self._rng.random() * 4)
        answer = self._index.values[thing][attribute]
        if self._rng.random() < 0.3:
            relation, other = choose(RELATIONS, self._rng), self._thing()
            members = self._index.related[relation][other]
            phrase = _masked(self._index.values[thing], int(self._rng.random() * 16) & ~(1 << attribute))
            named = self.name(other)
            if named is not None and self._index.matches(phrase) & members == 1 << thing:
                return Claim(f"query_{NAMES[attribute]}", (((named, relation), (phrase, "")),), answer)
        unique = self.name(thing, without=attribute)
        return None if unique is None else Claim(f"query_{NAMES[attribute]}", (plain(unique),), answer)

    def compare_numbers(self) -> Claim | None:
        """Whether there are more, fewer or as many of one value of an attribute than of another."""
        attribute = int(self._rng.random() * 4)
        values = ATTRIBUTES[NAMES[attribute]]
        this, that = choose(values, self._rng), choose(values, self._rng)
        if this == that:
            return None
        numbers = [self._index.with_value.get(value, 0).bit_count() for value in (this, that)]
        if not any(numbers):
            return None
        function = choose(("equal_integer", "less_than", "greater_than"), self._rng)
        answer = {
            "equal_integer": numbers[0] == numbers[1],
            "less_than": numbers[0] < numbers[1],
            "greater_than": numbers[0] > numbers[1],
        }[function]
        paths = tuple(plain(_only(attribute, value)) for value in (this, that))
        return Claim(function, paths, normalise_answer(answer))

    def compare_things(self) -> Claim | None:
        """Whether two objects agree in an attribute that the phrases do not name."""
        this, that = self._two()
        attribute = int(self._rng.random() * 4)
        one, other = self.name(this, without=attribute), self.name(that, without=attribute)
        if one is None or other is None:
            return None
        same = self._index.values[this][attribute] == self._index.values[that][attribute]
        return Claim(f"equal_{NAMES[attribute]}", (plain(one), plain(other)), normalise_answer(same))

    def number_with(self, attribute: int, value: str) -> Claim:
        """How many objects have one value of an attribute."""
        number = self._index.with_value.get(value, 0).bit_count()
        return Claim("count", (plain(_only(attribute, value)),), str(number))

    def whole(self, thing: int) -> Claim:
        """That there is an object with the four attributes of this one."""
        return Claim("exist", (plain(self._index.values[thing]),), "yes")

    def row(self, relation: str) -> list[int]:
        """All objects so that each stands in `relation` to the one after it; empty where they do not line up so."""
        ahead = self._index.related[relation]
        order = sorted(range(self.things), key=lambda thing: ahead[thing].bit_count())
        return order if all(ahead[thing].bit_count() == place for place, thing in enumerate(order)) else []

    def name(self, thing: int, *, without: int | None = None) -> Phrase | None:
        """A phrase that picks one object out of all and does not name the attribute `without`; None where none does."""
        key = (thing, without)
        names = self._names.get(key)
        if names is None:
            index, values = self._index, self._index.values[thing]
            phrases = [_masked(values, mask) for mask in range(1, 16) if without is None or not mask >> without & 1]
            names = self._names[key] = [phrase for phrase in phrases if index.matches(phrase) == 1 << thing]
        return choose(names, self._rng) if names else None

    def _group(self) -> tuple[Path | None, int]:
        """A way to some objects, mostly one that leads to any, and the objects."""
        rng, index = self._rng, self._index
        mask = choose((1, 2, 2, 4, 8, 8, 8, 10, 10, 3, 6, 9, 12, 11), rng)
        if rng.random() < 0.75:
            phrase = _masked(index.values[self._thing()], mask)
        else:
            any_values = tuple(choose(values, rng) for values in ATTRIBUTES.values())
            phrase = _masked(any_values, mask)
        if rng.random() < 0.6:
            return plain(phrase), index.matches(phrase)
        other = self._thing()
        if rng.random() < 0.6:
            link = choose(RELATIONS, rng)
            members, named = index.related[link][other], self.name(other)
            phrase = ANYTHING if rng.random() < 0.4 else phrase
        else:
            attribute = int(rng.random() * 4)
            link = f"same_{NAMES[attribute]}"
            members, named = index.same(NAMES[attribute], other), self.name(other, without=attribute)
            phrase = ANYTHING if phrase[attribute] is not None or rng.random() < 0.5 else phrase
        if named is None:
            return None, 0
        return ((named, link), (phrase, "")), members & index.matches(phrase)

    def _thing(self) -> int:
        return int(self._rng.random() * self.things)

    def _two(self) -> tuple[int, int]:
        this = self._thing()
        return this, (this + 1 + int(self._rng.random() * (self.things - 1))) % self.things


def _masked(values: tuple[str | None, ...], mask: int) -> Phrase:
    """The phrase that names the attributes of `mask`."""
    return (
        values[0] if mask & 1 else None,
        values[1] if mask & 2 else None,
        values[2] if mask & 4 else None,
        values[3] if mask & 8 else None,
    )


def _only(attribute: int, value: str) -> Phrase:
    return _masked((value,) * 4, 1 << attribute)
