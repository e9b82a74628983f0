"""The commands of the benchmark matrix: train, evaluate, matrix, report."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_bench.cli.arguments import add_workers, positive
from vqa_bench.errors import UserError

if TYPE_CHECKING:
    from vqa_bench.config import DataConfig


def add_train(parser: argparse.ArgumentParser) -> None:
    """`train CONFIG CELL`."""
    parser.add_argument("config", type=Path)
    parser.add_argument("cell", help="the name of the cell")
    _add_folders(parser)
    parser.set_defaults(run=_matrix, jobs=1)


def add_matrix(parser: argparse.ArgumentParser) -> None:
    """`matrix CONFIG`."""
    parser.add_argument("config", type=Path)
    _add_folders(parser)
    parser.add_argument("--jobs", type=positive, default=1, help="cells that train at the same time (default 1)")
    parser.set_defaults(run=_matrix, cell=None)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """`evaluate RUN … --shard DIR`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--shard", type=Path, required=True, help="made by `serialize` with the runs' encoding")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True, help="results folder; each run gets a folder in it")
    parser.set_defaults(run=_evaluate)


def add_report(parser: argparse.ArgumentParser) -> None:
    """`report RESULTS`."""
    parser.add_argument("results", type=Path, help="a folder of run folders")
    parser.add_argument("--out", type=Path, help="where table.md, table.csv and accuracy.png go (default: there)")
    parser.set_defaults(run=_report)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="results folder (default: runs/<name of the matrix>)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where data sets and shards are kept")
    add_workers(parser)


def _matrix(options: argparse.Namespace) -> int:
    from vqa_bench.config import load_matrix
    from vqa_bench.matrix import run_matrix

    config = load_matrix(options.config)
    out = options.out or Path("runs") / config.name
    faults = run_matrix(
        config,
        out,
        options.data,
        partial(_make_source, options.workers),
        workers=options.workers,
        jobs=options.jobs,
        only=options.cell,
    )
    if options.cell is None:
        _print_report(out, None)
    return 1 if faults else 0


def _make_source(workers: int, config: DataConfig, data: Path) -> Path:
    """The CLEVR folder of a configuration; a generated one is made on first use and named after its settings."""
    if config.synth is None:
        assert config.folder is not None, "the configuration has either"
        return config.folder
    from data_scripts.synth.generate import VERSION, generate
    from vqa_bench.progress import progress

    synth = config.synth
    counts = "" if synth.images is None else "-" + "-".join(f"{k}{v}" for k, v in sorted(synth.images.items()))
    out = data / f"synth-{synth.preset}-v{VERSION}-seed{synth.seed}{counts}"
    if not (out / "info.json").exists():
        with progress(f"generate {synth.preset}", "images") as report:
            generate(synth.preset, out, seed=synth.seed, workers=workers, images=synth.images, progress=report)
    return out


def _evaluate(options: argparse.Namespace) -> int:
    from vqa_bench.data.shards import open_shard
    from vqa_bench.progress import progress
    from vqa_bench.runs import PROVENANCE, is_done, load_model, new_run, provenance, write_json
    from vqa_bench.scoring.evaluate import check_encoding, evaluate

    shard = open_shard(options.shard)
    shard.split(options.split)
    models = [load_model(run) for run in options.runs]
    for model in models:
        check_encoding(model, shard)
    names = [model.cell.name for model in models]
    if len(set(names)) < len(names):
        raise UserError(
            f"expected runs of different cells, got {', '.join(names)}; evaluate them into different folders"
        )
    for name in names:
        if is_done(options.out / name):
            raise UserError(
                f"expected a new folder for the results, got {options.out / name}, which exists; choose another --out"
            )
    for run, model in zip(options.runs, models, strict=True):
        out = options.out / model.cell.name
        new_run(out)
        write_json(out / PROVENANCE, provenance() | {"run": run.name})
        with progress(f"{model.cell.name}: evaluate", "batches") as report:
            evaluate(model, shard, out, split=options.split, report=report)
    _print_report(options.out, None)
    return 0


def _report(options: argparse.Namespace) -> int:
    _print_report(options.results, options.out)
    return 0


def _print_report(results: Path, out: Path | None) -> None:
    from vqa_bench.report import write_report

    report = write_report(results, out, color=sys.stdout.isatty())
    print(report.text)
    print(f"{report.markdown}  {report.csv}  {report.figure}")
