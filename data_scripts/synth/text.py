"""From a sentence template and the fillings of its holes to English: noun phrases, plurals, articles, synonyms.

Holes: {1} the noun phrase of group 1, {1s} its plural, {a1} with its article, {r1} the first relation of the question.
Knows words only, neither scenes nor programs.
"""

import random
import re
from collections.abc import Mapping, Sequence

Phrase = tuple[str | None, str | None, str | None, str | None]
"""A noun phrase: size, color, material, shape, each None where it is left out."""


def phrase_of(values: Mapping[str, str]) -> Phrase:
    """The noun phrase that names these attributes."""
    return values.get("size"), values.get("color"), values.get("material"), values.get("shape")


SYNONYMS: dict[str | None, tuple[str, ...]] = {
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

_HOLE = re.compile(r"\{(a?)(r?)(\d)(s?)\}")

Part = str | tuple[str, int]


def compile_template(template: str) -> tuple[Part, ...]:
    """Split a template into literal strings and holes (kind, number); kinds: "r", "a", "s" and "" for the singular."""
    parts: list[Part] = []
    end = 0
    for match in _HOLE.finditer(template):
        article, relation, number, plural = match.groups()
        parts += [template[end : match.start()], (article or relation or plural, int(number))]
        end = match.end()
    parts.append(template[end:])
    return tuple(part for part in parts if part)


def realise(parts: Sequence[Part], phrases: Mapping[int, Phrase], relations: Sequence[str], rng: random.Random) -> str:
    """One sentence: every hole filled, each word replaced by one of its synonyms at random.

    Args:
        parts: a template from `compile_template`.
        phrases: the noun phrase of each group.
        relations: the relations in the order in which the program meets them; hole {r1} is the first.
    """
    words: list[str] = []
    for part in parts:
        if isinstance(part, str):
            words.append(part)
            continue
        kind, number = part
        if kind == "r":
            words.append(_synonym(relations[number - 1], rng))
            continue
        noun = _noun_phrase(phrases[number], rng)
        if kind == "s":
            noun += "s"
        elif kind == "a":
            noun = f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
        words.append(noun)
    return "".join(words)


def _noun_phrase(phrase: Phrase, rng: random.Random) -> str:
    adjectives = [_synonym(value, rng) for value in phrase[:3] if value is not None]
    return " ".join([*adjectives, _synonym(phrase[3], rng)])


def _synonym(word: str | None, rng: random.Random) -> str:
    words = SYNONYMS.get(word)
    if words is None:
        return str(word)
    return words[0] if len(words) == 1 else words[int(rng.random() * len(words))]
