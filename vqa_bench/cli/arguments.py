"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path


def add_workers(parser: argparse.ArgumentParser) -> None:
    """`--workers`, all cores by default."""
    cores = os.cpu_count() or 1
    kind = partial(positive, most=max(64, 4 * cores))  # each is a process: many more only take memory
    parser.add_argument("--workers", type=kind, default=cores, help="processes (default: all cores)")


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """`--plugin FILE`, as often as there are files."""
    parser.add_argument(
        "--plugin",
        type=Path,
        action="append",
        default=[],
        dest="plugins",
        metavar="FILE",
        help="a Python file with encodings, stages or data sets of your own",
    )


def positive(text: str, *, most: int = 1 << 20) -> int:
    """An argument that counts something."""
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"expected a number of 1 to {most:,}, got {text!r}")
    return int(text)
