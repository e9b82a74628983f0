"""One part of the GPU suite in this process: what it is given, and what is written and printed of it."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import RECORDED, ROOT, markdown, say
from benchmarks.gpu.bench import Bench, read_results
from benchmarks.gpu.device import Device
from benchmarks.gpu.parts import find_part
from vqa_bench.data.folders import whole_file
from vqa_bench.runs import provenance, write_json

DRY = "dry run: tiny sizes on the CPU show that the scripts work; the numbers say nothing of a GPU"
CODE = ("benchmarks", "mblm", "vqa_bench", "baselines", "data_scripts")


def find_out(device: Device) -> Path:
    """Where results go: among the recorded ones by the GPU's name, those of a dry run nowhere that lasts."""
    if device.tiny:
        return Path(tempfile.mkdtemp(prefix="vqa-gpu-dry-run-"))
    return RECORDED / ("gpu-" + re.sub(r"[^a-z0-9]+", "-", device.facts()["name"].lower()).strip("-"))


def code_digest() -> str:
    """SHA-256 of our packages' sources: an item is kept for the code that it was measured with, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(path for package in CODE for path in (ROOT / package).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def run_part(part: str, device: Device, out: Path, seconds: float | None, given: Sequence[str]) -> list[str]:
    """Measure a part, print its table, write PART.json and PART.md into `out`; what is wrong, which may be nothing."""
    facts, about = device.facts(), provenance()
    out.mkdir(parents=True, exist_ok=True)
    limits = {"device": facts["name"], "versions": facts["versions"], "code": code_digest(), "tiny": device.tiny}
    file = out / f"{part}.json"
    bench = Bench(part, device, file, device.tiny, seconds, limits)
    report = find_part(part)(bench)
    not_measured = [f"Not measured, as no time was left: {', '.join(bench.skipped)}."] if bench.skipped else []
    failures = [*report.failures, *bench.raised]
    dry = [DRY[0].upper() + DRY[1:] + "."] if device.tiny else []
    failed = [f"FAILED: {failure}" for failure in failures]
    remarks = [*dry, *report.remarks, *not_measured, _described(facts), *failed]
    title = f"{report.title} (dry run)" if device.tiny else report.title
    table = markdown(title, against=report.against, rows=report.rows, remarks=remarks)
    about |= {
        "command": ["python", "-m", "benchmarks.gpu", *given],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    rows = [{**asdict(row), "reached": row.reached} for row in report.rows]
    print(table, flush=True)
    before = read_results(file)
    if len(before.get("rows", [])) > len(rows):
        say(f"{part}: {file} has {len(before['rows'])} rows, this run {len(rows)}: that table stays, with these items")
        write_json(file, before | {"items": bench.known})
    else:
        found = {"dry_run": device.tiny, "machine": facts, "provenance": about, "rows": rows, "remarks": remarks}
        write_json(file, found | {"items": bench.known})
        with whole_file(out / f"{part}.md") as partial:
            partial.write_text(table, encoding="utf-8")
    for failure in failures:
        say(f"error: {part}: {failure}")
    sys.stdout.flush()
    return failures


def _described(facts: dict[str, Any]) -> str:
    """What the numbers of a table belong to."""
    read = facts.get("nvidia_smi") or {}
    clocks = f", {read['clocks.sm']} when it began, at most {read['clocks.max.sm']}" if "clocks.sm" in read else ""
    driver = f", driver {read['driver_version']}" if "driver_version" in read else ""
    versions = [f"{package} {version}" for package, version in facts["versions"].items() if version is not None]
    return f"{facts['name']}{clocks}{driver}; Python {facts['python']}, {', '.join(versions)}."
