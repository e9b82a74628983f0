"""The accuracy part: its cells fit, it trains and tests them at toy size, keeps them, and says differences rightly."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu import accuracy, accuracy_fill, accuracy_train, pictures
from benchmarks.gpu.accuracy_cells import (
    CNN_LSTM,
    DRY,
    FULL,
    MBLM,
    PLANS,
    TINY,
    Entry,
    cell_of,
    data_of,
    entries,
    plan_for,
)
from benchmarks.gpu.accuracy_report import Findings, difference, remarks_of, rows_of, write_table
from benchmarks.gpu.accuracy_train import FAULT, Place, measure, packed, times_of, training_of, unpacked
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.device import Device
from data_scripts.synth.generate import generate
from vqa_bench.config import CellConfig
from vqa_bench.data.clevr import ClevrFolder
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.scan import parse_block
from vqa_bench.data.sequences import Sequencer
from vqa_bench.errors import UserError
from vqa_bench.runs import read_json
from vqa_bench.scoring.predictions import read_predictions

CPU = Device(torch.device("cpu"), tiny=True)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the part's data and runs go instead of the folder for temporary files."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setattr(pictures, "kept_folder", lambda name: folder / name)
    return folder


def make_bench(out: Path, *, tiny: bool = True, seconds: float | None = None) -> Bench:
    return Bench("accuracy", CPU, out / "accuracy.json", tiny, seconds, {"commit": "c"})


def cell(entry: Entry, **settings: Any) -> CellConfig:
    return cell_of(entry, **({"sizes": FULL, "rate": 1e-3, "steps": 100, "precision": "no", "workers": 0} | settings))


# -- the cells --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [FULL, TINY])
def test_entries_name_each_other(sizes: Any) -> None:
    listed = entries(sizes)
    known = {entry.name: entry for entry in listed}
    assert len(known) == len(listed)
    assert [entry.name for entry in listed[:2]] == [MBLM, CNN_LSTM]
    for entry in listed:
        assert known[entry.family].family == entry.family
        assert entry.versus is None or entry.versus in known
        assert cell(entry, sizes=sizes).name == f"{entry.name}-0.001"
    for entry in listed:
        if entry.dry:  # a dry run has what its cells are compared with
            assert known[entry.family].dry
            assert entry.versus is None or known[entry.versus].dry


def test_full_models_hold_any_picture_and_question() -> None:
    for entry in entries(FULL):
        config = cell(entry)
        if config.model.kind == "mblm":
            assert config.encoding is not None
            exact = parse_spec(config.encoding).max_bytes()
            lens = config.model.seq_lens
            # It raises where a picture of so many bytes and the longest question do not fit.
            sequencer = Sequencer(config.sequence, lens[-1], math.prod(lens), 7_680 if exact is None else exact)
            assert sequencer.image_length % FULL.patch == 0
            with pytest.raises(UserError, match="expected a sequence of at most"):
                Sequencer(config.sequence, lens[-1], math.prod(lens), math.prod(lens))


def test_a_patch_is_a_tile() -> None:
    tile = parse_block(FULL.tile)
    assert tile is not None
    assert FULL.patch == 3 * tile[0] * tile[1]
    assert [int(side) % length for side, length in zip(FULL.side.split("x"), tile, strict=True)] == [0, 0]


def test_learning_rates_and_time_are_the_same_for_every_family() -> None:
    assert [plan_for(seconds) for seconds in (180, 1500, None)] == [PLANS[2][1], PLANS[1][1], PLANS[0][1]]
    assert plan_for(60).rates == PLANS[0][1].rates[:1]


def test_a_share_leaves_the_other_training_pictures_to_dev() -> None:
    assert data_of(Path("x"), 1).dev_fraction == pytest.approx(0.05)
    assert data_of(Path("x"), 0.5).dev_fraction == pytest.approx(1 - 0.95 / 2)


# -- times and differences --------------------------------------------------------------------------------------------


def test_times_leave_waiting_out(tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "step": 10, "samples_per_second": 50.0, "data_wait": 0.5, "epoch": 0.5},
        {"kind": "dev", "step": 10, "accuracy": 0.5},
        {"kind": "train", "step": 14, "samples_per_second": 10.0, "data_wait": 0.25, "epoch": 0.7},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert times_of(tmp_path, 20.0) == [(10, 10, 2.0, 2.0), (14, 4, 6.0, 2.0)]
    expected = {"steps": 14, "questions": 280, "epochs": 0.7, "seconds": 8.0, "waited": 4.0}
    assert training_of(tmp_path, 20.0) == expected


def test_packed_answers_come_back() -> None:
    correct = np.random.default_rng(0).random(43) < 0.5
    assert (unpacked(packed(correct), 43) == correct).all()


def found(correct: np.ndarray, images: list[int], **more: Any) -> dict[str, Any]:
    share = float(correct.mean())
    return {
        "correct": packed(correct),
        "images": images,
        "accuracy": [share - 0.1, share, share + 0.1],
        "groups": {"exist": [0.1, 0.2, 0.3]},
        "training": {"steps": 10, "questions": 100, "epochs": 1.0, "seconds": 30.0, "waited": 1.0},
        "vision_gain": None,
        "parameters": 7,
        "train_flops": 1e9,
        "kernels": None,
        "used_step": 10,
        "dev": 0.5,
    } | more


def test_a_difference_is_that_of_the_shares_of_right_answers() -> None:
    random = np.random.default_rng(1)
    ours, other = random.random(60) < 0.7, random.random(60) < 0.4
    compared = difference(found(ours, [3] * 20), found(other, [3] * 20))
    assert compared.estimate == pytest.approx(ours.mean() - other.mean())
    assert compared.low < compared.estimate < compared.high


def make_findings(results: Mapping[str, Any], sizes: Any = FULL, *, plan: Any = PLANS[2][1]) -> Findings:
    return Findings(entries(sizes), sizes, plan, "source", dict(results))


def test_rows_hold_the_first_against_cnn_lstm_and_its_variants_against_it() -> None:
    ours, other = np.arange(40) % 4 > 0, np.arange(40) % 2 > 0
    results = {MBLM: found(ours, [4] * 10), CNN_LSTM: found(other, [4] * 10), "mblm-raster": found(other, [4] * 10)}
    (first, *_) = rows_of(make_findings(results))
    assert (first.value, first.target) == (25.0, None)  # with one learning rate it is no match
    first, baseline, raster = rows_of(make_findings(results, plan=PLANS[0][1]))
    assert (first.value, first.target and first.target.value, first.reached) == (25.0, 0.0, True)
    assert (baseline.value, baseline.against, baseline.target) == (50.0, None, None)
    assert (raster.value, raster.target, raster.against) == (-25.0, None, first.measured)
    assert str(first.measured) == "75 % [65, 85]"
    unequal = rows_of(make_findings(results, replace(FULL, most_steps=1), plan=PLANS[0][1]))
    assert [row.target for row in unequal] == [None] * 3
    alone = rows_of(make_findings({"mblm-raster": results["mblm-raster"]}))
    assert [(row.value, row.unit) for row in alone] == [(50.0, " %")]


def test_a_training_that_was_too_short_is_named() -> None:
    short = found(np.ones(4, bool), [4], training={**found(np.ones(4, bool), [4])["training"], "seconds": 27.0})
    told = "\n".join(remarks_of(make_findings({MBLM: short, CNN_LSTM: found(np.ones(4, bool), [4])})))
    assert f"furthest off by -10.0%, off by more than 5%: {MBLM}." in told


def test_the_best_rate_by_dev_is_taken() -> None:
    findings = make_findings({})
    assert findings.rate(MBLM) == PLANS[2][1].rates[0]
    findings.sweeps[MBLM] = {1e-3: {"dev": 0.4}, 3e-4: {"dev": 0.5}}
    assert findings.rate(MBLM) == 3e-4


# -- the part ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the dry run from the command line has it all, see test_frame.py
def test_a_dry_run_trains_tests_and_keeps(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = accuracy.run(make_bench(tmp_path))
    assert report.failures == []
    dry = [entry for entry in entries(TINY) if entry.dry]
    assert [row.what for row in report.rows] == [entry.title for entry in dry]
    items = json.loads((tmp_path / "accuracy.json").read_text(encoding="utf-8"))["items"]
    assert sorted(items) == sorted(f"{entry.name}-{DRY.rates[0]:g}" for entry in dry)
    (runs,) = kept.glob("accuracy-*/share-1/runs")
    for name, item in items.items():
        result, predictions = item["result"], read_predictions(runs / name / "predictions.jsonl")
        correct = [one.prediction == one.answer for one in predictions]
        assert unpacked(result["correct"], len(correct)).tolist() == correct
        assert sum(result["images"]) == len(correct) == 40
        assert result["accuracy"][1] == np.mean(correct)
        trained = read_json(runs / name / "trained.json")
        assert result["training"]["steps"] == trained["steps"] == TINY.most_steps
        assert 0 < result["training"]["seconds"] <= trained["seconds"]
    said = write_table(runs, tmp_path / "tables")
    assert "accuracy-cells.md, accuracy-cells.csv" in said[0]
    assert "CNN+LSTM" in (tmp_path / "tables" / "accuracy-cells.md").read_text(encoding="utf-8")
    assert (tmp_path / "tables" / "accuracy-cells.csv").read_text(encoding="utf-8").startswith("test_set,")

    monkeypatch.setattr(accuracy_fill, "measure", lambda *_, **__: pytest.fail("it was measured before"))
    assert accuracy.run(make_bench(tmp_path)).rows == report.rows


def test_what_cannot_be_trained_is_a_fault(kept: Path, tmp_path: Path) -> None:
    folder = pictures.draw("tiny", {"train": 4, "val": 2}, workers=1)
    entry = next(entry for entry in entries(TINY) if entry.name == CNN_LSTM)

    def make(*, steps: int, judged: bool = True) -> CellConfig:
        sizes = replace(TINY, batch=50)
        return cell(entry, sizes=sizes, steps=steps, judged=judged)

    result = measure(make, Place(data_of(folder, 1.0), tmp_path / "work", 1), seconds=0.1, probe=2)
    assert result[FAULT].startswith("expected at least 50 training images for one batch, got 3")  # one is for dev


def test_steps_fill_the_time(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    entry = entries(TINY)[0]

    def make(*, steps: int, judged: bool = True) -> CellConfig:
        asked.append((steps, judged))
        return cell(entry, sizes=TINY, steps=steps, judged=judged)

    monkeypatch.setattr(accuracy_train, "time_of_step", lambda *_: 0.25)
    monkeypatch.setattr(accuracy_train, "run_matrix", lambda *_: ["stopped here"])
    folder = pictures.draw("tiny", {"train": 4, "val": 2}, workers=1)
    place = Place(data_of(folder, 1.0), tmp_path / "work", 1)
    assert measure(make, place, seconds=30, probe=8) == {FAULT: "stopped here"}
    assert measure(make, place, seconds=30, probe=8, most_steps=5) == {FAULT: "stopped here"}
    assert asked == [(8, False), (120, True), (8, False), (5, True)]


def test_missing_packages_are_a_failure_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "find_spec", lambda module: None if module in ("PIL", "datasets") else object())
    (failure,) = accuracy.run(make_bench(tmp_path)).failures
    assert f"got {sys.executable} without pillow, datasets; install" in failure


def test_data_that_cannot_be_used_are_a_failure_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(pictures.VARIABLE, str(tmp_path))
    (failure,) = accuracy.run(make_bench(tmp_path, tiny=False)).failures
    assert failure.startswith("expected VQA_GPU_DATA to name a folder")


# -- the pictures -----------------------------------------------------------------------------------------------------


def test_packed_pictures_and_questions_are_those_that_were_packed(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "drawn", tmp_path / "pack"
    generate("tiny", folder, images={"train": 4, "val": 2})
    for _ in range(2):
        pictures.main(["--folder", str(folder), "--out", str(out), "--workers", "1"])
        again = (out / pictures.PACK).read_bytes()
    monkeypatch.setenv(pictures.VARIABLE, str(out))
    found_folder = accuracy_fill.find_pictures(make_bench(tmp_path, tiny=False), FULL)
    assert found_folder == pictures.find(str(out / pictures.PACK))
    assert again == (out / pictures.PACK).read_bytes()
    spec = parse_spec("bmp:native")
    for split in ("train", "val"):
        pairs = zip(*(ClevrFolder(one).questions(split) for one in (folder, found_folder)), strict=True)
        for ours, unpacked_one in pairs:
            same = ("question_index", "image_index", "question", "answer", "question_type", "family_index")
            assert [getattr(ours, name) for name in same] == [getattr(unpacked_one, name) for name in same]
            files = (folder / "images" / split / ours.image_filename,)
            files += (found_folder / "images" / split / unpacked_one.image_filename,)
            one, other = (spec.encode(Image.open(file)) for file in files)
            assert one == other


def test_data_that_is_none_is_refused(kept: Path, tmp_path: Path) -> None:
    with pytest.raises(pictures.PicturesError, match="expected VQA_GPU_DATA to name a folder with questions/"):
        pictures.find(str(tmp_path))
    (tmp_path / pictures.PACK).write_bytes(b"no archive")
    with pytest.raises(pictures.PicturesError, match=r"expected packed pictures, got .*; pack them again"):
        pictures.find(str(tmp_path))
    assert not list(kept.glob("*"))


def test_so_many_are_drawn_as_there_is_time_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(pictures.VARIABLE, raising=False)
    drawn: list[Any] = []
    monkeypatch.setattr(pictures, "draw", lambda preset, images, workers: drawn.append((preset, images, workers)))
    monkeypatch.setattr(pictures, "cores", lambda: 16)
    for seconds in (None, 100.0, 1.0):
        accuracy_fill.find_pictures(make_bench(tmp_path, tiny=False, seconds=seconds), FULL)
    assert [images["train"] for _, images, _ in drawn] == [20_000, 10_000, 1_000]
    assert {(preset, images["val"], workers) for preset, images, workers in drawn} == {("clevr-64", 1_000, 16)}


@pytest.mark.gpu
def test_a_cell_trains_on_the_gpu(kept: Path, tmp_path: Path) -> None:
    folder = pictures.draw("tiny", {"train": 12, "val": 4}, workers=1)
    entry = entries(TINY)[0]

    def make(*, steps: int, judged: bool = True) -> CellConfig:
        return cell(entry, sizes=TINY, steps=steps, judged=judged, precision="bf16", workers=2)

    with accuracy_train.harness_on(Device(torch.device("cuda"), tiny=True)):
        result = measure(make, Place(data_of(folder, 1.0), tmp_path / "work", 1), seconds=1, probe=4)
    assert FAULT not in result
    assert result["training"]["seconds"] > 0
