"""The parts of a report's page that are text and tables. Knows the frame and results, not the page around them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vqa_bench.report.collect import Run
from vqa_bench.report.page.html import Entry, Head, Row, table
from vqa_bench.report.page.samples import facts_of
from vqa_bench.report.scores import entry, scored, scores_of
from vqa_bench.report.tables import (
    PRETRAINING_HEADINGS,
    accuracy,
    best_accuracy,
    columns_of,
    comparisons_of,
    describe,
    difference,
    heading,
    is_best,
    label,
    num_questions,
    pretraining_entries,
)

FIGURES = {
    "Accuracy": "How many questions each model answers right, all and group by group, against chance and the "
    "best model without images.",
    "Accuracy by type of question": "The same for each of the types: blue is above chance, orange below.",
    "Accuracy and bytes of a picture": "Whether more bytes of a picture make more right answers.",
    "Accuracy and work of training": "Whether more work makes more right answers.",
    "Learning curves": "How the models came to what they know, step by step.",
    "Calibration": "Whether a model is as often right as it says it is sure: then its dots lie on the diagonal.",
    "Damaged pictures": "What is left when the bytes of the pictures are damaged, and how many no decoder reads.",
}
"""What a figure shows, by its title."""

_INTERVAL = "Percent right, with the ends of the 95 % interval: images are resampled."
_COMPARISONS = {
    "vision_gain": "Points above the same model when each question comes with another image of the test set.",
    "vs_blind": "Points above the best model that sees no image, on the same questions.",
    "vs_scratch": "Points above the same model trained from random weights, on the same questions.",
}
_INVARIANCE = "How far a log-probability moves at most when questions are scored in other batches."

BREAKDOWNS = {
    "types": ("By type of question", "The function that ends the question's program."),
    "program_lengths": ("By length of the program", "How many steps it takes to answer the question."),
    "num_objects": ("By number of objects", "How many objects the scene holds."),
    "answers": ("By right answer", "Which answer is the right one."),
}
"""Parts of a result's `metrics` that hold an accuracy a name: title and what a name is."""


def main_result(test_set: pd.DataFrame) -> str:
    """What a test set shows, in a few sentences: the best cell that sees, its interval, chance, the best blind one."""
    cells = test_set[test_set["row"] == "cell"]
    seeing = cells[~cells["blind"]]
    chance = test_set.loc[test_set["row"] == "chance", "overall_accuracy"]
    by_chance = f"chance is {100 * float(chance.iloc[0]):.1f} %" if len(chance) else "chance is not known"
    blind = cells[cells["best_blind"]]
    if seeing.empty:
        best = _top(cells)
        return f"{_answers(best)} It sees no image, as no model here does; {by_chance}."
    best = _top(seeing)
    sentences = [_answers(best)]
    readers = seeing[seeing["layout"].notna()]
    if pd.isna(best["layout"]) and not readers.empty:
        reader = _top(readers)
        sentences.append(f"The best model that reads bytes, {reader['title']}, reaches {_percent(reader)}.")
    if blind.empty:
        return " ".join([*sentences, f"No model without images was tested; {by_chance}."])
    without = blind.iloc[0]
    sentences.append(f"Without the image {without['title']} is best, with {_percent(without)}; {by_chance}.")
    return " ".join([*sentences, _gain(best)])


def _top(cells: pd.DataFrame) -> pd.Series:
    """The row with the highest accuracy."""
    return cells.sort_values("overall_accuracy", kind="stable").iloc[-1]


def _gain(best: pd.Series) -> str:
    """What seeing brings the best cell, in words that fit the interval."""
    estimate, low, high = (best[f"vs_blind{end}"] for end in ("", "_low", "_high"))
    if pd.isna(estimate):
        return ""
    points = f"{100 * float(estimate):+.1f} points [{100 * float(low):+.1f}, {100 * float(high):+.1f}]"
    if low > 0:
        return f"Seeing the image brings {best['title']} {points} over that."
    if high < 0:
        return f"Seeing the image does not help {best['title']}: {points} over that."
    return f"Whether seeing the image helps {best['title']} is not sure: {points} over that."


def _percent(row: pd.Series) -> str:
    return accuracy(row, "overall").replace(" ", " % ", 1)


def _answers(row: pd.Series) -> str:
    return f"{row['title']} is best: it answers {_percent(row)} of the questions right."


def results_table(test_set: pd.DataFrame) -> str:
    """The main table of a test set: every row of the frame, all groups, and the differences that exist."""
    columns, comparisons = columns_of(test_set), comparisons_of(test_set)
    heads = [
        Head("model"),
        *(Head(heading(column), f"n = {num_questions(test_set, column):,}", _INTERVAL) for column in columns),
        *(Head(heading(name), "points", _COMPARISONS.get(name, "")) for name in comparisons),
        Head("parameters", tip="Trained numbers of the model."),
    ]
    best = {column: best_accuracy(test_set, column) for column in columns}
    rows = []
    for _, row in test_set.iterrows():
        entries = [_named(label(row))]
        entries += [_accuracy(row, column, best[column]) for column in columns]
        entries += [_difference(row, name) for name in comparisons]
        entries.append(Entry() if pd.isna(row["parameters"]) else _counted(int(row["parameters"])))
        rows.append(Row(entries, "blind" if row["row"] == "cell" and row["blind"] else str(row["row"])))
    return table(heads, rows, label=f"Results, {describe(test_set)}")


def answering_table(test_set: pd.DataFrame, runs: Sequence[Run]) -> str:
    """Decoding, mass, calibration, bits and costs of every cell, and how far its scores move with their batch."""
    scores = scores_of(test_set)
    moved = {run.result.cell: (facts_of(run).get("invariance") or {}).get("max_abs_delta") for run in runs}
    has_moved = any(value is not None for value in moved.values())
    heads = [Head("model"), *(Head(score.heading.replace("\n", " "), tip=score.note) for score in scores)]
    heads += [Head("invariance", "max |Δ log p|", _INVARIANCE)] * has_moved
    rows = []
    for _, row in scored(test_set).iterrows():
        entries = [_named(label(row))]
        entries += [_written(entry(row, score), row[score.column]) for score in scores]
        if has_moved:
            delta = moved.get(row["cell"])
            entries.append(Entry() if delta is None else _written(f"{delta:.1e}", delta))
        rows.append(Row(entries))
    return table(heads, rows, label=f"How the models answer, {describe(test_set)}")


def pretraining_table(pretraining: pd.DataFrame) -> str:
    """The pretraining runs; empty without one."""
    if pretraining.empty:
        return ""
    heads = [Head(text.split("\n")[0], text.partition("\n")[2]) for text in PRETRAINING_HEADINGS]
    rows = [Row([_named(text) for text in pretraining_entries(row)]) for _, row in pretraining.iterrows()]
    return "<h2>Pretraining</h2>\n" + table(heads, rows, label="Pretraining runs", sortable=False)


def breakdown_table(runs: Sequence[Run], name: str) -> str:
    """Accuracies by one of `BREAKDOWNS`; empty where no run has it."""
    parts = [(run, facts_of(run)["metrics"].get(name) or {}) for run in runs]
    values = list(dict.fromkeys(value for _, part in parts for value in part))
    if not values:
        return ""
    first = {value: next(part[value] for _, part in parts if value in part) for value in values}
    title, tip = BREAKDOWNS[name]
    heads = [Head("model")]
    heads += [Head(value.replace("_", " "), f"n = {first[value]['n']:,}", f"{tip} {_INTERVAL}") for value in values]
    rows = [Row([Entry("chance", sort="chance"), *(_chance(first[value]) for value in values)], "chance")]
    seeing = [part for run, part in parts if not run.result.model.blind]
    best = {value: max((part[value]["accuracy"] for part in seeing if value in part), default=None) for value in values}
    for run, part in parts:
        entries = [_measured(part.get(value), run, best[value]) for value in values]
        title = f"{run.result.title} (blind)" if run.result.model.blind else run.result.title
        rows.append(Row([_named(title), *entries], "blind" if run.result.model.blind else "cell"))
    return table(heads, rows, label=title)


def _chance(entry: Mapping[str, Any]) -> Entry:
    if entry.get("chance") is None:
        return Entry()
    return Entry(f"{100 * entry['chance']:.1f}", sort=entry["chance"], share=entry["chance"])


def _measured(entry: Mapping[str, Any] | None, run: Run, best: float | None) -> Entry:
    if entry is None:
        return Entry()
    value = entry["accuracy"]
    ends = f"[{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"
    return Entry(f"{100 * value:.1f}", ends, value, value, best=not run.result.model.blind and value == best)


def _accuracy(row: pd.Series, column: str, best: float | None) -> Entry:
    value = row[f"{column}_accuracy"]
    if pd.isna(value):
        return Entry()
    short, ends = accuracy(row, column, interval=False), _ends(accuracy(row, column))
    return Entry(short, ends, sort=float(value), share=float(value), best=is_best(row, column, best))


def _difference(row: pd.Series, name: str) -> Entry:
    value = row[name]
    short, ends = difference(row, name, interval=False), _ends(difference(row, name))
    return Entry(short, ends, sort=None if pd.isna(value) else float(value))


def _ends(text: str) -> str:
    """The interval in a text that has one."""
    found = re.search(r"[\[(].*[\])]", text)
    return "" if found is None else found[0]


def _named(text: str) -> Entry:
    return Entry(text, sort=text)


def _written(text: str, value: Any) -> Entry:
    return Entry(text, sort=None if pd.isna(value) else float(value))


def _counted(number: int) -> Entry:
    return Entry(f"{number:,}", sort=float(number))
