"""The frame of a report as one picture: a dot with its interval for every cell. Knows the frame's columns only.

One strip for each test set: a wide panel for all questions, a narrow one for each group; one line for each cell.
"""

from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from vqa_bench.report.collect import COLUMNS
from vqa_bench.report.tables import by_test_set, describe, heading, num_questions

SEEING, BLIND, BEST_BLIND, CHANCE = "#0b5fa5", "#6b6b6b", "#c8560a", "#9a9a9a"
INK, PALE = "#1a1a1a", "#e6e6e6"

WIDTH, LINE_HEIGHT, MARGIN_HEIGHT = 11.0, 0.36, 1.75  # inches
DPI = 160
TITLE_WIDTH = 36  # characters; longer titles are broken into lines


def save_figure(frame: pd.DataFrame, path: Path) -> None:
    """Draw the frame into a PNG; the same frame gives the same bytes with the same version of matplotlib."""
    test_sets = list(by_test_set(frame))
    heights = [MARGIN_HEIGHT + LINE_HEIGHT * (test_set["row"] == "cell").sum() for test_set in test_sets]
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.02)
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout=layout, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    strips = figure.subfigures(nrows=len(test_sets), height_ratios=heights, squeeze=False)[:, 0]
    for strip, test_set in zip(strips, test_sets, strict=True):
        _draw_test_set(strip, test_set)
    canvas.print_png(path, metadata={"Software": None})  # matplotlib would write its version


def _draw_test_set(strip: SubFigure, test_set: pd.DataFrame) -> None:
    cells = test_set[test_set["row"] == "cell"]
    lines = {cell: line for line, cell in enumerate(cells["cell"])}  # the best cell that sees comes to the top
    panels = strip.subplots(ncols=len(COLUMNS), sharey=True, width_ratios=[2.2] + [1] * (len(COLUMNS) - 1))
    for panel, column in zip(panels, COLUMNS, strict=True):
        _draw_panel(panel, test_set, column, lines)
    panels[0].set_yticks(range(len(cells)), [fill(title, TITLE_WIDTH) for title in cells["title"]])
    panels[0].set_ylim(-0.6, len(cells) - 0.4)
    panels[0].set_xlim(*_limits(test_set))
    panels[0].set_xlabel("percent right, with 95 % interval (images resampled)", fontsize=9, loc="left", color=INK)
    _write_values(panels[0], cells, lines)
    strip.suptitle(describe(test_set), x=0.008, ha="left", fontsize=13, fontweight="bold", color=INK)
    legend = {"loc": "outside lower left", "ncols": 5, "frameon": False, "fontsize": 9, "handletextpad": 0.5}
    strip.legend(handles=_legend(test_set), labelcolor=INK, **legend)


def _draw_panel(panel: Axes, test_set: pd.DataFrame, column: str, lines: dict[str, int]) -> None:
    """One column of the table: chance and best blind as vertical lines, every cell and its shuffled twin as dots."""
    name = heading(column).replace(" ", "\n")
    panel.set_title(f"{name}\nn = {num_questions(test_set, column):,}", fontsize=9, loc="left", color=INK)
    panel.set_xlim(0, 100)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6 if column == "overall" else 2, integer=True))
    panel.tick_params(length=0, labelsize=9, labelcolor=INK)
    panel.spines[:].set_visible(False)
    panel.grid(axis="x", color=PALE, linewidth=0.8)
    panel.set_axisbelow(True)
    for line in lines.values():
        panel.axhline(line, color=PALE, linewidth=0.8, zorder=0)
    for _, row in test_set.iterrows():
        estimate = row[f"{column}_accuracy"]
        if pd.isna(estimate):
            continue
        if row["row"] == "chance":
            panel.axvline(100 * estimate, **_CHANCE_LINE)
            continue
        if row["best_blind"]:
            panel.axvline(100 * estimate, **_BEST_BLIND_LINE)
        _draw_dot(panel, row, column, lines[row["cell"]])


def _draw_dot(panel: Axes, row: pd.Series, column: str, line: int) -> None:
    estimate, low, high = (100 * float(row[f"{column}_{number}"]) for number in ("accuracy", "low", "high"))
    style = _dot_style(row) | {"markersize": 6.5 if column == "overall" else 4.5}
    panel.plot([low, high], [line, line], color=style["color"], linewidth=1.2, zorder=2, solid_capstyle="butt")
    panel.plot([estimate], [line], linestyle="none", zorder=3, clip_on=False, **style)


def _write_values(panel: Axes, cells: pd.DataFrame, lines: dict[str, int]) -> None:
    """The accuracy on all questions as a number above its dot."""
    for _, row in cells.iterrows():
        panel.annotate(
            f"{100 * row['overall_accuracy']:.1f}",
            (100 * row["overall_accuracy"], lines[row["cell"]]),
            xytext=(0, 4.5),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=_dot_style(row)["color"],
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # legible where a line crosses
        )


def _limits(test_set: pd.DataFrame) -> tuple[float, float]:
    """Whole tens around everything that the wide panel shows."""
    shown = test_set[["overall_accuracy", "overall_low", "overall_high"]].to_numpy(dtype=float, na_value=np.nan)
    low, high = 100 * np.nanmin(shown), 100 * np.nanmax(shown)
    return max(0.0, 10 * np.floor((low - 2) / 10)), min(100.0, 10 * np.ceil((high + 2) / 10))


_CHANCE_LINE: dict[str, Any] = {"color": CHANCE, "linewidth": 1.4, "linestyle": (0, (2, 2)), "zorder": 1}
_BEST_BLIND_LINE: dict[str, Any] = {"color": BEST_BLIND, "linewidth": 1.2, "zorder": 1}
_DOT: dict[str, Any] = {"marker": "o", "markersize": 6.0, "markeredgewidth": 1.2}


def _dot_style(row: pd.Series) -> dict[str, Any]:
    if row["row"] == "shuffled":
        return _DOT | {"color": SEEING, "markerfacecolor": "white"}
    return _DOT | {"color": BLIND if row["blind"] else SEEING}


def _legend(test_set: pd.DataFrame) -> list[Artist]:
    """Entries for what the strip shows, and for nothing else."""
    rows = [row for _, row in test_set.iterrows()]
    seeing = next((row for row in rows if row["row"] == "cell" and not row["blind"]), None)
    shuffled = next((row for row in rows if row["row"] == "shuffled"), None)
    blind = next((row for row in rows if row["row"] == "cell" and row["blind"]), None)
    entries: list[Artist] = []
    for row, text in (
        (seeing, "sees the image"),
        (shuffled, "the same, shown another image"),
        (blind, "blind: sees no image"),
    ):
        if row is not None:
            entries.append(Line2D([], [], linestyle="none", label=text, **_dot_style(row)))
    for title in test_set.loc[test_set["best_blind"], "title"]:
        entries.append(Line2D([], [], label=f"best blind: {title}", **_BEST_BLIND_LINE))
    entries.append(Line2D([], [], label="chance", **_CHANCE_LINE))
    return entries
