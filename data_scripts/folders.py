"""A folder that exists whole or not at all, made by one process at a time. Knows nothing of what is inside."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_scripts.disk import explain_full_disk, locked
from data_scripts.errors import DataError


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` that takes its name when the block ends well, and goes away when it does not.

    Whatever a killed process left behind is removed first; the lock tells it from another process's work.

    Raises:
        DataError: `out` is there and not an empty folder, another process is making it, or the disk is full.
    """
    expect_new(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with locked(out.with_name(f".{out.name}.lock"), what=f"the making of {out}"), explain_full_disk(out):
        expect_new(out)  # another process may have finished it while this one came to the lock
        folder = out.with_name(f".{out.name}.partial")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
            if out.exists():
                out.rmdir()
            os.replace(folder, out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def expect_new(out: Path) -> None:
    """Raises DataError unless `out` is free or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"expected a new or empty folder, got {out}: remove it or name another")
