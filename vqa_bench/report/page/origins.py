"""Where runs come from, as a part of a page: what they ran on, their data, hashes of their files. Knows run folders."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vqa_bench.report.collect import Run
from vqa_bench.report.page.html import Entry, Head, Row, folded, table
from vqa_bench.report.page.samples import facts_of

NOT_KNOWN = "not known"


def origins(runs: Sequence[Run]) -> str:
    """A table for every run, folded."""
    heads = [Head("what"), Head("value")]
    parts = []
    for run in runs:
        rows = [Row([Entry(name), Entry(value)], "text") for name, value in _lines(run).items()]
        content = table(heads, rows, label=f"Provenance of {run.result.title}", sortable=False)
        parts.append(folded(f"{run.result.title} ({run.result.cell})", content))
    return "\n".join(parts)


def _lines(run: Run) -> dict[str, str]:
    """What is known of a run's origin, by name."""
    facts, origin = facts_of(run), _origin(run)
    data = facts["dataset"]
    changed = " with changes that are not committed" if origin.get("dirty") else ""
    return {
        "command": " ".join(map(str, origin.get("command", []))) or NOT_KNOWN,
        "commit": str(origin.get("commit") or NOT_KNOWN) + changed,
        "python": str(origin.get("python", NOT_KNOWN)),
        **_texts("package", origin.get("packages")),
        "data set": str(data["name"]),
        "fingerprint of the data set": str(data.get("fingerprint", NOT_KNOWN)),
        **_texts("shard,", facts.get("shard")),
        **_texts("SHA-256 of", facts.get("hashes")),
    }


def _texts(kind: str, values: Mapping[str, Any] | None) -> dict[str, str]:
    return {f"{kind} {name}": str(value) for name, value in (values or {}).items()}


def _origin(run: Run) -> dict[str, Any]:
    path = run.folder / "provenance.json"
    return json.loads(path.read_bytes()) if path.is_file() else {}
