"""Our own English for the question families: frames in ASCII, a capital first and "?" last.

Each function gives the frames of one kind of question around given noun phrases: short ones, which small presets keep
to, and further ones. The braces and brackets are those of `text.py`: {1} a noun phrase, {1s} its plural, {a1} with its
article, {r1} a relation, [words] that may be left out. Nothing here knows programs or scenes.
"""

from typing import NamedTuple


class Frames(NamedTuple):
    """The sentences of a family."""

    short: tuple[str, ...]
    further: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        """Every frame, the short ones first."""
        return self.short + self.further


def count(things: str, others: str | None = None) -> Frames:
    """How many `things` (plural noun phrase) there are; `others` is the same phrase, perhaps with "other"."""
    others = others or things
    return Frames(
        (f"How many {things} can you see?", f"How many {things} does the picture show?"),
        (
            f"How many {others} would you count[ in all]?",
            f"Count the {others}: how many do you get?",
            f"What total do you reach when you count the {things}?",
            f"How many {things} do you find[ here]?",
        ),
    )


def exist(a_thing: str, another: str | None = None) -> Frames:
    """Whether there is `a_thing` (with its article); `another` is the same phrase, perhaps with "another"."""
    another = another or a_thing
    return Frames(
        (f"Can you see {a_thing}?", f"Does the picture show {a_thing}?"),
        (
            f"Do you find {another}[ anywhere]?",
            f"Is {another} to be seen[ here]?",
            f"Could you point at {another}?",
            f"Does the scene hold {a_thing}?",
        ),
    )


def query(attribute: str, thing: str) -> Frames:
    """One attribute of the one `thing`."""
    return Frames(
        (f"Which {attribute} does the {thing} have?", f"What {attribute} do you see on the {thing}?"),
        (
            f"Look at the {thing}: which {attribute} do you notice?",
            f"How would you name the {attribute} of the {thing}?",
            f"Find the {thing}[ first]: what {attribute} has it got?",
            f"The {thing} comes in which {attribute}?",
        ),
    )


def compare_integer(comparison: str, these: str, those: str) -> Frames:
    """Whether there are as many, fewer or more of `these` than of `those` (plurals)."""
    return {
        "equal_integer": Frames(
            (
                f"Can you see exactly as many {these} as {those}?",
                f"Do the {these} and the {those} come in equal number?",
                f"Are {these} as many as {those}?",
            ),
            (
                f"Would you count [just ]as many {these} as {those}?",
                f"Does the count of {these} equal the count of {those}?",
            ),
        ),
        "less_than": Frames(
            (
                f"Can you see fewer {these} than {those}?",
                f"Does the picture show fewer {these} than {those}?",
                f"Do {those} outnumber {these}?",
            ),
            (
                f"Would you count fewer {these} than {those}[ here]?",
                f"Is the count of {these} below the count of {those}?",
            ),
        ),
        "greater_than": Frames(
            (
                f"Can you see more {these} than {those}?",
                f"Does the picture show more {these} than {those}?",
                f"Do {these} outnumber {those}?",
            ),
            (
                f"Would you count more {these} than {those}[ here]?",
                f"Is the count of {these} above the count of {those}?",
            ),
        ),
    }[comparison]


def compare_attribute(attribute: str, this: str, that: str) -> Frames:
    """Whether the one `this` and the one `that` agree in an attribute."""
    return Frames(
        (
            f"Do the {this} and the {that} share one {attribute}?",
            f"Does the {this} match the {that} in {attribute}?",
            f"Is the {this} like the {that} in {attribute}?",
        ),
        (
            f"Look at the {this} and the {that}: do they agree in {attribute}?",
            f"Are the {this} and the {that} alike in {attribute}?",
            f"Does the {attribute} of the {this} agree with that of the {that}?",
        ),
    )


def same_exist(attribute: str) -> Frames:
    """Whether anything else has the attribute of thing 1."""
    return Frames(
        (
            f"Does anything else match the {{1}} in {attribute}?",
            f"Does the {{1}} share its {attribute} with anything?",
            f"Is anything else like the {{1}} in {attribute}?",
        ),
        (
            f"Besides the {{1}}, do you find anything of its {attribute}?",
            f"Does the {attribute} of the {{1}} come up again[ in the picture]?",
        ),
    )


def same_count(attribute: str) -> Frames:
    """How many others have the attribute of thing 1."""
    return Frames(
        (
            f"How many others match the {{1}} in {attribute}?",
            f"With how many things does the {{1}} share its {attribute}?",
            f"How many others share the {attribute} of the {{1}}?",
        ),
        (
            f"Besides the {{1}}, how many things come in its {attribute}?",
            f"Not counting the {{1}} itself, how many things agree with it in {attribute}?",
        ),
    )


def same_exist_of(attribute: str) -> Frames:
    """Whether one of the things 2 has the attribute of thing 1."""
    return Frames(
        (
            f"Apart from the {{1}}, can you see {{a2}} of its {attribute}?",
            f"Does the {{1}} share its {attribute} with {{a2}}?",
        ),
        (
            f"Does {{another2}} match the {{1}} in {attribute}?",
            f"Is {{another2}} like the {{1}} in {attribute}?",
            f"Look at the {{1}}: do you find {{another2}} of its {attribute}?",
        ),
    )


def same_count_of(attribute: str) -> Frames:
    """How many of the things 2 have the attribute of thing 1."""
    return Frames(
        (
            f"Apart from the {{1}}, how many {{2s}} have its {attribute}?",
            f"With how many {{2s}} does the {{1}} share its {attribute}?",
        ),
        (
            f"How many {{other2s}} match the {{1}} in {attribute}?",
            f"Look at the {{1}}: how many {{other2s}} of its {attribute} do you find?",
            f"Besides the {{1}}, how many {{2s}} come in its {attribute}?",
        ),
    )


def same_query(attribute: str, queried: str) -> Frames:
    """An attribute of the thing 2 that agrees with thing 1 in another."""
    return Frames(
        (
            f"Apart from the {{1}}, which {queried} does the {{2}} of its {attribute} have?",
            f"The {{1}} shares its {attribute} with one {{2}}: which {queried} does that have?",
        ),
        (
            f"One {{other2}} matches the {{1}} in {attribute}: what {queried} do you see on it?",
            f"Which {queried} has the {{other2}} that agrees in {attribute} with the {{1}}?",
            f"Besides the {{1}}, one {{2}} comes in its {attribute}: how would you name the {queried} of that one?",
        ),
    )


def either(things: str, these: str, those: str) -> Frames:
    """How many `things` belong to `these` or to `those` (plurals)."""
    return Frames(
        (
            f"How many {things} belong to the {these} or the {those}?",
            f"How many {things} can you see among the {these} and the {those}?",
        ),
        (
            f"Put the {these} and the {those} together: how many {things} do you [then ]have?",
            f"Taking the {these} and the {those} together, how many {things} do you count?",
        ),
    )
