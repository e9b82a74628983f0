"""Reading run folders, refusing broken ones, and the frame against the statistics it is made of."""

import json
from pathlib import Path

import pytest

from tests.vqa_bench.report.run_folder import answers_of, make_pretraining, make_run
from vqa_bench.errors import UserError
from vqa_bench.report.collect import collect
from vqa_bench.report.frame import COLUMNS, FRAME_COLUMNS, build_frame, build_pretraining_frame
from vqa_bench.scoring.metrics import summarise
from vqa_bench.scoring.predictions import correct_of, images_of, write_predictions
from vqa_bench.scoring.statistics import paired_difference


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two blind cells, two that see, one unfinished."""
    make_run(tmp_path / "majority", accuracy=0.3, seed=1)
    make_run(tmp_path / "lstm", accuracy=0.5, seed=2)
    make_run(tmp_path / "pixels", accuracy=0.8, shuffled_accuracy=0.4, seed=3)
    make_run(tmp_path / "jpeg", accuracy=0.6, shuffled_accuracy=0.45, seed=4)
    make_run(tmp_path / "waiting", accuracy=0.9, done=False)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "table.md").touch()
    return tmp_path


def test_finished_runs_are_read_and_the_others_named(results: Path) -> None:
    collection = collect(results)
    assert [run.result.cell for run in collection.runs] == ["jpeg", "lstm", "majority", "pixels"]
    assert collection.unfinished == ["waiting"]
    assert [run.shuffled is None for run in collection.runs] == [False, True, True, False]


def test_folders_that_are_no_runs_are_passed_over_and_runs_that_only_began_are_named(results: Path) -> None:
    (results / "drawings").mkdir()
    (results / "drawings" / "notes.txt").touch()
    for sign in ("key.json", "provenance.json"):
        (results / f"began-with-{sign}").mkdir()
        (results / f"began-with-{sign}" / sign).write_text("{}")
    collection = collect(results)
    assert len(collection.runs) == 4
    assert collection.unfinished == ["began-with-key.json", "began-with-provenance.json", "waiting"]


def test_pretraining_runs_are_read_apart(results: Path) -> None:
    folder = results / "pretrain"
    next_byte = {"bits_per_byte": 1.9312, "bytes": 20_000, "windows": 79}
    masked = {"bits_per_masked_byte": 0.93, "masked_bytes": 3_000, "bytes": 20_000, "windows": 79}
    make_pretraining(folder / "text", {"validation": next_byte, "test": next_byte | {"bits_per_byte": 1.95}})
    stopped = {"steps": 120, "stopped": "max_time"}
    make_pretraining(folder / "hidden", {"validation": masked}, objective="masked", training=stopped)
    make_pretraining(folder / "waiting", {}, done=False)
    (folder / ".locks").mkdir()
    (folder / "empty").mkdir()
    collection = collect(results)
    assert [run.result.cell for run in collection.runs] == ["jpeg", "lstm", "majority", "pixels"]
    assert collection.unfinished == ["waiting", "pretrain/waiting"]
    frame = build_pretraining_frame(collection.pretraining).set_index("name")
    assert list(frame.index) == ["hidden", "text"]
    assert list(frame["validation_bits"]) == [0.93, 1.9312]
    assert list(frame["validation_bytes"]) == [3_000, 20_000]
    assert frame.loc["text", "test_bits"] == 1.95
    assert frame["test_bits"].isna().tolist() == [True, False]
    assert list(frame["steps"]) == [120, 600]
    assert frame.loc["hidden", "remarks"] == "Training was stopped by max_time after 120 of 600 steps."
    assert frame["remarks"].isna().tolist() == [False, True]


def test_a_broken_pretraining_run_is_refused_in_one_line(results: Path) -> None:
    folder = make_pretraining(results / "pretrain" / "text", {"test": {"bytes": 20_000}})
    with pytest.raises(UserError, match=r"metrics\.test\.bits_per_byte: Field required; delete the run") as error:
        collect(results)
    assert "\n" not in str(error.value)
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match=r"pretrain/text/result\.json in a run that is marked DONE"):
        collect(results)


def test_frame_has_blind_cells_first_then_those_that_see_each_followed_by_its_shuffled_twin(results: Path) -> None:
    frame = build_frame(collect(results).runs)
    assert list(zip(frame["row"], frame["title"], strict=True)) == [
        ("chance", "chance"),
        ("cell", "majority"),
        ("cell", "lstm"),
        ("cell", "jpeg"),
        ("shuffled", "jpeg, images shuffled"),
        ("cell", "pixels"),
        ("shuffled", "pixels, images shuffled"),
    ]
    assert list(frame["title"][frame["best_blind"]]) == ["lstm"]
    assert frame.dtypes.astype(str).to_dict() == FRAME_COLUMNS


def test_frame_holds_the_summarys_numbers(results: Path) -> None:
    frame = build_frame(collect(results).runs).set_index("title")
    summary = summarise(answers_of(260, accuracy=0.8, seed=3))
    for column in COLUMNS:
        entry = summary["overall"] if column == "overall" else summary["groups"][column]
        for number in ("n", "correct", "accuracy", "low", "high"):
            assert frame.loc["pixels", f"{column}_{number}"] == entry[number]
        assert frame.loc["chance", f"{column}_accuracy"] == entry["chance"]


def test_differences_are_paired_with_the_best_blind_cell(results: Path) -> None:
    frame = build_frame(collect(results).runs).set_index("title")
    blind = answers_of(260, accuracy=0.5, seed=2)
    for title, predictions in {
        "pixels": answers_of(260, accuracy=0.8, seed=3),
        "jpeg, images shuffled": answers_of(260, accuracy=0.45, seed=5),
        "majority": answers_of(260, accuracy=0.3, seed=1),
    }.items():
        expected = paired_difference(correct_of(predictions), correct_of(blind), images_of(blind))
        found = frame.loc[title, ["vs_blind", "vs_blind_low", "vs_blind_high", "vs_blind_p"]]
        assert list(found) == [expected.estimate, expected.low, expected.high, expected.p_value]
    assert frame.loc[["chance", "lstm"], "vs_blind"].isna().all()


def test_cells_tested_on_other_questions_stand_apart(results: Path) -> None:
    make_run(results / "half", accuracy=0.9, shuffled_accuracy=0.4, questions=130)
    make_run(results / "real", accuracy=0.9, dataset={"name": "clevr", "missing_images": 3})
    frame = build_frame(collect(results).runs)
    blocks = [(block["dataset"].iloc[0], len(block)) for _, block in frame.groupby("test_set")]
    assert sorted(blocks) == [("clevr", 2), ("mini", 3), ("mini", 7)]
    alone = frame[frame["title"] == "half"].iloc[0]
    assert (alone["questions"], alone["images"]) == (130, 13)
    assert frame["vs_blind"][frame["title"] == "half"].isna().all()
    assert set(frame["missing_images"][frame["dataset"] == "clevr"]) == {3}


def test_a_group_without_questions_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path / "few", accuracy=1.0, questions=3)  # the first three types: exist, count, equal_integer
    frame = build_frame(collect(tmp_path).runs)
    assert frame["query_accuracy"].isna().all()
    assert frame["count_n"].tolist() == [1, 1]


def test_nothing_finished_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        collect(tmp_path / "runs")
    with pytest.raises(UserError, match="got 0 unfinished"):
        collect(tmp_path)
    make_run(tmp_path / "waiting", accuracy=0.5, done=False)
    with pytest.raises(UserError, match="got 1 unfinished"):
        collect(tmp_path)


def test_broken_runs_are_refused_in_one_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "pixels", accuracy=0.8, shuffled_accuracy=0.4, questions=130)
    whole = json.loads((folder / "result.json").read_text())

    def complaint(**changes: object) -> str:
        (folder / "result.json").write_text(json.dumps(whole | changes))
        with pytest.raises(UserError) as error:
            collect(tmp_path)
        assert "\n" not in str(error.value)
        assert "run the cell again" in str(error.value)
        return str(error.value)

    assert "format: Input should be 2" in complaint(format=1)
    assert "model.blind: Field required" in complaint(model={"kind": "lstm", "parameters": 3})
    assert "metrics.overall: Field required" in complaint(metrics={"groups": {}})
    assert "right in" in complaint(metrics=summarise(answers_of(130, accuracy=0.2, seed=0)))
    write_predictions(folder / "predictions-shuffled.jsonl", answers_of(120, accuracy=0.4, seed=1))
    shorter = summarise(answers_of(120, accuracy=0.4, seed=1))
    assert "expected the same questions" in complaint(shuffled=shorter)
    (folder / "predictions.jsonl").unlink()
    with pytest.raises(UserError, match="no such file; evaluate"):
        collect(tmp_path)
    (folder / "result.json").unlink()
    with pytest.raises(UserError, match="marked DONE"):
        collect(tmp_path)


def test_two_runs_of_one_cell_are_refused(results: Path) -> None:
    make_run(results / "pixels-copy", accuracy=0.8, cell="pixels")
    with pytest.raises(UserError, match="several of pixels"):
        collect(results)


def test_a_run_is_no_folder_of_runs_and_one_on_text_answers_nothing(results: Path) -> None:
    with pytest.raises(UserError, match=r"expected a folder of runs, got .*, which is a run; name the folder it is in"):
        collect(next(path.parent for path in sorted(results.glob("*/result.json"))))
    text = make_pretraining(results / "text", {"test": {"bits_per_byte": 1.5, "bytes": 100}})
    with pytest.raises(UserError, match=r"expected the run of a cell, got .*text, a pretraining run, which answers no"):
        collect(text.parent)
