"""The command that checks results: verify."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqa_bench.cli.arguments import add_plugins

if TYPE_CHECKING:
    from vqa_bench.verify import Check


def add_verify(parser: argparse.ArgumentParser) -> None:
    """`verify RUN_OR_RESULTS`."""
    parser.add_argument("folder", type=Path, metavar="RUN_OR_RESULTS", help="a finished run, or a folder of runs")
    parser.add_argument(
        "--shard",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a shard, or a folder of shards, where they are not where they were",
    )
    add_plugins(parser)
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> int:
    from vqa_bench.progress import progress
    from vqa_bench.verify import verify

    with progress(f"verify {options.folder}", "runs") as report:
        checks = verify(options.folder, shards=options.shard, report=report)
    print(verify_text(checks))
    statuses = {check.status for check in checks}
    return 0 if "holds" in statuses and "fault" not in statuses else 1


def verify_text(checks: Sequence[Check]) -> str:
    """A line a run with what holds, a line a fault, a line a thing that was not checked; the counts at the end."""
    lines = []
    for run in dict.fromkeys(check.run for check in checks):
        mine = [check for check in checks if check.run == run]
        held = [check.what for check in mine if check.status == "holds"]
        lines += [f"ok         {run}: {', '.join(held)}"] if held else []
        lines += [f"FAULT      {run}: {check.file}: {fault}" for check in mine for fault in check.faults]
    left_out = [check for check in checks if check.unchecked is not None]
    for file, what, why in dict.fromkeys((check.file, check.what, check.unchecked) for check in left_out):
        runs = [check.run for check in left_out if (check.file, check.what, check.unchecked) == (file, what, why)]
        lines.append(f"unchecked  {', '.join(runs)}: {file}: {what}: {why}")
    counts = [sum(check.status == status for check in checks) for status in ("holds", "fault", "unchecked")]
    return "\n".join([*lines, "{} checks hold, {} do not, {} were not made".format(*counts)])
