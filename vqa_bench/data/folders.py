"""Folders and files that exist whole or not at all, whatever happens to their writer. Knows not what is in them."""

import errno
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from vqa_bench.errors import UserError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ABANDONED_SECONDS = 24 * 3600
_HOST = re.sub(r"[^A-Za-z0-9.]", "_", platform.node())
_OURS: set[Path] = set()  # the folders that this process is writing


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` when the block ends, and vanishes if it raises.

    Raises:
        UserError: `out` exists.
    """
    if out.exists():
        raise UserError(f"expected a new path for the shard, got {out}, which exists; delete it or choose another")
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    for leftover in sorted(out.parent.glob(f"{escape(prefix)}*")):
        if _is_abandoned(leftover, leftover.name.removeprefix(prefix)):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = out.parent / f"{prefix}{_HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    _OURS.add(folder)
    try:
        folder.mkdir()
        try:
            yield folder
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise UserError(
                f"expected room to write {out}, got: {os.strerror(error.errno)}; free some space, then run the same "
                "command again"
            ) from error
        try:
            os.replace(folder, out)
        except OSError as error:
            raise UserError(f"expected to create {out}, got: {error}; was it made meanwhile?") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _OURS.discard(folder)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Another name beside `path`, to be written to: it takes the path's place when the block ends, or vanishes."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _is_abandoned(folder: Path, owner: str) -> bool:
    """Whether the writer of a temporary folder, `HOST-PROCESS-TOKEN`, was killed.

    A process of this host is asked for (the number may be our own: containers start counting anew). Of another host's
    it is known only that it would have changed something within a day.
    """
    host, _, process = owner.rpartition("-")[0].rpartition("-")
    if host == _HOST and process.isdecimal():
        return folder not in _OURS if int(process) == os.getpid() else not _is_running(int(process))
    try:
        changed = max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])
    except OSError:  # another process cleans up at the same moment
        return False
    return time.time() - changed > _ABANDONED_SECONDS


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
