"""How a folder of packed books and one of its books look on a screen, as show.py does for shards.

Knows packed books and `rich`, no shards.
"""

import json
from pathlib import Path

import numpy as np
from rich.text import Text

from vqa_bench.data.books import open_books
from vqa_bench.data.manifest import MANIFEST_NAME, ByteLengths
from vqa_bench.data.show import append_facts, append_heading, append_table
from vqa_bench.errors import UserError

EDGE_BYTES = 160  # of a book, shown from its beginning and from its end


def holds_books(path: Path) -> bool:
    """Whether a folder's manifest is that of packed books; False for anything else, which its own reader refuses."""
    try:
        manifest = json.loads((path / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == "vqa-bench books"


def books_text(path: Path, *, verify: bool = False) -> Text:
    """The manifest of packed books and how long the books are.

    Raises:
        UserError: not packed books; a file that is missing or, by its size (by its hash with `verify`), not as written.
    """
    books, text = open_books(path), Text()
    readers = {name: books.split(name) for name in books.manifest.splits}
    if verify:
        books.verify()
    manifest = books.manifest
    append_heading(text, str(path))
    size = sum(info.bytes for info in manifest.files.values())
    state = "every file hashed again: as written" if verify else "sizes as written; --verify hashes them"
    facts = [(name, str(value)) for name, value in manifest.source.items()]
    facts += [
        ("files", f"{len(manifest.files)} with {size:,} bytes ({state})"),
        ("held against a description", "yes" if manifest.verified else "no"),
        ("as many books as published", "yes" if manifest.complete else "no"),
    ]
    append_facts(text, facts)
    append_heading(text, "\nSplits")
    rows = []
    for name, info in manifest.splits.items():
        found = ByteLengths.of(np.diff(readers[name].offsets))
        counts = (info.books, info.bytes, info.invalid_utf8_bytes, found.min, found.median, found.p95, found.max)
        rows.append([name, *(f"{count:,}" for count in counts)])
    columns = ["", "books", "bytes", "not UTF-8", "shortest", "median", "95 %", "longest"]
    append_table(text, columns, rows)
    return text


def book_text(path: Path, index: int, *, split: str | None = None, width: int = 16, full: bool = False) -> Text:
    """One book of a split (None: the first that has any), counted from 0: its bytes in hex and as text.

    The middle is left out unless `full`.

    Raises:
        UserError: not packed books, no such split, no such book.
    """
    books, text = open_books(path), Text()
    filled = [name for name, info in books.manifest.splits.items() if info.books]
    name = next(iter(filled or books.manifest.splits)) if split is None else split
    reader = books.split(name)
    if not 0 <= index < len(reader):
        allowed = f"0 to {len(reader) - 1:,}" if len(reader) else "none, it has no books"
        raise UserError(f"expected a book of split {name} of {path} ({allowed}), got {index}")
    data = reader.book(index)
    append_heading(text, f"Book {index:,} of {len(reader):,} in {name}")
    place = f"{len(data):,} at {int(reader.offsets[index]):,} of the split"
    append_facts(text, [("name", reader.names[index]), ("bytes", place)])
    append_heading(text, "\nBytes")
    edge = max(1, EDGE_BYTES // width) * width
    whole = full or len(data) <= 2 * edge
    last = (len(data) - edge) // width * width  # offsets stay multiples of the width
    for begin in range(0, len(data) if whole else edge, width):
        _line(text, begin, data[begin : begin + width], width)
    if not whole:
        text.append(f"{edge:>10} … {last - edge:,} bytes, shown with --full …\n", "dim")
        for begin in range(last, len(data), width):
            _line(text, begin, data[begin : begin + width], width)
    return text


def _line(text: Text, offset: int, data: np.ndarray, width: int) -> None:
    text.append(f"{offset:>10} ", "dim")
    text.append(data.tobytes().hex(" ").ljust(3 * width), "cyan")
    text.append("|" + "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data.tolist()) + "|\n")
