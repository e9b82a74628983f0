"""The command that holds two finished runs against each other: compare."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_compare(parser: argparse.ArgumentParser) -> None:
    """`compare RUN RUN`."""
    parser.add_argument("run_a", type=Path, metavar="RUN", help="the folder of a finished run")
    parser.add_argument("run_b", type=Path, metavar="RUN", help="another one that answered the same questions")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write every number into this file too")
    parser.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> int:
    from vqa_bench.report.compare import compare, terminal, write_csv

    comparison = compare(options.run_a, options.run_b)
    if options.csv is not None:
        write_csv(comparison, options.csv)
    print(terminal(comparison, color=sys.stdout.isatty()), end="")
    return 0
