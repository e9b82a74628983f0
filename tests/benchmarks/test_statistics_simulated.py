"""The simulation of the statistics: its truth is what was put in, and it tells a broken estimator from ours."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from benchmarks import statistics
from benchmarks.statistics import Setting, draw, rows_of, simulate
from vqa_bench.scoring.statistics import accuracy_interval, paired_difference


def test_answers_have_the_accuracy_and_the_correlation_that_were_asked_for() -> None:
    setting = Setting(0.9, icc=0.25)
    drawn = [draw(setting, np.random.default_rng(seed), difference=0.04) for seed in range(40)]
    accuracy_a, accuracy_b = np.mean([sample.correct.mean(axis=1) for sample in drawn], axis=0)
    assert accuracy_a == pytest.approx(0.92, abs=0.006)
    assert accuracy_b == pytest.approx(0.88, abs=0.006)
    of_images = np.concatenate([sample.correct[0].reshape(-1, 10).astype(float) for sample in drawn])
    within = np.cov(of_images, rowvar=False)  # (10, 10): between two questions about one image
    between_questions = within[~np.eye(10, dtype=bool)].mean()
    assert between_questions / np.diag(within).mean() == pytest.approx(0.25, abs=0.03)


def test_unequal_test_sets_have_one_to_ten_questions_an_image() -> None:
    sizes = np.bincount(draw(Setting(0.5, 0.1, "unequal"), np.random.default_rng(0)).clusters)
    assert (len(sizes), sizes.min(), sizes.max()) == (200, 1, 10)


def test_table_and_rows_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(statistics.SETTINGS[0], images=20)
    monkeypatch.setattr(statistics, "SETTINGS", (statistics.SETTINGS[0], few))
    statistics.main(["--quick", "--out", str(tmp_path)])
    saved = json.loads((tmp_path / "statistics.json").read_text(encoding="utf-8"))
    assert saved["repetitions"] == 8
    targets = [row["target"] and row["target"]["value"] for row in saved["rows"]]
    assert targets == [2, 2, 2, 5, None, None, None, None]
    assert all(0 <= row["measured"]["values"][0] <= 100 for row in saved["rows"])
    table = (tmp_path / "statistics.md").read_text(encoding="utf-8")
    assert table.count("| 50 % right, ") == 2


def test_toy_numbers_are_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        statistics.main(["--quick", "--record"])
    assert "expected --out with --quick" in capsys.readouterr().err


def by_question(function: Any) -> Any:
    """The same estimator, but resampling questions: every question is an image of its own."""

    def broken(*arguments: ArrayLike, **settings: Any) -> Any:
        *correct, clusters = arguments
        return function(*correct, np.arange(len(np.asarray(clusters))), **settings)

    return broken


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [Setting(0.5, 0.25), Setting(0.95, 0.25), Setting(0.5, 0.25, "unequal")], ids=lambda s: s.title
)
def test_targets_are_reached_and_missed_when_questions_are_resampled(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(setting, simulate(setting, repetitions=700, replicates=600))
    covers, alarms, difference_covers, power = (row.value for row in rows)
    assert max(covers, difference_covers) <= 2.5  # points from 95 %; the simulation's own error is 0.8
    assert alarms <= 2.5
    assert power <= 7
    monkeypatch.setattr(statistics, "accuracy_interval", by_question(accuracy_interval))
    monkeypatch.setattr(statistics, "paired_difference", by_question(paired_difference))
    broken = rows_of(setting, simulate(setting, repetitions=150, replicates=300))
    assert all(row.value > 5 and not row.reached for row in broken[:3])
