"""From a configuration to filled cells: prepare, share out, gather what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vqa_bench import launch
from vqa_bench.config import CellConfig, MatrixConfig
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.matrix.cells import Trainable
from vqa_bench.matrix.fill import say
from vqa_bench.matrix.folder import Invocation, is_filled, retitle
from vqa_bench.matrix.prepare import Faults, missing_weights, prepare, select
from vqa_bench.matrix.sources import Warehouse
from vqa_bench.matrix.work import Work, fault_in, work
from vqa_bench.matrix.workers import Cluster, Where, gpus, work_here, work_in_jobs

if TYPE_CHECKING:
    from vqa_bench.estimate import Estimate

Value = TypeVar("Value")


@dataclass(frozen=True)
class How:
    """How runs are trained: by so many workers, where, and what each job of a cluster gets."""

    jobs: int = 1
    where: Where = "here"
    cluster: Cluster = field(default_factory=Cluster)
    invocation: Invocation = field(default_factory=Invocation)


def run_matrix(
    config: MatrixConfig,
    out: Path,
    warehouse: Warehouse,
    *,
    only: Sequence[str] | None = None,
    pretraining: Sequence[str] | None = None,
    how: How | None = None,
) -> list[str]:
    """Fill every cell and pretraining run, or those named and what they need (see `prepare.select`).

    Any number of processes may do this with one results folder at a time: every run is trained once. Under a launcher
    all of its processes call this and train one run after another together.

    Returns what went wrong, a line a run, nothing if all is well. Raises UserError before the first run trains if the
    data or anything else is not as it should be.
    """
    how = How() if how is None else how
    if launch.world() > 1 and (how.jobs > 1 or how.where != "here"):
        raise UserError(
            f"expected one worker under a launcher, as its {launch.world()} processes train each run together, got "
            "--jobs or --executor; leave them out, or start vqa-bench without a launcher"
        )
    todo = _on_main(lambda: _todo(config, out, warehouse, only, pretraining, how))
    if how.where != "here":
        work_in_jobs(todo, how.jobs, how.where, out, how.cluster)
    elif how.jobs > 1:
        work_here(todo, how.jobs)
    else:
        faults = launch.broadcast(work(todo))
        return [f"{label}: {fault}" for label, fault in faults.items()]
    return _faults(todo)


def plan(
    config: MatrixConfig,
    warehouse: Warehouse,
    *,
    only: Sequence[str] | None = None,
    pretraining: Sequence[str] | None = None,
) -> list[Estimate]:
    """What the same call of `run_matrix` would train and what each run would cost, with the data as far as it is there.

    Makes nothing and trains nothing. Raises UserError with everything that can be seen to be wrong.
    """
    from vqa_bench.estimate import estimate, estimate_pretraining

    cells, runs = select(config, only=only, pretraining=pretraining)
    found = Faults(missing_weights(cells))
    rows: list[Estimate | None] = []
    for run in runs:
        place = f"pretrain {run.name}"
        books = found.catch(partial(warehouse.books_if_there, run.data), place)
        rows.append(found.catch(partial(estimate_pretraining, run, books), place))
    for cell in cells:
        place = f"cell {cell.name}"
        shard = found.catch(partial(_shard_if_there, config, cell, warehouse), place)
        rows.append(found.catch(partial(estimate, cell, shard), place))
    found.raise_all()
    return [row for row in rows if row is not None]


def _shard_if_there(config: MatrixConfig, cell: CellConfig, warehouse: Warehouse) -> Shard | None:
    if config.data is None or cell.encoding is None:
        return None
    return warehouse.shard_if_there(config.data, cell.encoding)


def _todo(
    config: MatrixConfig,
    out: Path,
    warehouse: Warehouse,
    only: Sequence[str] | None,
    pretraining: Sequence[str] | None,
    how: How,
) -> Work:
    if out.exists() and not out.is_dir():
        raise UserError(f"expected a folder for the results, got the file {out}; choose another --out")
    cells, runs = select(config, only=only, pretraining=pretraining)
    # What a cluster's machines have is not known here.
    at_once = None if how.where == "slurm" else math.ceil(how.jobs / max(1, gpus()))
    place = out.resolve()  # as jobs may run elsewhere
    resume = how.invocation.resume
    trainables = prepare(config.data, cells, runs, place, warehouse, resume=resume, at_once=at_once)
    for trainable in trainables:
        if is_filled(trainable):
            say(f"{trainable.label}: finished before, kept")
            retitle(trainable)
    return Work(tuple(trainables), how.invocation)


def _faults(todo: Work) -> list[str]:
    """How the runs of several workers ended, each that failed as a line; those that nobody has spoken of are said."""
    faults: dict[str, str] = {}
    for run in todo.runs:
        if is_filled(run):
            continue
        known = fault_in(run, todo.invocation)
        if known is None:
            known = _unfinished(run, faults)
            say(f"error: {run.label}: {known}")
        faults[run.label] = known
    return [f"{label}: {fault}" for label, fault in faults.items()]


def _unfinished(run: Trainable, faults: dict[str, str]) -> str:
    if run.needs in faults:
        return f"expected {run.needs} to begin from, got none, as it failed; run the same again"
    return "expected its worker to finish it, got one that ended before; the same command goes on with it"


def _on_main(function: Callable[[], Value]) -> Value:
    """What the main process alone finds out, on every process; if it fails, the others leave quietly."""
    value, fault = None, None
    if launch.is_main():
        try:
            value = function()
        except Exception as error:
            fault = error
    value, failed = launch.broadcast((value, fault is not None))
    if fault is not None:
        raise fault
    if failed:
        raise SystemExit(2)
    return value  # type: ignore[return-value]
