"""Cells that are trained for equal times on one GPU: how well do they answer, and which way to write a picture is best.

accuracy_cells.py   sizes and learning rates as values, and which cells there are
pictures.py         the data: drawn on the spot, or packed elsewhere
accuracy_fill.py    one cell after another, as long as there is time
accuracy_train.py   one cell, timed, trained and tested by the harness
accuracy_report.py  the table

Every cell goes through the harness's own loop and test, and every model but one reads a picture once for all of its
questions. Knows which packages that takes, and nothing else: here they may be missing.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from benchmarks.gpu.parts import Report

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench

TITLE, AGAINST = "Accuracy on generated CLEVR at equal training times", "compared with"
NEEDED = {
    "PIL": "pillow",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "filelock": "filelock",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
}
"""Modules that the harness's training and test import beside those of every part, and the packages that have them."""


def run(bench: Bench) -> Report:
    """Train and test all cells there is time for, the most important first; a failure where packages are missing."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        failure = f"expected {', '.join(NEEDED.values())}, got {sys.executable} without {', '.join(missing)}"
        return Report(TITLE, AGAINST, [], [], [f"{failure}; install them, or give wheels of them in VQA_WHEELS"])
    from benchmarks.gpu.accuracy_fill import fill_all
    from benchmarks.gpu.accuracy_report import remarks_of, rows_of, write_table
    from benchmarks.gpu.pictures import PicturesError
    from vqa_bench.errors import UserError

    try:
        findings, runs = fill_all(bench)
    except (PicturesError, UserError) as error:
        return Report(TITLE, AGAINST, [], [], [str(error)])
    # A dry run's numbers say nothing, and packages that draw figures take seconds to import.
    tables = [] if bench.tiny else write_table(runs, bench.file.parent)
    return Report(TITLE, AGAINST, rows_of(findings), [*remarks_of(findings), *tables], findings.faults)
