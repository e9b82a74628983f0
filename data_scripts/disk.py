"""What downloads ask of the disk: locks, free space, hashes, files that exist whole or not at all.

Must not know networks, archives or data sets.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data_scripts.errors import DataError

Report = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""

CHUNK = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file `path`; the system lets go of it when the process dies, however it dies.

    Raises:
        DataError: another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(
            f"expected to be the only one at {what}, got {path} held by another process; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        # Removed while it is held: who opened it meanwhile sees that the file has no name any more and starts over.
        path.unlink(missing_ok=True)
        lock.release()


def require_free_space(folder: Path, needed: int, *, what: str) -> None:
    """Raise DataError if `folder`'s disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"expected {needed:,} bytes free in {folder} for {what}, got {free:,}; "
            "free some space, then run the same command again"
        )


@contextlib.contextmanager
def explain_full_disk(path: Path) -> Iterator[None]:
    """Turn "no space left", a full quota and a file-size limit into a DataError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"expected room to write {path}, got: {error.strerror}; "
                "free some space, then run the same command again"
            ) from error
        raise


def hash_file(path: Path, *, algorithm: str = "sha256", progress: Report | None = None) -> str:
    """The hexadecimal digest of a file, read in pieces."""
    digest, total = hashlib.new(algorithm, usedforsecurity=False), path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress(file.tell(), total)
    return digest.hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON file: at any moment there is the old one or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    with explain_full_disk(path), temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
