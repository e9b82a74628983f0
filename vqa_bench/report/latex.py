r"""The frame of a report as LaTeX tables to be put into a paper. Knows the frame's words and columns only.

The tables need `\usepackage{booktabs}` and nothing else, and UTF-8, which LaTeX has read since 2018.
"""

from collections.abc import Sequence
from itertools import cycle

import pandas as pd

from vqa_bench.report.beside import MARK, UNSURE_MARK
from vqa_bench.report.scores import entry, score_notes, scored, scores_of
from vqa_bench.report.tables import (
    SCORES_TITLE,
    accuracy,
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
)

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    MARK: r"\dag{}",
    UNSURE_MARK: r"\ddag{}",
} | {character: f"\\{character}" for character in "&%_#${}"}

HEAD = "% Made by `vqa-bench report`; needs \\usepackage{booktabs}."


def latex(frame: pd.DataFrame) -> str:
    """Two tables for each test set: accuracies with the best that sees in bold, and what else is known of the answers.

    Intervals stand at the accuracy of all questions alone. Stars are those of the adjusted paired tests.
    """
    tables = [HEAD]
    for number, test_set in enumerate(by_test_set(frame)):
        name = f"{_slug(str(test_set['dataset'].iloc[0]))}-{number}"
        tables.append(_accuracies(test_set, f"tab:accuracy-{name}"))
        scores = scores_of(test_set)
        if scores:
            rows = [[label(row), *(entry(row, score) for score in scores)] for _, row in scored(test_set).iterrows()]
            head = ["model", *(score.heading for score in scores)]
            caption = f"{SCORES_TITLE}. {describe(test_set)}."
            lines = [[escape(text) for text in row] for row in rows]
            tables.append(_table(head, lines, caption, score_notes(scores), name=f"tab:scores-{name}"))
    return "\n\n".join(tables) + "\n"


def escape(text: str) -> str:
    """Text in which every character stands for itself; quotation marks, taken in pairs, become LaTeX's own."""
    marks = cycle(("``", "''"))
    return "".join(next(marks) if character == '"' else _SPECIAL.get(character, character) for character in text)


def _accuracies(test_set: pd.DataFrame, name: str) -> str:
    columns, comparisons = columns_of(test_set), comparisons_of(test_set)
    counted = [f"{heading(column)}\nn = {num_questions(test_set, column):,}" for column in columns]
    best = {column: best_accuracy(test_set, column) for column in columns}
    before, lines = "chance", list[list[str]]()
    for _, row in test_set.iterrows():
        if row["row"] == "published" and before != "published":
            lines.append([])
        before = row["row"]
        accuracies = [_accuracy(row, column, best[column]) for column in columns]
        differences = [_difference(row, comparison) for comparison in comparisons]
        lines.append([escape(label(row)), *accuracies, *differences])
    heads = ["model", *counted, *map(heading, comparisons)]
    return _table(heads, lines, f"Accuracy. {describe(test_set)}.", notes(test_set), name=name)


def _accuracy(row: pd.Series, column: str, best: float | None) -> str:
    text = accuracy(row, column, interval=column == "overall")
    return rf"\textbf{{{text}}}" if is_best(row, column, best) else text


def _difference(row: pd.Series, name: str) -> str:
    """Points without their interval, a real minus sign, raised stars."""
    text = difference(row, name, interval=False)
    marks = "*" * text.count("*")
    text = text.rstrip("*")
    if text.startswith(("+", "-")) and len(text) > 1:
        text = f"${text}$"
    return rf"{text}\rlap{{$^{{{marks}}}$}}" if marks else text


def _table(
    head: Sequence[str], lines: Sequence[Sequence[str]], caption: str, explained: Sequence[str], *, name: str
) -> str:
    r"""A `table` with its caption, and notes under it.

    head, caption, explained: plain words, in the head a line break where there are two lines. lines: LaTeX already;
    one without entries becomes a rule.
    """
    rows = [" & ".join(line) + r" \\" if line else r"\midrule" for line in lines]
    heads = [text.split("\n") for text in head]
    depth = max(map(len, heads))
    heads = [[""] * (depth - len(words)) + words for words in heads]
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape(caption)}}}",
            rf"\label{{{name}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            *(" & ".join(map(escape, words)) + r" \\" for words in zip(*heads, strict=True)),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
            r"\medskip",
            rf"\parbox{{\linewidth}}{{{' '.join(map(escape, explained))}}}",
            r"\end{table}",
        ]
    )


def _slug(text: str) -> str:
    """A name that a label can have."""
    return "".join(character if character.isascii() and character.isalnum() else "-" for character in text).strip("-")
