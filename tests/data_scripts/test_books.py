"""The packed form: bytes exactly as they came, an index that fits them, whole or not at all."""

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_scripts.books import BLOCK, by_book, file_blocks, pack_books, packed_already
from data_scripts.errors import DataError

SOURCE = {"kind": "test", "splits": ["train"]}


def pack(out: Path, books: dict[str, list[bytes]]) -> dict:
    with pack_books(out) as writer:
        with writer.split("train") as split:
            for name, blocks in books.items():
                split.add(name, blocks)
        return writer.finish(SOURCE, verified=False, complete=False)


def unpack(out: Path, split: str = "train") -> dict[str, bytes]:
    """The slow and obvious reader."""
    data = (out / f"{split}.bytes").read_bytes()
    offsets = np.load(out / f"{split}.offsets.npy").tolist()
    names = json.loads((out / f"{split}.names.json").read_bytes())
    assert offsets[0] == 0
    assert offsets[-1] == len(data)
    return {name: data[begin:end] for name, (begin, end) in zip(names, pairwise(offsets), strict=True)}


def invalid_bytes(data: bytes) -> int:
    """Bytes that are no part of a UTF-8 character, by trying every start."""
    count = at = 0
    while at < len(data):
        for length in (1, 2, 3, 4):
            try:
                character = data[at : at + length].decode()
            except UnicodeDecodeError:
                continue
            if len(character) == 1:
                at += length
                break
        else:
            count, at = count + 1, at + 1
    return count


@given(st.lists(st.lists(st.binary(max_size=12), max_size=4), max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_bytes_in_any_pieces_come_back(tmp_path_factory: pytest.TempPathFactory, books: list[list[bytes]]) -> None:
    out = tmp_path_factory.mktemp("any") / "out"
    named = {f"book {number}": blocks for number, blocks in enumerate(books)}
    whole = {name: b"".join(blocks) for name, blocks in named.items()}
    if not any(whole.values()):
        with pytest.raises(DataError, match=r"expected text in the books of train, got \d books of 0 bytes"):
            pack(out, named)
        assert not out.exists()
        return
    manifest = pack(out, named)
    assert unpack(out) == whole
    assert manifest["splits"]["train"] == {
        "books": len(books),
        "bytes": sum(map(len, whole.values())),
        "invalid_utf8_bytes": sum(map(invalid_bytes, whole.values())),
    }


def test_awkward_bytes_are_kept_and_counted(tmp_path: Path) -> None:
    split_character = "é".encode()
    books = {
        "1": [b"a\r\nb\n\0\0", split_character[:1], split_character[1:]],
        "2": [b"\xff\xfeok\xc3"],
        "ö": [b"", b"\xef\xbb\xbfmark"],
        "empty": [],
    }
    manifest = pack(tmp_path / "out", books)
    assert unpack(tmp_path / "out") == {name: b"".join(blocks) for name, blocks in books.items()}
    assert manifest["splits"]["train"]["invalid_utf8_bytes"] == 3


def test_the_manifest_has_every_hash_and_nothing_of_this_machine(tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "deeper" / "again"
    assert pack(out, {"1": [b"one"], "2": [b"two"]}) == pack(again, {"1": [b"o", b"ne"], "2": [b"two"]})
    manifest = json.loads((out / "manifest.json").read_bytes())
    files = sorted(path.name for path in out.iterdir() if path.name != "manifest.json")
    assert sorted(manifest["files"]) == files == ["train.bytes", "train.names.json", "train.offsets.npy"]
    for name, info in manifest["files"].items():
        content = (out / name).read_bytes()
        assert info == {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        assert content == (again / name).read_bytes()
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deeper", "out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def twice() -> None:
        with pack_books(tmp_path / "out") as writer, writer.split("train") as split:
            split.add("a", [b"1"])
            split.add("a", [b"2"])

    with pytest.raises(DataError, match="expected every book of train once, got 'a' twice"):
        twice()
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    pack(tmp_path / "out", {"1": [b"into an empty folder"]})
    with pytest.raises(DataError, match=r"expected a new or empty folder, got .*out: remove it"):
        pack(tmp_path / "out", {"1": [b"other"]})
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="expected a new or empty folder"):
        pack(tmp_path / "file", {"1": [b"other"]})
    assert unpack(tmp_path / "out") == {"1": b"into an empty folder"}


def test_packed_already(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert packed_already(out, SOURCE) is None
    manifest = pack(out, {"1": [b"one"]})
    assert packed_already(out, SOURCE) == manifest
    with pytest.raises(DataError, match=r"made from \{'kind': 'other'\}, got one made from .*'test'"):
        packed_already(out, {"kind": "other"})
    (out / "train.bytes").write_bytes(b"on")
    with pytest.raises(DataError, match=r"train.bytes to have 3 bytes, got 2: remove .*out and pack again"):
        packed_already(out, SOURCE)
    (out / "train.bytes").unlink()
    with pytest.raises(DataError, match="got no such file"):
        packed_already(out, SOURCE)
    for content in ("[]", "{", '{"source": 1}'):
        (out / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=r"expected packed books in .*, got another manifest.json"):
            packed_already(out, SOURCE)


def test_numbers_sort_by_value_and_before_names() -> None:
    assert sorted(["b", "10", "9", "a2", "009", "²"], key=by_book) == ["009", "9", "10", "a2", "b", "²"]


KILLED = """
import sys, time
from pathlib import Path
from data_scripts.books import pack_books
with pack_books(Path(sys.argv[1])) as writer, writer.split("train") as split:
    split.add("1", [b"half a book"])
    print("now", flush=True)
    time.sleep(60)
"""


def test_killed_or_held_by_another(tmp_path: Path) -> None:
    """While a process packs, another one is told so; once it was killed, the next cleans up and finishes."""
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, cwd=Path.cwd())
    assert child.stdout is not None
    assert child.stdout.readline() == b"now\n"
    with pytest.raises(DataError, match="held by another process"):
        pack(out, {"1": [b"one"]})
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] != []
    pack(out, {"1": [b"one"]})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_memory_is_bounded_over_200_megabytes(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_bytes(os.urandom(1000) * 20_000)

    def peak(books: int) -> int:
        tracemalloc.start()
        try:
            with pack_books(tmp_path / f"out{books}") as writer:
                with writer.split("train") as split:
                    for number in range(books):
                        split.add(str(number), file_blocks(book))
                writer.finish(SOURCE, verified=False, complete=False)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    small, large = peak(1), peak(10)
    assert (tmp_path / "out10" / "train.bytes").stat().st_size == 200_000_000
    assert large < 1.05 * small < 40 * BLOCK
