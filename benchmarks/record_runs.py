"""Keep the tables of a results folder under results/recorded, once they have been verified.

`python -m benchmarks.record_runs runs/mini`. What is kept: tables, the figures that README shows, and how the runs came
to be. Of mini, README's table is written anew.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.common import RECORDED, ROOT, say, write_json

MODULE = "benchmarks.record_runs"
FILES = ("table.md", "table.csv", "table.tex", "details.csv", "pretraining.csv")
FIGURES = ("accuracy.png", "damage.png", "learning.png")
README = ROOT / "README.md"
SHOWN = "mini"  # whose table stands in README
BEGIN, END = "<!-- table: {} -->\n", "<!-- end of table -->"


def main(arguments: Sequence[str]) -> int:
    """Verify, copy, and write README's table; exit code 1 where something does not hold."""
    from vqa_bench.cli.verify import verify_text
    from vqa_bench.verify import verify

    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="a folder of finished runs with its report")
    options = parser.parse_args(arguments)
    checks = verify(options.results)
    if any(check.status == "fault" for check in checks):
        print(verify_text(checks))
        return 1
    origin = origin_of(options.results)
    out = RECORDED / options.results.resolve().name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for file in [*(options.results / name for name in FILES), *(options.results / "figures" / n for n in FIGURES)]:
        if file.is_file():
            shutil.copyfile(file, out / file.name)
    write_json(out / "provenance.json", origin)
    if out.name == SHOWN:
        README.write_text(with_table(README.read_text(encoding="utf-8"), out), encoding="utf-8")
    say(f"{out}: {', '.join(path.name for path in sorted(out.iterdir()))}")
    return 0


def origin_of(results: Path) -> dict[str, Any]:
    """What all runs have in common; SystemExit where they are of several commits or of uncommitted code."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*/provenance.json"))]
    common = {key: found[0][key] for key in ("commit", "dirty", "python", "machine", "packages")}
    for one in found:
        if one["dirty"] or one["commit"] != common["commit"]:
            raise SystemExit(f"error: expected runs of one commit and clean code, got {one['commit']}; run them again")
    return {"commands": sorted({" ".join(one["command"]) for one in found})} | common


def with_table(readme: str, recorded: Path) -> str:
    """README with the recorded table between its two marks."""
    begin = BEGIN.format(recorded.name)
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(readme):
        raise SystemExit(f"error: expected {begin.strip()} and {END} in README.md, got none; put them in")
    return pattern.sub(lambda _: f"{begin}{short_table(recorded)}{END}", readme)


def short_table(recorded: Path) -> str:
    """A few columns of the recorded table: accuracy, and what of it comes from seeing the image."""
    from vqa_bench.report.frame import FRAME_COLUMNS
    from vqa_bench.report.tables import accuracy, by_test_set, describe, difference, label

    frame = pd.read_csv(recorded / "table.csv").astype(FRAME_COLUMNS)
    lines = []
    for test_set in by_test_set(frame):
        lines += ["", f"| {describe(test_set)} | right, % | vision gain, points | vs best blind, points |"]
        lines += ["| --- | ---: | ---: | ---: |"]
        for _, row in test_set[test_set["row"] != "shuffled"].iterrows():
            compared = [difference(row, name).replace("*", "\\*") for name in ("vision_gain", "vs_blind")]
            lines.append(f"| {' | '.join([label(row), accuracy(row, 'overall'), *compared])} |")
    return "\n".join([*lines, ""]) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
