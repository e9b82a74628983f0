"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import os


def add_workers(parser: argparse.ArgumentParser) -> None:
    """`--workers`, all cores by default."""
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="processes (default: all cores)")


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)
