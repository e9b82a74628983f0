"""Whether two run folders hold the same run, byte for byte but for times, or nearly. Knows the folder's form only."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

# Of a line of metrics.jsonl or metrics.csv: what differs between two runs that are otherwise the same.
TIMES = {"seconds", "samples_per_second", "bytes_per_second", "data_wait", "memory_bytes"}
SAME_BYTES = {"model.safetensors", "config.json", "key.json", "predictions.jsonl", "predictions-shuffled.jsonl", "DONE"}
HISTORY = {"seconds", "starts", "processes"}  # of `training` in result.json


def expect_same(got: Path, expected: Path) -> None:
    """Every file of one run is in the other, and says the same."""
    assert files(got) == files(expected)
    for name in sorted(SAME_BYTES & set(files(expected))):
        assert (got / name).read_bytes() == (expected / name).read_bytes(), name
    for name in files(expected):
        if name.startswith("best/") and name.endswith(".safetensors"):
            assert (got / name).read_bytes() == (expected / name).read_bytes(), name
    assert metrics(got) == metrics(expected)
    assert table(got) == table(expected)
    if (expected / "result.json").exists():
        assert result(got) == result(expected)


def expect_close(got: Path, expected: Path, *, losses_within: float = 1e-5) -> None:
    """The same lines, their losses nearly alike, and nearly the same weights: other sums of the same numbers."""
    for line, other in zip(metrics(got), metrics(expected), strict=True):
        assert line == pytest.approx(other, abs=1e-4)  # norms and learning rates too
        assert line["loss"] == pytest.approx(other["loss"], abs=losses_within)
    weights = load_file(expected / "model.safetensors")
    for name, tensor in load_file(got / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights.pop(name), rtol=0, atol=1e-4, msg=name)
    assert not weights


def files(run: Path) -> list[str]:
    """The files of a run, by their paths inside it."""
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file())


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def table(run: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without times."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def result(run: Path) -> dict[str, Any]:
    """result.json without what depends on how often the run was started, and with the shard by its name alone."""
    content: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    training = content.get("training") or {}
    if "shard" in content:
        content["shard"]["path"] = Path(content["shard"]["path"]).name
    return content | {"training": {key: value for key, value in training.items() if key not in HISTORY}}


def losses(run: Path) -> list[float]:
    """The training losses of metrics.jsonl, in order."""
    return [line["loss"] for line in metrics(run) if line["kind"] == "train"]


def predictions(run: Path) -> list[dict[str, Any]]:
    """The answers to the test set."""
    return [json.loads(line) for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
