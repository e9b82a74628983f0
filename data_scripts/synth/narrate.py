"""Makes a corpus of narrated scenes in PG19's layout, or packed; the same for any number of workers.

    <out>/<split>/<id>.txt   <out>/metadata.csv (rows: id, short title, year; no header)   <out>/info.json

Book n of a split is a function of (seed, split, n), so a larger corpus begins with the books of a smaller one.
Knows nothing of what is in a book (`narration_books.py`).
"""

import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from data_scripts.books import MANIFEST, SPLITS, pack_books, packed_already
from data_scripts.disk import require_free_space
from data_scripts.errors import DataError
from data_scripts.folders import expect_new, whole_folder
from data_scripts.synth.narration_books import BookWriter, Title
from data_scripts.workers import OrderedMap, ordered_map

VERSION = "1.0"
"""Of the books; raise it when the same seed gives others."""
HELD_OUT = 50
"""Validation and test each have at least one book and about this fraction of the bytes to train on: 1 / HELD_OUT."""

Progress = Callable[[int, int], None]
Keep = Callable[[str, bytes], None]
"""Takes a book's name and its bytes."""


def generate_text(
    out: Path,
    *,
    size: int,
    seed: int = 0,
    workers: int = 1,
    packed: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a corpus of books; the same call again finds it there and does nothing.

    Args:
        out: the folder to make; it may exist if it is empty.
        size: bytes to train on, at least: the book that reaches it is the last one.
        seed: the splits draw from different streams of it.
        workers: processes; 1 makes everything in this one. Several are spawned, so that a script that calls this
            needs the usual `if __name__ == "__main__":`.
        packed: write the form of `data_scripts.books` instead of a file a book.
        progress: called with the bytes done and in all.

    Returns:
        What `info.json`, or packed `manifest.json`, says.

    Raises:
        DataError: `out` has something else, or `size` or `workers` is not positive.
    """
    if size < 1 or workers < 1:
        raise DataError(f"expected at least one byte and one worker, got {size} bytes and {workers} workers")
    source = {"kind": "synth-text", "generator": f"data_scripts.synth.narrate {VERSION}", "size": size, "seed": seed}
    made = packed_already(out, source) if packed else _made_already(out, source)
    if made is not None:
        return made
    out.parent.mkdir(parents=True, exist_ok=True)
    require_free_space(out.parent, size, what=f"{out.name}")
    sizes = {split: size if split == "train" else -(-size // HELD_OUT) for split in SPLITS}
    report = _Report(progress, sum(sizes.values()))
    with ordered_map(workers) as mapper:
        write = _write_packed if packed else _write_files
        return write(out, source, lambda split: _books(mapper, seed, split, sizes[split], report))


Books = Callable[[str], Iterator[tuple[str, Title, bytes]]]


def _books(
    mapper: OrderedMap, seed: int, split: str, size: int, report: "_Report"
) -> Iterator[tuple[str, Title, bytes]]:
    """Id, title and bytes of book after book, until there are `size` bytes."""
    written = 0
    for number, (title, text) in enumerate(mapper(partial(make_book, seed, split), count())):
        # Ids of the splits take turns, so that they do not depend on how many books there are.
        yield str(1 + number * len(SPLITS) + SPLITS.index(split)), title, text
        written += len(text)
        report.add(len(text))
        if written >= size:
            return


def make_book(seed: int, split: str, number: int) -> tuple[Title, bytes]:
    """One book: its title and its text, UTF-8."""
    writer = BookWriter(f"text/{VERSION}/{seed}/{split}/{number}", split)
    return writer.title, b"".join(writer.text())


class _Report:
    """Counts bytes; the last book of a split may go beyond what was planned."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _write_files(out: Path, source: dict[str, Any], books: Books) -> dict[str, Any]:
    info: dict[str, Any] = {**source, "splits": {}}
    with whole_folder(out) as folder, (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as table:
        for split in SPLITS:
            (folder / split).mkdir()
            counts = {"books": 0, "bytes": 0}
            for name, title, text in books(split):
                (folder / split / f"{name}.txt").write_bytes(text)
                table.write(_metadata_row(name, title))
                counts = {"books": counts["books"] + 1, "bytes": counts["bytes"] + len(text)}
            info["splits"][split] = counts
        (folder / "info.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return info


def _write_packed(out: Path, source: dict[str, Any], books: Books) -> dict[str, Any]:
    rows = []
    with pack_books(out) as writer:
        for split in SPLITS:
            with writer.split(split) as packed:
                for name, title, text in books(split):
                    packed.add(name, [text])
                    rows.append(_metadata_row(name, title))
        writer.add_metadata("".join(rows).encode())
        return writer.finish(source, verified=False, complete=False)


def _metadata_row(name: str, title: Title) -> str:
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow([name, f"{title.title} by {title.author}", title.year])
    return row.getvalue()


def _made_already(out: Path, source: dict[str, Any]) -> dict[str, Any] | None:
    """What `info.json` says if the same was made there before, None if `out` is free."""
    path = out / "info.json"
    if not path.is_file() or (out / MANIFEST).exists():
        expect_new(out)
        return None
    try:
        info = dict(json.loads(path.read_bytes()))
    except ValueError:
        raise DataError(f"expected the books of an earlier run in {out}, got another info.json: remove it") from None
    made = {key: info.get(key) for key in source}
    if made != source:
        raise DataError(f"expected {out} to be made from {source}, got one made from {made}: name another folder")
    return info
