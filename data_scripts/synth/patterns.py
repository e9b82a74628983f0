"""One scene as bit masks (object i is bit i), and the noun phrases and relations that a question may use on it.

What is on offer follows the public generator (read in facebookresearch/clevr-dataset-gen): every pattern of
attributes that some object matches, patterns that match nothing, and pairs of a relation and a pattern, where those
pairs are told apart whose relation removes nothing. Knows nothing of question families.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from data_scripts.synth.programs import ATTRIBUTES, RELATIONS, Scene
from data_scripts.synth.text import Phrase, phrase_of

NAMES = tuple(ATTRIBUTES)
BIT = {attribute: 1 << position for position, attribute in enumerate(NAMES)}
T = TypeVar("T")


def named_bits(phrase: Phrase) -> int:
    """The attributes that a phrase names, as bits of `BIT`."""
    return sum(1 << position for position, value in enumerate(phrase) if value is not None)


def choose(options: Sequence[T], rng: random.Random) -> T:
    """One of the options at random (several times faster than `rng.choice`)."""
    return options[int(rng.random() * len(options))]


class Pattern(NamedTuple):
    """A filled noun phrase, the attributes it names (bits of `BIT`) and the objects of the scene it matches."""

    phrase: Phrase
    named: int
    matches: int


Related = tuple[str, Pattern]


class SceneIndex:
    """What the draws need to know of a scene, as bit masks."""

    def __init__(self, scene: Scene, max_attributes: int) -> None:
        objects = scene["objects"]
        self.max_attributes = max_attributes
        self.everything = (1 << len(objects)) - 1
        self.values = [tuple(thing[attribute] for attribute in NAMES) for thing in objects]
        self.with_value: dict[str, int] = {}
        for i, values in enumerate(self.values):
            for value in values:
                self.with_value[value] = self.with_value.get(value, 0) | 1 << i
        self.related = {
            relation: [sum(1 << j for j in members) for members in scene["relationships"][relation]]
            for relation in RELATIONS
        }
        self.patterns = self._matched_patterns()
        self._pools: dict[tuple[int, int, bool, bool], list[Pattern]] = {}
        self._related_pools: dict[tuple[int, int, str], tuple[list[Related], list[Related]]] = {}

    def _matched_patterns(self) -> list[Pattern]:
        """Every pattern that at least one object matches, each once, in a fixed order."""
        found: dict[Phrase, int] = {}
        masks = [mask for mask in range(16) if mask.bit_count() <= self.max_attributes]
        for i, (size, color, material, shape) in enumerate(self.values):
            for mask in masks:
                phrase = (
                    size if mask & 1 else None,
                    color if mask & 2 else None,
                    material if mask & 4 else None,
                    shape if mask & 8 else None,
                )
                found[phrase] = found.get(phrase, 0) | 1 << i
        return [Pattern(phrase, named_bits(phrase), matches) for phrase, matches in found.items()]

    def pool(self, current: int, null: int, *, unique: bool, filled: bool) -> list[Pattern]:
        """Patterns that leave out the attributes `null`; with `unique`, those that pick one object of `current`."""
        key = (current, null, unique, filled)
        pool = self._pools.get(key)
        if pool is None:
            pool = [
                pattern
                for pattern in self.patterns
                if not pattern.named & null
                and (pattern.named or not filled)
                and (not unique or (pattern.matches & current).bit_count() == 1)
            ]
            self._pools[key] = pool
        return pool

    def related_pool(self, thing: int, null: int, goal: str) -> tuple[list[Related], list[Related]]:
        """Pairs of a relation to `thing` and a pattern: those where the relation removes something, and the others."""
        key = (thing, null, goal)
        pools = self._related_pools.get(key)
        if pools is None:
            pools = ([], [])
            candidates = [pattern for pattern in self.patterns if not pattern.named & null]
            for relation, related in self.related.items():
                members = related[thing]
                for pattern in candidates:
                    left = pattern.matches & members
                    number = left.bit_count()
                    if (goal == "unique" and number != 1) or (goal == "set" and not number):
                        continue
                    pools[left == pattern.matches].append((relation, pattern))
            self._related_pools[key] = pools
        return pools

    def absent_pattern(self, null: int, rng: random.Random) -> Pattern | None:
        """A random pattern that no object of the scene matches; None where a few tries find none."""
        for _ in range(8):
            phrase = phrase_of(
                {name: choose(ATTRIBUTES[name], rng) for name in NAMES if not null & BIT[name] and rng.random() < 0.5}
            )
            named = named_bits(phrase)
            if 0 < named.bit_count() <= self.max_attributes and not self.matches(phrase):
                return Pattern(phrase, named, 0)
        return None

    def random_pattern(self, null: int, rng: random.Random) -> Pattern | None:
        """Any pattern that leaves out the attributes `null`, whatever it matches (public generator).

        Each attribute takes one of its values or none, all alike likely; None where that names too many.
        """
        phrase = phrase_of(
            {
                name: value
                for name in NAMES
                if not null & BIT[name] and (value := choose((None, *ATTRIBUTES[name]), rng)) is not None
            }
        )
        named = named_bits(phrase)
        return Pattern(phrase, named, self.matches(phrase)) if named.bit_count() <= self.max_attributes else None

    def matches(self, phrase: Phrase) -> int:
        """The objects that a phrase matches."""
        matches = self.everything
        for value in phrase:
            if value is not None:
                matches &= self.with_value.get(value, 0)
        return matches

    def same(self, attribute: str, thing: int) -> int:
        """The other objects with the attribute of `thing`."""
        value = self.values[thing][NAMES.index(attribute)]
        return self.with_value[value] & ~(1 << thing)
