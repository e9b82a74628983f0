"""What all figures share: a sheet of panels in inches, colours, labels that keep apart, and files of the same bytes.

Okabe and Ito's colours, which colour-blind people tell apart (https://jfly.uni-koeln.de/color/). Knows no runs.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

SEEING, BLIND, BEST_BLIND, CHANCE = "#0b5fa5", "#6b6b6b", "#c8560a", "#9a9a9a"
INK, PALE, GROUND = "#1a1a1a", "#e6e6e6", "#eef3f9"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#1a1a1a")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1.5, 1, 1.5)), (0, (8, 2)))
CHANCE_LINE: dict[str, Any] = {"color": CHANCE, "linewidth": 1.4, "linestyle": (0, (2, 2)), "zorder": 1}
BEST_BLIND_LINE: dict[str, Any] = {"color": BEST_BLIND, "linewidth": 1.2, "zorder": 1}

WIDTH = 11.0  # inches
DPI = 160
TITLE_HEIGHT = 0.45  # inches
LABEL_SIZE = 8.0  # points
LABEL_GAP = 1.3  # of its size, between two labels


@dataclass(frozen=True)
class Rendered:
    """A figure as the bytes of two files."""

    png: bytes
    svg: bytes


def render(figure: Figure, name: str) -> Rendered:
    """The figure as PNG and SVG; the same figure gives the same bytes with the same version of matplotlib.

    name: of the figure, so that the ids within two figures of one page are not the same.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})  # matplotlib would write its version
    figure.set_layout_engine("none")  # it is laid out now, and both files show the same
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return Rendered(png.getvalue(), svg.getvalue())


class Sheet:
    """A figure of strips, one below the other, whose panels are placed in inches from the lower left of a strip."""

    def __init__(self, heights: Sequence[float], width: float = WIDTH) -> None:
        self.width, self.height = width, sum(heights)
        self.figure = Figure(figsize=(width, self.height), dpi=DPI, facecolor="white")
        self._bottoms = [self.height - sum(heights[: place + 1]) for place in range(len(heights))]
        self._heights = list(heights)

    def panel(self, strip: int, *, left: float, bottom: float, width: float, height: float) -> Axes:
        """A panel in the common style."""
        x, y = left / self.width, (self._bottoms[strip] + bottom) / self.height
        panel = self.figure.add_axes((x, y, width / self.width, height / self.height))
        panel.tick_params(length=0, which="both", labelsize=9, labelcolor=INK)
        panel.spines[:].set_visible(False)
        panel.grid(color=PALE, linewidth=0.8)
        panel.set_axisbelow(True)
        return panel

    def title(self, strip: int, text: str) -> None:
        """A strip's title, at its top."""
        top = (self._bottoms[strip] + self._heights[strip] - 0.28) / self.height
        self.figure.text(0.1 / self.width, top, text, fontsize=13, fontweight="bold", color=INK)

    def note(self, strip: int, text: str, *, bottom: float = 0.12) -> None:
        """A line of explanation, at the foot of a strip."""
        low = (self._bottoms[strip] + bottom) / self.height
        self.figure.text(0.1 / self.width, low, text, fontsize=9, color=INK)


_LEADER: dict[str, Any] = {"linewidth": 0.6, "alpha": 0.45, "clip_on": False, "zorder": 1.5}
_LABEL: dict[str, Any] = {"fontsize": LABEL_SIZE, "va": "center"}


@dataclass(frozen=True)
class Label:
    """A text for the point (x, y) of a panel, in the panel's units."""

    x: float
    y: float
    text: str
    color: str


def label_points(panel: Axes, labels: Sequence[Label], *, height: float, leaders: bool = True) -> None:
    """Write the labels to the right of a panel, each as near to the height of its point as the others let it.

    height: of the panel in inches, whose limits are set. leaders: thin lines from the points to their labels.
    """
    to_panel = panel.transData + panel.transAxes.inverted()
    points = [to_panel.transform((label.x, label.y)) for label in labels]
    gap = LABEL_GAP * LABEL_SIZE / 72 / height
    # From the middle of the lowest label to the middle of the highest: all of them beside the panel.
    room = (gap / 2, max(gap / 2, 1 - gap / 2))
    for label, point, y in zip(labels, points, spread([point[1] for point in points], gap, room), strict=True):
        if leaders:
            panel.plot([point[0], 1.0, 1.02], [point[1], y, y], transform=panel.transAxes, color=label.color, **_LEADER)
        panel.text(1.03, y, label.text, transform=panel.transAxes, color=label.color, **_LABEL)


def spread(positions: Sequence[float], gap: float, room: tuple[float, float]) -> list[float]:
    """The positions, in their order, moved so that any two are at least `gap` apart, between the ends of `room`.

    Positions that are too near to each other form a group that stands evenly around their mean, as far as there is
    room. More than there is room for reach above it.
    """
    order = sorted(range(len(positions)), key=lambda place: (positions[place], place))
    groups: list[list[int]] = []

    def reach(group: Sequence[int]) -> tuple[float, float]:
        """The lowest and the highest position of a group."""
        length = gap * (len(group) - 1)
        middle = sum(positions[place] for place in group) / len(group)
        low = max(room[0], min(middle - length / 2, room[1] - length))
        return low, low + length

    for place in order:
        groups.append([place])
        while len(groups) > 1 and reach(groups[-2])[1] + gap > reach(groups[-1])[0]:
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = [0.0] * len(positions)
    for group in groups:
        low, _ = reach(group)
        for rank, place in enumerate(group):
            moved[place] = low + rank * gap
    return moved


def label_height(count: int) -> float:
    """Inches that so many labels below each other take."""
    return count * LABEL_GAP * LABEL_SIZE / 72


def shortened(text: str, characters: int) -> str:
    """The text, with an ellipsis for what is beyond so many characters."""
    return text if len(text) <= characters else text[: characters - 1].rstrip() + "…"


def titles(frame: pd.DataFrame) -> dict[str, str]:
    """Cell -> title, the best cell that sees first."""
    cells = frame[frame["row"] == "cell"].iloc[::-1]
    return {str(cell): str(title) for cell, title in zip(cells["cell"], cells["title"], strict=True)}


def series_style(place: int) -> dict[str, Any]:
    """Colour and dashes of the line at a place, no two alike among the first 35."""
    return {"color": SERIES[place % len(SERIES)], "linestyle": DASHES[place // len(SERIES) % len(DASHES)]}


def series(frame: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Cell -> how its lines look, in every figure alike."""
    return {cell: series_style(place) for place, cell in enumerate(titles(frame))}
