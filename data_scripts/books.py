"""The packed form of a corpus of books: per split one file of raw bytes and an index of where each book begins.

    <out>/manifest.json   <out>/<split>.bytes   <out>/<split>.offsets.npy   <out>/<split>.names.json

`<split>.bytes` is all books one after another, exactly the bytes of the source. `<split>.offsets.npy` is (books + 1,)
int64, book i lies at offsets[i]:offsets[i + 1]; `<split>.names.json` is the list of their names. The manifest says
where the books come from, how many there are and what every file hashes to; it holds no times and no paths.
Only writes; the reader is the harness's. Knows nothing of where books come from.
"""

import codecs
import contextlib
import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_scripts.errors import DataError
from data_scripts.folders import expect_new, whole_folder

FORMAT = "vqa-bench books"
VERSION = 1
BLOCK = 1 << 20
"""Bytes that are read at once: what is held of a book in memory."""
SPLITS = ("train", "validation", "test")
MANIFEST = "manifest.json"

Manifest = dict[str, Any]


class SplitWriter:
    """Appends books to one split."""

    def __init__(self, folder: Path, split: str) -> None:
        self.split = split
        self.invalid = 0
        self._folder = folder
        self._names: list[str] = []
        self._known: set[str] = set()
        self._offsets = array("q", [0])
        self._hash = hashlib.sha256()
        self._file = (folder / f"{split}.bytes").open("wb")

    def add(self, name: str, blocks: Iterable[bytes]) -> None:
        """Append one book, given in pieces of any size.

        Raises:
            DataError: the split has a book of that name.
        """
        if name in self._known:
            raise DataError(f"expected every book of {self.split} once, got {name!r} twice: rename one of them")
        decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        size = 0
        for block in blocks:
            self._file.write(block)
            self._hash.update(block)
            self.invalid += _count_undecoded(decoder.decode(block))
            size += len(block)
        self.invalid += _count_undecoded(decoder.decode(b"", final=True))
        self._known.add(name)
        self._names.append(name)
        self._offsets.append(self._offsets[-1] + size)

    @property
    def books(self) -> int:
        """Books so far."""
        return len(self._names)

    @property
    def bytes(self) -> int:
        """Bytes so far."""
        return self._offsets[-1]

    def close(self) -> None:
        """Close the file of bytes; what was written of it so far stays."""
        self._file.close()

    def finish(self) -> dict[str, dict[str, Any]]:
        """Write the index; returns size and SHA-256 of the split's files by name."""
        import numpy as np

        self.close()
        np.save(self._folder / f"{self.split}.offsets.npy", np.frombuffer(self._offsets, np.int64))
        names = json.dumps(self._names, separators=(",", ":"))
        (self._folder / f"{self.split}.names.json").write_text(names + "\n", encoding="ascii")
        index = [self._folder / f"{self.split}.{kind}" for kind in ("offsets.npy", "names.json")]
        data = {"bytes": self.bytes, "sha256": self._hash.hexdigest()}
        return {f"{self.split}.bytes": data, **{path.name: _file_info(path) for path in index}}


class BookWriter:
    """Writes a packed corpus into a folder, one split after the other; `finish` writes the manifest, the last file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._splits: dict[str, dict[str, int]] = {}
        self._files: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def split(self, name: str) -> Iterator[SplitWriter]:
        """The writer of one split; the split is complete when the block ends.

        Raises:
            DataError: it ended without a byte.
        """
        writer = SplitWriter(self._folder, name)
        try:
            yield writer
            if not writer.bytes:
                raise DataError(f"expected text in the books of {name}, got {writer.books} books of 0 bytes")
            self._files |= writer.finish()
            counts = {"books": writer.books, "bytes": writer.bytes, "invalid_utf8_bytes": writer.invalid}
            self._splits[name] = counts
        finally:
            writer.close()

    def add_metadata(self, content: bytes) -> None:
        """Keep the source's table of titles and years beside the books."""
        path = self._folder / "metadata.csv"
        path.write_bytes(content)
        self._files[path.name] = _file_info(path)

    def counts(self) -> dict[str, int]:
        """Books of each finished split."""
        return {name: counts["books"] for name, counts in self._splits.items()}

    def finish(self, source: dict[str, Any], *, verified: bool, complete: bool) -> Manifest:
        """Write the manifest.

        Args:
            source: what was asked for; `packed_already` compares it.
            verified: whether the books were held against a published description of them.
            complete: whether they are all that the published corpus has.
        """
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "source": source,
            "verified": verified,
            "complete": complete,
            "splits": self._splits,
            "files": self._files,
        }
        text = json.dumps(manifest, indent=2) + "\n"
        (self._folder / MANIFEST).write_text(text, encoding="utf-8")
        return manifest


@contextlib.contextmanager
def pack_books(out: Path) -> Iterator[BookWriter]:
    """A writer whose folder takes the name `out` when the block ends well.

    Raises:
        DataError: `out` is there and not empty, or another process is making it.
    """
    with whole_folder(out) as folder:
        yield BookWriter(folder)


def packed_already(out: Path, source: dict[str, Any]) -> Manifest | None:
    """The manifest of `out` if the same was packed there before, None if it is free.

    Raises:
        DataError: something else is there, or files have changed in size since.
    """
    path = out / MANIFEST
    if not path.is_file():
        expect_new(out)
        return None
    try:
        manifest = dict(json.loads(path.read_bytes()))
        made, files = manifest["source"], {name: info["bytes"] for name, info in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"expected packed books in {out}, got another manifest.json: name another folder") from None
    if made != json.loads(json.dumps(source)):
        raise DataError(f"expected {out} to be made from {source}, got one made from {made}: name another folder")
    for name, size in files.items():
        got = (out / name).stat().st_size if (out / name).is_file() else "no such file"
        if got != size:
            raise DataError(f"expected {out / name} to have {size} bytes, got {got}: remove {out} and pack again")
    return manifest


def file_blocks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, in blocks.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as error:
        raise DataError(f"expected a readable book, got {path}: {error.strerror}") from error


def by_book(name: str) -> tuple[int, int, str]:
    """Sort key of a book's name: numbers by their value, then other names by theirs."""
    # Not str.isdigit: that takes digits of other scripts too, some of which int() refuses.
    return (0, int(name), name) if re.fullmatch("[0-9]+", name) else (1, 0, name)


def _count_undecoded(text: str) -> int:
    """How many bytes of a block were no UTF-8: "surrogateescape" made each one a lone surrogate, which has no code."""
    return 0 if text.isascii() else len(text) - len(text.encode(errors="ignore").decode())


def _file_info(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
