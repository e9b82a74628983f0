"""The 90 question families of CLEVR as data: skeletons, constraints and our own sentences.

A family is a program with holes. Its skeleton is written in a small notation, one string a branch, read from left
to right; every branch starts with all objects of the scene. `N` is the number of a noun phrase (a parameter group
of size, color, material and shape, each of which may be left out):

    UN        filter by phrase N, exactly one object must remain
    FN        filter by phrase N, any number of objects
    CN, EN    filter by phrase N, then count or exist     (a phrase of F or E names at least one attribute,
              unless it follows a relation, where "things" alone makes sense)
    >         the objects in some relation to the object so far; `>UN`, `>FN`, `>CN`, `>EN` filter them by phrase N
    same_a    the other objects that share attribute a with the object so far
    count, exist, query_a

Two branches are joined by a function, after which `tail` goes on. Skeletons, constraints and the numbering 0..89 are
facts of the release (family index = position after concatenating the template files compare_integer, comparison,
three_hop, single_and, same_relate, single_or, one_hop, two_hop, zero_hop). Where the public templates have a known
flaw we take the repaired form: see `_compare_integer` and `_comparison`. The sentences are in `sentences.py`.

This file knows nothing of scenes and of how the holes are filled.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations

from data_scripts.synth import sentences
from data_scripts.synth.programs import ATTRIBUTES
from data_scripts.synth.sentences import Frames


@dataclass(frozen=True)
class Step:
    """One token of the notation: where the set comes from, the phrase that filters it, and what is made of it."""

    relate: bool = False  # first go to the objects in a relation to the object so far
    same: str = ""  # first go to the objects that share this attribute with the object so far
    phrase: int = 0  # the noun phrase that filters, 0 for none
    goal: str = "set"  # unique | set | count | exist | query_<attribute>

    @property
    def filled(self) -> bool:
        """Whether the phrase must name an attribute."""
        return not self.relate and self.goal in ("set", "exist")


_TOKEN = re.compile(r"(?P<relate>>?)(?:(?P<goal>[UFCE])(?P<phrase>\d))?")
_GOALS = {"U": "unique", "F": "set", "C": "count", "E": "exist"}


def parse(notation: str) -> tuple[Step, ...]:
    """The steps of one branch; raises ValueError for a token that is not of the notation above."""
    steps = []
    for token in notation.split():
        match = _TOKEN.fullmatch(token)
        if match:
            phrase, goal = int(match["phrase"] or 0), _GOALS.get(match["goal"], "set")
            steps.append(Step(relate=bool(match["relate"]), phrase=phrase, goal=goal))
        elif token.startswith("same_"):
            steps.append(Step(same=token.removeprefix("same_")))
        elif token in ("count", "exist") or token.startswith("query_"):
            steps.append(Step(goal=token))
        else:
            raise ValueError(f"expected a token of the skeleton notation, got {token!r} in {notation!r}")
    return tuple(steps)


@dataclass(frozen=True)
class Family:
    """One question family.

    null: attributes that a phrase must leave out, else the question would give its answer away.
    only: phrases that consist of exactly this one attribute.
    filled: phrases that must name at least one attribute, beside those of the notation's F and E.
    distinct: two phrases that must pick different objects.
    distinct_branches: the outputs of the two branches must differ.
    unnested: two phrases of which neither may be a special case of the other.
    frames: the family's sentences as templates, see `text.py`.
    """

    file: str
    branches: tuple[str, ...]
    frames: Frames
    join: str = ""
    tail: str = ""
    null: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    only: Mapping[int, str] = field(default_factory=dict)
    filled: tuple[int, ...] = ()
    distinct: tuple[int, int] | None = None
    distinct_branches: bool = False
    unnested: tuple[int, int] | None = None
    steps: tuple[tuple[Step, ...], ...] = field(init=False)
    tail_steps: tuple[Step, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(parse(branch) for branch in self.branches))
        object.__setattr__(self, "tail_steps", parse(self.tail))

    @property
    def type(self) -> str:
        """The question type, as `programs.question_type` gives it for the family's programs."""
        if self.tail_steps or not self.join:
            return (self.tail_steps or self.steps[0])[-1].goal
        return self.join


def _compare_integer() -> Iterator[Family]:
    """0-8. The public family 0 forbids equal counts, so that its answer is always "no"; ours forbids nested phrases."""
    comparisons = ("equal_integer", "less_than", "greater_than")
    for comparison in comparisons:
        yield Family(
            "compare_integer",
            ("C1", "C2"),
            sentences.compare_integer(comparison, "{1s}", "{2s}"),
            join=comparison,
            distinct_branches=comparison != "equal_integer",
            unnested=(1, 2),
        )
    for comparison in comparisons:
        texts = sentences.compare_integer(comparison, "{2s} {r1} the {1}", "{3s}")
        yield Family("compare_integer", ("U1 >C2", "C3"), texts, join=comparison)
    for comparison in comparisons:
        texts = sentences.compare_integer(comparison, "{2s} {r1} the {1}", "{4s} {r2} the {3}")
        yield Family("compare_integer", ("U1 >C2", "U3 >C4"), texts, join=comparison, distinct=(1, 3))


def _comparison() -> Iterator[Family]:
    """9-24. The public family 13 leaves the size out of the referring phrase; ours, of the compared one."""
    for a in ATTRIBUTES:
        yield _compared(a, "U1", "U2", "{1}", "{2}", (1, 2))
    for a in ATTRIBUTES:
        yield _compared(a, "U1 >U2", "U3", "{2} {r1} the {1}", "{3}", (2, 3))
        yield _compared(a, "U1", "U2 >U3", "{1}", "{3} {r1} the {2}", (1, 3))
        yield _compared(a, "U1 >U2", "U3 >U4", "{2} {r1} the {1}", "{4} {r2} the {3}", (2, 4))


def _compared(a: str, left: str, right: str, this: str, that: str, compared: tuple[int, int]) -> Family:
    return Family(
        "comparison",
        (f"{left} query_{a}", f"{right} query_{a}"),
        sentences.compare_attribute(a, this, that),
        join=f"equal_{a}",
        null=dict.fromkeys(compared, (a,)),
        distinct=compared,
    )


def _hops(file: str, hops: int, queried: tuple[str, ...]) -> Iterator[Family]:
    """78-83 and alike: a chain of `hops` relations that ends in a count, an exist or a query."""
    chain, last = "".join(f"U{phrase} >" for phrase in range(1, hops + 1)), hops + 1
    place = "".join(f" {{r{hop}}} the {{{hop}}}" for hop in range(hops, 0, -1))
    # With one thing beside another, and with those two only, "other" cannot be misread.
    other, another = ("other", "another") if hops == 1 else ("", "a")
    counted = sentences.count(f"{{{last}s}}{place}", f"{{{other}{last}s}}{place}")
    yield Family(file, (f"{chain}C{last}",), counted)
    existing = sentences.exist(f"{{a{last}}}{place}", f"{{{another}{last}}}{place}")
    yield Family(file, (f"{chain}E{last}",), existing)
    for a in queried:
        texts = sentences.query(a, f"{{{last}}}{place}")
        yield Family(file, (f"{chain}U{last} query_{a}",), texts, null={last: (a,)})


def _single_and() -> Iterator[Family]:
    """31-35."""
    that = "{r1} the {1} and also {r2} the {2}"
    yield Family(
        "single_and", ("U1 >", "U2 >"), sentences.count("{3s} " + that), join="intersect", tail="C3", distinct=(1, 2)
    )
    for a in ATTRIBUTES:
        yield Family(
            "single_and",
            ("U1 >", "U2 >"),
            sentences.query(a, "{3} " + that),
            join="intersect",
            tail=f"U3 query_{a}",
            null={3: (a,)},
            distinct=(1, 2),
            distinct_branches=True,
        )


def _same_relate() -> Iterator[Family]:
    """36-63."""
    for a in ATTRIBUTES:
        yield Family("same_relate", (f"U1 same_{a} exist",), sentences.same_exist(a), null={1: (a,)})
    for a in ATTRIBUTES:
        yield Family("same_relate", (f"U1 same_{a} count",), sentences.same_count(a), null={1: (a,)})
    for goal, texts in (("E", sentences.same_exist_of), ("C", sentences.same_count_of)):
        for a in ATTRIBUTES:
            null: dict[int, tuple[str, ...]] = {1: (a,), 2: (a,)}
            # An empty second phrase would only repeat the families without one.
            yield Family("same_relate", (f"U1 same_{a} {goal}2",), texts(a), null=null, filled=(2,))
    for a, queried in permutations(ATTRIBUTES, 2):
        null = {1: (a,), 2: (a, queried)}
        skeleton = f"U1 same_{a} U2 query_{queried}"
        yield Family("same_relate", (skeleton,), sentences.same_query(a, queried), null=null)


def _single_or() -> Iterator[Family]:
    """64-71."""
    left, right = "{2s} {r1} the {1}", "{4s} {r2} the {3}"
    yield _either(("F1", "F2"), "{1s}", "{2s}", distinct_branches=True)
    yield _either_filtered("size")
    yield _either_filtered("color")
    yield _either(("U1 >F2", "U3 >F4"), left, right)
    yield _either_filtered("material")
    yield _either_filtered("shape")
    yield _either(("U1 >F2", "F3"), left, "{3s}")
    yield _either(("F1", "U2 >F3"), "{1s}", "{3s} {r1} the {2}")


def _either(branches: tuple[str, str], this: str, that: str, *, distinct_branches: bool = False) -> Family:
    texts = sentences.either("things", this, that)
    return Family("single_or", branches, texts, join="union", tail="count", distinct_branches=distinct_branches)


def _either_filtered(a: str) -> Family:
    return Family(
        "single_or",
        ("F1", "F2"),
        sentences.either("{3s}", "{1s}", "{2s}"),
        join="union",
        tail="C3",
        null={1: (a,), 2: (a,)},
        only={3: a},
        distinct_branches=True,
    )


FAMILIES: tuple[Family, ...] = (
    *_compare_integer(),
    *_comparison(),
    *_hops("three_hop", 3, ("size", "shape", "color", "material")),
    *_single_and(),
    *_same_relate(),
    *_single_or(),
    *_hops("one_hop", 1, tuple(ATTRIBUTES)),
    *_hops("two_hop", 2, tuple(ATTRIBUTES)),
    *_hops("zero_hop", 0, ("shape", "material", "color", "size")),
)
