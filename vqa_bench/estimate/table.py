"""A plan to be read: a line a run, what it costs, totals at the end, and what is guessed. Knows estimates only."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from vqa_bench.estimate.cost import Estimate

HEADERS = (
    "run",
    "parameters",
    "bytes/sample",
    "context",
    "samples/step",
    "FLOPs/step",
    "memory",
    "s/step",
    "steps",
    "time",
)
_COLUMNS = ("left", *("right",) * 9)


def plan_text(rows: Sequence[Estimate]) -> str:
    """The plan of some runs as text, wide lines; memory is that of a process, time that of training alone."""
    notes = list(dict.fromkeys(guess for row in rows for guess in row.guesses))
    lines = [_line(row, notes) for row in rows]
    total = sum(row.total_seconds for row in rows)
    flops = sum(row.total_flops for row in rows)
    most = max((row.memory.total for row in rows), default=0.0)
    lines.append(
        (f"{len(rows)} in all", *("",) * 4, f"{number(flops)} in all", f"≤ {size(most)}", "", "", duration(total))
    )
    table = tabulate(lines, HEADERS, tablefmt="simple", colalign=_COLUMNS, disable_numparse=True)
    return "\n".join([table, "", *_remarks(rows), *(f"[{at}] guessed: {note}" for at, note in enumerate(notes, 1))])


def _line(row: Estimate, notes: list[str]) -> tuple[str, ...]:
    marks = "".join(f" [{notes.index(guess) + 1}]" for guess in row.guesses)
    parameters = number(row.parameters)
    if row.trainable != row.parameters:
        parameters += f" ({number(row.trainable)} trained)"
    bytes_, context = "", ""
    if row.sample_bytes is not None and row.context is not None and row.longest_sample is not None:
        bytes_ = f"{row.sample_bytes:,.0f}" + (f" ({row.shared_bytes:,.0f} shared)" if row.shared_bytes else "")
        context = f"{row.longest_sample / row.context:.0%} of {row.context:,}"
    if row.steps == 0:
        return (row.name + marks, parameters, *("",) * 7, "counted")
    return (
        row.name + marks,
        parameters,
        bytes_,
        context,
        f"{row.samples:,.0f}",
        number(row.flops),
        size(row.memory.total),
        f"{row.seconds:.2g}" if row.seconds < 100 else f"{row.seconds:,.0f}",
        f"{row.steps:,}",
        duration(row.total_seconds),
    )


def _remarks(rows: Sequence[Estimate]) -> list[str]:
    trained = [row for row in rows if row.steps]
    if not trained:
        return []
    devices = ", ".join(sorted({row.device for row in trained}))
    processes = max(row.processes for row in trained)
    with_ = f"{processes} processes" if processes > 1 else "one process"
    return [
        "Parameters are exact, FLOPs those of the matrix products. Memory (of a process) and time (of training alone)",
        f"may be wrong by half and by a factor of two; they are for {with_} on {devices}, at the speed it has now.",
    ]


def number(amount: float) -> str:
    """Three digits and a prefix: 360 M."""
    for prefix, scale in (("Z", 1e21), ("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if amount >= 0.9995 * scale:
            return f"{amount / scale:.3g} {prefix}"
    return f"{amount:.3g}"


def size(amount: float) -> str:
    """Bytes in decimal units."""
    return f"{number(amount)}B"


def duration(seconds: float) -> str:
    """The two largest units: 1 d 4 h, 2 h 5 min, 40 s."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    for (name, unit), (smaller_name, smaller) in ((("d", 86400), ("h", 3600)), (("h", 3600), ("min", 60))):
        if seconds >= unit:
            whole = int(seconds // unit)
            return f"{whole:,} {name} {(seconds - whole * unit) // smaller:.0f} {smaller_name}"
    return f"{seconds / 60:.0f} min"
