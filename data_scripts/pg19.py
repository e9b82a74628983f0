"""Packs PG19, or books of one's own, from the official bucket, a Hugging Face data set or a folder of .txt files.

A source says what it is, which splits it has and what its books are; `pack_pg19` writes them in one pass, a block at
a time. Knows nothing of the packed form (`books.py`).
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data_scripts.books import SPLITS, Manifest, by_book, file_blocks, pack_books, packed_already
from data_scripts.disk import require_free_space
from data_scripts.errors import DataError
from data_scripts.fetch import Retry
from data_scripts.gutenberg import (
    OFFICIAL,
    PUBLISHED,
    RemoteBook,
    bytes_missing,
    claim,
    fetch_books,
    fetch_metadata,
    list_books,
)
from data_scripts.hub_books import DatasetSource

Progress = Callable[[int, int], None]


class Source(Protocol):
    """Where books come from.

    Attributes:
        request: what it is, for the manifest; nothing in it depends on this machine.
        verified: whether its books were held against a published description of each.
    """

    request: dict[str, Any]
    verified: bool

    def splits(self) -> list[str]:
        """The splits there are."""

    def prepare(self, splits: Sequence[str], progress: Progress) -> int:
        """Bring the books here, if they are not; returns how many of its steps `progress` has counted."""

    def count(self, split: str) -> int | None:
        """Books of a split, None where that is not known beforehand."""

    def books(self, split: str) -> Iterator[tuple[str, Iterable[bytes]]]:
        """Each book's name and its bytes in blocks, always in the same order."""

    def metadata(self) -> bytes | None:
        """The table of titles and years, if there is one."""

    def clean(self) -> None:
        """Remove what `prepare` brought and nobody asked to keep."""


def pack_pg19(
    out: Path,
    *,
    url: str | None = None,
    dataset: str | None = None,
    column: str = "text",
    folder: Path | None = None,
    splits: Sequence[str] | None = None,
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    cache: Path | None = None,
    connections: int = 8,
    retry: Retry | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Pack a corpus of books into `out`; the same call again finds it there and does nothing.

    Args:
        url: address of PG19's layout; without any source it is the official bucket.
        dataset: instead, a data set that 🤗 `datasets` can load: a name on the Hub, or a folder of its files.
        column: of the data set, the text of a book.
        folder: instead, a folder with `<split>/*.txt`, or with `*.txt`, which then are `train`.
        splits: which of them; None is all there are.
        validation_fraction, test_fraction: with plain `*.txt`, the share of books to carve out, by a hash of their
            names and `seed`.
        cache: where fetched books are kept in PG19's layout; None is a hidden folder beside `out` that goes when all
            is packed. A run that was killed continues from it.
        connections: books that are fetched at the same time.
        retry: how patient to be with the server.
        progress: called with the steps done and in all: a book fetched is one, a book packed is one.

    Returns:
        The manifest of `out`.

    Raises:
        DataError: more than one source, a source that is not as it should be, or something else at `out`.
    """
    if sum(given is not None for given in (url, dataset, folder)) > 1:
        raise DataError("expected one source of books, got several: give one of --url, --dataset and --folder")
    if connections < 1:
        raise DataError(f"expected at least one connection, got {connections}")
    fractions = {"validation": validation_fraction, "test": test_fraction}
    carved = {split: fraction for split, fraction in fractions.items() if fraction is not None}
    if carved and folder is None:
        raise DataError("expected --validation-fraction and --test-fraction with --folder, got another source")
    source: Source
    if folder is not None:
        source = FolderSource(folder, carved, seed)
    elif dataset is not None:
        source = DatasetSource(dataset, column)
    else:
        fetched = out.with_name(f".{out.name}.fetched") if cache is None else cache
        base = (OFFICIAL if url is None else url).rstrip("/")
        source = RemoteSource(base, out, fetched, keep=cache is not None, connections=connections, retry=retry)
    return _pack(out, source, splits, progress or (lambda done, total: None))


def _pack(out: Path, source: Source, splits: Sequence[str] | None, progress: Progress) -> Manifest:
    request = {**source.request, "splits": None if splits is None else sorted(splits)}
    manifest = packed_already(out, request)
    if manifest is None:
        with pack_books(out) as writer:
            wanted = _wanted(source.splits(), splits)
            done = source.prepare(wanted, progress)
            counts = [source.count(split) for split in wanted]
            known = None if None in counts else done + sum(count or 0 for count in counts)
            for split in wanted:
                with writer.split(split) as books:
                    for name, blocks in source.books(split):
                        books.add(name, blocks)
                        done += 1
                        progress(done, done if known is None else known)
            metadata = source.metadata()
            if metadata is not None:
                writer.add_metadata(metadata)
            complete = writer.counts() == PUBLISHED
            manifest = writer.finish(request, verified=source.verified, complete=complete)
    source.clean()
    return manifest


def _wanted(there: list[str], splits: Sequence[str] | None) -> list[str]:
    unknown = sorted(set(splits or ()) - set(there))
    if unknown:
        raise DataError(f"expected splits out of {', '.join(there)}, got {unknown[0]!r}")
    return [split for split in there if splits is None or split in splits]


class RemoteSource:
    """PG19's layout at an address; fetched books are kept in `cache` until all are packed, and beyond with `keep`."""

    def __init__(self, base: str, out: Path, cache: Path, *, keep: bool, connections: int, retry: Retry | None) -> None:
        self.request: dict[str, Any] = {"kind": "url", "url": base}
        self.verified = False
        self._base, self._out, self._cache, self._keep = base, out, cache, keep
        self._connections, self._retry = connections, retry
        self._books: dict[str, list[RemoteBook]] = {}

    def splits(self) -> list[str]:
        return list(SPLITS)

    def prepare(self, splits: Sequence[str], progress: Progress) -> int:
        claim(self._cache, self._base)
        for split in splits:
            self._books[split] = list_books(self._base, split, self._cache, self._retry)
        books = [book for split in splits for book in self._books[split]]
        # Before the first byte, as the last may be hours away: the books lie there twice for a while.
        self._out.parent.mkdir(parents=True, exist_ok=True)
        packed, missing = sum(book.size or 0 for book in books), bytes_missing(books, self._cache)
        if self._cache.stat().st_dev == self._out.parent.stat().st_dev:
            require_free_space(self._cache, missing + packed, what=f"{len(books):,} books, fetched and packed")
        else:
            require_free_space(self._cache, missing, what=f"{len(books):,} books, fetched")
            require_free_space(self._out.parent, packed, what=f"{len(books):,} books, packed")
        fetch_metadata(self._base, self._cache, self._retry)
        fetch_books(
            self._base,
            books,
            self._cache,
            connections=self._connections,
            retry=self._retry,
            progress=lambda done: progress(done, 2 * len(books)),
        )
        self.verified = self._base == OFFICIAL and all(None not in (book.size, book.md5) for book in books)
        return len(books)

    def count(self, split: str) -> int | None:
        return len(self._books[split])

    def books(self, split: str) -> Iterator[tuple[str, Iterable[bytes]]]:
        return ((book.name, file_blocks(self._cache / book.path)) for book in self._books[split])

    def metadata(self) -> bytes | None:
        path = self._cache / "metadata.csv"
        return path.read_bytes() if path.is_file() else None

    def clean(self) -> None:
        if not self._keep:
            shutil.rmtree(self._cache, ignore_errors=True)


class FolderSource:
    """A folder with `<split>/*.txt`, or with `*.txt` only, of which `carved` says the shares of other splits."""

    verified = False

    def __init__(self, folder: Path, carved: Mapping[str, float], seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._splits = self._find(carved)
        listed = [f"{path.relative_to(folder).as_posix()} {size}" for path, size in self._sizes()]
        self.request: dict[str, Any] = {
            "kind": "folder",
            "folder": folder.resolve().name,
            "names_and_sizes": hashlib.sha256("\n".join(listed).encode(errors="surrogateescape")).hexdigest(),
        }
        if carved:
            self.request |= {"carved": dict(carved), "seed": seed}

    def splits(self) -> list[str]:
        return list(self._splits)

    def prepare(self, splits: Sequence[str], progress: Progress) -> int:
        return 0

    def count(self, split: str) -> int | None:
        return len(self._splits[split])

    def books(self, split: str) -> Iterator[tuple[str, Iterable[bytes]]]:
        return ((path.stem, file_blocks(path)) for path in self._splits[split])

    def metadata(self) -> bytes | None:
        path = self._folder / "metadata.csv"
        return b"".join(file_blocks(path)) if path.is_file() else None

    def clean(self) -> None:
        """Nothing was brought here."""

    def _find(self, carved: Mapping[str, float]) -> dict[str, list[Path]]:
        if not self._folder.is_dir():
            raise DataError(f"expected a folder with .txt files, got {self._folder}: no such folder")
        plain = _texts(self._folder)
        layout = {split: texts for split in SPLITS if (texts := _texts(self._folder / split))}
        if not plain and not layout:
            raise DataError(f"expected *.txt or train/*.txt in {self._folder}, got none: is it the right folder?")
        if plain and layout:
            raise DataError(f"expected *.txt or <split>/*.txt in {self._folder}, got both: move {plain[0].name} away")
        if layout and carved:
            raise DataError(f"expected plain *.txt to carve a split from, got {self._folder} with splits of its own")
        return layout or self._carve(plain, carved)

    def _carve(self, texts: list[Path], carved: Mapping[str, float]) -> dict[str, list[Path]]:
        if not (all(fraction > 0 for fraction in carved.values()) and sum(carved.values()) < 1):
            raise DataError(f"expected fractions above 0 that leave something to train on, got {dict(carved)}")
        splits: dict[str, list[Path]] = {split: [] for split in SPLITS if split == "train" or split in carved}
        for path in texts:
            splits[self._split_of(path.stem, carved)].append(path)
        empty = [split for split, paths in splits.items() if not paths]
        if empty:
            raise DataError(f"expected books in every split, got none of {len(texts)} in {empty[0]}: take another seed")
        return splits

    def _split_of(self, name: str, carved: Mapping[str, float]) -> str:
        digest = hashlib.sha256(f"{self._seed}/{name}".encode(errors="surrogateescape")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        for split, fraction in carved.items():
            if place < fraction:
                return split
            place -= fraction
        return "train"

    def _sizes(self) -> Iterator[tuple[Path, int]]:
        for paths in self._splits.values():
            for path in paths:
                try:
                    yield path, path.stat().st_size
                except OSError as error:
                    raise DataError(f"expected a readable book, got {path}: {error.strerror}") from error


def _texts(folder: Path) -> list[Path]:
    """The .txt files of a folder in the order of their names, numbers by value; none where there is no folder."""
    if not folder.is_dir():
        return []
    try:
        found = sorted(
            (path for path in folder.iterdir() if path.suffix == ".txt"), key=lambda path: by_book(path.stem)
        )
    except OSError as error:
        raise DataError(f"expected a readable folder, got {folder}: {error.strerror}") from error
    for path in found:
        if path.is_fifo() or path.is_socket():  # reading one would wait for ever
            raise DataError(f"expected a readable book, got {path}: not a file; remove it")
    return found
