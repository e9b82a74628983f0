"""The frames of a report in words: what a row, a number, a test set is called, and the Markdown tables made of them.

Accuracies are percent with the ends of their 95 % interval, differences are points; only the CSV holds fractions. Knows
the frames' columns, not where they come from.
"""

from collections.abc import Iterator, Sequence
from typing import TypeGuard

import pandas as pd

from vqa_bench.report.beside import MARK, UNSURE_MARK
from vqa_bench.report.frame import COLUMNS, COMPARISONS, SPLITS
from vqa_bench.report.scores import MISSING, entry, score_notes, scored, scores_of
from vqa_bench.scoring.statistics import stars

_HEADINGS = {
    "overall": "all",
    "vs_blind": "vs best blind",
    "vs_scratch": "vs scratch",
    "vision_gain": "vision gain",
}

PRETRAINING_TITLE = "Pretraining"
PRETRAINING_HEADINGS = (
    *("run", "objective", "text", "context", "parameters"),
    *(f"{split}\nbits per byte" for split in SPLITS),
    "steps",
)
SCORES_TITLE = "How the answers are read, how sure they are, and what they cost"


def markdown(frame: pd.DataFrame, *, pretraining: pd.DataFrame | None = None, unfinished: Sequence[str] = ()) -> str:
    """Two tables for each test set (accuracies; what else is known), with notes, and one of the pretraining runs.

    In every column the best cell that sees is bold. `frame` may have rows of published numbers.
    """
    parts = []
    for test_set in by_test_set(frame):
        parts += [f"## {describe(test_set)}", _markdown_accuracies(test_set), _markdown_notes(notes(test_set))]
        scores = scores_of(test_set)
        if scores:
            head = ["model", *(score.heading.replace("\n", " ") for score in scores)]
            rows = [[label(row), *(entry(row, score) for score in scores)] for _, row in scored(test_set).iterrows()]
            lines = [head, *([_escape(text) for text in row] for row in rows)]
            parts += [f"### {SCORES_TITLE}", _markdown_table(lines), _markdown_notes(score_notes(scores))]
    if any_pretraining(pretraining):
        lines = [[head.replace("\n", ", ") for head in PRETRAINING_HEADINGS]]
        lines += [[_escape(entry) for entry in pretraining_entries(row)] for _, row in pretraining.iterrows()]
        table = _markdown_table(lines, text_columns=3)
        parts += [f"## {PRETRAINING_TITLE}", table, _markdown_notes(pretraining_notes(pretraining))]
    if unfinished:
        parts.append(unfinished_runs(unfinished))
    return "\n\n".join(parts) + "\n"


def csv(frame: pd.DataFrame) -> str:
    """A frame as it is: fractions in full precision, a column for every number, empty where there is none."""
    return frame.to_csv(index=False, lineterminator="\n")


def by_test_set(frame: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The blocks of rows that answer the same questions; each begins with its chance row."""
    for _, test_set in frame.groupby("test_set"):
        yield test_set


def describe(test_set: pd.DataFrame) -> str:
    """A test set in words: its name and size."""
    first = test_set.iloc[0]
    images = "1 image" if first["images"] == 1 else f"{first['images']:,} images"
    return f"{first['dataset']}: {first['questions']:,} questions about {images}"


def columns_of(test_set: pd.DataFrame) -> list[str]:
    """The columns of accuracies that count any question, in the order in which they are shown."""
    return [column for column in COLUMNS if num_questions(test_set, column) > 0]


def comparisons_of(test_set: pd.DataFrame) -> list[str]:
    """The comparisons that a table of the test set shows: with the best blind cell always, others where there are."""
    return [name for name in COMPARISONS if name == "vs_blind" or test_set[name].notna().any()]


def notes(test_set: pd.DataFrame) -> list[str]:
    """What a reader has to know to read the accuracies of one test set."""
    rows = set(test_set["row"])
    lines = [
        "Accuracy in percent [95 % interval: images are resampled, since questions about one image are correlated].",
        "Bold: the best of the cells that see images.",
        "Chance: a uniform guess among the answers that a question's type allows.",
    ]
    if "majority" in rows:
        lines.append("Majority per question type: each type's most frequent answer in the training split.")
    lines += _blind_notes(test_set)
    if has_twins(test_set):
        lines.append(
            "vs scratch: points above the same model with the same encoding, sequence and seed that was trained from "
            "random weights, on the same questions [95 % interval of the paired difference]."
        )
    if "shuffled" in rows:
        lines.append(
            "Images shuffled: the same model, shown another image of the test set with each question. Vision gain: "
            "points above that [95 % interval of the paired difference]."
        )
    tests = int(sum(test_set[f"{name}_p"].notna().sum() for name in COMPARISONS))
    if tests > 0:
        lines.append(
            f"* p < 0.05, ** p < 0.01, *** p < 0.001: paired tests that resample images, adjusted for all {tests} of "
            "this test set (Holm)."
        )
    if "mean" in rows:
        lines.append("Mean of seeds: the same cell trained from other seeds (the least to the greatest of them).")
    missing = test_set["missing_images"].iloc[0]
    if missing > 0:
        lines.append(f"{missing:,} images of the test set were missing, their questions are left out.")
    return lines + _remarks(test_set[test_set["row"] != "published"]) + _published_notes(test_set)


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
    """A column of accuracies or differences in words."""
    return _HEADINGS.get(column, column.replace("_", " "))


def label(row: pd.Series) -> str:
    """A row's title; what sees no image is marked."""
    is_blind = row["row"] in ("cell", "mean", "majority") and row["blind"]
    return f"{row['title']} (blind)" if is_blind else str(row["title"])


def accuracy(row: pd.Series, column: str, *, interval: bool = True) -> str:
    """`61.2 [59.0, 63.4]`, of a mean `61.2 (60.1 to 62.0)`, without its interval `61.2`; a dash without questions."""
    estimate, low, high = (row[f"{column}_{number}"] for number in ("accuracy", "low", "high"))
    if pd.isna(estimate):
        return MISSING
    if pd.isna(low) or not interval:
        return f"{100 * estimate:.1f}"
    ends = f"({100 * low:.1f} to {100 * high:.1f})" if row["row"] == "mean" else f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * estimate:.1f} {ends}"


def difference(row: pd.Series, name: str, *, interval: bool = True) -> str:
    """`+4.4 [+2.1, +6.7]**` in points, that a row is the best blind one, a dash where there is nothing to compare."""
    if name == "vs_blind" and row["best_blind"]:
        return "best blind"
    estimate, low, high, p_value = (row[f"{name}{end}"] for end in ("", "_low", "_high", "_adjusted_p"))
    if pd.isna(estimate):
        return MISSING
    marks = "" if pd.isna(p_value) else stars(float(p_value))
    if not interval or pd.isna(low):
        return f"{100 * estimate:+.1f}{marks}"
    low, high = f"{100 * low:+.1f}", f"{100 * high:+.1f}"
    ends = f"({low} to {high})" if row["row"] == "mean" else f"[{low}, {high}]"
    return f"{100 * estimate:+.1f} {ends}{marks}"


def best_accuracy(test_set: pd.DataFrame, column: str) -> float | None:
    """The highest accuracy of a cell that sees its images, None without one."""
    values = test_set.loc[(test_set["row"] == "cell") & ~test_set["blind"].fillna(True), f"{column}_accuracy"].dropna()
    return None if values.empty else float(values.max())


def is_best(row: pd.Series, column: str, best: float | None) -> bool:
    """Whether a row is a cell that sees, and has the accuracy `best`."""
    return bool(row["row"] == "cell" and not row["blind"] and best is not None and row[f"{column}_accuracy"] == best)


def any_pretraining(pretraining: pd.DataFrame | None) -> TypeGuard[pd.DataFrame]:
    """Whether there is a pretraining run to show."""
    return pretraining is not None and not pretraining.empty


def pretraining_entries(row: pd.Series) -> list[str]:
    """A pretraining run under `PRETRAINING_HEADINGS`."""
    name = row["title"] if row["title"] == row["name"] else f"{row['title']} ({row['name']})"
    bits = [
        MISSING if pd.isna(row[f"{split}_bits"]) else f"{row[f'{split}_bits']:.3f} ({row[f'{split}_bytes']:,})"
        for split in SPLITS
    ]
    counts = [count(row[column]) for column in ("context", "parameters")]
    return [name, row["objective"].replace("_", " "), row["dataset"], *counts, *bits, count(row["steps"])]


def count(number: int) -> str:
    """A whole number with commas; a dash where there is none."""
    return MISSING if pd.isna(number) else f"{number:,}"


def unfinished_runs(names: Sequence[str]) -> str:
    """Which runs a report leaves out."""
    return f"Not finished, so not shown ({len(names)}): {', '.join(names)}."


def _blind_notes(test_set: pd.DataFrame) -> list[str]:
    """What the cells that see are compared with, and what of that is missing."""
    blind = test_set[(test_set["row"] == "cell") & test_set["blind"].fillna(False)]
    if blind.empty:
        return ["No blind cell is finished, so nothing is compared with one."]
    best = test_set[test_set["best_blind"]].iloc[0]["title"]
    lines = [
        f'Blind: without the image. vs best blind: points above "{best}" on the same questions [95 % interval of the '
        "paired difference]."
    ]
    if (blind["kind"] == "majority").all():
        lines.append("No question-only model is finished: the best blind one does not read the question either.")
    return lines


def _remarks(rows: pd.DataFrame) -> list[str]:
    """What is to be said of single rows."""
    said = rows.dropna(subset="remarks")
    return [f'"{title}": {remark}' for title, remark in zip(said["title"], said["remarks"], strict=True)]


def _published_notes(test_set: pd.DataFrame) -> list[str]:
    """That published numbers are of another test set, how sure they are, and where they are from."""
    rows = test_set[test_set["row"] == "published"]
    if rows.empty:
        return []
    lines = [f"{MARK} published, other test set: CLEVR's test or validation set, not these questions; not ranked."]
    if rows["title"].str.endswith(UNSURE_MARK).any():
        lines.append(f"{UNSURE_MARK} the same, but not read in its source: quoted by somebody else, or unverified.")
    sources = rows.groupby("remarks", sort=False)["title"].agg("; ".join)
    return lines + [f"{titles}: {source}." for source, titles in sources.items()]


def _markdown_accuracies(test_set: pd.DataFrame) -> str:
    columns, comparisons = columns_of(test_set), comparisons_of(test_set)
    counted = [f"{heading(column)} (n = {num_questions(test_set, column):,})" for column in columns]
    lines = [["model", *counted, *map(heading, comparisons), "parameters", "questions / images"]]
    best = {column: best_accuracy(test_set, column) for column in columns}
    for _, row in test_set.iterrows():
        accuracies = [_markdown_accuracy(row, column, best[column]) for column in columns]
        differences = [_escape(difference(row, name)) for name in comparisons]
        asked = MISSING if row["row"] == "published" else f"{row['questions']:,} / {row['images']:,}"
        lines.append([_escape(label(row)), *accuracies, *differences, count(row["parameters"]), asked])
    return _markdown_table(lines)


def _markdown_accuracy(row: pd.Series, column: str, best: float | None) -> str:
    text = accuracy(row, column)
    return f"**{text}**" if is_best(row, column, best) else text


def _markdown_table(lines: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """The first line is the head; the first `text_columns` columns stand at the left, numbers at the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(lines[0]) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (lines[0], rule, *lines[1:]))


def _markdown_notes(lines: Sequence[str]) -> str:
    return "\n".join(f"* {_escape_stars(line)}" for line in lines)


def _escape(text: str) -> str:
    return _escape_stars(text).replace("|", "\\|").replace("<", "&lt;")


def _escape_stars(text: str) -> str:
    return text.replace("*", "\\*")
