"""Finished runs -> a table and a picture that a stranger can read. Knows run folders, nothing of models or data.

collect.py   run folders -> one frame of numbers, with paired comparisons
tables.py    frame -> Markdown, CSV, terminal
figures.py   frame -> PNG
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vqa_bench.report.collect import build_frame, collect
from vqa_bench.report.figures import save_figure
from vqa_bench.report.tables import csv, markdown, terminal

__all__ = ["Report", "write_report"]


@dataclass(frozen=True)
class Report:
    """What was written and read: `text` for a terminal, the three files, the frame, the names of unfinished runs."""

    text: str
    markdown: Path
    csv: Path
    figure: Path
    frame: pd.DataFrame
    unfinished: list[str]


def write_report(results_dir: Path, out: Path | None = None, *, color: bool = False) -> Report:
    """Compare all finished runs in `results_dir`; write table.md, table.csv and accuracy.png into `out`.

    `out` is `results_dir` unless given. `color` styles the returned text with ANSI codes, for a terminal.

    Raises UserError if there is no finished run or one cannot be read; then nothing is written.
    """
    collection = collect(results_dir)
    frame = build_frame(collection.runs)
    folder = results_dir if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(
        text=terminal(frame, unfinished=collection.unfinished, color=color),
        markdown=folder / "table.md",
        csv=folder / "table.csv",
        figure=folder / "accuracy.png",
        frame=frame,
        unfinished=collection.unfinished,
    )
    partial = folder / ".report.partial"
    for path, text in ((report.markdown, markdown(frame, unfinished=report.unfinished)), (report.csv, csv(frame))):
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    save_figure(frame, partial)
    os.replace(partial, report.figure)
    return report
