"""Accuracy of every cell, for all questions and each group: dots with their intervals. Knows the frame's columns only.

One strip for each test set: a wide panel for all questions, a narrow one for each group; one line for each cell. A
pretrained cell stands above its scratch twin, on a common ground, and a line joins the two.
"""

from collections.abc import Sequence
from math import ceil
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from vqa_bench.report.collect import Run
from vqa_bench.report.figures.style import (
    BEST_BLIND_LINE,
    BLIND,
    CHANCE_LINE,
    DPI,
    GROUND,
    INK,
    PALE,
    SEEING,
    WIDTH,
)
from vqa_bench.report.tables import by_test_set, columns_of, describe, has_twins, heading, num_questions

LINE_HEIGHT, MARGIN_HEIGHT = 0.36, 1.75  # inches
TITLE_WIDTH = 36  # characters; longer titles are broken into lines
LEGEND_WIDTH = 120  # characters of its entries together; more take two lines


def draw(runs: Sequence[Run], frame: pd.DataFrame) -> Figure | None:
    """A strip for each test set; None without a cell."""
    test_sets = list(by_test_set(frame))
    if not test_sets:
        return None
    heights = [MARGIN_HEIGHT + LINE_HEIGHT * len(_own_line(test_set)) for test_set in test_sets]
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.02)
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout=layout, facecolor="white")
    strips = figure.subfigures(nrows=len(test_sets), height_ratios=heights, squeeze=False)[:, 0]
    for strip, test_set in zip(strips, test_sets, strict=True):
        _draw_test_set(strip, test_set)
    return figure


def _own_line(test_set: pd.DataFrame) -> pd.DataFrame:
    """The rows that have a line of the picture, from the bottom: the control, then the cells."""
    return test_set[test_set["row"].isin(["majority", "cell"])]


def _draw_test_set(strip: SubFigure, test_set: pd.DataFrame) -> None:
    shown, columns = _own_line(test_set), columns_of(test_set)
    lines = {_key(row): line for line, (_, row) in enumerate(shown.iterrows())}  # the best that sees comes to the top
    panels = strip.subplots(ncols=len(columns), sharey=True, squeeze=False, width_ratios=_widths(len(columns)))[0]
    for panel, column in zip(panels, columns, strict=True):
        _draw_panel(panel, test_set, column, lines)
    panels[0].set_yticks(range(len(shown)), [fill(title, TITLE_WIDTH) for title in shown["title"]])
    panels[0].set_ylim(-0.6, len(shown) - 0.4)
    panels[0].set_xlim(*_limits(test_set))
    panels[0].set_xlabel("percent right, with 95 % interval (images resampled)", fontsize=9, loc="left", color=INK)
    _write_values(panels[0], shown, lines)
    strip.suptitle(describe(test_set), x=0.008, ha="left", fontsize=13, fontweight="bold", color=INK)
    entries = _legend(test_set)
    rows = 1 if sum(len(str(entry.get_label())) for entry in entries) <= LEGEND_WIDTH else 2
    columns_of_legend = ceil(len(entries) / rows)
    legend = {"ncols": columns_of_legend, "frameon": False, "fontsize": 9, "handletextpad": 0.5}
    strip.legend(handles=entries, loc="outside lower left", labelcolor=INK, **legend)


def _widths(panels: int) -> list[float]:
    return [2.2] + [1.0] * (panels - 1)


def _key(row: pd.Series) -> str:
    """What tells the lines apart: a cell's name, which the control has not."""
    return str(row["row"] if row["row"] == "majority" else row["cell"])


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
    _join_twins(panel, test_set, column, lines)
    for _, row in test_set.iterrows():
        estimate = row[f"{column}_accuracy"]
        if pd.isna(estimate) or row["row"] not in ("chance", "majority", "cell", "shuffled"):
            continue
        if row["row"] == "chance":
            panel.axvline(100 * estimate, **CHANCE_LINE)
            continue
        if row["best_blind"]:
            panel.axvline(100 * estimate, **BEST_BLIND_LINE)
        _draw_dot(panel, row, column, lines[_key(row)])


def _join_twins(panel: Axes, test_set: pd.DataFrame, column: str, lines: dict[str, int]) -> None:
    """A ground behind every scratch cell and those that are compared with it, and lines between their dots."""
    cells = test_set[test_set["row"] == "cell"].set_index("cell")
    for twin, compared in cells.dropna(subset="twin").groupby("twin"):
        panel.axhspan(lines[str(twin)] - 0.48, max(lines[cell] for cell in compared.index) + 0.48, **_TWINS_GROUND)
        ends = cells.loc[[twin, *compared.index], f"{column}_accuracy"]
        if ends.isna().any():
            continue
        for cell in compared.index:
            panel.plot([100 * ends[twin], 100 * ends[cell]], [lines[str(twin)], lines[cell]], **_TWINS_LINE)


def _draw_dot(panel: Axes, row: pd.Series, column: str, line: int) -> None:
    estimate, low, high = (100 * float(row[f"{column}_{number}"]) for number in ("accuracy", "low", "high"))
    style = _dot_style(row, size=6.5 if column == "overall" else 4.5)
    panel.plot([low, high], [line, line], color=style["color"], linewidth=1.2, zorder=2, solid_capstyle="butt")
    panel.plot([estimate], [line], linestyle="none", zorder=3, clip_on=False, **style)


def _write_values(panel: Axes, shown: pd.DataFrame, lines: dict[str, int]) -> None:
    """The accuracy on all questions as a number above its dot, and how far it is from the scratch twin's.

    A scratch twin has its number below, where no line to those above it crosses.
    """
    twins = set(shown["twin"].dropna())
    for _, row in shown.iterrows():
        versus = "" if pd.isna(row["vs_scratch"]) else f" ({100 * row['vs_scratch']:+.1f})"
        below = _key(row) in twins
        panel.annotate(
            f"{100 * row['overall_accuracy']:.1f}{versus}",
            (100 * row["overall_accuracy"], lines[_key(row)]),
            xytext=(0, -4.5 if below else 4.5),
            textcoords="offset points",
            ha="center",
            va="top" if below else "baseline",
            fontsize=8,
            color=_dot_style(row)["color"],
            path_effects=[withStroke(linewidth=2.5, foreground=GROUND if versus or below else "white")],  # over lines
        )


def _limits(test_set: pd.DataFrame) -> tuple[float, float]:
    """Whole tens around everything that the wide panel shows."""
    rows = test_set[test_set["row"] != "published"]
    shown = rows[["overall_accuracy", "overall_low", "overall_high"]].to_numpy(dtype=float, na_value=np.nan)
    low, high = 100 * np.nanmin(shown), 100 * np.nanmax(shown)
    return max(0.0, 10 * np.floor((low - 2) / 10)), min(100.0, 10 * np.ceil((high + 2) / 10))


_TWINS_LINE: dict[str, Any] = {"color": SEEING, "linewidth": 1.0, "zorder": 1.5}
_TWINS_GROUND: dict[str, Any] = {"color": GROUND, "linewidth": 0, "zorder": -1}
_DIAMOND_SIZE = 0.88  # of a circle that looks as large


def _dot_style(row: pd.Series, *, size: float = 6.0) -> dict[str, Any]:
    """A circle, or a diamond if the cell began from pretrained weights; hollow where it was shown other images."""
    marker, scale = ("D", _DIAMOND_SIZE) if _is_pretrained(row) else ("o", 1)
    color = BLIND if row["blind"] else SEEING
    style: dict[str, Any] = {"marker": marker, "markersize": scale * size, "markeredgewidth": 1.2, "color": color}
    return style | {"markerfacecolor": "white"} if row["row"] == "shuffled" else style


def _is_pretrained(row: pd.Series) -> bool:
    return pd.notna(row["init"]) and row["init"] == "pretrained"


def _legend(test_set: pd.DataFrame) -> list[Artist]:
    """Entries for what the strip shows, and for nothing else."""
    rows = [row for _, row in test_set.iterrows() if row["row"] in ("majority", "cell", "shuffled")]
    seeing = [row for row in rows if row["row"] == "cell" and not row["blind"]]
    kinds = (
        ([row for row in seeing if not _is_pretrained(row)], "sees the image"),
        ([row for row in seeing if _is_pretrained(row)], _pretrained_label(test_set)),
        ([row for row in rows if row["row"] == "shuffled"], "the same, shown another image"),
        ([row for row in rows if row["row"] != "shuffled" and row["blind"]], "blind: sees no image"),
    )
    entries: list[Artist] = []
    for shown, text in kinds:
        if shown:
            entries.append(Line2D([], [], linestyle="none", label=text, **_dot_style(shown[0])))
    for title in test_set.loc[test_set["best_blind"], "title"]:
        entries.append(Line2D([], [], label=f"best blind: {title}", **BEST_BLIND_LINE))
    entries.append(Line2D([], [], label="chance", **CHANCE_LINE))
    return entries


def _pretrained_label(test_set: pd.DataFrame) -> str:
    return "pretrained, joined to its scratch twin (points gained)" if has_twins(test_set) else "pretrained"
