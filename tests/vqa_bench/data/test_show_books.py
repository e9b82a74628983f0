"""What `inspect` shows of packed books, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from vqa_bench.data.manifest import file_info
from vqa_bench.data.show_books import book_text, books_text, holds_books
from vqa_bench.errors import UserError

BOOKS = (b"It was a\xff dark night.\n", bytes(range(256)) * 5, b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Packed books made by hand: three for training, none for validation."""
    path = tmp_path / "books"
    path.mkdir()
    for name, books in (("train", BOOKS), ("validation", ())):
        (path / f"{name}.bytes").write_bytes(b"".join(books))
        np.save(path / f"{name}.offsets.npy", np.cumsum([0, *map(len, books)]))
        (path / f"{name}.names.json").write_text(json.dumps([f"no-{place}" for place in range(len(books))]))
    splits = {
        "train": {"books": 3, "bytes": sum(map(len, BOOKS)), "invalid_utf8_bytes": 641},
        "validation": {"books": 0, "bytes": 0, "invalid_utf8_bytes": 0},
    }
    files = {file.name: file_info(file).model_dump() for file in sorted(path.iterdir())}
    about = {"source": {"kind": "folder"}, "verified": False, "complete": False, "splits": splits, "files": files}
    (path / "manifest.json").write_text(json.dumps({"format": "vqa-bench books", "version": 1} | about))
    return path


def test_the_manifest(folder: Path) -> None:
    shown = books_text(folder, verify=True).plain
    assert "every file hashed again" in shown
    row = next(line.split() for line in shown.splitlines() if line.startswith("train"))
    assert row == ["train", "3", "1,302", "641", "0", "22", "1,280", "1,280"]
    assert "--verify" in books_text(folder).plain


def test_a_book(folder: Path) -> None:
    first = book_text(folder, 0).plain
    assert "Book 0 of 3 in train" in first
    assert "no-0" in first
    assert "         0 49 74 20 77 61 73 20 61 ff 20 64 61 72 6b 20 6e |It was a. dark n|" in first
    second = book_text(folder, 1, width=32, full=True).plain
    lines = [line for line in second.splitlines() if line.endswith("|")]
    assert bytes.fromhex("".join(line[11:107] for line in lines)) == BOOKS[1]
    short = book_text(folder, 1).plain
    assert "       160 … 960 bytes, shown with --full …" in short
    assert "      1120 60 61" in short
    assert book_text(folder, 2, split="train").plain.count("|") == 0


def test_what_is_no_book(folder: Path, tmp_path: Path) -> None:
    assert holds_books(folder)
    assert not holds_books(tmp_path)
    with pytest.raises(UserError, match=r"a book of split train of .* \(0 to 2\), got 3"):
        book_text(folder, 3)
    with pytest.raises(UserError, match=r"a book of split validation of .* \(none, it has no books\), got 0"):
        book_text(folder, 0, split="validation")
    with pytest.raises(UserError, match="expected packed books"):
        books_text(tmp_path)
    (folder / "train.bytes").write_bytes(b"short")
    with pytest.raises(UserError, match=r"train\.bytes"):
        books_text(folder)
