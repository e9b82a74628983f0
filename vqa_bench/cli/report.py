"""The command that shows finished runs side by side: report; and what the commands that end in a report print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_report(parser: argparse.ArgumentParser) -> None:
    """`report RESULTS`."""
    parser.add_argument("results", type=Path, help="a folder of run folders")
    parser.add_argument("--out", type=Path, help="where tables, figures and report.html go (default: there)")
    parser.add_argument(
        "--published", action="store_true", help="show published numbers, marked, beside ours (not in the CSV)"
    )
    parser.add_argument("--no-page", action="store_true", help="leave report.html out")
    parser.set_defaults(run=_report)


def print_report(results: Path, out: Path | None = None, *, published: bool = False, page: bool = True) -> None:
    """Write the report of a folder of runs (see `report.write_report`), print its tables and where its files are."""
    from vqa_bench.report import write_report

    report = write_report(results, out, color=sys.stdout.isatty(), published=published, page=page)
    print(report.text)
    tables = [report.markdown, report.csv, report.details, report.latex, report.pretraining]
    figures = report.figures[0].parent if report.figures else None
    print("  ".join(str(path) for path in (*tables, figures, report.page) if path is not None))


def _report(options: argparse.Namespace) -> int:
    print_report(options.results, options.out, published=options.published, page=not options.no_page)
    return 0
