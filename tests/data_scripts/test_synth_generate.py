"""Whole data sets: layout and schema, the same bytes for any number of workers, whole or not at all."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_scripts.errors import DataError
from data_scripts.synth import generate as module
from data_scripts.synth.generate import generate
from data_scripts.synth.presets import PRESETS
from data_scripts.synth.programs import execute


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read(folder: Path, kind: str, split: str) -> list[dict[str, Any]]:
    content = json.loads((folder / kind / f"CLEVR_{split}_{kind}.json").read_text())
    assert set(content) == {"info", kind}
    assert content["info"]["split"] == split
    items: list[dict[str, Any]] = content[kind]
    return items


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "tiny"
    generate("tiny", out)
    return out


def test_layout_and_schema(tiny: Path) -> None:
    assert sorted(path.name for path in tiny.iterdir()) == ["images", "info.json", "questions", "scenes"]
    info = json.loads((tiny / "info.json").read_text())
    assert info["preset"]["name"] == "tiny"
    assert info["seed"] == 0
    assert set(info["versions"]) == {"python", "numpy", "pillow"}
    for split, number in PRESETS["tiny"].images.items():
        scenes, questions = read(tiny, "scenes", split), read(tiny, "questions", split)
        assert info["splits"][split] == {"images": number, "questions": len(questions)}
        assert [scene["image_index"] for scene in scenes] == list(range(number))
        names = [f"CLEVR_{split}_{i:06d}.png" for i in range(number)]
        assert [scene["image_filename"] for scene in scenes] == names
        assert sorted(path.name for path in (tiny / "images" / split).iterdir()) == names
        with Image.open(tiny / "images" / split / names[0]) as image:
            assert (image.size, image.mode) == ((32, 24), "RGB")
        assert [question["question_index"] for question in questions] == list(range(len(questions)))
        for question in questions:
            assert set(question) == {
                *("question_index", "image_index", "image_filename", "split", "question"),
                *("answer", "question_family_index", "program"),
            }
            assert question["split"] == split
            assert question["image_filename"] == names[question["image_index"]]
            assert all(set(node) == {"inputs", "function", "value_inputs"} for node in question["program"])
            assert execute(question["program"], scenes[question["image_index"]]) == question["answer"]


def test_splits_and_seeds_differ(tiny: Path, tmp_path: Path) -> None:
    train, val = read(tiny, "scenes", "train"), read(tiny, "scenes", "val")
    assert all(one["objects"] != other["objects"] for one in train for other in val)
    generate("tiny", tmp_path / "other", seed=1, images={"train": 2})
    assert read(tmp_path / "other", "scenes", "train")[0]["objects"] != train[0]["objects"]


@pytest.mark.usefixtures("small_blocks")
def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    images = {"train": 20, "val": 8}
    seen: list[tuple[int, int]] = []
    environment = dict(os.environ)
    one = generate("tiny", tmp_path / "one", images=images, progress=lambda done, total: seen.append((done, total)))
    three = generate("tiny", tmp_path / "three", images=images, workers=3)
    assert one == three
    assert files(tmp_path / "one") == files(tmp_path / "three")
    assert seen == [(7, 28), (14, 28), (20, 28), (27, 28), (28, 28)]
    assert dict(os.environ) == environment


def test_more_pictures_leave_the_first_ones_alone(tiny: Path, tmp_path: Path) -> None:
    generate("tiny", tmp_path / "few", images={"train": 3})
    assert read(tmp_path / "few", "scenes", "train") == read(tiny, "scenes", "train")[:3]
    questions = read(tmp_path / "few", "questions", "train")
    assert questions == read(tiny, "questions", "train")[: len(questions)]
    assert not (tmp_path / "few" / "images" / "val").exists()


def test_existing_data_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="new or empty folder") as error:
        generate("tiny", tmp_path / "full", images={"train": 1})
    assert "\n" not in str(error.value)
    assert files(tmp_path / "full") == {"mine.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    generate("tiny", tmp_path / "empty", images={"train": 1})
    assert (tmp_path / "empty" / "info.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": {}}, "at least one picture"),
        ({"images": {"train": 0}}, "at least one picture"),
        ({"workers": 0}, "at least one worker"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate("tiny", tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_leaves_nothing_and_a_killed_one_is_cleaned_up(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert next(tmp_path.iterdir()).name.startswith(".out.partial-")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate("tiny", tmp_path / "out", images={"train": 1}, progress=stop)
    assert list(tmp_path.iterdir()) == []
    # Process numbers end below 2**22 on Linux, so nobody has this one; the second belongs to a run that goes on.
    (tmp_path / ".out.partial-99999999" / "images").mkdir(parents=True)
    (tmp_path / f".out.partial-{os.getppid()}").mkdir()
    (tmp_path / ".out.partial-notes").mkdir()
    generate("tiny", tmp_path / "out", images={"train": 1})
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(["out", ".out.partial-notes", f".out.partial-{os.getppid()}"])


def test_a_preset_that_cannot_be_met_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCENE_TRIES", 3)
    hidden = replace(PRESETS["tiny"], min_visible_pixels=10_000)
    with pytest.raises(DataError, match="10000 pixels of every object, got none in 3 tries"):
        generate(hidden, tmp_path / "out", images={"train": 1})


def test_pictures_are_the_ones_of_the_scenes(tiny: Path) -> None:
    """The nearest object of each scene is not gray ground where its centre is said to be."""
    differences = []
    for scene in read(tiny, "scenes", "train"):
        with Image.open(tiny / "images" / "train" / scene["image_filename"]) as image:
            pixels = np.asarray(image).astype(int)
        nearest = min(scene["objects"], key=lambda thing: thing["pixel_coords"][2])
        if nearest["color"] == "gray":
            continue
        x, y, _ = nearest["pixel_coords"]
        red, green, blue = pixels[min(y, 23), min(x, 31)]
        differences.append(max(red, green, blue) - min(red, green, blue))
    assert len(differences) > 20
    assert np.median(differences) > 40
