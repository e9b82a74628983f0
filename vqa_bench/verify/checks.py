"""What verifying finds: checks with their faults, and how two JSON values are compared. Knows no files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from vqa_bench.errors import UserError

SHOWN = 3  # differences of one comparison that are told
AGAIN = "evaluate the cell again"
Record = TypeVar("Record", bound=BaseModel)
Status = Literal["holds", "fault", "unchecked"]


@dataclass(frozen=True)
class Check:
    """Something about a run that holds, or does not, or could not be checked.

    run: its name. file: where in it. what: is looked at. faults: what was expected and got, and what to do, a line
    each. unchecked: why it was not looked at, None where it was.
    """

    run: str
    file: str
    what: str
    faults: tuple[str, ...] = ()
    unchecked: str | None = None

    @property
    def status(self) -> Status:
        if self.unchecked is not None:
            return "unchecked"
        return "fault" if self.faults else "holds"


@dataclass(frozen=True)
class Checker:
    """Makes the checks of one run."""

    run: str

    def check(self, file: str, what: str, work: Callable[[], Sequence[str]]) -> Check:
        """A check whose `work` returns its faults; what it raises is a fault too."""
        try:
            faults = tuple(work())
        except UserError as error:
            faults = (str(error),)
        except Exception as error:  # damaged files lead their readers to anything; the other checks are still made
            got = f"{type(error).__name__}: {error}"
            faults = (f"expected {what} that can be read, got {got}; run the cell again",)
        return Check(self.run, file, what, tuple(" ".join(fault.split()) for fault in faults))

    def unchecked(self, file: str, what: str, why: str) -> Check:
        """A check that was not made."""
        return Check(self.run, file, what, unchecked=why)


def compare(expected: Any, got: Any, at: str, *, again: str) -> list[str]:
    """Where `got` is not `expected`, both JSON values, in lines that end in what to do; numbers to the last bit."""
    found = list(_differences(expected, got, at))
    lines = [f"{where}: expected {_shown(want)}, got {_shown(have)}" for where, want, have in found[:SHOWN]]
    if len(found) > SHOWN:
        lines[-1] += f", and {len(found) - SHOWN} more differences"
    return [f"{line}; {again}" for line in lines]


def parsed(kind: type[Record], content: Any, file: str) -> Record:
    """What a file holds as a record; UserError in one line where it is none."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise UserError(f"{file}: {where}: {fault['msg']}; run the cell again") from None


class _Nothing:
    """In place of a value that is not there."""


def _differences(expected: Any, got: Any, at: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in dict.fromkeys((*expected, *got)):
            where = f"{at}.{key}" if at else str(key)
            yield from _differences(expected.get(key, _Nothing), got.get(key, _Nothing), where)
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        for place, (want, have) in enumerate(zip(expected, got, strict=True)):
            yield from _differences(want, have, f"{at}.{place}")
    elif _Nothing in (expected, got) or json.dumps(expected) != json.dumps(got):
        yield at, expected, got  # compared as text: 1 is not 1.0, and a float is its shortest decimal


def _shown(value: Any) -> str:
    text = "nothing" if value is _Nothing else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}…"
