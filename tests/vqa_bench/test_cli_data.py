"""The commands around data, from nothing to bytes to look at: what they print, and what they refuse in one line."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

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
