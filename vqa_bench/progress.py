"""Progress that suits where it is shown: a bar on a terminal, plain lines elsewhere. Knows nothing of the work."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_SECONDS = 10.0  # between two plain lines
RATE_SECONDS = 300.0  # over which a bar takes the rate that the time left follows from


class Progress(Protocol):
    """Called with how much is done, how much there is, and a short note."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


def silent(done: int, total: int, note: str = "") -> None:
    """Shows nothing."""


@contextmanager
def progress(label: str, unit: str) -> Iterator[Progress]:
    """A reporter for one task that counts in `unit`s (`bytes` get prefixes and a rate).

    Ends with a plain line that says how long it took.
    """
    began = time.monotonic()
    alone = multiprocessing.parent_process() is None  # several processes would draw over each other's bars
    with _bar(label, unit) if sys.stderr.isatty() and alone else _lines(label, unit) as report:
        yield report
    print(f"{label}: done in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def _lines(label: str, unit: str) -> Iterator[Progress]:
    began: float | None = None  # when and with how much done the first report came: what is before it is preparation
    last, first = 0.0, 0

    def report(done: int, total: int, note: str = "") -> None:
        nonlocal began, last, first
        now = time.monotonic()
        if began is None:
            began, last, first = now, now, done
        if now - last >= PLAIN_SECONDS:
            last = now
            left = (now - began) / max(done - first, 1) * (total - done)
            text = f"{label}: {_amount(done, unit)} of {_amount(total, unit)} {unit}, {left:.0f} s left"
            print(f"{text}, {note}" if note else text, file=sys.stderr, flush=True)

    yield report


def _amount(count: int, unit: str) -> str:
    if unit != "bytes":
        return f"{count:,}"
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Progress]:
    """The bar, and under it the note, so that a narrow terminal shows both."""
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar
    from rich.text import Text

    counted: tuple[ProgressColumn, ...] = (MofNCompleteColumn(),)
    if unit == "bytes":
        counted = (DownloadColumn(), TransferSpeedColumn())
    # The rate is that of the last minutes: steps may take long, and evaluations lie between them.
    columns = (TextColumn("{task.description}"), BarColumn(), *counted, TimeRemainingColumn())
    bar = Bar(*columns, speed_estimate_period=RATE_SECONDS)
    task = bar.add_task(label, total=None)
    line = Text(no_wrap=True, overflow="ellipsis", style="dim")

    def shown() -> RenderableType:
        return Group(bar, line) if line.plain else bar

    with Live(get_renderable=shown, console=Console(stderr=True), transient=True):

        def report(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total)
            line.plain = note

        yield report
