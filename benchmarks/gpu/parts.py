"""The parts of `make gpu`: in which order they run, how they share the time, and what each has to say in the end."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from benchmarks.common import Row

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench

# Shares of the whole time; what a part does not need goes to those behind it.
SHARES = {"kernels": 1.0, "speed": 2.5, "length": 1.0, "peer": 1.5, "accuracy": 3.0}


@dataclass(frozen=True)
class Report:
    """What a part measured.

    against: heading of the column of what rows are compared with. remarks: what a reader must know. failures: what is
    wrong, not slow: numbers that differ where they must not. The command then ends with status 1.
    """

    title: str
    against: str
    rows: list[Row]
    remarks: list[str]
    failures: list[str] = field(default_factory=list)


def find_part(name: str) -> Callable[[Bench], Report]:
    """`run` of the part's module, which is imported only now: a part's packages may be missing."""
    return cast("Callable[[Bench], Report]", importlib.import_module(f"benchmarks.gpu.{name}").run)
