"""Runs that differ in nothing but their seed: which ones those are, and one row that sums them up.

Knows what runs say of themselves and the numbers of a frame's rows, not how they are shown.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vqa_bench.config import LoopConfig
from vqa_bench.report.collect import Run
from vqa_bench.report.schema import CellResult

_NOT_OF_A_TITLE = " ,;:([{-_=#"


def families(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs, each with those that differ from it in the seed alone; a run of its own kind is a list of one.

    The runs of a family stand in their order. Two runs with equal seeds are no family: they differ in something that
    results do not tell.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_recipe(run.result), []).append(run)
    whole = []
    for family in found.values():
        seeds = {run.result.seed for run in family}
        whole += [family] if len(seeds) == len(family) else [[run] for run in family]
    return whole


def mean_row(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], spreads: Sequence[str]) -> dict[str, Any]:
    """The mean over the rows of one family, one row a seed.

    columns: numbers to take the mean of. spreads: those of them whose `_low` and `_high` become the least and the
    greatest over the seeds. A number that a row lacks is missing.
    """
    mean: dict[str, Any] = {"row": "mean", "title": f"{common_title(rows)}, mean of {len(rows)} seeds"}
    mean |= {"seeds": len(rows), "best_blind": False}
    for column in columns:
        values = [row[column] for row in rows if row.get(column) is not None]
        if len(values) < len(rows):
            continue
        mean[column] = sum(values) / len(values)
        if column in spreads:
            stem = column.removesuffix("_accuracy")
            mean |= {f"{stem}_low": min(values), f"{stem}_high": max(values)}
    return mean


def common_title(rows: Sequence[Mapping[str, Any]]) -> str:
    """The words that all titles begin with, without a `seed` at their end; the first title where there are none."""
    titles = [str(row["title"]).split() for row in rows]
    shared = []
    for words in zip(*titles, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    title = " ".join(shared).rstrip(_NOT_OF_A_TITLE)
    title = title.removesuffix("seed").rstrip(_NOT_OF_A_TITLE)
    return title or str(rows[0]["title"])


def _recipe(result: CellResult) -> str:
    """Everything that the answers depend on but the seed; of a run that did not write it down, its own name."""
    if result.model.config is None:
        return f"cell {result.cell}"
    train = {name: value for name, value in (result.train or {}).items() if name not in LoopConfig.NO_MATTER}
    recipe = {
        "model": result.model.kind,
        "config": result.model.config,
        "shard": None if result.shard is None else result.shard.manifest,
        "encoding": result.encoding,
        "sequence": result.sequence,
        "init": result.init,
        "initial": None if result.initial is None else result.initial.source,
        "train": train,
    }
    return json.dumps(recipe, sort_keys=True)
