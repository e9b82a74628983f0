"""Accuracy against what it costs: the bytes of an encoded picture, or the work of training. Knows the frame only."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vqa_bench.report.collect import Run
from vqa_bench.report.figures.style import (
    BEST_BLIND_LINE,
    BLIND,
    CHANCE_LINE,
    INK,
    SEEING,
    Label,
    Sheet,
    label_height,
    label_points,
    shortened,
)
from vqa_bench.report.tables import by_test_set, describe

TITLE_WIDTH = 46  # characters


def draw_bytes(runs: Sequence[Run], frame: pd.DataFrame) -> Figure | None:
    """Accuracy against the mean bytes of an encoded picture; None where no cell that sees has any."""
    return _draw(frame, "image_bytes", "bytes of an encoded picture (mean, log scale)")


def draw_flops(runs: Sequence[Run], frame: pd.DataFrame) -> Figure | None:
    """Accuracy against the operations of training; None where they were counted for no cell."""
    return _draw(
        frame,
        "train_flops",
        "floating-point operations of training, pretraining and extracted features not counted (log scale)",
    )


def _draw(frame: pd.DataFrame, column: str, label: str) -> Figure | None:
    """A strip for each test set with a cell whose cost is known."""
    costly = frame[(frame["row"] == "cell") & (frame[column] > 0).fillna(False)]
    test_sets = [block for block in by_test_set(frame) if block.index.isin(costly.index).any()]
    if not test_sets:
        return None
    cells = [block[block.index.isin(costly.index)] for block in test_sets]
    heights = [max(2.8, label_height(len(block))) for block in cells]
    sheet = Sheet([height + 1.55 for height in heights])
    for strip, (test_set, block, height) in enumerate(zip(test_sets, cells, heights, strict=True)):
        sheet.title(strip, describe(test_set))
        panel = sheet.panel(strip, left=0.55, bottom=0.95, width=6.6, height=height)
        _draw_points(panel, test_set, block, column, height)
        panel.set_xlabel(label, fontsize=9, loc="left", color=INK)
        panel.set_title("percent right, with 95 % interval (images resampled)", fontsize=9, loc="left", color=INK)
        _legend(panel, test_set, block)
    return sheet.figure


def _draw_points(panel: Axes, test_set: pd.DataFrame, cells: pd.DataFrame, column: str, height: float) -> None:
    panel.set_xscale("log")
    costs = cells[column].to_numpy(dtype=float)
    panel.set_xlim(costs.min() / 1.5, costs.max() * 1.5)
    panel.xaxis.set_major_locator(LogLocator(subs=(1,) if costs.max() > 100 * costs.min() else (1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(_amount))
    panel.xaxis.set_minor_formatter(NullFormatter())
    chance = 100 * float(test_set.loc[test_set["row"] == "chance", "overall_accuracy"].iloc[0])
    panel.axhline(chance, **CHANCE_LINE)
    lines = [chance, *(100 * test_set.loc[test_set["best_blind"], "overall_accuracy"].to_numpy(dtype=float))]
    for accuracy in lines[1:]:
        panel.axhline(accuracy, **BEST_BLIND_LINE)
    labels = []
    for _, row in cells.iterrows():
        estimate, low, high = (100 * float(row[f"overall_{name}"]) for name in ("accuracy", "low", "high"))
        color, cost = BLIND if row["blind"] else SEEING, float(row[column])
        panel.plot([cost, cost], [low, high], color=color, linewidth=1.2, zorder=2)
        panel.plot([cost], [estimate], color=color, marker="o", markersize=6.5, linestyle="none", zorder=3)
        labels.append(Label(cost, estimate, f"{estimate:.1f}  {shortened(row['title'], TITLE_WIDTH)}", color))
    lows = [*lines, *(100 * cells["overall_low"].to_numpy(dtype=float))]
    highs = [*lines, *(100 * cells["overall_high"].to_numpy(dtype=float))]
    panel.set_ylim(np.floor(min(lows) - 2), np.ceil(max(highs) + 2))
    label_points(panel, labels, height=height)


def _legend(panel: Axes, test_set: pd.DataFrame, cells: pd.DataFrame) -> None:
    dot: dict[str, Any] = {"marker": "o", "markersize": 6, "linestyle": "none"}
    entries = []
    if (~cells["blind"]).any():
        entries.append(Line2D([], [], color=SEEING, label="sees the image", **dot))
    if cells["blind"].any():
        entries.append(Line2D([], [], color=BLIND, label="blind: sees no image", **dot))
    for title in test_set.loc[test_set["best_blind"], "title"]:
        entries.append(Line2D([], [], label=f"best blind: {title}", **BEST_BLIND_LINE))
    entries.append(Line2D([], [], label="chance", **CHANCE_LINE))
    # Under the name of the x axis, which stands under its numbers.
    at = {"loc": "upper left", "bbox_to_anchor": (-0.02, -0.5 / panel.bbox.height * panel.figure.dpi)}
    panel.legend(handles=entries, ncols=len(entries), frameon=False, fontsize=9, labelcolor=INK, **at)


def _amount(value: float, _: int) -> str:
    """1,000 as it is, 10,000,000 as a power of ten."""
    if value < 1e6:
        return f"{value:,.0f}"
    exponent = int(np.floor(np.log10(value) + 1e-9))
    first = value / 10**exponent
    return f"$10^{{{exponent}}}$" if np.isclose(first, 1) else rf"${first:.0f}\times10^{{{exponent}}}$"
