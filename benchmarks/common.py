"""What every benchmark needs: turns that alternate, peak memory, rows with targets, a table, and the recorded files.

Knows numbers and files; neither models nor torch.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

from vqa_bench.runs import provenance, write_json

ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "results" / "recorded"
GIB = 1 << 30
GB = 1e9

Result = TypeVar("Result")


# -- measuring ------------------------------------------------------------------------------------------------------


def alternate(turns: Mapping[str, Callable[[], Result]], repeats: int, warmup: int = 1) -> dict[str, list[Result]]:
    """Call A, B, A, B, …: never two at once, and what slows the machine for a while meets all of them alike.

    The first `warmup` rounds are thrown away.
    """
    results: dict[str, list[Result]] = {name: [] for name in turns}
    for turn in range(warmup + repeats):
        for name, run in turns.items():
            result = run()
            if turn >= warmup:
                results[name].append(result)
    return results


@dataclass(frozen=True)
class Memory:
    """Resident bytes of this process: before a piece of work, and the most while it ran."""

    before: int
    peak: int


def peak_memory(work: Callable[[], object]) -> Memory:
    """The most resident memory while `work` runs.

    Linux keeps the high-water mark, and writing 5 to /proc/self/clear_refs sets it back to the present (proc(5)).
    Raises RuntimeError on other systems.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise RuntimeError(f"peak memory is read from Linux's /proc, got {platform.system()}; measure it on Linux")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    work()
    return Memory(before, _status("VmHWM"))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise RuntimeError(f"expected {field} in /proc/self/status, got none; measure memory on Linux")


# -- rows -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Samples:
    """Repeated measurements of one quantity, at least one; their median stands for them."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return median(self.values)

    def __str__(self) -> str:
        milli = self.unit.startswith("s") and self.median < 0.1
        scale, unit = (1e3, f"m{self.unit}") if milli else (1.0, self.unit)
        middle, least, most = (f"{value * scale:.3g}" for value in (self.median, min(self.values), max(self.values)))
        return f"{middle} {unit}" if len(self.values) == 1 else f"{middle} {unit} [{least}, {most}]"


@dataclass(frozen=True)
class Target:
    """What a row's value is held against."""

    relation: Literal["≥", "≤"]
    value: float

    def reached(self, value: float) -> bool:
        return value >= self.value if self.relation == "≥" else value <= self.value


@dataclass(frozen=True)
class Row:
    """One line of a table: a measurement, what it is compared with (if anything), and the number that is asked for."""

    what: str
    measured: Samples
    against: Samples | None
    value: float
    target: Target | None
    unit: str = "×"
    notes: tuple[str, ...] = ()

    @property
    def reached(self) -> bool | None:
        return None if self.target is None else self.target.reached(self.value)


def speedup(
    what: str, ours: Samples, other: Samples, *, at_least: float | None = None, notes: tuple[str, ...] = ()
) -> Row:
    """How many times less ours takes than the other: a ratio of medians."""
    target = None if at_least is None else Target("≥", at_least)
    return Row(what, ours, other, _ratio(other, ours), target, notes=notes)


def growth(
    what: str, measured: Samples, base: Samples, *, at_most: float | None = None, notes: tuple[str, ...] = ()
) -> Row:
    """How many times more is measured than at the base: a ratio of medians."""
    target = None if at_most is None else Target("≤", at_most)
    return Row(what, measured, base, _ratio(measured, base), target, notes=notes)


def amount(what: str, measured: Samples, *, at_most: float | None = None) -> Row:
    """A quantity that is held against a bound itself."""
    target = None if at_most is None else Target("≤", at_most)
    return Row(what, measured, None, measured.median, target, unit=f" {measured.unit}")


def _ratio(above: Samples, below: Samples) -> float:
    """Of medians; of nothing measurable it is no number, which reaches no target."""
    return above.median / below.median if below.median > 0 else math.nan


def markdown(title: str, *, against: str, rows: Sequence[Row], remarks: Sequence[str]) -> str:
    """The rows as a table with their notes and the remarks below it; times are medians [least, most]."""
    notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    lines = [
        f"## {title}",
        "",
        f"| | ours | {against} | ratio | target | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        marks = ", ".join(str(notes.index(note) + 1) for note in row.notes)
        what = f"{row.what} ({marks})" if marks else row.what
        target = "" if row.target is None else f"{row.target.relation} {row.target.value:.3g}{row.unit}"
        verdict = {None: "", True: "reached", False: "**not reached**"}[row.reached]
        value = f"{row.value:.3g}{row.unit}"
        lines.append(f"| {what} | {row.measured} | {row.against or ''} | {value} | {target} | {verdict} |")
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1))]
    lines += [""] * bool(notes) + [f"* {remark}" for remark in remarks]
    return "\n".join(lines).rstrip() + "\n"


# -- files ----------------------------------------------------------------------------------------------------------


def record(
    out: Path, name: str, *, table: str, rows: Sequence[Row], facts: Mapping[str, Any], about: Mapping[str, Any]
) -> None:
    """Write NAME.md, NAME.json and provenance.json into a folder, and print the table.

    `facts` go into the JSON beside the rows, `about` is the provenance.
    """
    out.mkdir(parents=True, exist_ok=True)
    listed = [{**asdict(row), "reached": row.reached} for row in rows]
    write_json(out / f"{name}.json", {**facts, "rows": listed})
    partial = out / f"{name}.md.partial"
    partial.write_text(table, encoding="utf-8")
    os.replace(partial, out / f"{name}.md")
    write_json(out / "provenance.json", about)
    print(table)


def machine_provenance(module: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """The fields of a run's provenance, with the date and the processor that the times belong to."""
    return provenance() | {
        "command": ["python", "-m", module, *arguments],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
    }


def processor() -> str:
    """What this machine calculates with."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def say(text: str) -> None:
    """Progress, beside the table that goes to stdout."""
    print(text, file=sys.stderr, flush=True)
