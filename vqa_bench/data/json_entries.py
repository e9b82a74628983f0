"""Reads the entries of one long list in a JSON file one at a time. Knows nothing of what the entries mean."""

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from vqa_bench.errors import UserError

_BLANK = re.compile(r"[ \t\n\r]*")


def json_entries(path: Path, key: str) -> Iterator[Any]:
    """The items of the list under `key` of a JSON object, one at a time.

    The release's training questions are a file of hundreds of megabytes; as one tree of Python objects they would
    take many gigabytes, so no more than the text and one item are held.
    """
    found = False
    try:
        text = path.read_text(encoding="utf-8")
        position = _expect(text, 0, "{")
        while True:
            name, position = json.JSONDecoder().raw_decode(text, _skip(text, position))
            position = _expect(text, position, ":")
            if name == key and text.startswith("[", _skip(text, position)):
                found = True
                position = yield from _list_items(text, position)
            else:
                _, position = json.JSONDecoder().raw_decode(text, _skip(text, position))
            if not text.startswith(",", _skip(text, position)):
                break
            position = _expect(text, position, ",")
        position = _skip(text, _expect(text, position, "}"))
        if position < len(text):
            raise json.JSONDecodeError("Extra data", text, position)
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise UserError(f"expected valid JSON, got {path} with: {error}; download or make it again") from error
    if not found:
        raise UserError(f"expected a JSON object with a list '{key}', got {path} without it")


def _list_items(text: str, position: int) -> Generator[Any, None, int]:
    """Yields the items of the JSON list at `position`; returns the position after it."""
    decode = json.JSONDecoder().raw_decode
    position = _skip(text, _expect(text, position, "["))
    if text.startswith("]", position):
        return position + 1
    while True:
        item, position = decode(text, position)
        yield item
        position = _skip(text, position)
        if text.startswith("]", position):
            return position + 1
        position = _skip(text, _expect(text, position, ","))


def _skip(text: str, position: int) -> int:
    """The position of the next character that is not blank."""
    match = _BLANK.match(text, position)
    assert match is not None
    return match.end()


def _expect(text: str, position: int, character: str) -> int:
    """The position after the next character, which must be `character`."""
    position = _skip(text, position)
    if not text.startswith(character, position):
        raise json.JSONDecodeError(f"Expecting '{character}'", text, position)
    return position + 1
