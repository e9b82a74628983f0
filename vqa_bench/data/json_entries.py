"""Reads the entries of one long list in a JSON file piece by piece. Knows nothing of what the entries mean."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from vqa_bench.errors import UserError

CHUNK_BYTES = 1 << 20
RUN_CHARACTERS = 1 << 18

_BLANK = re.compile(r"[ \t\n\r]*")
_OBJECT_START = re.compile(r'\{[ \t\n\r]*"[^"\\]*"')
_DECODE = json.JSONDecoder().raw_decode

# What the decoder makes of the last characters of a window it may make of them for want of the rest: a number without
# its exponent, half a literal, half an escape. All of these are shorter than this many characters.
_MARGIN = 16


def json_entries(path: Path, key: str) -> Iterator[Any]:
    """The items of the list under `key` of a JSON object, one at a time.

    The release's training questions are a file of hundreds of megabytes, so no more than a piece of it and one item are
    held at any time, wherever in the file the list stands.

    Raises:
        UserError: not UTF-8 or not JSON, with the place; or no such list.
    """
    return _list_under(path, key, _items)


def json_runs(path: Path, key: str) -> Iterator[str]:
    """The same items as texts of many: each, put in brackets, is a JSON list, and together they are all items.

    The items are cut apart without being decoded: where an object begins with the same key as the first item does. That
    is a guess. A text that is no JSON in brackets shows that it was wrong (the first to end inside an item is not), or
    that the file is: `json_entries` tells which.

    Raises:
        UserError: as `json_entries` does, of what lies around the items.
    """
    return _list_under(path, key, _runs)


Found = TypeVar("Found")


def _list_under(path: Path, key: str, read_list: "Callable[[_Window], Iterator[Found]]") -> Iterator[Found]:
    """What `read_list` makes of the list under `key`; everything else in the file is checked too."""
    found = False
    with path.open("rb") as file:
        text = _Window(file)
        try:
            text.expect("{")
            while True:
                name = text.value()
                text.expect(":")
                if text.peek() != "[":
                    text.value()
                elif name == key:
                    found = True
                    yield from read_list(text)
                else:  # not as one value: it may be long
                    for _ in _items(text):
                        pass
                if text.peek() != ",":
                    break
                text.expect(",")
            text.expect("}")
            text.expect("")
        except json.JSONDecodeError as error:
            fault = f"{error.msg}: {text.place(error.pos)}"
            raise UserError(f"expected valid JSON, got {path} with: {fault}; download or make it again") from error
        except (ValueError, RecursionError) as error:  # no UTF-8, a number of thousands of digits, too deep
            fault = f"{error} ({text.place(text.position)} was read)"
            raise UserError(f"expected valid JSON, got {path} with: {fault}; download or make it again") from error
    if not found:
        raise UserError(f"expected a JSON object with a list '{key}', got {path} without it")


def _items(text: "_Window") -> Iterator[Any]:
    """The items of the JSON list that comes next."""
    text.expect("[")
    if text.peek() == "]":
        text.expect("]")
        return
    while True:
        yield text.value()
        if text.peek() == "]":
            text.expect("]")
            return
        text.expect(",")


def _runs(text: "_Window") -> Iterator[str]:
    """The items of the JSON list that comes next, as texts of `RUN_CHARACTERS` or a little more."""
    text.expect("[")
    if text.peek() == "]":
        text.expect("]")
        return
    start = _OBJECT_START.match(text.text, text.position) if text.hold(RUN_CHARACTERS) else None
    if start is not None:
        border = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*(?=" + re.escape(start[0]) + ")")
        while text.hold(2 * RUN_CHARACTERS) and (match := border.search(text.text, text.position + RUN_CHARACTERS)):
            yield text.text[text.position : match.start() + 1]
            text.position = match.end()
    held: list[str] = []
    while True:  # what is left, or all of it where no border was found
        text.value()
        held.append(text.last_value())
        last = text.peek() == "]"
        if last or sum(map(len, held)) >= RUN_CHARACTERS:
            yield ",".join(held)
            held = []
        if last:
            text.expect("]")
            return
        text.expect(",")


class _Window:
    """The piece of a text file that is being read; what lies before `position` is dropped as more is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.text, self.position = "", 0
        self._value_start = 0
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ended = False
        self._dropped = self._lines = self._column = 0  # characters and lines dropped, characters since the last line

    def place(self, position: int) -> str:
        """Where in the file a position of the window is, in the words of the json module."""
        line = self._lines + self.text.count("\n", 0, position) + 1
        line_start = self.text.rfind("\n", 0, position)
        column = position - line_start if line_start >= 0 else self._column + position + 1
        return f"line {line} column {column} (char {self._dropped + position})"

    def peek(self) -> str:
        """The next character that is not blank; empty at the end of the file."""
        while True:
            match = _BLANK.match(self.text, self.position)
            assert match is not None
            self.position = match.end()
            if self.position < len(self.text) or not self._read_on():
                return self.text[self.position : self.position + 1]

    def expect(self, character: str) -> None:
        """Passes the next character that is not blank, which must be this one; empty for the end of the file."""
        if self.peek() != character:
            message = f"Expecting '{character}'" if character else "Extra data"
            raise json.JSONDecodeError(message, self.text, self.position)
        self.position += len(character)

    def value(self) -> Any:
        """Passes the JSON value that comes next and returns it."""
        self.peek()
        while True:
            try:
                value, end = _DECODE(self.text, self.position)
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - _MARGIN or error.msg.startswith("Unterminated string")
                if not (cut and self._read_on()):
                    raise
                continue
            if end <= len(self.text) - _MARGIN or not self._read_on():
                self._value_start, self.position = self.position, end
                return value

    def last_value(self) -> str:
        """The text of the value that was passed last, as long as nothing else has been."""
        return self.text[self._value_start : self.position]

    def hold(self, characters: int) -> bool:
        """Reads on until so many characters follow the position; returns False if the file has fewer."""
        while len(self.text) - self.position < characters:
            if not self._read_on():
                return False
        return True

    def _read_on(self) -> bool:
        """Reads a chunk, or as much as the window holds if that is more; returns False at the end of the file."""
        if self._ended:
            return False
        dropped = self.text[: self.position]
        self._dropped += len(dropped)
        self._lines += dropped.count("\n")
        self._column = len(dropped) - dropped.rfind("\n") - 1 + ("\n" not in dropped) * self._column
        self.text, self.position = self.text[self.position :], 0
        data = self._file.read(max(CHUNK_BYTES, len(self.text)))
        self._ended = not data
        self.text += self._decoder.decode(data, final=self._ended)
        return True
