"""The frame of a report as Markdown, CSV and text for a terminal. Knows the frame's columns, not where it comes from.

Accuracies are percent with the ends of their 95 % interval, differences are points; only the CSV holds fractions.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vqa_bench.report.collect import COLUMNS

MISSING = "-"
TERMINAL_WIDTH = 110

_HEADINGS = {"overall": "all"}
_SHORT_HEADINGS = {"compare_integer": "cmp int", "compare_attribute": "cmp attr"}

_PLAIN_HEAD = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""A rule under the head and nothing else, in ASCII: what is not a terminal may not speak UTF-8."""


def markdown(frame: pd.DataFrame, *, unfinished: Sequence[str] = ()) -> str:
    """One wide table for each test set, with notes that explain it. In every column the best cell that sees is bold."""
    parts = []
    for test_set in by_test_set(frame):
        counted = [f"{heading(column)} (n = {num_questions(test_set, column):,})" for column in COLUMNS]
        heads = ["model", *counted, "vs best blind", "parameters", "questions / images"]
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
        best = {column: _best_accuracy(test_set, column) for column in COLUMNS}
        for _, row in test_set.iterrows():
            accuracies = [_markdown_accuracy(row, column, best[column]) for column in COLUMNS]
            lines.append([_escape(label(row)), *accuracies, difference(row), _parameters(row), _counts(row)])
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        parts += [f"## {describe(test_set)}", table, "\n".join(f"* {note}" for note in notes(test_set))]
    if unfinished:
        parts.append(_unfinished(unfinished))
    return "\n\n".join(parts) + "\n"


def csv(frame: pd.DataFrame) -> str:
    """The frame as it is: fractions in full precision, a column for every number, empty where there is none."""
    return frame.to_csv(index=False, lineterminator="\n")


def terminal(
    frame: pd.DataFrame, *, unfinished: Sequence[str] = (), color: bool = False, width: int = TERMINAL_WIDTH
) -> str:
    """A narrower table: intervals for all questions and for the difference to the best blind cell only."""
    text = io.StringIO()
    colors: Literal["standard"] | None = "standard" if color else None
    console = Console(file=text, width=width, force_terminal=color, color_system=colors, highlight=False, markup=False)
    for test_set in by_test_set(frame):
        console.print(describe(test_set), style="bold")
        console.print()
        console.print(_terminal_table(test_set, color=color))
        console.print()
        for note in notes(test_set):
            console.print(note, style="dim")
        console.print()
    if unfinished:
        console.print(_unfinished(unfinished), style="yellow")
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines()) + "\n"


def by_test_set(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The blocks of rows that answer the same questions; each begins with its chance row."""
    for _, test_set in frame.groupby("test_set"):
        yield test_set


def describe(test_set: pd.DataFrame) -> str:
    """A test set in words: its name and size."""
    first = test_set.iloc[0]
    images = "1 image" if first["images"] == 1 else f"{first['images']:,} images"
    return f"{first['dataset']}: {first['questions']:,} questions about {images}"


def notes(test_set: pd.DataFrame) -> list[str]:
    """What a reader has to know to read the numbers of one test set."""
    lines = [
        "Accuracy in percent [95 % interval: images are resampled, since questions about one image are correlated].",
        "Chance: a uniform guess among the answers that a question's type allows.",
    ]
    best_blind = test_set[test_set["best_blind"]]
    if len(best_blind) > 0:
        lines.append(
            f'Blind: without the image. vs best blind: points above "{best_blind.iloc[0]["title"]}" on the same '
            "questions [95 % interval of the paired difference]."
        )
    else:
        lines.append("No blind cell is finished, so nothing is compared with one.")
    if (test_set["row"] == "shuffled").any():
        lines.append("Images shuffled: the same model, shown another image of the test set with each question.")
    missing = test_set["missing_images"].iloc[0]
    if missing > 0:
        lines.append(f"{missing:,} images of the test set were missing, their questions are left out.")
    return lines


def num_questions(test_set: pd.DataFrame, column: str) -> int:
    """How many questions an accuracy counts; the same for all rows of a test set."""
    count = test_set[f"{column}_n"].iloc[0]
    return 0 if pd.isna(count) else int(count)


def heading(column: str) -> str:
    """A column of accuracies in words."""
    return _HEADINGS.get(column, column.replace("_", " "))


def label(row: pd.Series) -> str:
    """A row's title; blind cells are marked."""
    return f"{row['title']} (blind)" if row["row"] == "cell" and row["blind"] else str(row["title"])


def accuracy(row: pd.Series, column: str, *, interval: bool = True) -> str:
    """`61.2 [59.0, 63.4]`, without its interval `61.2`, or a dash for a group without questions."""
    estimate, low, high = (row[f"{column}_{number}"] for number in ("accuracy", "low", "high"))
    if pd.isna(estimate):
        return MISSING
    if pd.isna(low) or not interval:
        return f"{100 * estimate:.1f}"
    return f"{100 * estimate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def difference(row: pd.Series) -> str:
    """`+4.4 [+2.1, +6.7]` in points; a dash where there is nothing to compare."""
    if row["best_blind"]:
        return "best blind"
    if pd.isna(row["vs_blind"]):
        return MISSING
    return f"{100 * row['vs_blind']:+.1f} [{100 * row['vs_blind_low']:+.1f}, {100 * row['vs_blind_high']:+.1f}]"


def _terminal_table(test_set: pd.DataFrame, *, color: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD if color else _PLAIN_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model\nn", overflow="fold")
    for column in COLUMNS:
        head = f"{_SHORT_HEADINGS.get(column, heading(column))}\n{num_questions(test_set, column):,}"
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("vs best blind\n(points)", justify="right", no_wrap=True)
    best = {column: _best_accuracy(test_set, column) for column in COLUMNS}
    for _, row in test_set.iterrows():
        cells = [Text(accuracy(row, column, interval=column == "overall")) for column in COLUMNS]
        for cell, column in zip(cells, COLUMNS, strict=True):
            cell.stylize("bold" if _is_best(row, column, best[column]) else "")
        style = "" if row["row"] == "cell" and not row["blind"] else "dim"
        name = "  images shuffled" if row["row"] == "shuffled" else label(row)
        table.add_row(name, *cells, difference(row), style=style)
    return table


def _best_accuracy(test_set: pd.DataFrame, column: str) -> float | None:
    """The highest accuracy of a cell that sees its images, None without one."""
    values = test_set.loc[(test_set["row"] == "cell") & ~test_set["blind"].fillna(True), f"{column}_accuracy"].dropna()
    return None if values.empty else float(values.max())


def _is_best(row: pd.Series, column: str, best: float | None) -> bool:
    return bool(row["row"] == "cell" and not row["blind"] and best is not None and row[f"{column}_accuracy"] == best)


def _markdown_accuracy(row: pd.Series, column: str, best: float | None) -> str:
    text = accuracy(row, column)
    return f"**{text}**" if _is_best(row, column, best) else text


def _parameters(row: pd.Series) -> str:
    return MISSING if pd.isna(row["parameters"]) else f"{row['parameters']:,}"


def _counts(row: pd.Series) -> str:
    return f"{row['questions']:,} / {row['images']:,}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _unfinished(names: Sequence[str]) -> str:
    return f"Not finished, so not shown ({len(names)}): {', '.join(names)}."
