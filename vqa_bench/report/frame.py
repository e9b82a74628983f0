"""Runs side by side in a frame of numbers, with paired comparisons. Knows runs, not how a table or figure looks.

Runs are compared only on the same test set: the same questions with the same answers. Cells that were tested on
different ones stand in different blocks of the frame, each with its own chance level and blind baseline.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd

from vqa_bench.report.collect import Answers, Run
from vqa_bench.report.schema import CellResult, Metrics, PretrainResult
from vqa_bench.report.twins import Twin, find_twin
from vqa_bench.scoring.statistics import paired_difference

COLUMNS = ("overall", "exist", "count", "compare_integer", "compare_attribute", "query")
"""Columns of accuracies in the order in which they are shown: all questions, then the groups."""

_NUMBERS = {"n": "Int64", "correct": "Int64", "accuracy": "Float64", "low": "Float64", "high": "Float64"}

FRAME_COLUMNS: dict[str, str] = (
    {"test_set": "Int64", "dataset": "string"}
    | dict.fromkeys(("questions", "images", "missing_images"), "Int64")
    | dict.fromkeys(("row", "title", "cell", "kind"), "string")
    | dict.fromkeys(("blind", "best_blind"), "boolean")
    | dict.fromkeys(("encoding", "layout", "init"), "string")
    | dict.fromkeys(("seed", "parameters"), "Int64")
    | {f"{column}_{number}": dtype for column in COLUMNS for number, dtype in _NUMBERS.items()}
    | {f"{versus}{end}": "Float64" for versus in ("vs_blind", "vs_scratch") for end in ("", "_low", "_high", "_p")}
    | dict.fromkeys(("twin", "initial", "remarks"), "string")
)
"""Columns of the frame and their pandas types, all of which may be missing."""

SPLITS = ("validation", "test")
"""Splits of a pretraining run in the order in which they are shown."""

PRETRAINING_COLUMNS: dict[str, str] = (
    dict.fromkeys(("name", "title", "kind", "objective", "dataset"), "string")
    | dict.fromkeys(("context", "parameters", "steps"), "Int64")
    | {f"{split}_{number}": dtype for split in SPLITS for number, dtype in (("bits", "Float64"), ("bytes", "Int64"))}
    | {"remarks": "string"}
)
"""Columns of the frame of pretraining runs; `_bits` are bits for each byte that was predicted, `_bytes` how many."""


def build_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row for chance, each cell and each cell with shuffled images, for every test set in turn.

    `test_set` numbers the blocks; `questions`, `images` and `missing_images` describe them; `row` is "chance",
    "cell" or "shuffled"; `vs_blind` is the paired difference to the best blind cell (`best_blind`), `vs_scratch` of a
    pretrained cell to its scratch twin (`twin`, a cell's name); `initial` is what it began from, `remarks` are
    sentences that a fair reader must know. Fractions, not percent; what does not exist is missing. Blind cells come
    first, then those that see, each by rising accuracy, but a pretrained cell directly after its twin.
    """
    test_sets = enumerate(_by_test_set(runs))
    rows = [{"test_set": number} | row for number, test_set in test_sets for row in _rows_of(test_set)]
    return pd.DataFrame(rows, columns=list(FRAME_COLUMNS)).astype(FRAME_COLUMNS)


def build_pretraining_frame(results: Sequence[PretrainResult]) -> pd.DataFrame:
    """One row for each pretraining run, in the order given; a split that was not evaluated is missing."""
    rows = []
    for result in results:
        row: dict[str, Any] = {name: getattr(result, name) for name in ("name", "title", "objective", "context")}
        row |= {"kind": result.model.kind, "parameters": result.model.parameters, "dataset": result.dataset.name}
        row |= {"steps": result.training.steps, "remarks": result.training.remark or None}
        for split in SPLITS:
            if split in result.metrics:
                predicted = result.metrics[split]
                row |= {f"{split}_bits": predicted.bits, f"{split}_bytes": predicted.bytes}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(PRETRAINING_COLUMNS)).astype(PRETRAINING_COLUMNS)


def _by_test_set(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that answered the same questions, together; within them blind ones first, each by rising accuracy."""
    test_sets: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (not run.result.model.blind, run.answers.correct.sum(), run.result.cell)):
        test_sets.setdefault((run.result.dataset.name, run.answers.questions), []).append(run)
    return [test_sets[key] for key in sorted(test_sets)]


def _rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The rows of one test set."""
    blind = [run for run in runs if run.result.model.blind]
    best_blind = blind[-1] if blind else None  # runs rise in accuracy
    twins = {run.result.cell: find_twin(run.result, runs) for run in runs if run.result.init == "pretrained"}
    test_set = {
        "dataset": runs[0].result.dataset.name,
        "questions": len(runs[0].answers.correct),
        "images": len(set(runs[0].answers.images)),
        "missing_images": runs[0].result.dataset.missing_images,
    }
    rows = [test_set | _chance_row(runs[0].result.metrics)]
    for run in _beside_twins(runs, twins):
        rows.append(test_set | _row(run, "cell", best_blind=best_blind) | _cell_facts(run, twins.get(run.result.cell)))
        if run.shuffled is not None:
            rows.append(test_set | _row(run, "shuffled", best_blind=best_blind))
    return rows


def _beside_twins(runs: Sequence[Run], twins: dict[str, Twin]) -> list[Run]:
    """The same runs and order, but each that has a twin directly after it."""
    twin_of = {cell: twin.run.result.cell for cell, twin in twins.items() if twin.run is not None}
    ordered = []
    for run in runs:
        if run.result.cell not in twin_of:
            ordered += [run, *(other for other in runs if twin_of.get(other.result.cell) == run.result.cell)]
    return ordered


def _row(run: Run, kind: Literal["cell", "shuffled"], *, best_blind: Run | None) -> dict[str, Any]:
    result = run.result
    answers, metrics, title = run.answers, result.metrics, result.title
    if kind == "shuffled":
        assert run.shuffled is not None
        assert result.shuffled is not None
        answers, metrics, title = run.shuffled, result.shuffled, f"{title}, images shuffled"
    row: dict[str, Any] = {
        "row": kind,
        "title": title,
        "cell": result.cell,
        "kind": result.model.kind,
        "blind": result.model.blind,
        "best_blind": run is best_blind,
        **{name: getattr(result, name) for name in ("encoding", "layout", "init", "seed")},
        "parameters": result.model.parameters,
    }
    for column in COLUMNS:
        entry = metrics.column(column)
        if entry is not None:
            row |= {f"{column}_{number}": getattr(entry, number) for number in _NUMBERS}
    return row if best_blind in (None, run) else row | _versus("vs_blind", answers, best_blind.answers)


def _chance_row(metrics: Metrics) -> dict[str, Any]:
    row: dict[str, Any] = {"row": "chance", "title": "chance", "best_blind": False}
    for column in COLUMNS:
        entry = metrics.column(column)
        if entry is not None:
            row |= {f"{column}_n": entry.n, f"{column}_accuracy": entry.chance}
    return row


def _cell_facts(run: Run, twin: Twin | None) -> dict[str, Any]:
    """How a cell began and ended its training, and the comparison with its scratch twin."""
    facts: dict[str, Any] = {}
    training = run.result.training
    remarks = [
        _beginning(run.result),
        "" if twin is None else twin.remark,
        "" if training is None else training.remark,
    ]
    if any(remarks):
        facts["remarks"] = " ".join(filter(None, remarks))
    if run.result.initial is not None:
        facts["initial"] = run.result.initial.source
    if twin is not None and twin.run is not None:
        facts |= {"twin": twin.run.result.cell} | _versus("vs_scratch", run.answers, twin.run.answers)
    return facts


def _beginning(result: CellResult) -> str:
    if result.initial is None:
        return ""
    notes = f" ({'; '.join(result.initial.notes)})" if result.initial.notes else ""
    return f"Began from {result.initial.source}{notes}."


def _versus(name: str, answers: Answers, other: Answers) -> dict[str, float]:
    """The paired difference to other answers to the same questions, images resampled together."""
    # Shuffling exchanges images but not questions: the clusters are those of the test set as it is.
    difference = paired_difference(answers.correct, other.correct, other.images)
    return {
        name: difference.estimate,
        f"{name}_low": difference.low,
        f"{name}_high": difference.high,
        f"{name}_p": difference.p_value,
    }
