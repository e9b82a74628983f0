"""Claims as English: statements, questions and answers in many wordings.

A template's fields: {x} a noun phrase, {a} with its article, {s} its plural; {y}, {t} the same of a second one; {n} a
number; {r} a relation; {v} an attribute's value, {av} with its article; {attribute} its name; {who} somebody; verbs
as in `PRESENT` and `PAST`. A capital first letter is set where a sentence begins. Knows no scenes and no books.
"""

import random
from functools import cache
from itertools import product

from data_scripts.synth.narration_facts import ANYTHING, Claim, Path
from data_scripts.synth.patterns import choose
from data_scripts.synth.programs import RELATIONS
from data_scripts.synth.text import SYNONYMS, Phrase

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

PRESENT: dict[str, str] = {
    "is": "is", "are": "are", "stands": "stands", "stand": "stand", "has": "has", "finds": "finds", "counts": "counts",
    "looks": "looks", "points": "points", "notes": "notes", "can": "can", "share": "share", "differ": "differ",
    "do": "do", "does": "does", "outnumber": "outnumber", "make": "make", "see": "see", "lie": "lie", "comes": "comes",
}  # fmt: skip
PAST: dict[str, str] = {
    "is": "was", "are": "were", "stands": "stood", "stand": "stood", "has": "had", "finds": "found",
    "counts": "counted", "looks": "looked", "points": "pointed", "notes": "noted", "can": "could", "share": "shared",
    "differ": "differed", "do": "did", "does": "did", "outnumber": "outnumbered", "make": "made", "see": "saw",
    "lie": "lay", "comes": "came",
}  # fmt: skip

_MANY = (
    "there {are} {n} {s}.",
    "{n} {s} {are} to be seen.",
    "{who} {counts} {n} {s}.",
    "in all there {are} {n} {s}.",
    "the number of {s} {is} {n}.",
    "one {finds} {n} {s}.",
    "there {are} exactly {n} {s}, no more and no fewer.",
    "here we {see} {n} {s}.",
)
_ONE = (
    "there {is} one {x}.",
    "there {is} just one {x}.",
    "only one {x} {is} to be seen.",
    "{who} {finds} a single {x}.",
    "there {is} exactly one {x}.",
    "one {x} {is} there, and no more.",
)
_NONE = (
    "there {is} no {x}.",
    "no {x} {is} to be seen.",
    "{who} {looks} in vain for {a}.",
    "there {are} no {s}.",
    "not one {x} {is} there.",
    "the number of {s} {is} zero.",
)
_NOTHING = ("nothing {stands} {r} the {y}.", "there {is} nothing {r} the {y}.", "{who} {finds} nothing {r} the {y}.")
_SOME = (
    "there {is} {a}.",
    "somewhere there {is} {a}.",
    "{a} {is} among them.",
    "{who} {points} to {a}.",
    "one {can} see {a}.",
    "at least one {x} {is} there.",
)
_STANDS = (
    "the {x} {stands} {r} the {y}.",
    "the {x} {is} {r} the {y}.",
    "{r} the {y} {stands} the {x}.",
    "{who} {finds} the {x} {r} the {y}.",
    "look {r} the {y}: there {is} the {x}.",
)
_STANDS_NOT = (
    "the {x} {is} not {r} the {y}.",
    "the {x} {does} not stand {r} the {y}.",
    "it {is} not so that the {x} {stands} {r} the {y}.",
)
_VALUE: dict[str, tuple[str, ...]] = {
    "query_size": ("the {x} {is} {v}.", "in size the {x} {is} {v}.", "the size of the {x} {is} {v}."),
    "query_color": (
        "the {x} {is} {v}.",
        "the color of the {x} {is} {v}.",
        "the {x} {has} the color {v}.",
        "{v} {is} the color of the {x}.",
    ),
    "query_material": (
        "the {x} {is} made of {v}.",
        "the {x} {is} of {v}.",
        "the material of the {x} {is} {v}.",
        "{who} {notes} that the {x} {is} {v}.",
    ),
    "query_shape": ("the {x} {is} {av}.", "the shape of the {x} {is} that of {av}.", "look at the {x}: it {is} {av}."),
}
_COMPARED: dict[tuple[str, str], tuple[str, ...]] = {
    ("greater_than", "yes"): ("there {are} more {s} than {t}.", "the {s} {outnumber} the {t}."),
    ("greater_than", "no"): ("there {are} not more {s} than {t}.", "the {s} {do} not outnumber the {t}."),
    ("less_than", "yes"): ("there {are} fewer {s} than {t}.", "the {s} {are} fewer than the {t}."),
    ("less_than", "no"): ("there {are} not fewer {s} than {t}.", "the {s} {are} no fewer than the {t}."),
    ("equal_integer", "yes"): ("there {are} as many {s} as {t}.", "the {s} and the {t} {are} equal in number."),
    ("equal_integer", "no"): ("there {are} not as many {s} as {t}.", "the {s} and the {t} {differ} in number."),
}
_AGREE = (
    "the {x} and the {y} {share} one {attribute}.",
    "the {x} {is} of the same {attribute} as the {y}.",
    "in {attribute} the {x} {is} like the {y}.",
)
_DISAGREE = (
    "the {x} and the {y} {differ} in {attribute}.",
    "the {x} {is} not of the same {attribute} as the {y}.",
    "in {attribute} the {x} {is} not like the {y}.",
)

_ASK: dict[str, tuple[str, ...]] = {
    "count": ("how many {s} are there?", "how many {s} can you see?", "what is the number of {s}?"),
    "exist": ("is there {a}?", "can you see {a}?", "are there any {s}?"),
    "stands": ("is the {x} {r} the {y}?", "does the {x} stand {r} the {y}?"),
    "query_size": ("what size is the {x}?", "what is the size of the {x}?", "is the {x} large or small?"),
    "query_color": ("what color is the {x}?", "which color does the {x} have?", "what is the color of the {x}?"),
    "query_material": ("what material is the {x}?", "what is the {x} made of?", "is the {x} metal or rubber?"),
    "query_shape": ("what shape is the {x}?", "which shape does the {x} have?", "what is the shape of the {x}?"),
    "greater_than": ("are there more {s} than {t}?", "do the {s} outnumber the {t}?"),
    "less_than": ("are there fewer {s} than {t}?", "are the {s} fewer than the {t}?"),
    "equal_integer": ("are there as many {s} as {t}?", "is the number of {s} the same as that of {t}?"),
    "equal": (
        "do the {x} and the {y} share one {attribute}?",
        "is the {x} of the same {attribute} as the {y}?",
        "is the {x} like the {y} in {attribute}?",
    ),
}


def state(claim: Claim, who: str, rng: random.Random, *, past: bool) -> str:
    """The claim as one sentence, in which `who` may be named."""
    return _fill(choose(_statements(claim), rng), claim, who, rng, past=past)


def ask(claim: Claim, rng: random.Random) -> str:
    """The question that the claim answers, in the present."""
    function = claim.function
    if claim.definite:
        templates = _ASK["stands"]
    else:
        templates = _ASK[function] if function in _ASK else _ASK["equal"]
    return _fill(choose(templates, rng), claim, "", rng, past=False)


def answer(claim: Claim, rng: random.Random) -> str:
    """The answer in a word: as the release spells it, or a number in letters."""
    if claim.answer.isdecimal() and rng.random() < 0.7:
        return "none" if claim.answer == "0" else NUMBERS[int(claim.answer)]
    return claim.answer


def noun(phrase: Phrase, rng: random.Random) -> str:
    """A noun phrase without article; each word is one of its synonyms."""
    return choose(_nouns(phrase), rng)


@cache
def _nouns(phrase: Phrase) -> tuple[str, ...]:
    """All wordings of a noun phrase; there are 324 phrases."""
    words = [SYNONYMS.get(value, (str(value),)) for value in phrase[:3] if value is not None]
    return tuple(" ".join(chosen) for chosen in product(*words, SYNONYMS.get(phrase[3], (str(phrase[3]),))))


def with_article(words: str) -> str:
    """ "a" or "an" before a noun phrase."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def sentence(words: str) -> str:
    """With a capital first."""
    return words[0].upper() + words[1:]


def _statements(claim: Claim) -> tuple[str, ...]:
    """The templates that state a claim."""
    function, positive = claim.function, claim.answer not in ("no", "0")
    if function in _VALUE:
        return _VALUE[function]
    if function in ("count", "exist"):
        if claim.definite:
            return _STANDS if positive else _STANDS_NOT
        if not positive:
            link, phrase = claim.paths[0][0][1], claim.paths[0][-1][0]
            return _NOTHING if phrase == ANYTHING and link in RELATIONS else _NONE
        if function == "exist":
            return _SOME
        return _ONE if claim.answer == "1" else _MANY
    if function in ("greater_than", "less_than", "equal_integer"):
        return _COMPARED[function, claim.answer]
    return _AGREE if positive else _DISAGREE


def _fill(template: str, claim: Claim, who: str, rng: random.Random, *, past: bool) -> str:
    """A template with its fields; only those are made that it may have."""
    path = claim.paths[0]
    text = _with_verbs(template, past)
    if claim.definite or template in _NOTHING:
        (other, relation), (phrase, _) = path
        r = choose(SYNONYMS[relation], rng)
        return sentence(text.format(x=noun(phrase, rng), r=r, y=noun(other, rng), who=who))
    if len(claim.paths) == 2:
        x, y = noun(path[-1][0], rng), noun(claim.paths[1][-1][0], rng)
        return sentence(text.format(x=x, y=y, s=f"{x}s", t=f"{y}s", attribute=claim.function[6:], who=who))
    head, place = noun(path[-1][0], rng), _place(path, rng)
    a = with_article(head)
    if path[0][1].startswith("same_"):
        a, head = f"another {head}", f"other {head}"
    n = v = av = claim.answer
    if claim.function == "count":
        n = NUMBERS[int(n)] if rng.random() < 0.8 else n
    elif claim.function == "query_shape":
        av = with_article(choose(SYNONYMS.get(v, (v,)), rng))
    return sentence(text.format(x=head + place, s=f"{head}s{place}", a=a + place, n=n, v=v, av=av, who=who))


@cache
def _with_verbs(template: str, past: bool) -> str:
    """A template with its verbs filled in; the other fields stay."""
    fields = {name: f"{{{name}}}" for name in ("x", "a", "s", "y", "t", "n", "r", "v", "av", "attribute", "who")}
    return template.format(**fields, **(PAST if past else PRESENT))


def _place(path: Path, rng: random.Random) -> str:
    """What stands after a noun phrase: in which relation to what, or what it shares with what."""
    if len(path) == 1:
        return ""
    (phrase, link), _ = path
    if link in RELATIONS:
        stand = choose(("", "", " standing", " lying"), rng)
        return f"{stand} {choose(SYNONYMS[link], rng)} the {noun(phrase, rng)}"
    return f" of the same {link.removeprefix('same_')} as the {noun(phrase, rng)}"
