"""An ordered map over endless work in several processes, of which few results wait at a time.

The workers are spawned, so a script that gets here needs the usual `if __name__ == "__main__":`. Each has one thread,
and they end with their parent, however that ends. Knows nothing of the work.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from data_scripts.errors import DataError

AHEAD = 2  # tasks a worker, so that one slow task keeps no other worker waiting
_THREAD_COUNTS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Item = TypeVar("Item")
Result = TypeVar("Result")


class OrderedMap(Protocol):
    """`map`, but lazy in its results and in its items, of which there may be no end."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]: ...


@contextlib.contextmanager
def ordered_map(workers: int) -> Iterator[OrderedMap]:
    """A lazy ordered map in this process (`workers` 1) or in several; results not asked for are dropped."""
    if workers == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with _one_thread_each(), ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:

        def result(future: Future[Result]) -> Result:
            with _dead_workers_named():
                return future.result()

        def run(function: Callable[[Item], Result], items: Iterable[Item], /) -> Iterator[Result]:
            waiting: deque[Future[Result]] = deque()
            try:
                for item in items:
                    with _dead_workers_named(), _interrupts_held():
                        waiting.append(pool.submit(function, item))
                    if len(waiting) > AHEAD * workers:
                        yield result(waiting.popleft())
                while waiting:
                    yield result(waiting.popleft())
            finally:
                for future in waiting:
                    future.cancel()

        try:
            yield run
        except BaseException:
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()  # else what they are at would be waited for
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits, and processes started in this block never get it: their parent does, and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _dead_workers_named() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            "expected all worker processes to live, got one that was ended from outside, perhaps for want of memory; "
            "run the same command again with fewer --workers"
        ) from error


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Children started in this block read these when they import NumPy."""
    before = {name: os.environ.get(name) for name in _THREAD_COUNTS}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    """Watch the parent from a thread: workers of a killed run would otherwise wait for more work for ever."""
    gc.disable()  # our work makes no reference cycles, and the search for them takes a twelfth of the time

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
