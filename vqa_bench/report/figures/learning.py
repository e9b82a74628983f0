"""Learning curves: loss in training, and accuracy on dev, against optimiser steps. Knows metrics.jsonl."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from vqa_bench.errors import UserError
from vqa_bench.report.collect import Run
from vqa_bench.report.figures.style import INK, Label, Sheet, label_height, label_points, series, shortened, titles

METRICS = "metrics.jsonl"
POINTS = 200  # of a line; more are averaged together
TITLE_WIDTH = 34  # characters

Curve = NDArray[np.float64]
"""(N, 2): steps and a value."""


def draw(runs: Sequence[Run], frame: pd.DataFrame) -> Figure | None:
    """One panel for the loss, one for the dev accuracy where there is any, a line for each run; None without a log."""
    names, styles = titles(frame), series(frame)
    curves = {run.result.cell: read_curves(run.folder / METRICS) for run in runs}
    panels = {
        "loss in training (nats a target)": {cell: found["train", "loss"] for cell, found in curves.items()},
        "accuracy on dev (%)": {cell: found["dev", "accuracy"] * [1, 100] for cell, found in curves.items()},
    }
    shown = {title: {c: lines[c] for c in names if len(lines[c])} for title, lines in panels.items()}
    shown = {title: lines for title, lines in shown.items() if lines}
    if not shown:
        return None
    height = max(2.8, label_height(max(map(len, shown.values()))))
    sheet = Sheet([height + 1.2])
    sheet.title(0, "Learning curves")
    for place, (title, lines) in enumerate(shown.items()):
        width = 2.75 if len(shown) > 1 else 7.8
        panel = sheet.panel(0, left=0.55 + place * 5.45, bottom=0.55, width=width, height=height)
        panel.set_title(title, fontsize=9, loc="left", color=INK)
        panel.set_xlabel("optimiser steps", fontsize=9, loc="left", color=INK)
        for cell, curve in lines.items():
            panel.plot(*thinned(curve).T, linewidth=1.3, **styles[cell])
        if title.startswith("loss"):
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
        panel.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.set_xlim(left=0)
        panel.set_ylim(panel.get_ylim())
        ends = []
        for cell, curve in lines.items():
            step, value = thinned(curve)[-1]
            ends.append(Label(step, value, shortened(names[cell], TITLE_WIDTH), styles[cell]["color"]))
        label_points(panel, ends, height=height)
    return sheet.figure


def read_curves(path: Path) -> dict[tuple[str, str], Curve]:
    """("train", "loss") and ("dev", "accuracy") -> its curve, empty where the log has none, or where there is no log.

    Raises UserError for a line that is none of a log.
    """
    found: dict[tuple[str, str], list[tuple[float, float]]] = {("train", "loss"): [], ("dev", "accuracy"): []}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            for kind, name in found:
                if entry["kind"] == kind and entry.get(name) is not None:
                    found[kind, name].append((float(entry["step"]), float(entry[name])))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number}: expected metrics, got {line[:60]!r}; run the cell again"
            ) from error
    return {key: np.array(points, dtype=np.float64).reshape(-1, 2) for key, points in found.items()}


def thinned(curve: Curve) -> Curve:
    """At most `POINTS` points: each the mean of those that it stands for."""
    if len(curve) <= POINTS:
        return curve
    return np.array([part.mean(axis=0) for part in np.array_split(curve, POINTS)])
