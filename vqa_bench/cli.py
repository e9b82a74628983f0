"""The command line: `vqa-bench data synth | serialize | train | evaluate | matrix | report`.

The top of the import graph. Everything heavy is imported inside the command that needs it, so that `--help` is quick;
a user's mistake is one line on stderr and exit code 2, a cell that failed is exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from vqa_bench.errors import UserError

if TYPE_CHECKING:
    from vqa_bench.config import DataConfig


class _Parser(argparse.ArgumentParser):
    """Errors as one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except UserError as error:
        fault = str(error)
    except _data_error() as error:
        fault = str(error)
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep Python from complaining about it once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        fault = f"{error.strerror or error}: {error.filename}" if error.filename else str(error)
    except KeyboardInterrupt:
        print("interrupted; cells that are finished are kept", file=sys.stderr)
        return 130
    print(f"error: {' '.join(fault.split())}", file=sys.stderr)
    return 2


def _data_error() -> type[ValueError]:
    from data_scripts.errors import DataError

    return DataError


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vqa-bench", description="Visual question answering benchmarks for byte-level models.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_data(commands.add_parser("data", help="get or make raw data"))
    _add_serialize(commands.add_parser("serialize", help="encode the images of a CLEVR folder into a shard"))
    _add_train(commands.add_parser("train", help="fill one cell of a matrix"))
    _add_evaluate(commands.add_parser("evaluate", help="answer a shard's questions with finished runs"))
    _add_matrix(commands.add_parser("matrix", help="fill every cell of a matrix and print its table"))
    _add_report(commands.add_parser("report", help="table and picture of the finished runs of a folder"))
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(title="data", metavar="KIND", required=True)
    synth = kinds.add_parser("synth", help="generate a CLEVR-style data set")
    synth.add_argument("--preset", required=True, help="mini, tiny, small, clevr, …")
    synth.add_argument("--out", type=Path, required=True, help="the folder to make")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--images", nargs="+", metavar="SPLIT=N", help="images a split, where not the preset's own")
    _add_workers(synth)
    synth.set_defaults(run=_synth)


def _add_serialize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="a folder in the CLEVR release's layout")
    parser.add_argument("--encoding", required=True, metavar="SPEC", help="pixels:62x41, png:62x41,level=6, jpeg:…")
    parser.add_argument("--out", type=Path, required=True, help="the shard to make")
    parser.add_argument("--splits", nargs="+", metavar="SPLIT", help="of train, dev, test (default: all there are)")
    parser.add_argument("--dev-fraction", type=float, default=0.05, help="of the training images (default 0.05)")
    parser.add_argument("--dev-seed", type=int, default=0)
    parser.add_argument("--allow-missing", action="store_true", help="leave out questions without an image file")
    _add_workers(parser)
    parser.set_defaults(run=_serialize)


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path)
    parser.add_argument("cell", help="the name of the cell")
    _add_folders(parser)
    parser.set_defaults(run=_matrix, jobs=1)


def _add_matrix(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path)
    _add_folders(parser)
    parser.add_argument("--jobs", type=_positive, default=1, help="cells that train at the same time (default 1)")
    parser.set_defaults(run=_matrix, cell=None)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    parser.add_argument("--shard", type=Path, required=True, help="made by `serialize` with the runs' encoding")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, required=True, help="results folder; each run gets a folder in it")
    parser.set_defaults(run=_evaluate)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", type=Path, help="a folder of run folders")
    parser.add_argument("--out", type=Path, help="where table.md, table.csv and accuracy.png go (default: there)")
    parser.set_defaults(run=_report)


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_positive, default=os.cpu_count() or 1, help="processes (default: all cores)")


def _positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="results folder (default: runs/<name of the matrix>)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="where data sets and shards are kept")
    _add_workers(parser)


def _synth(options: argparse.Namespace) -> int:
    from data_scripts.synth.generate import generate
    from vqa_bench.progress import progress

    images = None if options.images is None else dict(_split_count(text) for text in options.images)
    with progress(f"generate {options.preset}", "images") as report:
        generate(
            options.preset,
            options.out,
            seed=options.seed,
            workers=options.workers,
            images=images,
            progress=report,
        )
    return 0


def _split_count(text: str) -> tuple[str, int]:
    split, _, count = text.partition("=")
    if not count.isdecimal():
        raise UserError(f"expected --images SPLIT=NUMBER such as train=1000, got {text!r}")
    return split, int(count)


def _serialize(options: argparse.Namespace) -> int:
    from vqa_bench.data.encodings import parse_spec
    from vqa_bench.data.serialize import serialize
    from vqa_bench.progress import progress

    spec = parse_spec(options.encoding)
    with progress(f"serialize {options.source.name} as {spec}", "images") as report:
        manifest = serialize(
            options.source,
            spec,
            options.out,
            workers=options.workers,
            dev_fraction=options.dev_fraction,
            dev_seed=options.dev_seed,
            splits=options.splits,
            allow_missing=options.allow_missing,
            progress=report,
        )
    for name, info in manifest.splits.items():
        left_out = f" ({info.missing_questions:,} left out, no image file)" if info.missing_questions else ""
        print(f"{name}: {info.images:,} images, {info.questions:,} questions{left_out}")
    return 0


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
    if not out.exists():
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


if __name__ == "__main__":
    sys.exit(main())
