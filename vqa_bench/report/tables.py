"""The frames of a report as Markdown, CSV and text for a terminal. Knows their columns, not where they come from.

Accuracies are percent with the ends of their 95 % interval, differences are points; only the CSV holds fractions.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Literal, TypeGuard

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vqa_bench.report.frame import COLUMNS, SPLITS

MISSING = "-"
TERMINAL_WIDTH = 110

_HEADINGS = {"overall": "all"}
_SHORT_HEADINGS = {"compare_integer": "cmp int", "compare_attribute": "cmp attr"}

PRETRAINING_TITLE = "Pretraining"
_PRETRAINING_HEADINGS = (
    *("run", "objective", "text", "context", "parameters"),
    *(f"{split}\nbits per byte" for split in SPLITS),
    "steps",
)

_PLAIN_HEAD = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
"""A rule under the head and nothing else, in ASCII: what is not a terminal may not speak UTF-8."""


def markdown(frame: pd.DataFrame, *, pretraining: pd.DataFrame | None = None, unfinished: Sequence[str] = ()) -> str:
    """One wide table for each test set, with notes that explain it, and one of the pretraining runs.

    In every column the best cell that sees is bold.
    """
    parts = []
    for test_set in by_test_set(frame):
        counted = [f"{heading(column)} (n = {num_questions(test_set, column):,})" for column in COLUMNS]
        versus = ["vs best blind", "vs scratch"] if has_twins(test_set) else ["vs best blind"]
        lines = [["model", *counted, *versus, "parameters", "questions / images"]]
        best = {column: _best_accuracy(test_set, column) for column in COLUMNS}
        for _, row in test_set.iterrows():
            accuracies = [_markdown_accuracy(row, column, best[column]) for column in COLUMNS]
            differences = [versus_blind(row), difference(row, "vs_scratch")][: len(versus)]
            lines.append([_escape(label(row)), *accuracies, *differences, _count(row["parameters"]), _counts(row)])
        parts += [f"## {describe(test_set)}", _markdown_table(lines), _markdown_notes(notes(test_set))]
    if _any_pretraining(pretraining):
        lines = [[head.replace("\n", ", ") for head in _PRETRAINING_HEADINGS]]
        lines += [[_escape(entry) for entry in _pretraining_entries(row)] for _, row in pretraining.iterrows()]
        table = _markdown_table(lines, text_columns=3)
        parts += [f"## {PRETRAINING_TITLE}", table, _markdown_notes(pretraining_notes(pretraining))]
    if unfinished:
        parts.append(_unfinished(unfinished))
    return "\n\n".join(parts) + "\n"


def csv(frame: pd.DataFrame) -> str:
    """A frame as it is: fractions in full precision, a column for every number, empty where there is none."""
    return frame.to_csv(index=False, lineterminator="\n")


def terminal(
    frame: pd.DataFrame,
    *,
    pretraining: pd.DataFrame | None = None,
    unfinished: Sequence[str] = (),
    color: bool = False,
    width: int = TERMINAL_WIDTH,
) -> str:
    """Narrower tables: intervals for all questions and for differences only; the one to the scratch twin has a line."""
    text = io.StringIO()
    colors: Literal["standard"] | None = "standard" if color else None
    console = Console(file=text, width=width, force_terminal=color, color_system=colors, highlight=False, markup=False)
    tables = [(describe(block), _terminal_table(block, color=color), notes(block)) for block in by_test_set(frame)]
    if _any_pretraining(pretraining):
        table = _terminal_pretraining(pretraining, color=color)
        tables.append((PRETRAINING_TITLE, table, pretraining_notes(pretraining)))
    for title, table, lines in tables:
        console.print(title, style="bold")
        console.print()
        console.print(table)
        console.print()
        for line in lines:
            console.print(line, style="dim")
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
    if has_twins(test_set):
        lines.append(
            "vs scratch: points above the same model with the same encoding, sequence and seed that was trained from "
            "random weights, on the same questions [95 % interval of the paired difference]."
        )
    if (test_set["row"] == "shuffled").any():
        lines.append("Images shuffled: the same model, shown another image of the test set with each question.")
    missing = test_set["missing_images"].iloc[0]
    if missing > 0:
        lines.append(f"{missing:,} images of the test set were missing, their questions are left out.")
    return lines + _remarks(test_set)


def pretraining_notes(pretraining: pd.DataFrame) -> list[str]:
    """What a reader has to know to read the numbers of the pretraining runs."""
    lines = ["Bits per byte: the mean of -log2 p over every byte of the split (how many), given those before it."]
    if (pretraining["objective"] == "masked").any():
        lines.append(
            "masked: the same over hidden bytes, given those that are not hidden; not to be compared with next byte."
        )
    return lines + _remarks(pretraining)


def has_twins(test_set: pd.DataFrame) -> bool:
    """Whether any cell is compared with its scratch twin."""
    return bool(test_set["vs_scratch"].notna().any())


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


def versus_blind(row: pd.Series) -> str:
    """The difference to the best blind cell, or that the row is that one."""
    return "best blind" if row["best_blind"] else difference(row, "vs_blind")


def difference(row: pd.Series, name: str) -> str:
    """`+4.4 [+2.1, +6.7]` in points; a dash where there is nothing to compare."""
    estimate, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return MISSING if pd.isna(estimate) else f"{100 * estimate:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _terminal_table(test_set: pd.DataFrame, *, color: bool) -> Table:
    table = _plain_table(color=color)
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
        table.add_row(name, *cells, versus_blind(row), style=style)
        if not pd.isna(row["vs_scratch"]):
            table.add_row("  vs scratch (points)", difference(row, "vs_scratch"))
    return table


def _terminal_pretraining(pretraining: pd.DataFrame, *, color: bool) -> Table:
    table = _plain_table(color=color)
    for place, head in enumerate(_PRETRAINING_HEADINGS):
        table.add_column(head, justify="left" if place < 3 else "right", overflow="fold")
    for _, row in pretraining.iterrows():
        table.add_row(*_pretraining_entries(row))
    return table


def _plain_table(*, color: bool) -> Table:
    return Table(box=box.SIMPLE_HEAD if color else _PLAIN_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def _remarks(rows: pd.DataFrame) -> list[str]:
    """What is to be said of single rows."""
    said = rows.dropna(subset="remarks")
    return [f'"{title}": {remark}' for title, remark in zip(said["title"], said["remarks"], strict=True)]


def _any_pretraining(pretraining: pd.DataFrame | None) -> TypeGuard[pd.DataFrame]:
    return pretraining is not None and not pretraining.empty


def _pretraining_entries(row: pd.Series) -> list[str]:
    """A pretraining run under `_PRETRAINING_HEADINGS`."""
    name = row["title"] if row["title"] == row["name"] else f"{row['title']} ({row['name']})"
    bits = [
        MISSING if pd.isna(row[f"{split}_bits"]) else f"{row[f'{split}_bits']:.3f} ({row[f'{split}_bytes']:,})"
        for split in SPLITS
    ]
    counts = [_count(row[column]) for column in ("context", "parameters")]
    return [name, row["objective"].replace("_", " "), row["dataset"], *counts, *bits, _count(row["steps"])]


def _best_accuracy(test_set: pd.DataFrame, column: str) -> float | None:
    """The highest accuracy of a cell that sees its images, None without one."""
    values = test_set.loc[(test_set["row"] == "cell") & ~test_set["blind"].fillna(True), f"{column}_accuracy"].dropna()
    return None if values.empty else float(values.max())


def _is_best(row: pd.Series, column: str, best: float | None) -> bool:
    return bool(row["row"] == "cell" and not row["blind"] and best is not None and row[f"{column}_accuracy"] == best)


def _markdown_accuracy(row: pd.Series, column: str, best: float | None) -> str:
    text = accuracy(row, column)
    return f"**{text}**" if _is_best(row, column, best) else text


def _count(number: int) -> str:
    return MISSING if pd.isna(number) else f"{number:,}"


def _counts(row: pd.Series) -> str:
    return f"{row['questions']:,} / {row['images']:,}"


def _markdown_table(lines: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """The first line is the head; the first `text_columns` columns stand at the left, numbers at the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(lines[0]) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (lines[0], rule, *lines[1:]))


def _markdown_notes(lines: Sequence[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def _unfinished(names: Sequence[str]) -> str:
    return f"Not finished, so not shown ({len(names)}): {', '.join(names)}."
