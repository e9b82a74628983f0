"""Locks between processes: who makes a data set, who trains a run. They end with their process, however it dies.

The locks are `flock`s on files that stay where they are; a cluster's file system must support them between machines
(NFS 4 does, Lustre when it is mounted with `flock`). Knows nothing of runs or data sets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = ".locks"
POLL_SECONDS = 0.5


def try_lock(path: Path) -> FileLock | None:
    """The lock, held, or None where another process holds it. It is let go of by `release`, or with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


@contextmanager
def alone(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock in this block; where another process holds it, say so and wait."""
    lock = try_lock(path)
    if lock is None:
        print(f"waiting for another process that is at {what}", file=sys.stderr, flush=True)
        lock = FileLock(path)
        lock.acquire(poll_interval=POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()
