"""Cells that differ in their seed alone, corrected tests, and the long frame of details."""

from pathlib import Path
from typing import Any

import pytest

from tests.vqa_bench.report.run_folder import make_byte_run, make_run
from vqa_bench.report.collect import collect
from vqa_bench.report.details import build_details
from vqa_bench.report.frame import COMPARISONS, build_frame
from vqa_bench.report.seeds import common_title, mean_row
from vqa_bench.report.tables import markdown, notes
from vqa_bench.scoring.predictions import correct_of, images_of, read_predictions
from vqa_bench.scoring.statistics import holm, paired_difference


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A blind cell, a cell with three seeds, one that differs from them in more."""
    folder = tmp_path_factory.mktemp("seeds")
    make_run(folder / "lstm", accuracy=0.45, seed=9, questions=130)
    for seed, accuracy in enumerate((0.7, 0.5, 0.9)):
        make_byte_run(folder / f"mblm-{seed}", accuracy=accuracy, draw=seed + 20, seed=seed, title="MBLM")
    other = {"encoding": "jpeg:16x12,q=80", "title": "JPEG"}
    make_byte_run(folder / "jpeg", accuracy=0.6, draw=30, **other)
    return folder


def test_seeds_stand_together_with_their_mean_behind_them(results: Path) -> None:
    frame = build_frame(collect(results).runs)
    block = frame[frame["test_set"] == frame.loc[frame["cell"] == "jpeg", "test_set"].iloc[0]]
    assert list(block.loc[block["row"] != "shuffled", "title"]) == [
        *("chance", "JPEG", "MBLM, seed 1", "MBLM, seed 0", "MBLM, seed 2", "MBLM, mean of 3 seeds")
    ]
    seeds = block[block["cell"].isin(["mblm-0", "mblm-1", "mblm-2"]) & (block["row"] == "cell")]
    mean = block[block["row"] == "mean"].iloc[0]
    assert mean["seeds"] == 3
    for column in ("overall_accuracy", "query_accuracy", "vision_gain", "trie_mass", "bits_image", "train_flops"):
        assert mean[column] == pytest.approx(sum(seeds[column]) / 3)
    for stem, column in (("overall", "overall_accuracy"), ("count", "count_accuracy"), ("vision_gain", "vision_gain")):
        assert mean[f"{stem}_low"] == min(seeds[column])
        assert mean[f"{stem}_high"] == max(seeds[column])
    assert mean[["vision_gain_p", "overall_correct", "cell"]].isna().all()
    low, middle, high = (100 * mean[f"overall_{name}"] for name in ("low", "accuracy", "high"))
    assert f"| MBLM, mean of 3 seeds | {middle:.1f} ({low:.1f} to {high:.1f}) |" in markdown(block)
    assert any(note.startswith("Mean of seeds") for note in notes(block))


def test_seeds_on_other_data_are_no_family(tmp_path: Path) -> None:
    """The same questions of a shard with another train split, say."""
    make_byte_run(tmp_path / "all", accuracy=0.5, draw=1)
    make_byte_run(tmp_path / "half", accuracy=0.5, draw=1, seed=1, shard={"manifest": "1" * 64})
    assert "mean" not in set(build_frame(collect(tmp_path).runs)["row"])


def test_other_initial_weights_are_no_family(tmp_path: Path) -> None:
    for seed, source in enumerate(("text", "other text")):
        run = {"seed": seed, "initial": {"source": source}}
        make_byte_run(tmp_path / f"{seed}", accuracy=0.5, draw=seed, init="pretrained", **run)
    assert "mean" not in set(build_frame(collect(tmp_path).runs)["row"])


def test_a_mean_is_of_all_seeds_or_missing() -> None:
    """`b` lacks a number of one seed; `c` has a mean, but no least and greatest."""
    rows = [
        {"title": "a", "a_accuracy": 0.2, "b": 1.0, "c": 1.0},
        {"title": "a", "a_accuracy": 0.6, "b": None, "c": 3.0},
    ]
    mean = mean_row(rows, ["a_accuracy", "b", "c"], ["a_accuracy"])
    numbers = {name: value for name, value in mean.items() if name[0] in "abc" and name != "best_blind"}
    assert numbers == {"a_accuracy": pytest.approx(0.4), "a_low": 0.2, "a_high": 0.6, "c": 2.0}


def test_equal_seeds_and_other_settings_are_no_family(tmp_path: Path) -> None:
    tuned = {"learning_rate": 1e-3}
    make_byte_run(tmp_path / "a", accuracy=0.5, draw=1)
    make_byte_run(tmp_path / "again", accuracy=0.5, draw=1)
    make_byte_run(tmp_path / "tuned", accuracy=0.5, draw=1, seed=1, train=tuned, title="Tuned, 1")
    make_byte_run(tmp_path / "wide", accuracy=0.5, draw=1, seed=2, model={"config": {"hidden_dims": [96, 32]}})
    assert "mean" not in set(build_frame(collect(tmp_path).runs)["row"])
    make_byte_run(tmp_path / "seed", accuracy=0.5, draw=1, seed=4, train=tuned | {"log_every": 7}, title="Tuned, 4")
    frame = build_frame(collect(tmp_path).runs)
    assert list(frame.loc[frame["row"] == "mean", "title"]) == ["Tuned, mean of 2 seeds"]


def test_pretrained_seeds_stand_behind_those_of_their_twins(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_byte_run(tmp_path / f"scratch-{seed}", accuracy=0.5, draw=1, seed=seed)
        make_byte_run(tmp_path / f"tuned-{seed}", accuracy=0.4, draw=2, seed=seed, init="pretrained")
    frame = build_frame(collect(tmp_path).runs)
    shown = frame[frame["row"].isin(["cell", "mean"])]
    assert [str(title)[:4] for title in shown["title"]] == ["scra"] * 3 + ["tune"] * 3
    assert list(shown["row"]) == ["cell", "cell", "mean"] * 2
    assert shown.iloc[5]["vs_scratch"] == pytest.approx(shown.iloc[3:5]["vs_scratch"].mean())


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        (["MBLM", "MBLM"], "MBLM"),
        (["MBLM, seed 10", "MBLM, seed 11"], "MBLM"),
        (["MBLM, pixels (0)", "MBLM, pixels (1)"], "MBLM, pixels"),
        (["mblm-0", "mblm-1"], "mblm-0"),
    ],
)
def test_what_titles_of_seeds_have_in_common(titles: list[str], expected: str) -> None:
    rows: list[dict[str, Any]] = [{"title": title} for title in titles]
    assert common_title(rows) == expected


def test_all_tests_of_a_test_set_are_corrected_together(results: Path) -> None:
    frame = build_frame(collect(results).runs)
    for _, block in frame.groupby("test_set"):
        tests = [(row, name) for _, row in block.iterrows() for name in COMPARISONS if row.notna()[f"{name}_p"]]
        expected = holm([float(row[f"{name}_p"]) for row, name in tests])
        assert [row[f"{name}_adjusted_p"] for row, name in tests] == expected
    assert frame["vision_gain_adjusted_p"].notna().sum() == 4


def test_vision_gain_is_the_paired_difference_to_the_shuffled_answers(results: Path) -> None:
    frame = build_frame(collect(results).runs)
    row = frame[(frame["cell"] == "jpeg") & (frame["row"] == "cell")].iloc[0]
    own, other = (read_predictions(results / "jpeg" / f"predictions{end}.jsonl") for end in ("", "-shuffled"))
    expected = paired_difference(correct_of(own), correct_of(other), images_of(own))
    found = [row[f"vision_gain{end}"] for end in ("", "_low", "_high", "_p")]
    assert found == [expected.estimate, expected.low, expected.high, expected.p_value]


def test_details_count_every_question_once_for_each_way_to_tell_them_apart(results: Path) -> None:
    details = build_details(collect(results).runs)
    predictions = read_predictions(results / "mblm-0" / "predictions-shuffled.jsonl")
    rows = details[(details["cell"] == "mblm-0") & (details["row"] == "shuffled")]
    for by, counts in rows.groupby("by"):
        assert counts["n"].sum() == len(predictions), by
        assert counts["correct"].sum() == correct_of(predictions).sum(), by
    three = rows[(rows["by"] == "num_objects") & (rows["value"] == "3")].iloc[0]
    about_three = [prediction for prediction in predictions if prediction.num_objects == 3]
    assert three["n"] == len(about_three)
    assert three["accuracy"] == correct_of(about_three).mean()
    assert "shuffled" not in set(details.loc[details["cell"] == "lstm", "row"])
