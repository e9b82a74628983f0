"""Reads packed books, memory-mapped, and says which windows of their bytes train or test at which step.

    <folder>/manifest.json   <folder>/<split>.bytes   <folder>/<split>.offsets.npy   <folder>/<split>.names.json

A split is one stream of bytes, all books one after another (the protocol of PG19: windows run across the borders of
books). Nothing is copied: books and windows are views of the file. Which window comes when is a function of (seed,
epoch, position), not state. Must not know where books come from, models or torch.
"""

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vqa_bench.data.manifest import MANIFEST_NAME, FileInfo, Record, file_info, parse_manifest
from vqa_bench.errors import UserError

_AGAIN = "pack the books again"


class BookCounts(Record):
    """What one split holds; bytes that are no UTF-8 are kept and counted."""

    books: int
    bytes: int
    invalid_utf8_bytes: int


class BooksManifest(Record):
    """Everything about packed books that is not in their bytes.

    Attributes:
        source: what they were packed from.
        verified: whether each was held against a published description.
        complete: whether every split has as many books as PG19 was published with.
        files: every other file of the folder, by its name.
    """

    format: Literal["vqa-bench books"]
    version: Literal[1]
    source: dict[str, Any]
    verified: bool
    complete: bool
    splits: dict[str, BookCounts]
    files: dict[str, FileInfo]


def open_books(path: Path) -> "Books":
    """Opens a folder of packed books.

    Raises:
        UserError: it is not one, or one of another version.
    """
    file = path / MANIFEST_NAME
    if not file.is_file():
        raise UserError(f"expected packed books (a folder with {MANIFEST_NAME}), got {path}; make them by `data pg19`")
    return Books(path, parse_manifest(BooksManifest, file, what="packed books", again=_AGAIN))


class Books:
    """An open folder of packed books. It can be pickled: the copy opens the same folder again.

    Attributes:
        path: the folder.
        manifest: what it says about itself.
    """

    def __init__(self, path: Path, manifest: BooksManifest) -> None:
        self.path = path
        self.manifest = manifest

    def split(self, name: str) -> "BookSplit":
        """The reader of a split.

        Raises:
            UserError: no such split, or its files are missing or have changed in size.
        """
        if name not in self.manifest.splits:
            raise UserError(f"expected a split of {self.path} ({', '.join(self.manifest.splits)}), got '{name}'")
        for file, info in self.manifest.files.items():
            if file.startswith(f"{name}."):
                self._expect_size(file, info.bytes)
        return BookSplit(self.path, name)

    def verify(self) -> None:
        """Hashes all files again.

        Raises:
            UserError: a file is missing or is not what was written; names it.
        """
        for name, info in self.manifest.files.items():
            self._expect_size(name, info.bytes)
            if file_info(self.path / name) != info:
                raise UserError(
                    f"expected {self.path / name} with SHA-256 {info.sha256:.12}…, got a changed file; {_AGAIN}"
                )

    def _expect_size(self, name: str, size: int) -> None:
        path = self.path / name
        if not path.is_file():
            raise UserError(f"expected {path} as the manifest says, got no such file; {_AGAIN}")
        got = path.stat().st_size
        if got != size:
            raise UserError(f"expected {path} to have {size:,} bytes as the manifest says, got {got:,}; {_AGAIN}")


class BookSplit:
    """The books of one split; `len()` is their number. It can be pickled: the copy maps the files again.

    Attributes:
        data: (bytes,) uint8, the whole stream: a read-only view of the file.
        offsets: (books + 1,) int64; book i lies at offsets[i]:offsets[i + 1].
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self.offsets: np.ndarray = np.load(folder / f"{name}.offsets.npy", mmap_mode="r")
        path = folder / f"{name}.bytes"
        # A memmap's slices are slow and drag its attributes along; the plain view keeps the map alive.
        self.data = np.asarray(np.memmap(path, np.uint8, "r")) if path.stat().st_size else np.empty(0, np.uint8)

    def __reduce__(self) -> "tuple[type[BookSplit], tuple[Path, str]]":
        return BookSplit, (self._folder, self._name)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def names(self) -> list[str]:
        """The name of each book; PG19's are Project Gutenberg's numbers."""
        return json.loads((self._folder / f"{self._name}.names.json").read_bytes())

    def book(self, index: int) -> np.ndarray:
        """The bytes of a book, (length,) uint8: a view of the file, not a copy. IndexError for no such book."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected a book 0..{len(self) - 1}, got {index}")
        return self.data[self.offsets[index] : self.offsets[index + 1]]

    def window(self, start: int, length: int) -> np.ndarray:
        """`length` bytes of the stream, (length,) uint8: a view, not a copy. IndexError where it is not inside."""
        if start < 0 or length < 0 or start + length > len(self.data):
            raise IndexError(f"expected a window inside {len(self.data)} bytes, got {length} from {start}")
        return self.data[start : start + length]


@dataclass(frozen=True)
class WindowPlan:
    """Which windows train at which step: the stream cut into windows of `length` bytes, in a new order each epoch.

    Each epoch begins its first window at another place, its phase, of 0 .. length - 1, so that over the epochs every
    byte meets every position of a window. Within an epoch no byte comes twice; fewer than 2 * length bytes, before the
    phase and after the last whole window, do not come. Samples are counted through all epochs: sample k is window
    k % windows_per_epoch of epoch k // windows_per_epoch, and step s is samples s * batch .. (s + 1) * batch - 1.

    Attributes:
        length: bytes of a window.
        batch: windows of one step over all processes.
        rank, world: this process takes every world-th window of a batch. Where world does not divide a batch, some have
            a window more than others, so losses are summed, not averaged.

    Raises:
        UserError: no such window fits into the stream, or a batch has not a window for every process.
    """

    split: BookSplit
    length: int
    seed: int
    batch: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        size = len(self.split.data)
        if not 1 <= self.length <= size:
            raise UserError(
                f"expected windows of 1 to {size:,} bytes, as the books have no more, got {self.length:,}; "
                "make the windows shorter or the books more"
            )
        assert 0 <= self.rank < self.world, "a rank counts from 0"
        if self.batch < self.world:
            raise UserError(
                f"expected at least one window a batch for each of {self.world} processes, got {self.batch}; make the "
                "batch larger or start fewer processes"
            )

    @property
    def windows_per_epoch(self) -> int:
        """The same for every phase; 1 where the stream has room for only one window at some phases."""
        return max(1, (len(self.split.data) - self.length + 1) // self.length)

    def start(self, sample: int) -> int:
        """Where the window of a sample (counted from 0 over all epochs and processes) begins in the stream."""
        epoch, place = divmod(sample, self.windows_per_epoch)
        room = len(self.split.data) - self.windows_per_epoch * self.length
        phase, order = _epoch(self.seed, epoch, self.windows_per_epoch, min(self.length - 1, room))
        return phase + int(order[place]) * self.length

    def samples(self, step: int) -> range:
        """The numbers of this process's samples of a step."""
        return range(step * self.batch + self.rank, (step + 1) * self.batch, self.world)

    def starts(self, step: int) -> np.ndarray:
        """(samples,) int64: where this process's windows of a step begin."""
        return np.array([self.start(sample) for sample in self.samples(step)], np.int64)

    def windows(self, step: int) -> list[np.ndarray]:
        """This process's windows of a step, each (length,) uint8: views of the file."""
        return [self.split.window(int(start), self.length) for start in self.starts(step)]


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, largest_phase: int) -> tuple[int, np.ndarray]:
    """An epoch's phase and its order, a permutation (windows,).

    Kept for two epochs, as one step can reach into the next: that saves time and is no state.
    """
    random = np.random.default_rng((seed, epoch))
    return int(random.integers(largest_phase + 1)), random.permutation(windows)


def evaluation_windows(split: BookSplit, length: int) -> np.ndarray:
    """(windows, 2) int64, start and length: windows that cover each byte once; the last may be shorter.

    Raises:
        UserError: `length` is not positive.
    """
    if length < 1:
        raise UserError(f"expected windows of at least 1 byte, got {length}; make them longer")
    starts = np.arange(0, len(split.data), length, dtype=np.int64)
    return np.stack([starts, np.minimum(length, len(split.data) - starts)], axis=1)
