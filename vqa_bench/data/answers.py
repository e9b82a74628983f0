"""The candidate answers of a data set: their order, the bytes that each is written with, the file that lists them.

CLEVR's 28 unless a shard says otherwise. Knows no questions, no models.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vqa_bench.data.vocab import ANSWERS, END_PART, LETTERS
from vqa_bench.errors import UserError

ONE_LETTER = string.digits + string.ascii_uppercase + string.ascii_lowercase


@dataclass(frozen=True)
class Answers:
    """Candidates in the order in which their scores are kept. Light to pickle.

    Raises UserError for fewer than two, one given twice, and one that is empty, has a line break or half a character.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) < 2:
            raise UserError(f"expected at least 2 candidate answers, got {len(self.names)}")
        for name in self.names:
            if not name.strip() or len(f"{name}.".splitlines()) != 1 or "\0" in name:
                raise UserError(f"expected candidate answers of one line each, got {name!r}")
            if not name.isprintable():
                _check_encodable(name)
        if len(self.index) < len(self.names):
            twice = next(name for place, name in enumerate(self.names) if self.index[name] != place)
            raise UserError(f"expected every candidate answer once, got {twice!r} more than once")

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[type[Answers], tuple[tuple[str, ...]]]:
        return Answers, (self.names,)

    @cached_property
    def index(self) -> dict[str, int]:
        """Answer -> its place in `names`."""
        return {name: place for place, name in enumerate(self.names)}

    @cached_property
    def letters(self) -> dict[str, str]:
        """Answer -> its one letter: the byte-level paper's for CLEVR's answers, else 0-9, A-Z, a-z in order.

        Raises UserError where there are more answers than letters.
        """
        if self.names == ANSWERS:
            return LETTERS
        if not self.have_letters:
            raise UserError(
                f"expected at most {len(ONE_LETTER)} answers for one letter each, got {len(self.names)}; set "
                "sequence.answer to text"
            )
        return dict(zip(self.names, ONE_LETTER, strict=False))

    @property
    def have_letters(self) -> bool:
        """Whether there are letters enough for all of them."""
        return len(self.names) <= len(ONE_LETTER)

    def written(self, answer: str, form: str) -> bytes:
        """The bytes an answer is written with: its `text` in UTF-8, or its one `letter`."""
        return (self.letters[answer] if form == "letter" else answer).encode()

    def ids(self, form: str) -> list[tuple[int, ...]]:
        """Every candidate's ids after the answer's start id, the end id included, in order."""
        return [(*self.written(answer, form), END_PART) for answer in self.names]


def _check_encodable(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"expected candidate answers of whole characters, got {name!r}: {error.reason}") from error


CLEVR_ANSWERS = Answers(ANSWERS)


def read_answers(path: Path) -> Answers:
    """The candidates that a text file lists: UTF-8, one a line, in the order that their scores have.

    A file that ends in an empty line is as one that does not. Where answers are written as letters they get them in
    this order.

    Raises:
        UserError: no such file, one that is no UTF-8, a line that is empty or has blanks around its answer, an answer
            that is there twice, or fewer than two; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without a byte order mark
    except OSError as error:
        raise UserError(
            f"expected a file with one answer a line, got {path}: {error.strerror}; name another"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"expected answers in UTF-8, got {path} with {error.reason} at byte {error.start}; save it as UTF-8"
        ) from error
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    first_line: dict[str, int] = {}
    for number, name in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if not name.strip():
            raise UserError(f"{where}: expected an answer, got an empty line; remove it")
        if name != name.strip():
            raise UserError(f"{where}: expected an answer without blanks around it, got {name!r}; remove them")
        if (before := first_line.setdefault(name, number)) != number:
            raise UserError(f"{where}: expected every answer once, got {name!r} as in line {before}; remove one")
    try:
        return Answers(tuple(lines))
    except UserError as error:
        raise UserError(f"{path}: {error}; list all answers of the data set, one a line") from error
