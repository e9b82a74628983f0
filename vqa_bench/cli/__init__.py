"""The command line `vqa-bench`: the top of the import graph.

Every command lives in one of the files beside this one and has two parts: its arguments, and a function of the parsed
options that imports what it needs and returns the exit code, so that `--help` stays quick. A user's mistake is one line
on stderr and exit code 2; a cell that failed, or a check that found something wrong, is exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from vqa_bench.cli import ask, cells, compare, evaluate, features, finetune, raw, report, shards, verify
from vqa_bench.errors import UserError

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class _Parser(argparse.ArgumentParser):
    """Errors as one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if hasattr(options, "plugins"):
            from vqa_bench.plugins import load_plugins

            load_plugins(options.plugins)
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
        print("interrupted; run the same command again", file=sys.stderr)
        return INTERRUPTED
    print(f"error: {' '.join(fault.split())}", file=sys.stderr)
    return 2


def _data_error() -> type[ValueError]:
    from data_scripts.errors import DataError

    return DataError


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vqa-bench", description="Visual question answering benchmarks for byte-level models.")
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    raw.add_data(commands.add_parser("data", help="get or make raw data"))
    shards.add_serialize(commands.add_parser("serialize", help="encode the images of a CLEVR folder into a shard"))
    features.add_features(commands.add_parser("features", help="what a frozen network makes of a shard's pictures"))
    shards.add_inspect(commands.add_parser("inspect", help="show what a shard or a folder of books holds"))
    shards.add_doctor(commands.add_parser("doctor", help="check this machine: versions, devices, encodings"))
    cells.add_train(commands.add_parser("train", help="fill one cell of a matrix"))
    cells.add_pretrain(commands.add_parser("pretrain", help="train the runs on text that cells may begin from"))
    finetune.add_finetune(commands.add_parser("finetune", help="fill a cell that begins from trained weights"))
    evaluate.add_evaluate(commands.add_parser("evaluate", help="answer a shard's questions with finished runs"))
    cells.add_matrix(commands.add_parser("matrix", help="fill every cell of a matrix and print its table"))
    compare.add_compare(
        commands.add_parser("compare", help="test whether one finished run answers better than another")
    )
    verify.add_verify(commands.add_parser("verify", help="check that results still say what follows from their files"))
    ask.add_ask(commands.add_parser("ask", help="ask a finished run about an image file"))
    ask.add_demo(commands.add_parser("demo", help="a page on this machine to ask a finished run"))
    report.add_report(commands.add_parser("report", help="tables, figures and a page of the finished runs of a folder"))
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: reading package metadata takes a while."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"vqa-bench {version('vqa-bench')}")
        parser.exit()
