"""Two finished runs on the same questions: a test for all of them, each group, each type. Knows runs, not their models.

Every test resamples images (`scoring.statistics.paired_difference`); stars come from these tests alone, after Holm's
adjustment over the whole table. McNemar's test, which takes questions for independent, stands beside and is named so.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from vqa_bench.data.folders import whole_file
from vqa_bench.data.vocab import GROUPS, QUESTION_TYPES
from vqa_bench.errors import UserError
from vqa_bench.report.collect import Run, read_run
from vqa_bench.report.terminal import WIDTH, console_on, without_trailing_blanks
from vqa_bench.scoring.predictions import iterate_predictions
from vqa_bench.scoring.statistics import (
    STARS,
    holm,
    minimum_detectable_effect,
    paired_difference,
    stars,
    unclustered_mcnemar,
)

POWER, LEVEL = 0.8, 0.05
_INDENT = {"overall": "", "group": "", "type": "  "}

COLUMNS: dict[str, str] = (
    dict.fromkeys(("a", "b", "scope", "questions"), "string")
    | dict.fromkeys(("n", "images"), "Int64")
    | dict.fromkeys(("accuracy_a", "accuracy_b", "difference", "low", "high", "p_value", "adjusted_p"), "Float64")
    | {"stars": "string"}
    | dict.fromkeys(("only_a", "only_b"), "Int64")
    | dict.fromkeys(("unclustered_mcnemar_p", "unclustered_mcnemar_mid_p", "detectable"), "Float64")
)
"""Columns of a comparison and their pandas types."""


@dataclass(frozen=True)
class Comparison:
    """Runs a and b with the rows of `COLUMNS`: fractions, `difference` is a minus b.

    `scope` is "overall", "group" or "type", `questions` the name of it. A type that is all of its group has no row of
    its own: it would be the same test once more.
    """

    a: Run
    b: Run
    frame: pd.DataFrame


def compare(folder_a: Path, folder_b: Path) -> Comparison:
    """Read two runs and compare their answers.

    Raises UserError if one is not finished or not whole, if both are the same, or if they did not answer the same
    questions of the same data set, or chose among other candidates.
    """
    if folder_a.resolve() == folder_b.resolve():
        raise UserError(f"expected two runs to compare, got {folder_a} twice; name another one")
    a, b = read_run(folder_a), read_run(folder_b)
    if a.result.answers != b.result.answers:
        raise UserError(
            f"expected two runs that chose among the same answers in the same order, got {len(a.result.answers)} of "
            f"{folder_a} and {len(b.result.answers)} others of {folder_b}; `vqa-bench evaluate` both with one list"
        )
    if (a.result.dataset.name, a.answers.questions) != (b.result.dataset.name, b.answers.questions):
        raise UserError(
            f"expected two runs that answered the same questions, got {_test_set(a)} of {folder_a} and {_test_set(b)} "
            f"of {folder_b}; `vqa-bench evaluate` both on one shard"
        )
    rows = [
        {"a": a.result.cell, "b": b.result.cell, "scope": scope, "questions": name} | _tested(a, b, chosen)
        for scope, name, chosen in _parts(_types_of(a))
    ]
    for row, adjusted in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row |= {"adjusted_p": adjusted, "stars": stars(adjusted)}
    return Comparison(a, b, pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS))


def write_csv(comparison: Comparison, path: Path) -> None:
    """The frame as it is, fractions in full precision; the file appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        comparison.frame.to_csv(partial, index=False, lineterminator="\n")


def terminal(comparison: Comparison, *, color: bool = False, width: int = WIDTH) -> str:
    """The comparison as a table with notes that explain every column; `color` styles it with ANSI codes.

    Without colour it is ASCII: what is not a terminal may not speak UTF-8.
    """
    text = io.StringIO()
    console = console_on(text, width=width, color=color)
    for name, run in (("a", comparison.a), ("b", comparison.b)):
        console.print(f"{name}: {_called(run)}", style="bold")
    console.print(f"on {_test_set(comparison.a)}\n")
    console.print(_table(comparison.frame, color=color))
    console.print()
    for note in notes(comparison):
        console.print(note, style="dim")
    return without_trailing_blanks(text.getvalue())


def notes(comparison: Comparison) -> list[str]:
    """What a reader has to know of each column, and of what the table cannot say."""
    tests = len(comparison.frame)
    marks = ", ".join(f"{mark} below {level:g}" for level, mark in reversed(STARS))
    return [
        "a, b: accuracy in percent. a - b: points [95 % interval of the paired difference: images are resampled, since "
        "questions about one image are correlated].",
        "p: two-sided, of that same resampling, for no difference. adjusted: Holm's over the "
        f"{tests} tests of this table; the stars are those of the adjusted p ({marks}).",
        f"visible: the least true difference, in points, that so many questions would show (p < {LEVEL:g} before the "
        f"adjustment) {100 * POWER:.0f} times in 100. No stars and a large number here: too few questions to tell.",
        "only a/b: questions that only a, only b answers rightly. McNemar, unclustered: the p of the exact test that "
        "takes questions for independent, to compare with reports that give it; no star comes from it.",
        "One training of each: how far another seed would move them is not in these intervals.",
    ]


def _types_of(run: Run) -> dict[str, NDArray[np.str_]]:
    """`type` and `group` of every question, (N,) each, in the order of the run's answers."""
    predictions = iterate_predictions(run.folder / "predictions.jsonl", run.result.candidates)
    asked = [(prediction.question_type, prediction.group) for prediction in predictions]
    types, groups = zip(*asked, strict=True)
    return {"type": np.array(types), "group": np.array(groups)}


def _parts(labels: dict[str, NDArray[np.str_]]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Scope, name and questions (N,) of each row: all, then every group followed by its types."""
    everything = np.ones(len(labels["group"]), dtype=bool)
    yield "overall", "all", everything
    for group in _in_order(labels["group"], GROUPS):
        of_group = labels["group"] == group
        types = _in_order(labels["type"][of_group], QUESTION_TYPES)
        if not of_group.all():
            yield "group", group, of_group
        if len(types) > 1:
            for name in types:
                yield "type", name, of_group & (labels["type"] == name)


def _in_order(names: NDArray[np.str_], known: tuple[str, ...]) -> list[str]:
    """The different names: those that CLEVR has in its order, then the others by alphabet."""
    found = set(names.tolist())
    return [name for name in known if name in found] + sorted(found.difference(known))


def _tested(a: Run, b: Run, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """All numbers of the chosen questions (N,) but those that depend on the other rows."""
    # Both answered the same questions, so the images of a are those of b.
    correct_a, correct_b, images = a.answers.correct[chosen], b.answers.correct[chosen], a.answers.images[chosen]
    paired = paired_difference(correct_a, correct_b, images)
    mcnemar = unclustered_mcnemar(correct_a, correct_b)
    return {
        "n": len(images),
        "images": len(np.unique(images)),
        "accuracy_a": correct_a.mean(),
        "accuracy_b": correct_b.mean(),
        "difference": paired.estimate,
        "low": paired.low,
        "high": paired.high,
        "p_value": paired.p_value,
        "only_a": mcnemar.only_a,
        "only_b": mcnemar.only_b,
        "unclustered_mcnemar_p": mcnemar.exact_p,
        "unclustered_mcnemar_mid_p": mcnemar.mid_p,
        "detectable": minimum_detectable_effect(correct_a, correct_b, images, power=POWER, level=LEVEL),
    }


def _table(frame: pd.DataFrame, *, color: bool) -> Table:
    gap = 0 if color else 1  # the box has gaps of its own
    table = Table(box=box.SIMPLE_HEAD if color else None, pad_edge=False, show_edge=False, padding=(0, gap, 0, 0))
    table.add_column("questions", overflow="fold")
    for head in ("n", "a", "b", "a - b [95 %]", "p", "adjusted"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for head in ("visible", "only a/b", "McNemar,\nunclustered"):
        table.add_column(head, justify="right", no_wrap=True)
    for _, row in frame.iterrows():
        name = _INDENT[row["scope"]] + row["questions"].replace("_", " ")
        table.add_row(
            name,
            f"{row['n']:,}",
            f"{100 * row['accuracy_a']:.1f}",
            f"{100 * row['accuracy_b']:.1f}",
            f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]",
            _p(row["p_value"]),
            _p(row["adjusted_p"]),
            Text(row["stars"], style="bold"),
            f"{100 * row['detectable']:.1f}",
            f"{row['only_a']:,}/{row['only_b']:,}",
            _p(row["unclustered_mcnemar_p"]),
            style="" if row["scope"] != "type" else "dim",
        )
    return table


def _p(p_value: float) -> str:
    return "<0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def _called(run: Run) -> str:
    """A run's title, and its cell where that is another name."""
    title, cell = run.result.title, run.result.cell
    return title if title == cell else f"{title} ({cell})"


def _test_set(run: Run) -> str:
    images = len(set(run.answers.images))
    count = "1 image" if images == 1 else f"{images:,} images"
    return f"{run.result.dataset.name}: {len(run.answers.correct):,} questions about {count}"
