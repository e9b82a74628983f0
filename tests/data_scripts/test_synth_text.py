"""Narrated books: every sentence is true of its scene, and the corpus is a function of seed and size only."""

import csv
import gc
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from data_scripts.errors import DataError
from data_scripts.synth import narrate, narration_words
from data_scripts.synth.narration_books import BOOK_BYTES, BookWriter, Chapter, roman, wrap
from data_scripts.synth.narration_facts import Claim, program_of
from data_scripts.synth.programs import ATTRIBUTES, QUESTION_TYPES, execute, question_type
from tests.data_scripts.test_books import unpack

CHAPTERS = [chapter for book in range(6) for chapter in islice(BookWriter(str(book)).chapters(), 8)]

# ---- what is said is so


def test_every_claim_is_what_its_program_gives() -> None:
    """`execute` raises IllPosed where "the" thing is none or several, so this also shows that names are unique."""
    types: Counter[str] = Counter()
    for chapter in CHAPTERS:
        for text, said in chapter.stated:
            program = program_of(said) if isinstance(said, Claim) else said["program"]
            answer = said.answer if isinstance(said, Claim) else said["answer"]
            assert execute(program, chapter.scene) == answer, text
            types[question_type(program)] += 1
    assert set(types) == set(QUESTION_TYPES)
    assert min(types.values()) > 20


def test_what_is_claimed_stands_in_the_text() -> None:
    for chapter in CHAPTERS:
        text = " ".join(chapter.text.split())
        for sentence, _ in chapter.stated:
            assert " ".join(sentence.split()) in text


WORDS = {value: (name, value) for name, values in ATTRIBUTES.items() for value in values} | {
    "big": ("size", "large"),
    "tiny": ("size", "small"),
    "metallic": ("material", "metal"),
    "shiny": ("material", "metal"),
    "matte": ("material", "rubber"),
    "ball": ("shape", "sphere"),
    "block": ("shape", "cube"),
}
SHAPES = "thing|object|sphere|ball|cube|block|cylinder"
NUMBERS = dict(zip(narration_words.NUMBERS, range(11), strict=True))
ADJECTIVES = "|".join(word for word, (name, _) in WORDS.items() if name != "shape")
PHRASE = rf"((?:(?:{ADJECTIVES}) )*(?:{SHAPES}))s?"
DIRECTIONS = {"left": "left", "right": "right", "behind": "behind", "front": "front"}


def things(scene: Any, phrase: str) -> list[Any]:
    """The objects of a scene that a noun phrase means, read word by word."""
    wanted = [WORDS[word] for word in phrase.split() if word not in ("thing", "object")]
    return [thing for thing in scene["objects"] if all(thing[name] == value for name, value in wanted)]


def is_so(scene: Any, this: str, relation: str, that: str) -> bool:
    """Whether the one `this` stands in a relation to the one `that`, by where they stand."""
    (one,), (other,) = things(scene, this), things(scene, that)
    direction = scene["directions"][next(name for name in DIRECTIONS if name in relation)]
    return sum((a - b) * d for a, b, d in zip(one["3d_coords"], other["3d_coords"], direction, strict=True)) > 0


RELATION = r"(left of|to the left of|right of|to the right of|behind|in front of)"
READINGS: dict[str, Callable[..., bool]] = {
    rf"(?:In all t|T)here (?:is|are|was|were) (?:just |exactly )?(\w+) {PHRASE}\.": lambda scene, number, phrase: (
        number in ("a", "an") or str(len(things(scene, phrase))) == str(NUMBERS.get(number, number))
    ),
    rf"(?:No|Not one) {PHRASE} (?:is|was) (?:to be seen|there)\.": lambda scene, phrase: not things(scene, phrase),
    rf"(?:Somewhere t|T)here (?:is|was) an? {PHRASE}\.": lambda scene, phrase: bool(things(scene, phrase)),
    rf"The color of the {PHRASE} (?:is|was) (\w+)\.": lambda scene, phrase, color: (
        [thing["color"] for thing in things(scene, phrase)] == [color]
    ),
    rf"The {PHRASE} (?:is|was) made of (\w+)\.": lambda scene, phrase, material: (
        [thing["material"] for thing in things(scene, phrase)] == [material]
    ),
    rf"The {PHRASE} (?:is|stands|was|stood) {RELATION} the {PHRASE}\.": is_so,
    rf"The {PHRASE} (?:is|was) not {RELATION} the {PHRASE}\.": lambda *said: not is_so(*said),
    rf"There (?:are|were) more {PHRASE} than {PHRASE}\.": lambda scene, these, those: (
        len(things(scene, these)) > len(things(scene, those))
    ),
    rf"There (?:are|were) not fewer {PHRASE} than {PHRASE}\.": lambda scene, these, those: (
        len(things(scene, these)) >= len(things(scene, those))
    ),
    rf"The {PHRASE} (?:is|was) of the same size as the {PHRASE}\.": lambda scene, this, that: (
        things(scene, this)[0]["size"] == things(scene, that)[0]["size"]
    ),
    rf"(\w+) {PHRASE} and (\w+) {PHRASE} (?:make|made) (\w+)\.": lambda scene, n, these, m, those, total: (
        len(things(scene, these)) == NUMBERS[n.lower()]
        and len(things(scene, those)) == NUMBERS[m]
        and NUMBERS[n.lower()] + NUMBERS[m] == (0 if total == "nothing" else NUMBERS[total])
    ),
}


def test_sentences_read_back_are_true() -> None:
    """Read by a reader of its own, which knows neither templates nor claims."""
    read: Counter[str] = Counter()
    for chapter in CHAPTERS:
        for text in {text for text, _ in chapter.stated}:
            for pattern, is_true in READINGS.items():
                match = re.fullmatch(pattern, text)
                if match:
                    read[pattern] += 1
                    assert is_true(chapter.scene, *match.groups()), (text, chapter.scene["objects"])
    assert set(read) == set(READINGS)
    assert min(read.values()) >= 15, read


def test_questions_are_followed_by_their_answers() -> None:
    asked = examined = 0
    for chapter in CHAPTERS:
        text = " ".join(chapter.text.split())
        for phrase, answer in re.findall(rf"How many {PHRASE} (?:are there|can you see)\? A(?:nswer:|\.) (\w+)", text):
            number = "no" if answer == "None" else answer.lower()
            assert str(NUMBERS.get(number, number)) == str(len(things(chapter.scene, phrase))), text
            asked += 1
        for sentence, said in chapter.stated:
            if not isinstance(said, Claim):
                assert f"{sentence} {said['answer']}" in text
                examined += 1
    assert asked > 50
    assert examined > 20


# ---- how it is said


def test_wording_varies_and_reads_well() -> None:
    sentences = [text for chapter in CHAPTERS for text, said in chapter.stated if isinstance(said, Claim)]
    assert len(set(sentences)) > 0.7 * len(sentences)
    openings = Counter(" ".join(text.split()[:2]) for text in sentences)
    assert max(openings.values()) < 0.1 * len(sentences)
    for text in sentences:
        assert re.fullmatch(r"[A-Z0-9][A-Za-z0-9 ,:.]*[a-z0-9?.]", text), text
        assert "  " not in text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|\bone \w+s (is|was)\b|\{|\}", text), text
        assert not re.search(rf"\b[Oo]ne (({ADJECTIVES}) )*({SHAPES})s\b", text), text


def test_a_book_has_a_title_chapters_and_an_end() -> None:
    writer = BookWriter("a book")
    text = b"".join(writer.text()).decode()
    assert text.startswith(f"{writer.title.title.upper()}\n\nBy {writer.title.author}\n\n{writer.title.year}\n")
    assert text.endswith("THE END\n")
    headings = re.findall(r"^CHAPTER (\w+)\.$", text, flags=re.MULTILINE)
    assert headings == [roman(number) for number in range(1, len(headings) + 1)]
    assert BOOK_BYTES[0] <= writer.size <= len(text.encode()) < BOOK_BYTES[1] + 60_000


def test_roman_numbers() -> None:
    numbers = {1: "I", 4: "IV", 9: "IX", 14: "XIV", 40: "XL", 99: "XCIX", 444: "CDXLIV", 1994: "MCMXCIV"}
    assert {number: roman(number) for number in numbers} == numbers


def test_wrapped_lines_lose_no_word() -> None:
    text = "A few words, and\na line of its own that is long\n\nanextraordinarilylongword end"
    wrapped = wrap(text, 12)
    assert wrapped.split() == text.split()
    assert all(len(line) <= 12 or " " not in line for line in wrapped.splitlines())
    assert wrap(text, 80) == text
    for chapter in CHAPTERS[:4]:
        assert wrap(chapter.text, 40).split() == chapter.text.split()


# ---- the corpus


@pytest.fixture
def short_books(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_scripts.synth.narration_books.BOOK_BYTES", (3_000, 9_000))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("short_books")
def test_the_layout_is_that_of_pg19(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    info = narrate.generate_text(
        tmp_path / "text", size=100_000, seed=3, progress=lambda done, total: steps.append((done, total))
    )
    files = files_of(tmp_path / "text")
    rows = list(csv.reader(files["metadata.csv"].decode().splitlines()))
    assert [len(row) for row in rows] == [3] * len(rows)
    assert {row[0] for row in rows} == {Path(name).stem for name in files if name.endswith(".txt")}
    assert len({row[0] for row in rows}) == len(rows)
    for split, counts in info["splits"].items():
        texts = [content for name, content in files.items() if name.startswith(f"{split}/")]
        assert counts == {"books": len(texts), "bytes": sum(map(len, texts))}
    assert 100_000 <= info["splits"]["train"]["bytes"] < 120_000
    assert info["splits"]["validation"]["books"] >= 1
    assert steps == sorted(steps)
    assert steps[-1] == (104_000, 104_000)
    assert len({content for name, content in files.items() if name.endswith(".txt")}) == len(rows)


@pytest.mark.usefixtures("short_books")
def test_a_larger_corpus_begins_with_the_smaller_one(tmp_path: Path) -> None:
    for name, options in (("small", {"size": 30_000}), ("large", {"size": 90_000}), ("other", {"size": 9, "seed": 1})):
        narrate.generate_text(tmp_path / name, **options)
    small, large = files_of(tmp_path / "small"), files_of(tmp_path / "large")
    texts = {name: content for name, content in small.items() if name.endswith(".txt")}
    assert texts == {name: large[name] for name in texts}
    assert len(large) > len(small)
    assert files_of(tmp_path / "other")["train/1.txt"] != texts["train/1.txt"]


@pytest.mark.usefixtures("short_books")
def test_packed_is_the_same_text(tmp_path: Path) -> None:
    narrate.generate_text(tmp_path / "files", size=40_000)
    manifest = narrate.generate_text(tmp_path / "packed", size=40_000, packed=True)
    files = files_of(tmp_path / "files")
    for split in ("train", "validation", "test"):
        books = unpack(tmp_path / "packed", split)
        assert {f"{split}/{name}.txt": content for name, content in books.items()} == {
            name: content for name, content in files.items() if name.startswith(f"{split}/")
        }
        assert [int(name) for name in books] == sorted(map(int, books))
    assert (tmp_path / "packed" / "metadata.csv").read_bytes() == files["metadata.csv"]
    assert manifest["splits"]["train"]["invalid_utf8_bytes"] == 0


def test_workers_do_not_matter(tmp_path: Path) -> None:
    narrate.generate_text(tmp_path / "alone", size=150_000)
    narrate.generate_text(tmp_path / "together", size=150_000, workers=2)
    assert files_of(tmp_path / "alone") == files_of(tmp_path / "together")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "together"]


@pytest.mark.usefixtures("short_books")
@pytest.mark.parametrize("packed", [False, True])
def test_done_twice_is_nothing_to_do_and_all_else_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    info = narrate.generate_text(tmp_path / "out", size=5_000, packed=packed)
    with monkeypatch.context() as patch:
        patch.setattr(narrate, "make_book", None)
        assert narrate.generate_text(tmp_path / "out", size=5_000, packed=packed) == info
    for options in ({"size": 6_000}, {"size": 5_000, "seed": 1}):
        with pytest.raises(DataError, match="name another folder"):
            narrate.generate_text(tmp_path / "out", packed=packed, **options)
    with pytest.raises(DataError, match="expected"):
        narrate.generate_text(tmp_path / "out", size=5_000, packed=not packed)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(DataError, match="expected a new or empty folder"):
        narrate.generate_text(tmp_path / "other", size=5_000, packed=packed)
    for options in ({"size": 0}, {"size": 1, "workers": 0}):
        with pytest.raises(DataError, match="expected at least one byte and one worker"):
            narrate.generate_text(tmp_path / "new", packed=packed, **options)


KILLED = "import sys; from pathlib import Path; from data_scripts.synth.narrate import generate_text; \
generate_text(Path(sys.argv[1]), size=10**9)"


def test_a_killed_run_leaves_nothing_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "out")])
    while not list(tmp_path.glob(".out.partial/train/4.txt")):
        assert child.poll() is None
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("data_scripts.synth.narration_books.BOOK_BYTES", (3_000, 9_000))
    narrate.generate_text(tmp_path / "out", size=5_000)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.usefixtures("short_books")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """What is held between two books, every ten books, and the most that is held while one is written."""
    held: list[int] = []
    books = 0

    def weigh(done: int, total: int) -> None:
        nonlocal books
        books += 1
        if books % 10 == 0:
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])

    narrate.generate_text(tmp_path / "first", size=300_000)  # fills the caches of words
    tracemalloc.start()
    try:
        narrate.generate_text(tmp_path / "text", size=3_000_000, packed=True, progress=weigh)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert len(held) >= 20
    # A book leaves its name, its title and where it begins.
    assert held[-1] - held[0] < books * 1_000


def test_a_chapter_is_about_its_own_scene() -> None:
    first, second = islice(BookWriter("x").chapters(), 2)
    assert isinstance(first, Chapter)
    assert first.scene != second.scene
    assert {len(chapter.scene["objects"]) for chapter in CHAPTERS} == set(range(2, 11))
