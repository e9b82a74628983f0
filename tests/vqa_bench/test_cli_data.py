"""The commands around data, from nothing to bytes to look at: what they print, and what they refuse in one line."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from data_scripts.errors import DataError
from data_scripts.synth.generate import generate
from tests.vqa_bench.cells import PIXELS
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from tests.vqa_bench.test_cli import fails
from vqa_bench.cli import main


@pytest.fixture(scope="module")
def clevr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clevr_folder(tmp_path_factory.mktemp("data") / "clevr", {"train": 8, "val": 3})


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def test_an_archive_becomes_a_shard_to_look_at(tmp_path: Path, clevr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "packed").mkdir()
    shutil.copytree(clevr, tmp_path / "packed" / "CLEVR_v1.0")
    archive = Path(shutil.make_archive(str(tmp_path / "own"), "zip", tmp_path / "packed"))
    command = ["data", "clevr", "--out", tmp_path / "clevr", "--zip", archive]
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert digest in fails(capsys, *command), "an archive that is not the official one is named by its hash"
    run(*command, "--sha256", digest, "--splits", "val")
    assert "val: with images" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "clevr" / "images").iterdir()) == ["val"]
    run(*command, "--sha256", digest, "--splits", "val")
    assert "everything was there already" in capsys.readouterr().out

    shard = tmp_path / "shard"
    run("serialize", tmp_path / "clevr", "--encoding", PIXELS, "--out", shard, "--workers", 1)
    run("inspect", shard, "--verify")
    text = capsys.readouterr().out
    assert PIXELS in text
    assert "every file hashed again" in text
    run("inspect", shard, "--sample", 1, "--save", tmp_path / "sample.png")
    text = capsys.readouterr().out
    question = json.loads((clevr / "questions" / "CLEVR_val_questions.json").read_text())["questions"][1]
    assert question["question"] in text
    assert question["answer"] in text
    with Image.open(tmp_path / "sample.png") as picture:
        assert f"{picture.width}x{picture.height}" in PIXELS
    assert "--sample" in fails(capsys, "inspect", shard, "--save", tmp_path / "x.png")
    assert "expected a shard" in fails(capsys, "inspect", clevr)
    assert "0 to 14" in fails(capsys, "inspect", shard, "--sample", 15)


def test_books_are_generated_packed_and_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books, packed = tmp_path / "books", tmp_path / "packed"
    run("data", "synth-text", "--size", "200K", "--out", books, "--workers", 1)
    said = capsys.readouterr().out
    run("data", "pg19", "--folder", books, "--out", packed)
    assert capsys.readouterr().out == said, "the same books and bytes"
    run("data", "synth-text", "--size", "0.2M", "--out", tmp_path / "direct", "--packed", "--workers", 1)
    for split in ("train", "validation", "test"):
        name = f"{split}.bytes"
        assert (packed / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()
    run("inspect", packed, "--verify")
    assert "train" in capsys.readouterr().out
    run("inspect", packed, "--sample", 0)
    assert next(iter(sorted((books / "train").iterdir()))).read_text()[:16] in capsys.readouterr().out
    assert "200M" in fails(capsys, "data", "synth-text", "--size", "many", "--out", tmp_path / "x")
    assert "got" in fails(capsys, "data", "pg19", "--folder", tmp_path / "none", "--out", tmp_path / "x")
    assert "not allowed with" in fails(
        capsys, "data", "pg19", "--folder", books, "--dataset", "x", "--out", tmp_path / "x"
    )


def test_given_scenes_are_drawn_and_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, again = tmp_path / "made", tmp_path / "again"
    run("data", "synth", "--preset", "tiny", "--out", made, "--images", "val=3", "--workers", 1)
    scenes = made / "scenes" / "CLEVR_val_scenes.json"
    run("data", "synth", "--preset", "tiny", "--out", again, "--scenes", scenes, "--no-images", "--workers", 1)
    assert "val: 3 images" in capsys.readouterr().out
    assert not list((again / "images").rglob("*.png"))
    name = Path("scenes", "CLEVR_val_scenes.json")
    first, second = (json.loads((folder / name).read_text())["scenes"] for folder in (made, again))
    assert [scene["objects"] for scene in first] == [scene["objects"] for scene in second]


def test_the_doctor_speaks_to_people_and_to_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("doctor", "--json", "--data", tmp_path)
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    assert report["disks"]["data"]["free"] > 0
    assert any(spec.startswith("jpeg:") for spec in report["encodings"])


@pytest.mark.parametrize("command", ["synth", "serialize"])
def test_ctrl_c_ends_the_command_and_its_workers_in_one_line(tmp_path: Path, clevr: Path, command: str) -> None:
    arguments = {
        "synth": ["data", "synth", "--preset", "clevr", "--images", "train=2000"],
        "serialize": ["serialize", str(clevr), "--encoding", "webp:4000x4000,q=lossless"],
    }[command]
    line = [sys.executable, "-m", "vqa_bench", *arguments, "--workers", "2", "--out", str(tmp_path / "out")]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        while not any(tmp_path.glob(".out.partial*")):
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)  # its workers start
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
        message = process.stderr.read()  # ends when nobody holds it any more, the workers included
    assert process.returncode == 130
    assert [line for line in message.splitlines() if "left" not in line] == ["interrupted; run the same command again"]
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_killed_is_one_line(tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    with pytest.raises(DataError, match="ended from outside"):
        generate("tiny", tmp_path / "out", images={"train": 3000}, workers=2, progress=kill)
    assert list(tmp_path.iterdir()) == []


def test_names_and_numbers_that_lead_astray(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synth = ["data", "synth", "--preset", "tiny", "--out", tmp_path / "out", "--workers", 1, "--images"]
    for split, said in (("../../evil=2", "plain name"), ("=2", "plain name"), ("val=1000000", "at most 999,999")):
        assert said in fails(capsys, *synth, split)
    assert "twice" in fails(capsys, *synth, "val=2", "val=3")
    assert "number of 1 to" in fails(capsys, *synth[:-3], "--workers", "999999")
    assert list(tmp_path.iterdir()) == []
