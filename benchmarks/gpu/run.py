"""One part of the GPU suite in this process: what it is given, and what is written and printed of it."""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.common import RECORDED, ROOT, markdown, say
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.device import Device
from benchmarks.gpu.parts import find_part
from vqa_bench.runs import provenance, write_json

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
    limits = {"device": facts["name"], "versions": facts["versions"], "code": code_digest(), "tiny": device.tiny}
    file = out / f"{part}.json"
    bench = Bench(part, device, file, device.tiny, seconds, limits)
    report = find_part(part)(bench)
    not_measured = [f"Not measured, as no time was left: {', '.join(bench.skipped)}."] if bench.skipped else []
    remarks = [*report.remarks, *not_measured, *(f"FAILED: {failure}" for failure in report.failures)]
    table = markdown(report.title, against=report.against, rows=report.rows, remarks=remarks)
    about |= {
        "command": ["python", "-m", "benchmarks.gpu", *given],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    rows = [{**asdict(row), "reached": row.reached} for row in report.rows]
    found = {"machine": facts, "provenance": about, "rows": rows, "remarks": remarks, "items": bench.items}
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, found)
    partial = out / f"{part}.md.partial"
    partial.write_text(table, encoding="utf-8")
    os.replace(partial, out / f"{part}.md")
    print(table, flush=True)
    for failure in report.failures:
        say(f"error: {part}: {failure}")
    sys.stdout.flush()
    return report.failures
