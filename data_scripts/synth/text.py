"""From a sentence template and the fillings of its holes to English: noun phrases, plurals, articles, synonyms.

Holes: {1} the noun phrase of group 1, {1s} its plural, {a1} with its article, {r1} the first relation of the question.
{other1}, {other1s} and {another1} put that word before it, where it makes sense. A part in [brackets] is left out
half of the time. Knows words only, neither scenes nor programs.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

Phrase = tuple[str | None, str | None, str | None, str | None]
"""A noun phrase: size, color, material, shape, each None where it is left out."""


def phrase_of(values: Mapping[str, str]) -> Phrase:
    """The noun phrase that names these attributes."""
    return values.get("size"), values.get("color"), values.get("material"), values.get("shape")


Synonyms = Mapping[str | None, tuple[str, ...]]

SYNONYMS: Synonyms = {
    None: ("thing", "object"),
    "sphere": ("sphere", "ball"),
    "cube": ("cube", "block"),
    "large": ("large", "big"),
    "small": ("small", "tiny"),
    "metal": ("metal", "metallic", "shiny"),
    "rubber": ("rubber", "matte"),
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "behind": ("behind",),
    "front": ("in front of",),
}
ALL_SYNONYMS: Synonyms = {
    **SYNONYMS,
    "left": (*SYNONYMS["left"], "on the left side of"),
    "right": (*SYNONYMS["right"], "on the right side of"),
}
"""Those of the release; `SYNONYMS` has the short ones."""

_PART = re.compile(r"\{(?P<prefix>a|r|another|other|)(?P<number>\d)(?P<plural>s?)\}|\[(?P<optional>[^\]]*)\]")


class Hole(NamedTuple):
    """A place for a relation (prefix "r") or for a noun phrase, with what stands before it."""

    prefix: str  # "" | "a" | "another" | "other" | "r"
    number: int
    plural: bool


class Optional(NamedTuple):
    """Words that are kept half of the time."""

    words: str


Part = str | Hole | Optional


def compile_template(template: str) -> tuple[Part, ...]:
    """Split a template into literal strings, holes and optional words."""
    parts: list[Part] = []
    end = 0
    for match in _PART.finditer(template):
        parts.append(template[end : match.start()])
        if match["optional"] is not None:
            parts.append(Optional(match["optional"]))
        else:
            parts.append(Hole(match["prefix"], int(match["number"]), bool(match["plural"])))
        end = match.end()
    parts.append(template[end:])
    return tuple(part for part in parts if part)


def realise(
    parts: Sequence[Part],
    phrases: Mapping[int, Phrase],
    relations: Sequence[str],
    rng: random.Random,
    synonyms: Synonyms = SYNONYMS,
) -> str:
    """One sentence: every hole filled, each word replaced by one of its synonyms at random.

    Args:
        parts: a template from `compile_template`.
        phrases: the noun phrase of each group.
        relations: the relations in the order in which the program meets them; hole {r1} is the first.
        rng: chooses synonyms and optional words.
        synonyms: the words for each value, relation, and None for a thing of no given shape.
    """
    words: list[str] = []
    for part in parts:
        if isinstance(part, str):
            words.append(part)
        elif isinstance(part, Optional):
            words.append(part.words if rng.random() < 0.5 else "")
        elif part.prefix == "r":
            words.append(_synonym(relations[part.number - 1], rng, synonyms))
        else:
            noun = _noun_phrase(phrases[part.number], rng, synonyms) + "s" * part.plural
            words.append(_with_prefix(part.prefix, noun, phrases))
    return "".join(words)


def _with_prefix(prefix: str, noun: str, phrases: Mapping[int, Phrase]) -> str:
    """A noun phrase with its article, or with "other" or "another" unless the phrases cannot mean the same thing.

    Nobody says "another blue cube" of a red one; the public generator's heuristic.
    """
    if prefix in ("other", "another") and not _exclude_each_other(phrases):
        return f"{prefix} {noun}"
    if prefix in ("a", "another"):
        return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
    return noun


def _exclude_each_other(phrases: Mapping[int, Phrase]) -> bool:
    """Whether two phrases give one attribute different values."""
    if len(phrases) != 2:
        return False
    return any(None not in pair and pair[0] != pair[1] for pair in zip(*phrases.values(), strict=True))


def _noun_phrase(phrase: Phrase, rng: random.Random, synonyms: Synonyms) -> str:
    adjectives = [_synonym(value, rng, synonyms) for value in phrase[:3] if value is not None]
    return " ".join([*adjectives, _synonym(phrase[3], rng, synonyms)])


def _synonym(word: str | None, rng: random.Random, synonyms: Synonyms) -> str:
    words = synonyms.get(word)
    if words is None:
        return str(word)
    return words[0] if len(words) == 1 else words[int(rng.random() * len(words))]
