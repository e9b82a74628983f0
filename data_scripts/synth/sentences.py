"""Our own English for the question families: short frames, ASCII, a capital first and "?" last.

Each function gives the frames of one kind of question around given noun phrases. The braces are those of `text.py`:
{1} a noun phrase, {1s} its plural, {a1} with its article, {r1} a relation. Nothing here knows programs or scenes.
"""


def count(things: str) -> tuple[str, ...]:
    """How many `things` (plural noun phrase) there are."""
    return f"How many {things} can you see?", f"How many {things} does the picture show?"


def exist(a_thing: str) -> tuple[str, ...]:
    """Whether there is `a_thing` (with its article)."""
    return f"Can you see {a_thing}?", f"Does the picture show {a_thing}?"


def query(attribute: str, thing: str) -> tuple[str, ...]:
    """One attribute of the one `thing`."""
    return f"Which {attribute} does the {thing} have?", f"What {attribute} do you see on the {thing}?"


def compare_integer(comparison: str, these: str, those: str) -> tuple[str, ...]:
    """Whether there are as many, fewer or more of `these` than of `those` (plurals)."""
    return {
        "equal_integer": (
            f"Can you see exactly as many {these} as {those}?",
            f"Do the {these} and the {those} come in equal number?",
            f"Are {these} as many as {those}?",
        ),
        "less_than": (
            f"Can you see fewer {these} than {those}?",
            f"Does the picture show fewer {these} than {those}?",
            f"Do {those} outnumber {these}?",
        ),
        "greater_than": (
            f"Can you see more {these} than {those}?",
            f"Does the picture show more {these} than {those}?",
            f"Do {these} outnumber {those}?",
        ),
    }[comparison]


def compare_attribute(attribute: str, this: str, that: str) -> tuple[str, ...]:
    """Whether the one `this` and the one `that` agree in an attribute."""
    return (
        f"Do the {this} and the {that} share one {attribute}?",
        f"Does the {this} match the {that} in {attribute}?",
        f"Is the {this} like the {that} in {attribute}?",
    )


def same_exist(attribute: str) -> tuple[str, ...]:
    """Whether anything else has the attribute of thing 1."""
    return (
        f"Does anything else match the {{1}} in {attribute}?",
        f"Does the {{1}} share its {attribute} with anything?",
        f"Is anything else like the {{1}} in {attribute}?",
    )


def same_count(attribute: str) -> tuple[str, ...]:
    """How many others have the attribute of thing 1."""
    return (
        f"How many others match the {{1}} in {attribute}?",
        f"With how many things does the {{1}} share its {attribute}?",
        f"How many others share the {attribute} of the {{1}}?",
    )


def same_exist_of(attribute: str) -> tuple[str, ...]:
    """Whether one of the things 2 has the attribute of thing 1."""
    return (
        f"Apart from the {{1}}, can you see {{a2}} of its {attribute}?",
        f"Does the {{1}} share its {attribute} with {{a2}}?",
    )


def same_count_of(attribute: str) -> tuple[str, ...]:
    """How many of the things 2 have the attribute of thing 1."""
    return (
        f"Apart from the {{1}}, how many {{2s}} have its {attribute}?",
        f"With how many {{2s}} does the {{1}} share its {attribute}?",
    )


def same_query(attribute: str, queried: str) -> tuple[str, ...]:
    """An attribute of the thing 2 that agrees with thing 1 in another."""
    return (
        f"Apart from the {{1}}, which {queried} does the {{2}} of its {attribute} have?",
        f"The {{1}} shares its {attribute} with one {{2}}: which {queried} does that have?",
    )


def either(things: str, these: str, those: str) -> tuple[str, ...]:
    """How many `things` belong to `these` or to `those` (plurals)."""
    return (
        f"How many {things} belong to the {these} or the {those}?",
        f"How many {things} can you see among the {these} and the {those}?",
    )
