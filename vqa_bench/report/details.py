"""Every accuracy of every run in one long frame: by type, program length, number of objects, right answer, …

Knows runs, not how a table or figure looks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from vqa_bench.report.collect import Run
from vqa_bench.report.frame import by_questions
from vqa_bench.report.schema import Accuracy, Metrics

BY = {
    "group": "groups",
    "type": "types",
    "program_length": "program_lengths",
    "num_objects": "num_objects",
    "answer": "answers",
}
"""What questions are told apart by -> the name of those accuracies in a result."""

DETAIL_COLUMNS: dict[str, str] = (
    {"test_set": "Int64"}
    | dict.fromkeys(("dataset", "row", "cell", "title", "by", "value"), "string")
    | dict.fromkeys(("n", "correct"), "Int64")
    | dict.fromkeys(("accuracy", "low", "high", "chance"), "Float64")
)
"""Columns of the frame and their pandas types."""


def build_details(runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each accuracy of a cell, and of a cell with images shuffled (`row` says which).

    `test_set` is that of `frame.build_frame`; `by` is one of `BY`, `value` a group, a type, … in the order of the
    result. Fractions, not percent.
    """
    rows = [
        {"test_set": number} | row
        for number, test_set in enumerate(by_questions(runs))
        for run in test_set
        for row in _rows_of(run)
    ]
    return pd.DataFrame(rows, columns=list(DETAIL_COLUMNS)).astype(DETAIL_COLUMNS)


def _rows_of(run: Run) -> Iterator[dict[str, Any]]:
    result = run.result
    who = {"dataset": result.dataset.name, "cell": result.cell, "title": result.title}
    sides: dict[str, Metrics | None] = {"cell": result.metrics, "shuffled": result.shuffled}
    for row, metrics in sides.items():
        if metrics is None:
            continue
        for by, name in BY.items():
            entries: Mapping[str, Accuracy] = getattr(metrics, name)
            for value, entry in entries.items():
                numbers = {column: getattr(entry, column) for column in list(DETAIL_COLUMNS)[-6:]}
                yield who | {"row": row, "by": by, "value": value} | numbers
