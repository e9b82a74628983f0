"""Finished runs -> tables and a picture that a stranger can read. Knows run folders, nothing of models or data.

schema.py    what is read of a result.json
collect.py   run folders -> runs
twins.py     a pretrained cell -> the scratch cell it is compared with
frame.py     runs -> frames of numbers, with paired comparisons
tables.py    frames -> Markdown, CSV, terminal
figures.py   frame -> PNG
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock

from vqa_bench.report.collect import collect
from vqa_bench.report.figures import save_figure
from vqa_bench.report.frame import build_frame, build_pretraining_frame
from vqa_bench.report.tables import csv, markdown, terminal

__all__ = ["Report", "write_report"]

PRETRAINING = "pretraining.csv"
LOCK, PARTIAL = ".report.lock", ".report.partial"


@dataclass(frozen=True)
class Report:
    """What was written and read: `text` for a terminal, the files, the frames, the names of unfinished runs.

    `pretraining` is the CSV of the pretraining runs, None where there is none; `csv` and `figure` show the cells, None
    where there are pretraining runs alone.
    """

    text: str
    markdown: Path
    csv: Path | None
    pretraining: Path | None
    figure: Path | None
    frame: pd.DataFrame
    pretraining_frame: pd.DataFrame
    unfinished: list[str]


def write_report(results_dir: Path, out: Path | None = None, *, color: bool = False) -> Report:
    """Compare all finished runs in `results_dir`; write table.md, table.csv and accuracy.png into `out`.

    pretraining.csv is written too if a pretraining run is finished. `out` is `results_dir` unless given. `color`
    styles the returned text with ANSI codes, for a terminal.

    Raises UserError if there is no finished run or a finished run cannot be read; then nothing is written.
    """
    collection = collect(results_dir)
    frame, pretraining = build_frame(collection.runs), build_pretraining_frame(collection.pretraining)
    folder = results_dir if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(
        text=terminal(frame, pretraining=pretraining, unfinished=collection.unfinished, color=color),
        markdown=folder / "table.md",
        csv=None if frame.empty else folder / "table.csv",
        pretraining=None if pretraining.empty else folder / PRETRAINING,
        figure=None if frame.empty else folder / "accuracy.png",
        frame=frame,
        pretraining_frame=pretraining,
        unfinished=collection.unfinished,
    )
    with FileLock(folder / LOCK):  # several processes of one matrix may end together
        try:
            _write_files(report, folder)
        finally:
            (folder / PARTIAL).unlink(missing_ok=True)
            (folder / LOCK).unlink(missing_ok=True)  # while it is held: who waits for it sees that and begins anew
    return report


def _write_files(report: Report, folder: Path) -> None:
    """Every file under another name and renamed: there is the old one or the new one."""
    texts = {
        report.markdown: markdown(report.frame, pretraining=report.pretraining_frame, unfinished=report.unfinished),
    }
    if report.csv is not None:
        texts[report.csv] = csv(report.frame)
    if report.pretraining is None:
        (folder / PRETRAINING).unlink(missing_ok=True)  # of runs that are no longer here
    else:
        texts[report.pretraining] = csv(report.pretraining_frame)
    partial = folder / PARTIAL
    for path, text in texts.items():
        partial.write_text(text, encoding="utf-8", newline="\n")
        os.replace(partial, path)
    if report.figure is not None:
        save_figure(report.frame, partial)
        os.replace(partial, report.figure)
