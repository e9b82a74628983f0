"""Runs side by side in a frame of numbers, with paired comparisons. Knows runs, not how a table or figure looks.

Runs are compared only on the same test set: the same questions with the same answers. Cells that were tested on
different ones stand in different blocks of the frame, each with its own chance level and blind baseline.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pandas as pd

from vqa_bench.report.collect import Graded, Run
from vqa_bench.report.schema import CellResult, Metrics, PretrainResult
from vqa_bench.report.seeds import families, mean_row
from vqa_bench.report.twins import Twin, find_twin
from vqa_bench.scoring.statistics import holm, paired_difference

COLUMNS = ("overall", "exist", "count", "compare_integer", "compare_attribute", "query")
"""Columns of accuracies in the order in which they are shown: all questions, then the groups."""

SHUFFLED = ", images shuffled"
MAJORITY = "majority"

_NUMBERS = {"n": "Int64", "correct": "Int64", "accuracy": "Float64", "low": "Float64", "high": "Float64"}

COMPARISONS = ("vision_gain", "vs_blind", "vs_scratch")
"""Paired differences of accuracies: each has its interval, its p value and that adjusted for being one of many."""

SCORES = (
    "constrained_greedy",
    "free_greedy",
    "trie_mass",
    "ece",
    "brier",
    "bits_image",
    "bits_question",
    "bits_answer",
)
"""What is known of a cell's answers beside how many are right."""

COSTS = ("image_bytes", "train_flops")

FRAME_COLUMNS: dict[str, str] = (
    {"test_set": "Int64", "dataset": "string"}
    | dict.fromkeys(("questions", "images", "missing_images"), "Int64")
    | dict.fromkeys(("row", "title", "cell", "kind"), "string")
    | dict.fromkeys(("blind", "best_blind"), "boolean")
    | dict.fromkeys(("encoding", "layout", "init"), "string")
    | dict.fromkeys(("seed", "seeds", "parameters"), "Int64")
    | {f"{column}_{number}": dtype for column in COLUMNS for number, dtype in _NUMBERS.items()}
    | {f"{name}{end}": "Float64" for name in COMPARISONS for end in ("", "_low", "_high", "_p", "_adjusted_p")}
    | dict.fromkeys((*SCORES, *COSTS), "Float64")
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

    `test_set` numbers the blocks; `questions`, `images` and `missing_images` describe them. `row` is "chance",
    "majority" (each type's most frequent answer in the training split, where no cell is that already), "cell",
    "shuffled", or "mean" (of the `seeds` cells above it that differ in nothing else; `_low` and `_high` are the least
    and the greatest of them). `vision_gain` is the paired difference of a cell to itself with images shuffled,
    `vs_blind` to the best blind cell (`best_blind`), `vs_scratch` of a pretrained cell to its scratch twin (`twin`, a
    cell's name); `_p` is the p value of that one test, `_adjusted_p` Holm's over all tests of the block. `initial` is
    what a cell began from, `remarks` are sentences that a fair reader must know. Fractions, not percent; what does not
    exist is missing. Blind cells come first, then those that see, each by rising accuracy, but seeds of one cell
    together, and a pretrained cell directly after its twin.
    """
    rows = [
        {"test_set": number} | row
        for number, test_set in enumerate(by_questions(runs))
        for row in _adjusted(_rows_of(test_set))
    ]
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


def by_questions(runs: Sequence[Run]) -> list[list[Run]]:
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
    rows = [_chance_row(runs[0].result.metrics), *_majority_rows(runs)]
    for family in _beside_twins(sorted(families(runs), key=_place), twins):
        cells = [_cell_row(run, twins.get(run.result.cell), best_blind=best_blind) for run in family]
        same_title = len({cell["title"] for cell in cells}) < len(cells)
        for run, cell in zip(family, cells, strict=True):
            if same_title:
                cell["title"] = f"{cell['title']}, seed {cell['seed']}"
            rows.append(cell)
            if run.shuffled is not None:
                rows.append(_row(run, "shuffled", best_blind=best_blind) | {"title": f"{cell['title']}{SHUFFLED}"})
        if len(cells) > 1:
            rows.append(_mean_row(cells))
    return [test_set | row for row in rows]


def _place(family: Sequence[Run]) -> tuple[bool, float, str]:
    """Blind ones first, each by rising accuracy, of seeds their mean."""
    result = family[0].result
    return not result.model.blind, sum(run.result.metrics.overall.accuracy for run in family) / len(family), result.cell


def _beside_twins(runs: Sequence[list[Run]], twins: dict[str, Twin]) -> list[list[Run]]:
    """The same families and order, but each that has a twin directly after that one's family."""
    family_of = {run.result.cell: place for place, family in enumerate(runs) for run in family}
    follows: dict[int, int] = {}
    for cell, twin in twins.items():
        if twin.run is not None:
            follows.setdefault(family_of[cell], family_of[twin.run.result.cell])
    ordered = []
    for place, family in enumerate(runs):
        if place not in follows:
            ordered += [family, *(runs[other] for other in sorted(follows) if follows[other] == place)]
    return ordered


def _cell_row(run: Run, twin: Twin | None, *, best_blind: Run | None) -> dict[str, Any]:
    """A cell: its accuracies, how it began, what its answers cost, and what it is compared with."""
    row = _row(run, "cell", best_blind=best_blind) | _scores(run.result) | _cell_facts(run, twin)
    return row if run.shuffled is None else row | _versus("vision_gain", run.answers, run.shuffled)


def _row(run: Run, kind: Literal["cell", "shuffled"], *, best_blind: Run | None) -> dict[str, Any]:
    result = run.result
    answers, metrics = run.answers, result.metrics
    if kind == "shuffled":
        assert run.shuffled is not None
        assert result.shuffled is not None
        answers, metrics = run.shuffled, result.shuffled
    row: dict[str, Any] = {
        "row": kind,
        "title": result.title,
        "cell": result.cell,
        "kind": result.model.kind,
        "blind": result.model.blind,
        "best_blind": run is best_blind,
        **{name: getattr(result, name) for name in ("encoding", "layout", "init", "seed")},
        "parameters": result.model.parameters,
    }
    row |= _accuracies(metrics)
    return row if best_blind in (None, run) else row | _versus("vs_blind", answers, best_blind.answers)


def _accuracies(metrics: Metrics) -> dict[str, Any]:
    entries = {column: metrics.column(column) for column in COLUMNS}
    return {
        f"{column}_{number}": getattr(entry, number)
        for column, entry in entries.items()
        if entry is not None
        for number in _NUMBERS
    }


def _scores(result: CellResult) -> dict[str, Any]:
    """`SCORES` and `COSTS` of a cell, as far as it has them."""
    metrics = result.metrics
    row: dict[str, Any] = {name: getattr(result.cost, name) for name in COSTS}
    for name in ("constrained_greedy", "free_greedy"):
        share = getattr(metrics.decoding, name)
        row[name] = None if share is None else share.accuracy
    if metrics.trie_mass is not None:
        row["trie_mass"] = metrics.trie_mass.mean
    if metrics.calibration is not None:
        row |= {"ece": metrics.calibration.ece, "brier": metrics.calibration.brier}
    parts = {part: bits for part, bits in (result.bits or {}).items() if bits is not None}
    return row | {f"bits_{part}": bits.bits_per_byte for part, bits in parts.items()}


def _mean_row(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the seeds of a cell have in common, and the means of their numbers."""
    accuracies = [f"{column}_accuracy" for column in COLUMNS]
    spread = [*accuracies, *COMPARISONS]
    shared = {name: cells[0][name] for name in ("kind", "blind", "encoding", "layout", "init", "parameters")}
    shared |= {name: value for name, value in cells[0].items() if name.endswith("_n")}
    return shared | mean_row(cells, [*spread, *SCORES, *COSTS], spread)


def _majority_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each type's most frequent answer in training, unless a cell is that already or no shard had a training split."""
    cells = [run.result for run in runs if run.result.model.kind == MAJORITY]
    found = [run.result.controls.majority for run in runs if run.result.controls is not None]
    controls = [control for control in found if control is not None]
    if not controls or any((cell.model.config or {}).get("per_type", True) for cell in cells):
        return []
    row = {"row": "majority", "title": "majority per question type", "kind": MAJORITY, "blind": True}
    if any(control.overall.correct != controls[0].overall.correct for control in controls):
        row["remarks"] = "The training splits of the cells differ; this is the majority of one of them."
    return [row | {"best_blind": False} | _accuracies(controls[0])]


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


def _adjusted(rows: Sequence[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """The rows of one test set with the p values of all of their tests adjusted together."""
    tests = [(row, name) for row in rows for name in COMPARISONS if row.get(f"{name}_p") is not None]
    for (row, name), adjusted in zip(tests, holm([row[f"{name}_p"] for row, name in tests]), strict=True):
        row[f"{name}_adjusted_p"] = adjusted
    return rows


def _versus(name: str, answers: Graded, other: Graded) -> dict[str, float]:
    """The paired difference to other answers to the same questions, images resampled together."""
    # Shuffling exchanges images but not questions: the clusters are those of the test set as it is.
    difference = paired_difference(answers.correct, other.correct, other.images)
    return {
        name: difference.estimate,
        f"{name}_low": difference.low,
        f"{name}_high": difference.high,
        f"{name}_p": difference.p_value,
    }
