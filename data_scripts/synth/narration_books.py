"""A book of narrated scenes: chapters of prose, dialogue, letters and examinations, each chapter about one scene.

A book is a function of its seed alone. Chapters keep what each of their sentences claims, so that a test can hold it
against the scene. Knows nothing of files and of how sentences are worded.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from typing import Any

from data_scripts.synth.narration_facts import Claim, Facts
from data_scripts.synth.narration_words import NUMBERS, PAST, PRESENT, answer, ask, noun, sentence, state, with_article
from data_scripts.synth.patterns import NAMES, choose
from data_scripts.synth.presets import Preset, find_preset
from data_scripts.synth.programs import ATTRIBUTES, RELATIONS, Scene
from data_scripts.synth.questions import QuestionWriter
from data_scripts.synth.scenes import sample_camera, sample_scene

BOOK_BYTES = (100_000, 300_000)
"""Fewest and most bytes at which a book may end; it ends with the chapter that reaches its own number."""
EXAMINED = 0.25
"""The share of chapters with questions of the 90 families, which take longer to find than all else."""

_NAMES = (
    "Ada", "Alma", "Anton", "Bruno", "Clara", "Doctor Hale", "Felix", "Flora", "Greta", "Henry", "Ida",
    "Julia", "Karl", "Lady Marsh", "Leo", "Louisa", "Martha", "Max", "Miss Finch", "Mr. Boyd", "Mrs. Lind", "Nora",
    "Oscar", "Otto", "Paula", "Professor Stone", "Rosa", "Ruth", "Sarah", "Simon", "Theodora", "Uncle Abel", "Walter",
)  # fmt: skip
_PLACES = ("table", "shelf", "tray", "carpet", "terrace", "stage", "desk", "bench", "counter", "lawn", "floor", "ice")
_TITLES = ("cabinet", "house", "collection", "winter", "school", "garden", "gallery", "journey", "notebook", "museum")
_GREETINGS = ("Dear {},", "My dear {},", "Dearest {},", "To {},")
_PARTINGS = ("Yours truly,", "Ever yours,", "With kind regards,", "Your friend,", "Faithfully yours,")
_SAID = (("asked", "said"), ("asked", "answered"), ("inquired", "replied"), ("said", "replied"), ("cried", "returned"))
_OPENINGS = ("Look again.", "Consider this.", "Mark it well.", "And now?", "So it is.", "Let us go on.", "Very well.")


@dataclass(frozen=True)
class Style:
    """How one book is written. past: told in the past. width: bytes of a line, None for a line a paragraph."""

    names: tuple[str, str, str]
    past: bool
    quotes: tuple[str, str]
    width: int | None


@dataclass
class Chapter:
    """One chapter: its scene, its text, and each sentence with what it says; a mapping is a question of a family."""

    scene: Scene
    text: str = ""
    stated: list[tuple[str, Claim | Mapping[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Title:
    """What stands on a book's first page."""

    title: str
    author: str
    year: int


class BookWriter:
    """Writes the chapters of one book. `seed` is any string; `split` goes into the scenes."""

    def __init__(self, seed: str, split: str = "train") -> None:
        self._rng = rng = random.Random(seed)
        self._split = split
        one, two, three = rng.sample(_NAMES, 3)
        self._style = Style(
            names=(one, two, three),
            past=rng.random() < 0.5,
            quotes=choose((('"', '"'), ("\u201c", "\u201d")), rng),
            width=choose((None, 60, 66, 72, 76), rng),
        )
        thing = noun((None, choose(ATTRIBUTES["color"], rng), None, choose(ATTRIBUTES["shape"], rng)), rng)
        words = choose((f"the {choose(_TITLES, rng)} of the {thing}", f"the {thing} and other scenes"), rng)
        title = " ".join(word if word in ("of", "the", "and") else word.capitalize() for word in words.split())
        self.title = Title(sentence(title), three, rng.randint(1700, 1918))
        self.size = rng.randint(*BOOK_BYTES)
        self._questions = QuestionWriter(replace(_preset(), questions_per_image=5))

    def text(self) -> Iterator[bytes]:
        """The whole book, UTF-8, in pieces of about a chapter."""
        title = self.title
        piece = f"{title.title.upper()}\n\nBy {title.author}\n\n{title.year}\n".encode()
        written = len(piece)
        yield piece
        for chapter in self.chapters():
            piece = chapter.text.encode()
            yield piece
            written += len(piece)
            if written >= self.size:
                break
        yield b"\n\n\nTHE END\n"

    def chapters(self) -> Iterator[Chapter]:
        """Chapter after chapter, without end."""
        number = 0
        while True:
            number += 1
            yield self._chapter(number)

    def _chapter(self, number: int) -> Chapter:
        rng, preset = self._rng, _preset()
        objects = rng.randint(2, 10)
        preset = replace(preset, objects=(objects, objects))
        camera = sample_camera(preset, rng)
        chapter = Chapter(sample_scene(preset, camera, rng, split=self._split, image_index=number))
        page = _Page(chapter, Facts(chapter.scene, rng), self._style, rng)
        blocks = [page.heading(number), page.opening()]
        kinds: tuple[Callable[[], str], ...] = (page.prose, page.prose, page.dialogue, page.letter, page.catechism)
        # A scene of few objects is soon told.
        blocks += [choose(kinds, rng)() for _ in range(rng.randint(4 * objects, 8 * objects))]
        if rng.random() < EXAMINED:
            blocks.append(page.examination(self._questions))
        text = "\n\n".join(filter(None, blocks))
        width = self._style.width
        chapter.text = f"\n\n\n{text if width is None else wrap(text, width)}\n"
        return chapter


class _Page:
    """Writes the blocks of one chapter. A block's own line ends are kept; it ends without one."""

    def __init__(self, chapter: Chapter, facts: Facts, style: Style, rng: random.Random) -> None:
        self._chapter, self._facts, self._style, self._rng = chapter, facts, style, rng
        self._verbs = PAST if style.past else PRESENT
        self._place = choose(_PLACES, rng)
        self._said: set[Claim] = set()
        self._draws = (
            facts.count, facts.count, facts.exist, facts.relation, facts.relation, facts.query, facts.query,
            facts.compare_numbers, facts.compare_things,
        )  # fmt: skip

    def heading(self, number: int) -> str:
        """CHAPTER IV. and how many things it is about."""
        claim = self._facts.total()
        words = choose(("in which {} things are seen", "{} things on the {place}", "of {} objects"), self._rng)
        title = sentence(words.format(NUMBERS[self._facts.things], place=self._place))
        return f"CHAPTER {roman(number)}.\n\n{self._keep(title, claim)}"

    def opening(self) -> str:
        """All the objects: how many, of what kinds, each by itself, and in a row."""
        there = f"{NUMBERS[self._facts.things]} things {self._verbs['lie']} on the {self._place}."
        sentences = [self._keep(sentence(there), self._facts.total()), self._parts(), self._inventory()]
        if self._rng.random() < 0.7:
            sentences.append(self._row(choose(RELATIONS, self._rng)))
        return " ".join(filter(None, sentences))

    def prose(self) -> str:
        """A paragraph of statements."""
        claims = self._draw(self._rng.randint(3, 8))
        sentences = [self._state(claim, past=self._style.past) for claim in claims]
        if self._rng.random() < 0.3:
            sentences.insert(0, choose(_OPENINGS, self._rng))
        if self._rng.random() < 0.25:
            sentences.append(self._sum())
        return " ".join(sentences)

    def dialogue(self) -> str:
        """Questions and answers between two people, a line each."""
        left, right = self._style.quotes
        asker, answerer = self._style.names[:2]
        lines = []
        for claim in self._draw(self._rng.randint(2, 5)):
            asked, said = choose(_SAID, self._rng)
            question = self._keep(ask(claim, self._rng), claim)
            reply = sentence(answer(claim, self._rng))
            if self._rng.random() < 0.5:
                lines.append(f"{left}{question}{right} {asked} {asker}.\n{left}{reply},{right} {said} {answerer}.")
            else:
                stated = self._state(claim, past=False)
                lines.append(f"{left}{question}{right} {asked} {asker}.\n{left}{reply}. {stated}{right}")
            asker, answerer = answerer, asker
        return "\n".join(lines)

    def letter(self) -> str:
        """From one to the other."""
        writer, reader = self._style.names[:2] if self._rng.random() < 0.5 else self._style.names[1::-1]
        greeting, parting = choose(_GREETINGS, self._rng).format(reader), choose(_PARTINGS, self._rng)
        body = " ".join(self._state(claim, past=self._style.past) for claim in self._draw(self._rng.randint(3, 6)))
        return f"{greeting}\n\n{body}\n\n{parting}\n{writer}"

    def catechism(self) -> str:
        """Questions and answers, a line each."""
        marks = choose((("Q. ", "A. "), ("Question: ", "Answer: "), ("", "")), self._rng)
        lines = []
        for claim in self._draw(self._rng.randint(2, 6)):
            question = self._keep(ask(claim, self._rng), claim)
            lines.append(f"{marks[0]}{question}\n{marks[1]}{sentence(answer(claim, self._rng))}.")
        return "\n".join(lines)

    def examination(self, writer: QuestionWriter) -> str:
        """Questions of the 90 families, numbered, with their answers as the data sets spell them."""
        lines = []
        for number, question in enumerate(writer.ask(self._chapter.scene, self._rng), start=1):
            self._chapter.stated.append((question["question"], question))
            lines.append(f"{number}. {question['question']} {question['answer']}")
        return "\n".join(lines)

    def _draw(self, number: int) -> list[Claim]:
        """So many claims that this chapter has not made yet, or fewer where they do not come."""
        claims: list[Claim] = []
        for _ in range(3 * number):
            claim = choose(self._draws, self._rng)()
            if claim is not None and claim not in self._said:
                self._said.add(claim)
                claims.append(claim)
                if len(claims) == number:
                    break
        return claims or [self._facts.total()]

    def _state(self, claim: Claim, *, past: bool) -> str:
        return self._keep(state(claim, choose(self._style.names, self._rng), self._rng, past=past), claim)

    def _keep(self, text: str, *claims: Claim) -> str:
        self._chapter.stated.extend((text, claim) for claim in claims)
        return text

    def _parts(self) -> str:
        """How many there are of each value of an attribute."""
        attribute = int(self._rng.random() * 4)
        values = ATTRIBUTES[NAMES[attribute]]
        claims = [self._facts.number_with(attribute, value) for value in values]
        claims = [claim for claim in claims if claim.answer != "0" or self._rng.random() < 0.3]
        words = [self._number_of(claim) for claim in claims]
        verb = self._verbs["is" if claims[0].answer == "1" else "are"]
        return self._keep(f"There {verb} {_listed(words)}.", *claims)

    def _inventory(self) -> str:
        """Every object with all that is known of it, in random order."""
        order = self._rng.sample(range(self._facts.things), self._facts.things)
        claims = [self._facts.whole(thing) for thing in order]
        words = [with_article(noun(claim.paths[0][0][0], self._rng)) for claim in claims]
        finds = self._verbs["finds"]
        return self._keep(f"{choose(self._style.names, self._rng)} {finds} {_listed(words)}.", *claims)

    def _row(self, relation: str) -> str:
        """All objects in the order in which they stand along a direction."""
        order = self._facts.row(relation)
        phrases = [self._facts.name(thing) for thing in order]
        claims = [self._facts.stands(this, relation, that) for this, that in pairwise(order)]
        if len(order) < 2 or None in phrases or None in claims:
            return ""
        names = [f"the {noun(phrase, self._rng)}" for phrase in phrases if phrase is not None]
        along = {"left": "left to right", "right": "right to left", "front": "front to back", "behind": "back to front"}
        text = f"From {along[relation]} there {self._verbs['are']} {_listed(names)}."
        return self._keep(text, *(claim for claim in claims if claim is not None))

    def _sum(self) -> str:
        """The numbers of two values of an attribute, and what they make together."""
        attribute = int(self._rng.random() * 4)
        one, other = self._rng.sample(ATTRIBUTES[NAMES[attribute]], 2)
        claims = [self._facts.number_with(attribute, value) for value in (one, other)]
        total = sum(int(claim.answer) for claim in claims)
        words = " and ".join(self._number_of(claim) for claim in claims)
        return self._keep(sentence(f"{words} {self._verbs['make']} {NUMBERS[total] if total else 'nothing'}."), *claims)

    def _number_of(self, claim: Claim) -> str:
        words = noun(claim.paths[0][0][0], self._rng)
        return f"{NUMBERS[int(claim.answer)]} {words}{'' if claim.answer == '1' else 's'}"


@cache
def _preset() -> Preset:
    """Scenes like the release's, but of two objects too, and on more ground: nobody has to see them in one picture."""
    return replace(find_preset("clevr"), name="text", objects=(2, 10), half_extent=8.0)


def _listed(words: list[str]) -> str:
    """One, two and three."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def roman(number: int) -> str:
    """A number above 0 in Roman numerals."""
    text = ""
    for value, letters in (
        (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"),
        (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
    ):  # fmt: skip
        text += letters * (number // value)
        number %= value
    return text


def wrap(text: str, width: int) -> str:
    """Every line broken at spaces so that none has more than `width` characters; longer words stay whole.

    `textwrap` takes thirty times as long: as much as all the rest of a book.
    """
    lines = []
    for line in text.split("\n"):
        start = 0
        while len(line) - start > width:
            end = line.rfind(" ", start, start + width + 1)
            if end < 0:
                end = line.find(" ", start)
                if end < 0:
                    break
            lines.append(line[start:end])
            start = end + 1
        lines.append(line[start:])
    return "\n".join(lines)
