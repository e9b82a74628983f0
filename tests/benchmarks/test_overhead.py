"""The overhead benchmark end to end at toy size: both loops really train, in turn."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from benchmarks import overhead
from vqa_bench.train.cell import new_model


def test_rows(tmp_path: Path) -> None:
    overhead.main(["--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "overhead.json").read_text(encoding="utf-8"))["rows"]
    assert [row["what"] for row in rows] == [
        "MBLM: a step",
        "MBLM: waiting for data",
        "CNN+LSTM: a step",
        "CNN+LSTM: waiting for data",
    ]
    assert [row["target"] for row in rows] == [{"relation": "≤", "value": value} for value in (1.05, 5.0) * 2]
    for step in rows[::2]:
        assert len(step["measured"]["values"]) == len(step["against"]["values"]) == 9  # the last is not timed
        assert all(seconds > 0 for seconds in step["measured"]["values"] + step["against"]["values"])
    assert all(0 < share < 100 for row in rows[1::2] for share in row["measured"]["values"])
    assert "on one thread" in (tmp_path / "overhead.md").read_text(encoding="utf-8")


def test_both_loops_take_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the schedule of the learning rate, which the bare loop does without, they are one training."""
    made: list[overhead.InTurn] = []
    begin = overhead.InTurn.__init__

    def note(self: overhead.InTurn, *arguments: object) -> None:
        begin(self, *arguments)  # type: ignore[arg-type]
        made.append(self)

    monkeypatch.setattr(overhead.InTurn, "__init__", note)
    monkeypatch.setattr("vqa_bench.train.loop.learning_rate_factor", lambda step, config: 1.0)
    cell = overhead.make_cells(argparse.Namespace(steps=3, images_per_batch=2))[1]
    shard = overhead.make_shard(tmp_path, 6, str(cell.encoding))
    monkeypatch.setattr(overhead, "BATCHES", 3)
    overhead.measure_steps(cell, shard)
    batch = made[0].ready[0].to(torch.device("cpu"))
    fresh, harness, bare = (
        (sums.total / sums.targets).item()
        for sums in (model(batch) for model in (new_model(cell, shard), made[0].task.model, made[0].bare.model))
    )
    assert harness == pytest.approx(bare, rel=1e-3)
    assert harness < fresh - 0.2


def test_toy_numbers_are_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        overhead.main(["--quick", "--record"])
    assert "toy numbers do not belong" in capsys.readouterr().err
