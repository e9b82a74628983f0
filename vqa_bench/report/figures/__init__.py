"""All figures of a report, and their files. A new one is a function in a file of its own, and a line here.

A function takes the finished runs and their frame, and returns a matplotlib figure, or None where there is nothing to
draw.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from vqa_bench.report.collect import Run
from vqa_bench.report.figures import accuracy, calibration, cost, damage, learning, types
from vqa_bench.report.figures.style import Rendered, render


@dataclass(frozen=True)
class Kind:
    """A figure: what it is called on a page, and who draws it."""

    title: str
    draw: Callable[[Sequence[Run], pd.DataFrame], Figure | None]


KINDS: dict[str, Kind] = {
    "accuracy": Kind("Accuracy", accuracy.draw),
    "types": Kind("Accuracy by type of question", types.draw),
    "accuracy-per-byte": Kind("Accuracy and bytes of a picture", cost.draw_bytes),
    "accuracy-per-flop": Kind("Accuracy and work of training", cost.draw_flops),
    "learning": Kind("Learning curves", learning.draw),
    "calibration": Kind("Calibration", calibration.draw),
    "damage": Kind("Damaged pictures", damage.draw),
}
"""File name without its ending -> figure, in the order of a page."""


def draw_figures(runs: Sequence[Run], frame: pd.DataFrame) -> dict[str, Rendered]:
    """Every figure that there are data for, by its name among `KINDS`.

    Raises UserError where a run's log cannot be read.
    """
    drawn = {name: kind.draw(runs, frame) for name, kind in KINDS.items()}
    return {name: render(figure, name) for name, figure in drawn.items() if figure is not None}


def save_figures(figures: dict[str, Rendered], folder: Path, partial: Path) -> list[Path]:
    """Write each figure as PNG and SVG into the folder, and remove those that there are no data for any more.

    partial: the name that a file has until it is whole; on the folder's file system. Returns the files written.
    """
    written = []
    for name in KINDS:
        files = {"png": figures[name].png, "svg": figures[name].svg} if name in figures else {}
        for ending in ("png", "svg"):
            path = folder / f"{name}.{ending}"
            if ending not in files:
                path.unlink(missing_ok=True)
                continue
            folder.mkdir(exist_ok=True)
            partial.write_bytes(files[ending])
            os.replace(partial, path)
            written.append(path)
    return written
