"""What the accuracy part's results say: rows with paired differences, remarks on times, rates and sight, the tables.

Knows results as `accuracy_train.measure` gives them; trains nothing and reads no run but for the harness's own table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Row, Samples, Target
from benchmarks.gpu.accuracy_cells import CNN_LSTM, MBLM, Entry, Plan, Sizes
from benchmarks.gpu.accuracy_train import unpacked
from vqa_bench.scoring.statistics import PairedDifference, holm, paired_difference

TOLERANCE = 0.05
"""By how much training times may differ from what is asked for and still be called equal."""
TABLES = {"table.md": "accuracy-cells.md", "table.csv": "accuracy-cells.csv"}
"""Of the files of the harness's report those that are kept, and as what."""

Found = dict[str, Any]
"""The result of a cell."""


@dataclass
class Findings:
    """What was found so far, by the entries' names. source: the folder of the pictures. sweeps: of a family's learning
    rates all results; `results` has that of the best. faults: what could not be trained, and why.
    """

    listed: Sequence[Entry]
    sizes: Sizes
    plan: Plan
    source: str
    results: dict[str, Found] = field(default_factory=dict)
    sweeps: dict[str, dict[float, Found]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    out_of_memory: list[str] = field(default_factory=list)

    @cached_property
    def known(self) -> dict[str, Entry]:
        """The entries by their names."""
        return {entry.name: entry for entry in self.listed}

    def rate(self, family: str) -> float:
        """The family's best learning rate so far by dev; the first that is to be tried where there is none."""
        tried = self.sweeps.get(family, {})
        return max(tried, key=lambda rate: tried[rate]["dev"], default=self.plan.rates[0])

    def differences(self) -> dict[str, PairedDifference]:
        """From the cell that each is compared with, where both are there."""
        pairs = {name: self.known[name].versus for name in self.known if name in self.results}
        return {
            name: difference(self.results[name], self.results[versus])
            for name, versus in pairs.items()
            if versus in self.results
        }


def difference(ours: Found, other: Found) -> PairedDifference:
    """Of two cells on the same questions; pictures are resampled, as questions about one stand and fall together."""
    assert ours["images"] == other["images"], "both are tested on the same pictures"
    clusters = np.repeat(np.arange(len(ours["images"])), ours["images"])
    a, b = (unpacked(one["correct"], len(clusters)) for one in (ours, other))
    return paired_difference(a, b, clusters)


def rows_of(findings: Findings) -> list[Row]:
    """An accuracy a cell, and its difference in points from the cell it is compared with.

    The one that must not be below 0, that of pixels from CNN+LSTM, says nothing where times are not equal.
    """
    # Held against each other where both had the time, and the choice of learning rates, that the target speaks of.
    equal = findings.sizes.most_steps is None and len(findings.plan.rates) > 1
    differences = findings.differences()
    adjusted = dict(zip(differences, holm([one.p_value for one in differences.values()]), strict=True))
    rows = []
    for entry in findings.listed:
        if entry.name not in findings.results:
            continue
        accuracy = percent(findings.results[entry.name]["accuracy"])
        if entry.versus is None or entry.name not in differences:
            rows.append(Row(entry.title, accuracy, None, accuracy.median, None, unit=" %"))
            continue
        found, other = differences[entry.name], findings.known[entry.versus]
        compared = f"{entry.title} against {other.title}: {points(found)} points, p = {adjusted[entry.name]:.2g}"
        rows.append(
            Row(
                entry.title,
                accuracy,
                percent(findings.results[other.name]["accuracy"]),
                100 * found.estimate,
                Target("≥", 0.0) if equal and entry.name == MBLM else None,
                unit=" points",
                notes=(compared,),
            )
        )
    return rows


def percent(interval: Sequence[float]) -> Samples:
    """An accuracy with the ends of its interval."""
    return Samples(tuple(100 * value for value in interval), "%")


def points(found: PairedDifference) -> str:
    """A difference of fractions in points, with its interval."""
    estimate, low, high = (f"{100 * value:+.1f}" for value in (found.estimate, found.low, found.high))
    return f"{estimate} [{low}, {high}]"


# -- remarks --------------------------------------------------------------------------------------------------------


def remarks_of(findings: Findings) -> list[str]:
    """What a reader of the rows must know."""
    return [
        *_data_remarks(findings),
        *_time_remarks(findings),
        *_sweep_remarks(findings),
        *_sight_remarks(findings),
        *(f"Out of memory: {told}." for told in findings.out_of_memory),
    ]


def _data_remarks(findings: Findings) -> list[str]:
    """What the cells were trained and tested on, and what the columns mean."""
    tested = [found["images"] for found in findings.results.values()][:1]
    return [
        f"Pictures of {findings.source} as {findings.sizes.side}."
        + "".join(f" Tested on {sum(images):,} questions about {len(images):,} of them." for images in tested),
        "Accuracies in percent [95 % interval]; in place of a ratio the paired difference in points. Pictures are "
        "resampled, p values adjusted for all comparisons here (Holm).",
    ]


def _time_remarks(findings: Findings) -> list[str]:
    """How equal the training times are, and what each cell did in it."""
    asked = findings.plan.seconds
    off = {name: found["training"]["seconds"] / asked - 1 for name, found in findings.results.items()}
    remarks = []
    if len(findings.plan.rates) == 1:
        remarks.append(
            "One learning rate, and the first cells only: for the sweep and for orders, layouts and hierarchies give "
            'GPU="--part accuracy --minutes 50".'
        )
    if findings.sizes.most_steps is not None:
        remarks.append(f"At most {findings.sizes.most_steps} steps each: times are not equal here.")
    elif off:
        unequal = ", ".join(name for name, by in off.items() if abs(by) > TOLERANCE)
        remarks.append(
            f"Each trained for {asked:g} s, which leave out waiting for data, dev and checkpoints; the furthest off by "
            f"{max(off.values(), key=abs):+.1%}, off by more than {TOLERANCE:.0%}: {unequal or 'none'}."
        )
    return remarks + [_of_training(name, found) for name, found in findings.results.items()]


def _of_training(name: str, found: Found) -> str:
    seen = found["training"]
    kernels = f", recurrence by {'/'.join(filter(None, found['kernels']))}" if any(found["kernels"] or ()) else ""
    return (
        f"{name}: {found['parameters']:,} parameters, {seen['steps']:,} steps of "
        f"{1000 * seen['seconds'] / seen['steps']:.1f} ms, {seen['questions'] / seen['seconds']:,.0f} questions/s, "
        f"{seen['epochs']:.2g} epochs, {found['train_flops'] / seen['seconds']:.2g} FLOP/s, waited "
        f"{seen['waited']:.1f} s more for data; weights of step {found['used_step']:,}{kernels}."
    )


def _sweep_remarks(findings: Findings) -> list[str]:
    """The learning rates that were tried, with their accuracy on dev."""
    return [
        f"{family} by learning rate, on dev: "
        + ", ".join(f"{rate:g} {100 * found['dev']:.1f} %" for rate, found in tried.items())
        + f"; shown is {findings.rate(family):g}."
        for family, tried in findings.sweeps.items()
    ]


def _sight_remarks(findings: Findings) -> list[str]:
    """What each cell owes to the right picture, and the groups of questions of the two that matter most."""
    remarks = [
        f"{findings.known[name].title}: {points(PairedDifference(**found['vision_gain']))} points over itself with "
        "pictures exchanged."
        for name, found in findings.results.items()
        if found["vision_gain"] is not None
    ]
    for name in (MBLM, CNN_LSTM):
        if name in findings.results:
            groups = findings.results[name]["groups"].items()
            shown = ", ".join(f"{group.replace('_', ' ')} {100 * accuracy:.1f} %" for group, (_, accuracy, _) in groups)
            remarks.append(f"{findings.known[name].title}: {shown}.")
    return remarks


def write_table(runs: Path, out: Path) -> list[str]:
    """The harness's own table of a folder of runs, into `out`; a remark on it, or on why there is none."""
    lacking = [package for package in ("pandas", "matplotlib") if find_spec(package) is None]
    if lacking:
        return [f"No table of the harness's own: it needs {' and '.join(lacking)}, which this Python has not."]
    if not any(runs.glob("*/DONE")):
        return ["No table of the harness's own: the runs were in a folder for temporary files, and are gone."]
    from vqa_bench.report.collect import collect
    from vqa_bench.report.texts import frames_of, texts_of

    collection = collect(runs)
    texts = texts_of(collection, frames_of(collection, published=False))
    out.mkdir(parents=True, exist_ok=True)
    for name, kept in TABLES.items():
        (out / kept).write_text(texts[name] or "", encoding="utf-8")
    return [f"The harness's own table, of the cells that were trained on all pictures: {', '.join(TABLES.values())}."]
