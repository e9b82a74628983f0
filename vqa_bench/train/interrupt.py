"""A polite request to stop: SIGTERM sets a flag that the loop looks at between two steps. Knows nothing of training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Whether somebody has asked to stop since, as a function.

    A handler that somebody else has set, such as a cluster's, stays in charge.
    """
    asked = threading.Event()
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if mine:
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        if mine:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
