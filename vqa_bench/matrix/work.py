"""Takes one run after another until all are settled, beside any number of other processes on the same results folder.

A run belongs to whoever holds its lock. What others hold is left for later; where one of them dies, its run is taken
over. Under a launcher the main process decides and all of them train the same run. Knows nothing of how a run is made.
"""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from vqa_bench import launch
from vqa_bench.errors import SharedError, StoppedError, UserError
from vqa_bench.matrix.cells import Trainable
from vqa_bench.matrix.fill import fill, say
from vqa_bench.matrix.folder import Invocation, is_filled
from vqa_bench.matrix.locks import try_lock
from vqa_bench.runs import write_json

POLL_SECONDS = 1.0  # between two looks at runs that others hold
KEPT_FAILURES = 8  # commands whose fault of one run is remembered


@dataclass(frozen=True)
class Work:
    """What one command has to train, in an order in which it can be. It can be pickled: workers are sent it."""

    runs: tuple[Trainable, ...]
    invocation: Invocation


def work(todo: Work) -> dict[str, str]:
    """Train until nothing is left to do or to wait for; what went wrong in this process, by label.

    Every process of a launch calls this. Raises StoppedError where somebody asked to stop.
    """
    foreman = _Foreman(todo) if launch.is_main() else None
    try:
        while True:
            turn = launch.broadcast(None if foreman is None else foreman.next())
            if turn is None:
                return {} if foreman is None else foreman.faults
            if turn == _WAIT:
                continue
            fault = _attempt(todo.runs[turn], todo.invocation)
            if foreman is not None:
                foreman.finish(fault)
    finally:
        if foreman is not None:
            foreman.release()


def fault_in(run: Trainable, invocation: Invocation) -> str | None:
    """What went wrong with a run in any process of a command."""
    return _failures(run).get(invocation.token)


_WAIT = -1


class _Foreman:
    """Decides on the main process what is next, and holds the lock of the run that is being trained."""

    def __init__(self, todo: Work) -> None:
        self.todo = todo
        self.faults: dict[str, str] = {}
        self._left = list(range(len(todo.runs)))
        self._current: int | None = None
        self._lock: FileLock | None = None
        self._said: list[str] = []

    def next(self) -> int | None:
        """The number of the run that is to be trained now, its lock held; _WAIT after a while without one; or None."""
        for place in list(self._left):
            run = self.todo.runs[place]
            if self._settled(run):
                self._left.remove(place)
            elif self._ready(run) and (lock := try_lock(run.lock)) is not None:
                if self._settled(run):  # by who held the lock a moment ago
                    lock.release()
                    self._left.remove(place)
                else:
                    self._current, self._lock = place, lock
                    return place
        if not self._left:
            return None
        waiting = [self.todo.runs[place].label for place in self._left]
        if waiting != self._said:
            say(f"waiting for {', '.join(waiting)}: at work in another process")
            self._said = waiting
        time.sleep(POLL_SECONDS)
        return _WAIT

    def finish(self, fault: str | None) -> None:
        """The run that `next` gave is over."""
        assert self._current is not None
        run = self.todo.runs[self._current]
        self._left.remove(self._current)
        if fault is not None:
            self._fail(run, fault)
        else:
            _failures_path(run).unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Let go of the run's lock, whether it is over or not."""
        if self._lock is not None:
            self._lock.release()
            self._lock = self._current = None

    def _settled(self, run: Trainable) -> bool:
        """Whether a run is over for this command: finished, failed, or without the run it needs."""
        if is_filled(run) or run.label in self.faults or fault_in(run, self.todo.invocation) is not None:
            return True
        needed = self._needed(run)
        if needed is None or (needed.label not in self.faults and fault_in(needed, self.todo.invocation) is None):
            return False
        self.faults[run.label] = f"expected {needed.label} to begin from, got none, as it failed; run the same again"
        say(f"error: {run.label}: {self.faults[run.label]}")
        return True

    def _ready(self, run: Trainable) -> bool:
        needed = self._needed(run)
        return needed is None or is_filled(needed)

    def _needed(self, run: Trainable) -> Trainable | None:
        if run.needs is None:
            return None
        return next(other for other in self.todo.runs if other.label == run.needs)

    def _fail(self, run: Trainable, fault: str) -> None:
        """Remember a fault, here and for the other processes of the same command; the lock is held."""
        self.faults[run.label] = fault
        known = list((_failures(run) | {self.todo.invocation.token: fault}).items())
        try:
            write_json(_failures_path(run), dict(known[-KEPT_FAILURES:]))
        except OSError as error:  # a full disk, perhaps the fault itself: the others will find out for themselves
            say(f"note: {run.label}: could not write down that it failed: {error}")


def _attempt(run: Trainable, invocation: Invocation) -> str | None:
    """Fill a run; what went wrong as one line, said at once, or None."""
    try:
        fill(run, invocation)
    except StoppedError:
        raise
    except UserError as error:
        if launch.world() > 1 and not isinstance(error, SharedError):
            # The other processes may be anywhere; the launcher ends them when this one ends.
            say(f"error: {run.label}: {error}")
            raise SystemExit(2) from error
        if launch.is_main():
            say(f"error: {run.label}: {error}")
        return str(error)
    except Exception as error:  # a fault of ours: shown in full, and the other runs go on
        if launch.world() > 1:  # the other processes of this launch are elsewhere; the launcher ends them
            raise
        traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    return None


def _failures_path(run: Trainable) -> Path:
    return run.lock.with_suffix(".failed.json")


def _failures(run: Trainable) -> dict[str, str]:
    """Faults of a run by the command in which they came up."""
    try:
        return dict(json.loads(_failures_path(run).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # it only saves other workers a try
        return {}
