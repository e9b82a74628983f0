"""The scoring benchmark end to end at toy size; what does not have the same answers is not compared."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import scoring
from benchmarks.overhead import make_shard
from vqa_bench.config import load_matrix


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_rows(tmp_path: Path) -> None:
    cell = load_matrix(scoring.ROOT / "configs" / "mini.yaml").cell(scoring.CELL)
    shard = make_shard(tmp_path, 2, str(cell.encoding))
    scoring.main(["--quick", "--out", str(tmp_path / "out")], shard)
    rows = json.loads((tmp_path / "out" / "scoring.json").read_text(encoding="utf-8"))["rows"]
    separate = rows[:3]
    fastest = min(separate, key=lambda row: row["value"])
    assert [row["target"] is not None for row in rows] == [row is fastest for row in rows]
    assert fastest["target"]["value"] == 3.0
    assert all(row["value"] > 0 for row in rows)


def test_other_answers_are_not_compared() -> None:
    from tests.vqa_bench.scoring.predictions import make_prediction

    ours = [make_prediction(0, answer="yes", prediction="yes")]
    scoring.check_same(ours, ours)
    with pytest.raises(SystemExit, match=r"got others for question_index 0 \(prediction, constrained_greedy\)"):
        scoring.check_same(ours, [make_prediction(0, answer="yes", prediction="no")])
    further = ours[0].model_copy(update={"log_probs": (-0.3, *ours[0].log_probs[1:])})
    with pytest.raises(SystemExit, match=r"log-probabilities 0.05 apart"):
        scoring.check_same(ours, [further])


def test_toy_numbers_are_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scoring.main(["--quick", "--record"])
    assert "toy numbers do not belong" in capsys.readouterr().err
