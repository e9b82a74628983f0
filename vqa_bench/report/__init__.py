"""Finished runs -> tables, pictures and a page that a stranger can read. Knows run folders, nothing of models or data.

schema.py    what is read of a result.json
collect.py   run folders -> runs
twins.py     a pretrained cell -> the scratch cell it is compared with
seeds.py     cells that differ in their seed alone
frame.py     runs -> a frame of numbers, with paired comparisons
details.py   runs -> one long frame: by type, program length, …
beside.py    published numbers as rows of the frame
scores.py    the second table's columns
tables.py    frames -> words, Markdown, CSV
terminal.py  frames -> text for a terminal
latex.py     frame -> LaTeX
texts.py     the files of all these
figures/     runs and frame -> PNG and SVG, a file a figure
page/        all of it -> one HTML page, with a browser of samples
compare.py   two runs on the same questions, tested
"""

import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from filelock import FileLock

from vqa_bench.report.collect import Collection, collect
from vqa_bench.report.figures import KINDS, draw_figures, save_figures
from vqa_bench.report.terminal import terminal
from vqa_bench.report.texts import DETAILS, LATEX, MARKDOWN, PRETRAINING, TABLE, frames_of, texts_of

__all__ = ["Report", "write_report"]

FIGURES, PAGE = "figures", "report.html"
LOCK, PARTIAL = ".report.lock", ".report.partial"


@dataclass(frozen=True)
class Report:
    """What was written and read: `text` for a terminal, the files, the frames, the names of unfinished runs.

    `pretraining` is the CSV of the pretraining runs, None where there is none; `csv`, `details`, `latex` and `figures`
    show the cells, and are None and empty where there are pretraining runs alone. `page` is None where it was not
    asked for.
    """

    text: str
    markdown: Path
    csv: Path | None
    details: Path | None
    latex: Path | None
    pretraining: Path | None
    figures: list[Path]
    page: Path | None
    frame: pd.DataFrame
    pretraining_frame: pd.DataFrame
    unfinished: list[str]


def write_report(
    results_dir: Path, out: Path | None = None, *, color: bool = False, published: bool = False, page: bool = True
) -> Report:
    """Compare all finished runs in `results_dir`; write tables, figures and the page into `out`.

    `out` is `results_dir` unless given. `color` styles the returned text with ANSI codes, for a terminal. `published`
    puts published numbers beside ours in Markdown, LaTeX and the page; `page` writes the page.

    Raises UserError if there is no finished run or a finished run cannot be read; then nothing is written.
    """
    collection = collect(results_dir)
    frames = frames_of(collection, published=published)
    drawn = draw_figures(collection.runs, frames.cells)
    texts = texts_of(collection, frames)
    folder = results_dir if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / LOCK):  # several processes of one matrix may end together
        try:
            paths = {name: _keep(folder / name, text) for name, text in texts.items()}
            figures = save_figures(drawn, folder / FIGURES, folder / PARTIAL)
            svgs = {KINDS[name].title: figure.svg.decode() for name, figure in drawn.items()}
            written = _write_page(folder / PAGE, collection, frames.shown, svgs) if page else None
        finally:
            (folder / PARTIAL).unlink(missing_ok=True)
            (folder / LOCK).unlink(missing_ok=True)  # while it is held: who waits for it sees that and begins anew
    return Report(
        text=terminal(frames.cells, pretraining=frames.pretraining, unfinished=collection.unfinished, color=color),
        markdown=folder / MARKDOWN,
        csv=paths[TABLE],
        details=paths[DETAILS],
        latex=paths[LATEX],
        pretraining=paths[PRETRAINING],
        figures=figures,
        page=written,
        frame=frames.cells,
        pretraining_frame=frames.pretraining,
        unfinished=collection.unfinished,
    )


def _keep(path: Path, text: str | None) -> Path | None:
    """Written under another name and renamed: there is the old file or the new one. None: of runs no longer here."""
    if text is None:
        path.unlink(missing_ok=True)
        return None
    partial = path.with_name(PARTIAL)
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)
    return path


def _write_page(path: Path, collection: Collection, frame: pd.DataFrame, figures: dict[str, str]) -> Path | None:
    """The page; None where there are no cells to show."""
    from vqa_bench.report.page import write_page

    if frame.empty:
        path.unlink(missing_ok=True)
        return None
    write_page(path, collection, frame, figures)
    return path
