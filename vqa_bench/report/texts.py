"""The files of a report that are text, made of what was collected. Draws nothing."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from vqa_bench.report.beside import with_published
from vqa_bench.report.collect import Collection
from vqa_bench.report.details import build_details
from vqa_bench.report.frame import build_frame, build_pretraining_frame
from vqa_bench.report.latex import latex
from vqa_bench.report.tables import csv, markdown

MARKDOWN, TABLE, DETAILS, LATEX, PRETRAINING = "table.md", "table.csv", "details.csv", "table.tex", "pretraining.csv"


class Frames(NamedTuple):
    """The frame of cells, the same as it is shown (perhaps with published rows), and that of pretraining runs."""

    cells: pd.DataFrame
    shown: pd.DataFrame
    pretraining: pd.DataFrame


def frames_of(collection: Collection, *, published: bool) -> Frames:
    """published: whether published numbers stand beside ours."""
    cells = build_frame(collection.runs)
    shown = with_published(cells) if published else cells
    return Frames(cells, shown, build_pretraining_frame(collection.pretraining))


def texts_of(collection: Collection, frames: Frames) -> dict[str, str | None]:
    """Name of a file → its text, None where there is nothing for it."""
    has_cells = not frames.cells.empty
    return {
        MARKDOWN: markdown(frames.shown, pretraining=frames.pretraining, unfinished=collection.unfinished),
        TABLE: csv(frames.cells) if has_cells else None,
        DETAILS: csv(build_details(collection.runs)) if has_cells else None,
        LATEX: latex(frames.shown) if has_cells else None,
        PRETRAINING: None if frames.pretraining.empty else csv(frames.pretraining),
    }
