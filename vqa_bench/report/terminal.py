"""The frames of a report as text for a terminal. Knows their words and columns, not where they come from."""

import io
from collections.abc import Sequence
from typing import Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vqa_bench.report.scores import entry, score_notes, scored, scores_of
from vqa_bench.report.tables import (
    PRETRAINING_HEADINGS,
    PRETRAINING_TITLE,
    SCORES_TITLE,
    accuracy,
    any_pretraining,
    best_accuracy,
    by_test_set,
    columns_of,
    comparisons_of,
    describe,
    difference,
    heading,
    is_best,
    label,
    notes,
    num_questions,
    pretraining_entries,
    pretraining_notes,
    unfinished_runs,
)

WIDTH = 110

_SHORT_HEADINGS = {"compare_integer": "cmp int", "compare_attribute": "cmp attr"}

_PLAIN_HEAD = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""A rule under the head and nothing else, in ASCII: what is not a terminal may not speak UTF-8."""


def terminal(
    frame: pd.DataFrame,
    *,
    pretraining: pd.DataFrame | None = None,
    unfinished: Sequence[str] = (),
    color: bool = False,
    width: int = WIDTH,
) -> str:
    """Narrower tables: intervals for all questions and for differences only, of which all but one have own lines."""
    text = io.StringIO()
    console = console_on(text, width=width, color=color)
    for title, table, lines in _tables(frame, pretraining, color=color):
        console.print(title, style="bold")
        console.print()
        console.print(table)
        console.print()
        for line in lines:
            console.print(line, style="dim")
        console.print()
    if unfinished:
        console.print(unfinished_runs(unfinished), style="yellow")
    return without_trailing_blanks(text.getvalue())


def console_on(file: io.StringIO, *, width: int, color: bool) -> Console:
    """Prints into `file` what is said, nothing of it taken for markup; ANSI codes only with `color`."""
    colors: Literal["standard"] | None = "standard" if color else None
    return Console(file=file, width=width, force_terminal=color, color_system=colors, highlight=False, markup=False)


def without_trailing_blanks(text: str) -> str:
    """Lines without blanks behind them, and no empty ones at the end."""
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines()) + "\n"


def _tables(
    frame: pd.DataFrame, pretraining: pd.DataFrame | None, *, color: bool
) -> list[tuple[str, Table, list[str]]]:
    """Every table with its title and its notes."""
    tables = []
    for test_set in by_test_set(frame):
        tables.append((describe(test_set), _accuracies(test_set, color=color), notes(test_set)))
        scores = [score for score in scores_of(test_set) if score.narrow]
        if scores:
            table = _plain_table(["model", *(score.heading for score in scores)], color=color)
            for _, row in scored(test_set).iterrows():
                table.add_row(label(row), *(entry(row, score) for score in scores))
            tables.append((SCORES_TITLE, table, score_notes(scores)))
    if any_pretraining(pretraining):
        table = _plain_table(PRETRAINING_HEADINGS, color=color, text_columns=3)
        for _, row in pretraining.iterrows():
            table.add_row(*pretraining_entries(row))
        tables.append((PRETRAINING_TITLE, table, pretraining_notes(pretraining)))
    return tables


def _accuracies(test_set: pd.DataFrame, *, color: bool) -> Table:
    columns, lines = columns_of(test_set), [name for name in comparisons_of(test_set) if name != "vs_blind"]
    heads = [f"{_SHORT_HEADINGS.get(name, heading(name))}\n{num_questions(test_set, name):,}" for name in columns]
    table = _plain_table(["model\nn", *heads, "vs best blind\n(points)"], color=color)
    best = {column: best_accuracy(test_set, column) for column in columns}
    for _, row in test_set.iterrows():
        cells = [Text(accuracy(row, column, interval=column == "overall")) for column in columns]
        for cell, column in zip(cells, columns, strict=True):
            cell.stylize("bold" if is_best(row, column, best[column]) else "")
        style = "" if row["row"] == "cell" and not row["blind"] else "dim"
        name = "  images shuffled" if row["row"] == "shuffled" else label(row)
        table.add_row(name, *cells, difference(row, "vs_blind"), style=style)
        for comparison in lines:
            if not pd.isna(row[comparison]):
                table.add_row(f"  {heading(comparison)}", difference(row, comparison), style=style)
    return table


def _plain_table(heads: Sequence[str], *, color: bool, text_columns: int = 1) -> Table:
    """A table with its head; the first `text_columns` columns stand at the left, numbers at the right."""
    head = box.SIMPLE_HEAD if color else _PLAIN_HEAD
    table = Table(box=head, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for place, name in enumerate(heads):
        is_text = place < text_columns
        table.add_column(name, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    return table
