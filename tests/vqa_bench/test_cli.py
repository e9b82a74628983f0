"""The command line from data to table, what it skips, and one line with exit code 2 for every user's mistake."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.vqa_bench.cells import BYTE_MODEL, PIXELS, TRAIN
from tests.vqa_bench.data.clevr_folder import make_clevr_folder, questions_path
from vqa_bench.cli import main


@pytest.fixture(scope="module")
def clevr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clevr_folder(tmp_path_factory.mktemp("cli") / "clevr", {"train": 16, "val": 6})


def write_config(folder: Path, clevr: Path, **changes: object) -> Path:
    cells = [
        {"name": "majority", "title": "Majority", "model": {"kind": "majority"}},
        {"name": "blind", "title": "LSTM", "model": {"kind": "lstm"}, "train": TRAIN},
        {"name": "cnn", "title": "CNN+LSTM", "encoding": PIXELS, "model": {"kind": "cnn_lstm"}, "train": TRAIN},
        {"name": "bytes", "title": "MBLM", "encoding": PIXELS, "model": BYTE_MODEL, "train": TRAIN},
    ]
    config = {"name": "test", "data": {"folder": str(clevr), "dev_fraction": 0.1}, "cells": cells} | changes
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    """Run a command that must fail; its one line on stderr."""
    capsys.readouterr()
    try:
        got = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        got = int(stop.code or 0)
    error = capsys.readouterr().err
    assert got == code, error
    lines = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in error
    return lines[0]


def test_a_matrix_ends_in_a_table_and_is_not_done_twice(
    tmp_path: Path, clevr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, clevr)
    folders = ["--out", str(tmp_path / "runs"), "--data", str(tmp_path / "data")]
    command = ["matrix", str(config), *folders, "--workers", "1"]
    assert main(command) == 0
    first = capsys.readouterr().out
    for text in ("Majority", "CNN+LSTM", "MBLM", "images shuffled", "chance"):
        assert text in first
    table = (tmp_path / "runs" / "table.csv").read_bytes()
    assert set(pd.read_csv(tmp_path / "runs" / "table.csv")["cell"].dropna()) == {"majority", "blind", "cnn", "bytes"}
    with Image.open(tmp_path / "runs" / "figures/accuracy.png") as picture:
        assert picture.width > 500
    trained = (tmp_path / "runs" / "bytes" / "model.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert "finished before, kept" in capsys.readouterr().err
    assert (tmp_path / "runs" / "bytes" / "model.safetensors").stat().st_mtime_ns == trained
    assert (tmp_path / "runs" / "table.csv").read_bytes() == table

    other = {"name": "majority", "title": "Other", "model": {"kind": "majority", "per_type": False}}
    changed = write_config(tmp_path, clevr, cells=[other])
    message = fails(capsys, "matrix", changed, *command[2:])
    assert "expected the run in" in message
    assert "choose another --out" in message

    shard = next((tmp_path / "data" / "shards").iterdir())
    out = tmp_path / "again"
    assert main(["evaluate", str(tmp_path / "runs" / "bytes"), "--shard", str(shard), "--out", str(out)]) == 0
    assert (out / "bytes" / "predictions.jsonl").read_bytes() == (
        tmp_path / "runs" / "bytes" / "predictions.jsonl"
    ).read_bytes()
    assert "exists" in fails(capsys, "evaluate", tmp_path / "runs" / "bytes", "--shard", shard, "--out", out)

    weights = load_file(tmp_path / "runs" / "bytes" / "model.safetensors")
    weights["mblm.to_logits.bias"] = weights["mblm.to_logits.bias"][:10].clone()
    save_file(weights, tmp_path / "runs" / "bytes" / "model.safetensors")
    message = fails(capsys, "evaluate", tmp_path / "runs" / "bytes", "--shard", shard, "--out", tmp_path / "third")
    assert "mblm.to_logits.bias: expected (264,), got (10,)" in message


def test_generated_data_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "synth"
    arguments = ["data", "synth", "--preset", "tiny", "--out", str(out), "--images", "val=2", "--workers", "1"]
    assert main(arguments) == 0
    assert len(json.loads((out / "questions" / "CLEVR_val_questions.json").read_text())["questions"]) > 10
    assert "expected a new or empty folder" in fails(capsys, *arguments)
    assert "no_such" in fails(capsys, "data", "synth", "--preset", "no_such", "--out", tmp_path / "x")
    shard = tmp_path / "shard"
    assert main(["serialize", str(out), "--encoding", "pixels:16x12", "--out", str(shard), "--workers", "1"]) == 0
    assert "test: 2 images" in capsys.readouterr().out


def test_missing_images_are_counted_or_left_out_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], real_clevr: Path | None
) -> None:
    """On the real release's files where they are at hand, else on a made folder with images taken away."""
    source, kept, missing = real_clevr, 160, 1840
    if source is None:
        source, kept, missing = make_clevr_folder(tmp_path / "made", {"val": 8}), 15, 25
        for path in sorted((source / "images" / "val").iterdir())[3:]:
            path.unlink()
    command = ["serialize", source, "--encoding", PIXELS, "--workers", "1"]
    assert f"{missing:,}" in fails(capsys, *command, "--out", tmp_path / "strict").replace(str(missing), f"{missing:,}")
    assert not (tmp_path / "strict").exists()
    assert main([*map(str, command), "--out", str(tmp_path / "shard"), "--allow-missing"]) == 0
    assert f"{kept} questions ({missing:,} left out" in capsys.readouterr().out

    config = write_config(tmp_path, make_clevr_folder(tmp_path / "clevr", {"train": 16, "val": 3}))
    run = ["--out", str(tmp_path / "runs"), "--data", str(tmp_path / "data"), "--workers", "1"]
    assert main(["train", str(config), "bytes", *run]) == 0
    out = tmp_path / "answers"
    arguments = ["evaluate", tmp_path / "runs" / "bytes", "--shard", tmp_path / "shard", "--out", out]
    assert main([str(argument) for argument in arguments]) == 0
    result = json.loads((out / "bytes" / "result.json").read_text())
    assert result["dataset"]["questions"] == kept == result["metrics"]["overall"]["n"]
    assert result["dataset"]["missing_questions"] == missing
    assert (out / "table.md").is_file()


def test_every_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, clevr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serialize = ["serialize", clevr, "--out", tmp_path / "x", "--workers", "1", "--encoding"]
    assert "gif" in fails(capsys, *serialize, "gif:16x12")
    assert "bits=1..8" in fails(capsys, *serialize, "pixels:16x12,quality=3")
    assert "CLEVR" in fails(capsys, "serialize", tmp_path, "--encoding", PIXELS, "--out", tmp_path / "x")
    assert "COMMAND" in fails(capsys)
    assert "--no-such" in fails(capsys, "report", clevr, "--no-such")
    assert "finished run" in fails(capsys, "report", tmp_path)
    assert "expected a shard" in fails(capsys, "evaluate", tmp_path, "--shard", clevr, "--out", tmp_path / "y")

    run = ["--out", tmp_path / "runs", "--data", tmp_path / "data", "--workers", "1"]
    assert "got" in fails(capsys, "matrix", tmp_path / "none.yaml", *run)
    assert "colour: unknown key" in fails(capsys, "matrix", write_config(tmp_path, clevr, colour=1), *run)
    cell = {"name": "a", "title": "A", "encoding": PIXELS, "model": BYTE_MODEL | {"heads": 3}, "train": TRAIN}
    assert "heads: unknown key" in fails(capsys, "matrix", write_config(tmp_path, clevr, cells=[cell]), *run)
    small = cell | {"model": BYTE_MODEL | {"seq_lens": [20, 12]}}
    assert "the model's context" in fails(capsys, "matrix", write_config(tmp_path, clevr, cells=[small]), *run)
    assert "one of the cells" in fails(capsys, "train", write_config(tmp_path, clevr), "nothing", *run)
    assert not (tmp_path / "runs").exists()


def test_broken_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = make_clevr_folder(tmp_path / "broken", {"val": 3})
    picture = sorted((broken / "images" / "val").iterdir())[1]
    picture.write_bytes(picture.read_bytes()[:200])
    arguments = ["serialize", broken, "--encoding", PIXELS, "--out", tmp_path / "x", "--workers", "1"]
    assert picture.name in fails(capsys, *arguments)
    assert not (tmp_path / "x").exists()

    strange = make_clevr_folder(tmp_path / "strange", {"val": 1})
    path = questions_path(strange, "val")
    path.write_text(path.read_text().replace('"query_color"', '"query_smell"'))
    arguments[1] = strange
    assert "query_smell" in fails(capsys, *arguments)
    assert np.all([not p.name.endswith(".partial") for p in tmp_path.iterdir()])


@pytest.mark.slow
def test_cells_trained_at_the_same_time_give_the_same_table(
    tmp_path: Path, clevr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, clevr)
    folders = ["--data", str(tmp_path / "data"), "--workers", "1"]
    for jobs in ("1", "2"):
        assert main(["matrix", str(config), "--out", str(tmp_path / jobs), *folders, "--jobs", jobs]) == 0
    assert (tmp_path / "1" / "table.csv").read_bytes() == (tmp_path / "2" / "table.csv").read_bytes()
