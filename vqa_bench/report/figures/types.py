"""Cells × question types, as numbers on a ground that says how far each is above chance. Knows runs' types only."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from vqa_bench.report.collect import Run
from vqa_bench.report.details import build_details
from vqa_bench.report.figures.style import INK, Sheet, shortened
from vqa_bench.report.tables import by_test_set, describe, label

MOST_TYPES = 20  # more do not fit on a page
LINE, LEFT, TITLE_WIDTH = 0.27, 2.75, 42  # inches, inches, characters
_BELOW_CHANCE_TO_ALL_RIGHT = LinearSegmentedColormap.from_list("skill", ["#e08214", "#ffffff", "#9ecae1", "#08519c"])


def draw(runs: Sequence[Run], frame: pd.DataFrame) -> Figure | None:
    """A table for each test set with more than one type of question, the best cell first; None without one."""
    details = build_details(runs)
    types = details[(details["by"] == "type") & (details["row"] == "cell")]
    strips = []
    for test_set in by_test_set(frame):
        rows = types[types["test_set"] == test_set["test_set"].iloc[0]]
        if 1 < rows["value"].nunique() <= MOST_TYPES:
            strips.append((test_set, rows))
    if not strips:
        return None
    cells = [test_set[test_set["row"] == "cell"].iloc[::-1] for test_set, _ in strips]
    sheet = Sheet([LINE * (len(block) + 1) + 1.5 for block in cells])
    for strip, ((test_set, rows), block) in enumerate(zip(strips, cells, strict=True)):
        sheet.title(strip, describe(test_set))
        height = LINE * (len(block) + 1)
        panel = sheet.panel(strip, left=LEFT, bottom=0.4, width=sheet.width - LEFT - 0.2, height=height)
        _draw_table(panel, block, rows)
        sheet.note(
            strip, "percent right; the darker, the nearer from chance (white) to all right; orange: below chance"
        )
    return sheet.figure


def _draw_table(panel: Axes, cells: pd.DataFrame, rows: pd.DataFrame) -> None:
    names = list(dict.fromkeys(rows["value"]))
    values = rows.pivot_table(index="cell", columns="value", values="accuracy")
    accuracies = values.reindex(index=cells["cell"], columns=names).to_numpy(dtype=float)  # (cells, types)
    first = rows.drop_duplicates("value").set_index("value").loc[names]
    chance = first["chance"].to_numpy(dtype=float)
    skill = (accuracies - chance) / (1 - chance)
    shown = np.vstack([skill, np.zeros_like(chance)])
    panel.imshow(shown, cmap=_BELOW_CHANCE_TO_ALL_RIGHT, vmin=-0.5, vmax=1, aspect="auto")
    panel.grid(visible=False)
    for (line, column), value in np.ndenumerate(np.vstack([accuracies, chance])):
        if np.isfinite(value):
            color = "white" if shown[line, column] > 0.7 else INK
            panel.text(column, line, f"{100 * value:.1f}", ha="center", va="center", color=color, fontsize=8.5)
    titles = [shortened(label(row), TITLE_WIDTH) for _, row in cells.iterrows()]
    panel.set_yticks(range(len(titles) + 1), [*titles, "chance"])
    words = [name.replace("_", "\n", 1) for name in names]
    heads = [f"{name}\nn = {count:,}" for name, count in zip(words, first["n"], strict=True)]
    panel.xaxis.tick_top()
    panel.set_xticks(range(len(names)), heads, fontsize=8)
