"""Fetches PG19 book by book from the official bucket or a mirror of it, into a folder in PG19's layout.

    <base>/<split>/<id>.txt   <base>/metadata.csv   (rows: id, short title, year, link; no header)

Which books a split has is asked of the bucket, which lists its objects in pages of XML
(https://cloud.google.com/storage/docs/xml-api/get-bucket-list); a plain web server may instead have a list
`<split>_files.txt` of lines `<split>/<id>.txt`, as the Hugging Face repository deepmind/pg19 has under data/.
Book files that are whole are never asked for twice. Knows nothing of what is made of the books.
"""

import contextlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from data_scripts.books import by_book
from data_scripts.disk import hash_file
from data_scripts.errors import DataError
from data_scripts.fetch import FetchResult, NoConnectionError, RefusedError, Retry, fetch, new_client

OFFICIAL = "https://storage.googleapis.com/deepmind-gutenberg"
"""The bucket that the paper's README names (https://github.com/google-deepmind/pg19)."""
OFFICIAL_LISTS = "https://huggingface.co/datasets/deepmind/pg19/resolve/main/data"
PUBLISHED = {"train": 28_602, "validation": 50, "test": 100}
"""Books of each split (README of PG19)."""

_MD5 = re.compile("[0-9a-f]{32}")

Get = Callable[..., FetchResult]
"""`fetch` with its patience and connections given."""


@dataclass(frozen=True)
class RemoteBook:
    """A book to fetch: `<base>/<split>/<name>.txt`. None is what the list does not say."""

    split: str
    name: str
    size: int | None = None
    md5: str | None = None

    @property
    def path(self) -> str:
        """Its place under the base address and in the folder."""
        return f"{self.split}/{self.name}.txt"


def bytes_missing(books: Sequence[RemoteBook], folder: Path) -> int:
    """Bytes that are still to be fetched, as far as the list says."""
    return sum(book.size or 0 for book in books if not _is_here(book, folder))


def claim(folder: Path, base: str) -> None:
    """Make `folder` and write down where its books come from: those of two addresses must not mix.

    Raises:
        DataError: it has books of another address.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "source.url"
    known = path.read_text(encoding="utf-8").strip() if path.is_file() else base
    if known != base:
        raise DataError(f"expected {folder} to have books of {base}, got those of {known}: remove it")
    temporary = folder / ".source.url"
    temporary.write_text(base + "\n", encoding="utf-8")
    temporary.replace(path)


def list_books(base: str, split: str, folder: Path, retry: Retry | None = None) -> list[RemoteBook]:
    """The books of a split, sorted by their number. `folder` takes the lists while they are read.

    Raises:
        DataError: there is no list, or the official one has not the published number of books.
    """
    with _getter(retry) as get:
        books = list(_listed_in_pages(base, split, folder, get))
        if not books:
            books = list(_listed_in_file(base, split, folder, get))
    if base == OFFICIAL and len(books) != PUBLISHED[split]:
        raise DataError(
            f"expected {PUBLISHED[split]:,} books in {split} of PG19, got {len(books):,} listed at {base}: "
            "try again later, or name a mirror with --url"
        )
    return sorted(books, key=lambda book: by_book(book.name))


def fetch_books(
    base: str,
    books: Sequence[RemoteBook],
    folder: Path,
    *,
    connections: int = 8,
    retry: Retry | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Bring books into `folder`, in PG19's layout. Called again after a kill it goes on with those that are missing.

    Args:
        base: an address without a slash at its end.
        connections: books that are fetched at the same time.
        progress: called with the books that are there.

    Raises:
        DataError: the server cannot be reached, a book is missing or not as listed, or the disk is full.
    """
    missing = [book for book in books if not _is_here(book, folder)]
    done = len(books) - len(missing)
    with _getter(retry) as get:
        for _ in _in_parallel(lambda book: _fetch_book(base, book, folder, get), missing, connections):
            done += 1
            if progress is not None:
                progress(done)


@contextlib.contextmanager
def _getter(retry: Retry | None) -> Iterator[Get]:
    """`fetch` with this patience, over connections that stay open: making one takes longer than getting a book."""
    with new_client(retry) as client:
        yield partial(fetch, retry=retry, client=client)


def _listed_in_pages(base: str, split: str, folder: Path, get: Get) -> Iterator[RemoteBook]:
    """The bucket's own list, page by page; nothing where the server has no such list."""
    marker = ""
    while True:
        query = {"prefix": f"{split}/", "marker": marker} if marker else {"prefix": f"{split}/"}
        page = _list_page(f"{base}?{urlencode(query)}", folder, get, first=not marker)
        if page is None:
            return
        key = marker
        for entry in page.iterfind("{*}Contents"):
            key = entry.findtext("{*}Key", "")
            name = _name_of(key, split)
            if name is not None:
                md5 = _MD5.fullmatch(entry.findtext("{*}ETag", "").strip('"'))
                size = entry.findtext("{*}Size")
                yield RemoteBook(split, name, None if size is None else int(size), md5[0] if md5 else None)
        if page.findtext("{*}IsTruncated") != "true":
            return
        following = page.findtext("{*}NextMarker") or key
        if following <= marker:
            raise DataError(f"expected {base} to list what comes after {marker!r}, got {following!r}: is it a bucket?")
        marker = following


def _list_page(url: str, folder: Path, get: Get, *, first: bool) -> ElementTree.Element | None:
    """One page of a bucket's list; None where the first one shows that the server is no bucket."""
    try:
        page = ElementTree.fromstring(_fetch_text(url, folder, get))
        if page.tag.rpartition("}")[2] == "ListBucketResult":
            return page
    except ElementTree.ParseError:
        pass
    except NoConnectionError:
        raise
    except DataError:
        if not first:
            raise
    if first:
        return None
    raise DataError(f"expected another page of the list of books at {url}, got something else: try again")


def _listed_in_file(base: str, split: str, folder: Path, get: Get) -> Iterator[RemoteBook]:
    """The list that lies beside the books, or for the official books at Hugging Face."""
    places = [base, f"{base}/data"] + ([OFFICIAL_LISTS] if base == OFFICIAL else [])
    fault = ""
    for place in places:
        try:
            lines = _fetch_text(f"{place}/{split}_files.txt", folder, get).splitlines()
        except NoConnectionError:
            raise
        except DataError as error:
            fault = f" ({error})"
            continue
        names = [name for line in lines if (name := _name_of(line.strip(), split)) is not None]
        if names:
            yield from (RemoteBook(split, name) for name in names)
            return
    raise DataError(
        f"expected a list of the books of {split} at {base}, a bucket's or {split}_files.txt, got none{fault}: "
        "check the address, or download the books and use --folder"
    )


def _name_of(path: str, split: str) -> str | None:
    match = re.fullmatch(rf"{re.escape(split)}/([0-9]+)\.txt", path)
    return match[1] if match else None


def _fetch_text(url: str, folder: Path, get: Get) -> str:
    """A small text. Where there is no network, the error says how else to come by the books."""
    target = folder / ".list"
    target.unlink(missing_ok=True)
    try:
        get(url, target)
        return target.read_text(encoding="utf-8", errors="replace")
    except NoConnectionError as error:
        raise NoConnectionError(
            f"{error}; or bring the books from another machine: a folder with train/<id>.txt, validation/ and test/ "
            "for --folder, or a data set of the Hugging Face Hub for --dataset"
        ) from error
    finally:
        target.unlink(missing_ok=True)


def fetch_metadata(base: str, folder: Path, retry: Retry | None = None) -> None:
    """Bring `metadata.csv` into `folder`. A mirror may do without: nothing is made of it."""
    if not (folder / "metadata.csv").exists():
        try:
            fetch(f"{base}/metadata.csv", folder / "metadata.csv", retry=retry)
        except RefusedError:
            if base == OFFICIAL:
                raise


def _is_here(book: RemoteBook, folder: Path) -> bool:
    path = folder / book.path
    return path.is_file() and (book.size is None or path.stat().st_size == book.size)


def _fetch_book(base: str, book: RemoteBook, folder: Path, get: Get) -> None:
    path = folder / book.path
    path.unlink(missing_ok=True)  # of another size than the list says
    # Fetched under another name: a book that has its own is as listed.
    fetched = path.with_suffix(".fetched")
    get(f"{base}/{book.path}", fetched, size=book.size)
    if base == OFFICIAL and book.md5 is not None:  # elsewhere an ETag may be anything
        got = hash_file(fetched, algorithm="md5")
        if got != book.md5:
            fetched.unlink()
            raise DataError(f"expected {book.path} with MD5 {book.md5}, got {got}: run the same command again")
    fetched.replace(path)


def _in_parallel(
    task: Callable[[RemoteBook], None], books: Iterable[RemoteBook], connections: int
) -> Iterator[RemoteBook | None]:
    """Run `task` on every book, a few at a time; yields once for each that is done, and stops at the first failure."""
    pending: set[Future[None]] = set()
    with ThreadPoolExecutor(connections) as pool:
        try:
            for book in books:
                if len(pending) >= 4 * connections:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
                pending.add(pool.submit(task, book))
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
