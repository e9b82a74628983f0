"""The commands of the benchmark matrix: train, pretrain, matrix."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_bench.cli.arguments import add_plugins, add_workers, positive
from vqa_bench.errors import UserError

if TYPE_CHECKING:
    from vqa_bench.config import MatrixConfig
    from vqa_bench.matrix import How, Invocation


def add_train(parser: argparse.ArgumentParser) -> None:
    """`train CONFIG CELL`."""
    parser.add_argument("config", type=Path)
    parser.add_argument("cell", help="the name of the cell")
    add_running(parser)
    parser.set_defaults(run=_train)


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    """`pretrain CONFIG [NAME …]`."""
    parser.add_argument("config", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="pretraining runs of the file (default: all)")
    add_running(parser)
    parser.set_defaults(run=_pretrain)


def add_matrix(parser: argparse.ArgumentParser) -> None:
    """`matrix CONFIG`."""
    parser.add_argument("config", type=Path)
    parser.add_argument("--only", nargs="+", metavar="CELL", help="fill these cells (default: all)")
    add_running(parser)
    parser.add_argument("--jobs", type=positive, default=1, help="runs that train at the same time (default 1)")
    parser.add_argument(
        "--executor",
        choices=("here", "local", "slurm"),
        default="here",
        help="who runs the jobs: this command, submitit on this machine, or Slurm (default: here)",
    )
    cluster = parser.add_argument_group("what a job of --executor local or slurm gets")
    cluster.add_argument("--slurm-partition", metavar="NAME")
    cluster.add_argument("--slurm-account", metavar="NAME")
    cluster.add_argument("--slurm-constraint", metavar="FEATURES")
    cluster.add_argument("--slurm-gpus", type=positive, metavar="N", help="a node, each with a process of its own")
    cluster.add_argument("--slurm-tasks", type=positive, metavar="N", help="processes a node (default: one a GPU)")
    cluster.add_argument("--slurm-nodes", type=positive, default=1, metavar="N", help="that train a run together")
    cluster.add_argument(
        "--slurm-time", type=positive, metavar="MINUTES", help="until a job is stopped and goes on as a new one"
    )
    parser.set_defaults(run=_matrix)


def add_running(parser: argparse.ArgumentParser) -> None:
    """What every command that trains takes."""
    parser.add_argument("--out", type=Path, help="results folder (default: runs/<name of the matrix>)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where data sets and shards are kept")
    parser.add_argument(
        "--resume",
        choices=("auto", "never"),
        default="auto",
        help="go on with unfinished runs, or delete them and begin anew (default: auto)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained and what it costs")
    add_plugins(parser)
    add_workers(parser)


def _train(options: argparse.Namespace) -> int:
    from vqa_bench.config import load_matrix

    return run_cells(options, load_matrix(options.config), only=[options.cell])


def _pretrain(options: argparse.Namespace) -> int:
    from vqa_bench import launch
    from vqa_bench.config import PRETRAIN_FOLDER, load_matrix

    config = load_matrix(options.config)
    names = options.names or [run.name for run in config.pretrain]
    if not names:
        raise UserError(f"expected pretraining runs in {options.config}, got none; list them under `pretrain`")
    failed = run_cells(options, config, pretraining=names)
    if not options.dry_run and launch.is_main():
        for name in names:
            _print_bits(_results(options, config) / PRETRAIN_FOLDER / name)
    return failed


def _matrix(options: argparse.Namespace) -> int:
    from vqa_bench import launch
    from vqa_bench.cli.report import print_report
    from vqa_bench.config import load_matrix
    from vqa_bench.runs import is_done

    config = load_matrix(options.config)
    failed = run_cells(options, config, only=options.only, how=_how(options))
    results = _results(options, config)
    # Where nothing was finished there is nothing to show, and what went wrong has been said.
    if not options.dry_run and launch.is_main() and any(is_done(results / cell.name) for cell in config.cells):
        print_report(results)
    return failed


def run_cells(
    options: argparse.Namespace,
    config: MatrixConfig,
    *,
    only: list[str] | None = None,
    pretraining: list[str] | None = None,
    how: How | None = None,
) -> int:
    """Fill cells and pretraining runs (see `matrix.run_matrix`), or say what it would take; the exit code.

    `options` has what `add_running` adds.
    """
    from vqa_bench import launch
    from vqa_bench.cli.sources import warehouse
    from vqa_bench.matrix import How, plan, run_matrix

    place = warehouse(options.data, options.workers)
    if options.dry_run:
        from vqa_bench.estimate import plan_text

        if launch.is_main():
            print(plan_text(plan(config, place, only=only, pretraining=pretraining)))
        return 0
    how = How(invocation=_invocation(options)) if how is None else how
    faults = run_matrix(config, _results(options, config), place, only=only, pretraining=pretraining, how=how)
    return 1 if faults else 0


def _results(options: argparse.Namespace, config: MatrixConfig) -> Path:
    return Path("runs") / config.name if options.out is None else options.out


def _how(options: argparse.Namespace) -> How:
    from vqa_bench.matrix import Cluster, How

    cluster = Cluster(
        partition=options.slurm_partition,
        account=options.slurm_account,
        constraint=options.slurm_constraint,
        gpus=options.slurm_gpus,
        nodes=options.slurm_nodes,
        tasks=options.slurm_tasks,
        minutes=options.slurm_time,
    )
    if options.executor == "here" and cluster != Cluster():
        raise UserError("expected --executor slurm (or local) with --slurm-…, got --executor here; choose one")
    return How(jobs=options.jobs, where=options.executor, cluster=cluster, invocation=_invocation(options))


def _invocation(options: argparse.Namespace) -> Invocation:
    from vqa_bench.matrix import Invocation

    command = (Path(sys.argv[0]).name, *sys.argv[1:])
    plugins = tuple(file.resolve() for file in options.plugins)
    return Invocation(resume=options.resume, command=command, plugins=plugins)


def _print_bits(run: Path) -> None:
    """What a finished pretraining run reached."""
    from vqa_bench.runs import RESULT, is_done, read_json

    if not is_done(run):
        return
    for split, numbers in read_json(run / RESULT)["metrics"].items():
        bits = ", ".join(f"{value:.3f} {name.replace('_', ' ')}" for name, value in numbers.items() if "bits" in name)
        print(f"{run.name}, {split}: {bits} ({numbers['bytes']:,} bytes)")
