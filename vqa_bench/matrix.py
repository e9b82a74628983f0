"""A whole experiment: make or find the data, check every cell, train and answer each, skip what is finished.

The only place that knows in which order things happen. Data sets come from outside (`make_source`), so that this file
need not know how they are made.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vqa_bench.config import CellConfig, DataConfig, MatrixConfig
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.manifest import DevInfo, file_info
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import Shard, open_shard
from vqa_bench.errors import UserError
from vqa_bench.progress import progress
from vqa_bench.runs import PROVENANCE, is_done, new_run, provenance, read_json, write_json

KEY = "key.json"
BLIND_ENCODING = "pixels:1x1"  # for a matrix in which no model sees an image: its shard needs questions only

MakeSource = Callable[[DataConfig, Path], Path]
"""From a data configuration and the data folder to a folder in CLEVR's layout."""


@dataclass(frozen=True)
class Cell:
    """A cell with its shard and its run folder."""

    config: CellConfig
    shard: Shard
    run: Path

    @property
    def key(self) -> dict[str, str]:
        """What a finished run must have been made of to be taken as this cell's."""
        config = json.dumps(self.config.model_dump(mode="json"), sort_keys=True)
        files = json.dumps({name: info.sha256 for name, info in self.shard.manifest.files.items()}, sort_keys=True)
        return {
            "config": hashlib.sha256(config.encode()).hexdigest(),
            "data": hashlib.sha256(files.encode()).hexdigest(),
        }


def run_matrix(
    config: MatrixConfig,
    out: Path,
    data: Path,
    make_source: MakeSource,
    *,
    workers: int,
    jobs: int = 1,
    only: str | None = None,
) -> list[str]:
    """Fill every cell (or the one named), `jobs` of them at a time, each in a process of its own if there are several.

    Returns what went wrong, a line a cell, nothing if all is well. Raises UserError before the first cell trains if the
    data or any cell is not as it should be.
    """
    if only is not None:
        config = config.model_copy(update={"cells": [config.cell(only)]})
    cells = prepare(config, out, data, make_source, workers=workers)
    if jobs == 1:
        found = [_attempt(cell) for cell in cells]
    else:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            found = list(pool.map(_attempt, cells))
    return [fault for fault in found if fault is not None]


def _attempt(cell: Cell) -> str | None:
    """Fill a cell; what went wrong as one line, said at once, or None."""
    print(f"{cell.config.name}: {cell.config.title}", file=sys.stderr, flush=True)
    try:
        fill(cell)
    except UserError as error:
        fault = f"{cell.config.name}: {error}"
        print(f"error: {fault}", file=sys.stderr, flush=True)
        return fault
    except Exception as error:  # a fault of ours: shown in full, and the other cells go on
        traceback.print_exc()
        return f"{cell.config.name}: {type(error).__name__}: {error}"
    return None


def prepare(config: MatrixConfig, out: Path, data: Path, make_source: MakeSource, *, workers: int) -> list[Cell]:
    """Data, shards and a check of every cell, all faults at once; nothing trains here."""
    source = make_source(config.data, data)
    encodings = [cell.encoding for cell in config.cells if cell.encoding is not None]
    shards = {
        spec: ensure_shard(source, spec, data, config.data, workers=workers)
        for spec in dict.fromkeys(encodings or [BLIND_ENCODING])
    }
    any_shard = next(iter(shards.values()))
    cells = [
        Cell(cell, any_shard if cell.encoding is None else shards[cell.encoding], out / cell.name)
        for cell in config.cells
    ]
    faults = [fault for cell in cells if (fault := check(cell)) is not None]
    if faults:
        raise UserError("; ".join(faults))
    return cells


def check(cell: Cell) -> str | None:
    """What is wrong with a cell, None if nothing: its model and plan are built once, a finished run must be its own."""
    from vqa_bench.data.loading import TrainPlan, shuffled_pictures
    from vqa_bench.models import MODELS, build

    try:
        model = build(cell.config, MODELS[cell.config.model.kind].decide(cell.config, cell.shard))
        model.check(cell.shard)
        if cell.config.train is not None:
            TrainPlan(cell.shard.split("train"), cell.config.seed, cell.config.train.images_per_batch)
        test = cell.shard.split("test")
        if cell.config.evaluate.shuffled and not model.blind:
            shuffled_pictures(len(test), 0)
    except (UserError, ValueError) as error:
        return f"cell {cell.config.name}: {error}"
    if is_done(cell.run) and read_json(cell.run / KEY) != cell.key:
        return (
            f"cell {cell.config.name}: expected the run in {cell.run} to be of this configuration and data, got one of "
            "others; choose another --out, or delete that folder"
        )
    return None


def fill(cell: Cell) -> None:
    """Train a cell and answer its test set, unless that is done already; an unfinished run is made anew."""
    if is_done(cell.run):
        print(f"{cell.config.name}: finished before, kept", file=sys.stderr, flush=True)
        return
    import torch

    from vqa_bench.scoring.evaluate import evaluate
    from vqa_bench.train import train

    new_run(cell.run)
    write_json(cell.run / PROVENANCE, provenance())
    write_json(cell.run / KEY, cell.key)
    threads = torch.get_num_threads()
    wanted = None if cell.config.train is None else cell.config.train.threads
    torch.set_num_threads(threads if wanted is None else wanted)
    try:
        with progress(f"{cell.config.name}: train", "steps") as report:
            model = train(cell.config, cell.shard, cell.run, report=report)
        with progress(f"{cell.config.name}: evaluate", "batches") as report:
            evaluate(model, cell.shard, cell.run, report=report)
    finally:
        torch.set_num_threads(threads)


def ensure_shard(source: Path, spec: str, data: Path, config: DataConfig, *, workers: int) -> Shard:
    """The shard of a source in an encoding, made if it is not there yet.

    Raises UserError if one is there that was made from other data or with another dev split.
    """
    parsed = parse_spec(spec)
    out = data / "shards" / f"{source.name}--{''.join(c if c.isalnum() else '-' for c in str(parsed))}"
    if out.exists():
        shard = open_shard(out)
        manifest = shard.manifest
        same_source = all(
            (source / name).is_file() and file_info(source / name).sha256 == sha256
            for name, sha256 in manifest.source.json_files.items()
        )
        carved = "train" in manifest.splits and config.dev_fraction > 0
        dev = DevInfo(fraction=config.dev_fraction, seed=config.dev_seed) if carved else None
        whole = not any(info.missing_questions for info in manifest.splits.values())
        if manifest.spec != str(parsed) or not same_source or manifest.dev != dev or not whole:
            raise UserError(f"expected {out} to hold {source} as {spec}, got other data; delete it to make it anew")
        return shard
    with progress(f"serialize {source.name} as {spec}", "images") as report:
        serialize(
            source,
            parsed,
            out,
            workers=workers,
            dev_fraction=config.dev_fraction,
            dev_seed=config.dev_seed,
            progress=report,
        )
    return open_shard(out)
