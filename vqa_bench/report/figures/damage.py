"""What damaged pictures do: accuracy, and how many no decoder reads, level by level. Knows runs' damage only."""

from collections.abc import Sequence
from math import ceil, floor
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vqa_bench.report.collect import Run
from vqa_bench.report.figures.style import CHANCE_LINE, INK, Sheet, series, shortened, titles
from vqa_bench.report.schema import DamageLevel
from vqa_bench.report.tables import by_test_set, describe

HEIGHT, BELOW = 2.4, 1.0  # inches: of the panels for accuracy, and for decoders that fail
LEGEND_COLUMNS, LEGEND_LINE, TITLE_WIDTH = 3, 0.2, 48

Lines = dict[str, tuple[list[DamageLevel], dict[str, Any]]]
"""Cell -> its levels, kind by kind and from the least, and how its lines look."""


def draw(runs: Sequence[Run], frame: pd.DataFrame) -> Figure | None:
    """A column of two panels for each kind of damage, a line for each cell; None where no cell met damage."""
    damaged = {run.result.cell: run.damage.levels for run in runs if run.damage is not None}
    test_sets = [block for block in by_test_set(frame) if block["cell"].isin(list(damaged)).any()]
    if not test_sets:
        return None
    shown = [[cell for cell in titles(block) if cell in damaged] for block in test_sets]
    legends = [LEGEND_LINE * -(-(len(cells) + 1) // LEGEND_COLUMNS) for cells in shown]
    names, styles = titles(frame), series(frame)
    sheet = Sheet([HEIGHT + BELOW + 2.05 + legend for legend in legends])
    for strip, (test_set, cells, legend) in enumerate(zip(test_sets, shown, legends, strict=True)):
        sheet.title(strip, f"Damaged pictures, {describe(test_set)}")
        lines = {cell: (damaged[cell], styles[cell]) for cell in cells}
        chance = 100 * float(test_set.loc[test_set["row"] == "chance", "overall_accuracy"].iloc[0])
        _draw_strip(sheet, strip, lines, bottom=legend + 1.05, chance=chance)
        entries = [Line2D([], [], label=shortened(names[cell], TITLE_WIDTH), **styles[cell]) for cell in cells]
        entries.append(Line2D([], [], label="chance", **CHANCE_LINE))
        panel = sheet.panel(strip, left=0.1, bottom=0.05, width=sheet.width - 0.2, height=legend + 0.2)
        panel.set_axis_off()
        place = {"loc": "upper left", "bbox_to_anchor": (0, 0, 1, 1), "borderaxespad": 0, "handlelength": 2.6}
        panel.legend(handles=entries, ncols=LEGEND_COLUMNS, frameon=False, fontsize=8.5, labelcolor=INK, **place)
    return sheet.figure


def _draw_strip(sheet: Sheet, strip: int, lines: Lines, *, bottom: float, chance: float) -> None:
    """The panels of one test set; those for accuracy have the same limits."""
    every = [level for levels, _ in lines.values() for level in levels]
    kinds = list(dict.fromkeys(level.damage for level in every))
    heights = [chance, *(100 * level.accuracy for level in every)]
    step = (sheet.width - 0.75) / len(kinds)
    for place, kind in enumerate(kinds):
        at = {"left": 0.6 + place * step, "width": min(step - 0.35, 5.0)}
        above = sheet.panel(strip, bottom=bottom + BELOW + 0.25, height=HEIGHT, **at)
        below = sheet.panel(strip, bottom=bottom, height=BELOW, **at)
        labels = list(dict.fromkeys(level.label for level in every if level.damage == kind))
        for levels, style in lines.values():
            shown = [level for level in levels if level.damage == kind]
            across = [labels.index(level.label) for level in shown]
            marks: dict[str, Any] = {"marker": "o", "markersize": 3.5, "linewidth": 1.2, "clip_on": False} | style
            above.plot(across, [100 * level.accuracy for level in shown], **marks)
            below.plot(across, [100 * level.undecodable for level in shown], **marks)
        above.axhline(chance, **CHANCE_LINE)
        above.set_title(kind, fontsize=10, loc="left", color=INK)
        above.set_ylim(floor(min(heights) - 2), ceil(max(heights) + 2))
        above.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        below.set_ylim(0, 100)
        below.set_yticks([0, 50, 100])
        for panel, name in ((above, "percent right"), (below, "undecodable (%)")):
            panel.set_xticks(range(len(labels)), labels, rotation=40, ha="right", rotation_mode="anchor")
            panel.set_xlim(-0.3, len(labels) - 0.7)
            panel.tick_params(labelleft=place == 0, labelbottom=panel is below)
            panel.set_ylabel(name if place == 0 else "", fontsize=9, color=INK)
