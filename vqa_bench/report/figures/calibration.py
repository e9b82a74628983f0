"""Is a model as often right as it is sure: a reliability diagram for each cell. Knows runs' calibration only."""

from collections.abc import Sequence
from math import ceil
from textwrap import wrap

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vqa_bench.report.collect import Run
from vqa_bench.report.figures.style import BLIND, CHANCE, INK, PALE, SEEING, Sheet, shortened, titles
from vqa_bench.report.schema import Calibration

COLUMNS = 6
SIDE, WIDE, HIGH = 1.32, 1.78, 2.15  # inches: of a panel, and from one panel to the next
TITLE_WIDTH, TITLE_LINES = 23, 2  # characters, lines


def draw(runs: Sequence[Run], frame: pd.DataFrame) -> Figure | None:
    """A square for each cell, the best first: accuracy against confidence, and how many answers there are."""
    names = titles(frame)
    of_cell = {run.result.cell: run for run in runs}
    cells = {cell: of_cell[cell].result.metrics.calibration for cell in names}
    shown = {cell: calibration for cell, calibration in cells.items() if calibration is not None}
    if not shown:
        return None
    columns = min(COLUMNS, len(shown))
    rows = ceil(len(shown) / columns)
    sheet = Sheet([0.8 + HIGH * rows])
    sheet.title(0, "Calibration: how often an answer is right, against how sure the model is of it")
    for place, (cell, calibration) in enumerate(shown.items()):
        row, column = divmod(place, columns)
        bottom = 0.65 + HIGH * (rows - 1 - row)
        panel = sheet.panel(0, left=0.5 + WIDE * column, bottom=bottom, width=SIDE, height=SIDE)
        _draw_square(panel, calibration, BLIND if of_cell[cell].result.model.blind else SEEING)
        lines = wrap(shortened(names[cell], TITLE_WIDTH * TITLE_LINES - 4), TITLE_WIDTH)[:TITLE_LINES]
        panel.set_title("\n".join([*lines, f"ECE {calibration.ece:.3f}"]), fontsize=8.5, loc="left", color=INK)
        panel.tick_params(labelleft=column == 0, labelsize=8)
    sheet.note(
        0,
        "across: confidence (%), the probability of the answer among all candidates; up: how many of such answers are "
        "right (%); bars: how many there are (of the fullest bin)",
    )
    return sheet.figure


def _draw_square(panel: Axes, calibration: Calibration, color: str) -> None:
    panel.set_xlim(0, 100)
    panel.set_ylim(0, 100)
    panel.set_xticks([0, 50, 100])
    panel.set_yticks([0, 50, 100])
    panel.plot([0, 100], [0, 100], color=CHANCE, linewidth=1.2, linestyle=(0, (2, 2)), zorder=1)
    most = max(group.n for group in calibration.bins)
    for group in calibration.bins:
        left, height, width = 100 * group.low, 100 * group.n / most, 100 * (group.high - group.low)
        panel.bar(left, height, width, align="edge", color=PALE, edgecolor="white", zorder=0.5)
    points = [(100 * group.confidence, 100 * group.accuracy) for group in calibration.bins]
    panel.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3.2, linewidth=1.1, clip_on=False)
