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
from data_scripts.synth import given
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
        ({"images": {"val": 1}, "scenes": Path("scenes.json")}, "images or scenes, got both"),
        ({"scenes": Path("no_such.json")}, "a JSON file of scenes at no_such.json"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        generate("tiny", tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_leaves_nothing_and_a_killed_one_is_cleaned_up(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert {path.name for path in tmp_path.iterdir()} == {".out.partial", ".out.lock"}
        with pytest.raises(DataError, match="held by another process"):
            generate("tiny", tmp_path / "out", images={"train": 1})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate("tiny", tmp_path / "out", images={"train": 1}, progress=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.partial" / "images").mkdir(parents=True)
    (tmp_path / ".out.lock").touch()
    generate("tiny", tmp_path / "out", images={"train": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_preset_that_cannot_be_met_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SCENE_TRIES", 3)
    hidden = replace(PRESETS["tiny"], min_visible_pixels=10_000)
    with pytest.raises(DataError, match="10000 pixels of every object, got none in 3 tries"):
        generate(hidden, tmp_path / "out", images={"train": 1})


def test_questions_do_not_depend_on_pictures(tiny: Path, tmp_path: Path) -> None:
    generate("tiny", tmp_path / "texts", pictures=False)
    left = {name: content for name, content in files(tiny).items() if not name.startswith("images")}
    assert files(tmp_path / "texts") == left


@pytest.mark.usefixtures("small_blocks")
def test_given_scenes_are_drawn_and_asked_about(tiny: Path, tmp_path: Path) -> None:
    """The scenes of one data set given to another: same scenes, nearly the same pictures, questions of their own."""
    file = tiny / "scenes" / "CLEVR_val_scenes.json"
    info = generate("tiny", tmp_path / "again", scenes=file, seed=5)
    assert set(info["splits"]) == {"val"}
    assert info["scenes"]["file"] == file.name
    assert read(tmp_path / "again", "scenes", "val") == read(tiny, "scenes", "val")
    scenes, questions = read(tiny, "scenes", "val"), read(tmp_path / "again", "questions", "val")
    assert len(questions) > 9.5 * len(scenes)
    for question in questions:
        assert execute(question["program"], scenes[question["image_index"]]) == question["answer"]
    for scene in scenes:
        name = Path("images") / "val" / scene["image_filename"]
        with Image.open(tiny / name) as one, Image.open(tmp_path / "again" / name) as other:
            assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean() < 3


@pytest.mark.usefixtures("small_blocks")
def test_workers_do_not_change_what_is_made_of_given_scenes(tiny: Path, tmp_path: Path) -> None:
    file = tiny / "scenes" / "CLEVR_val_scenes.json"
    for name, workers in (("one", 1), ("two", 2)):
        generate("tiny", tmp_path / name, scenes=file, pictures=False, workers=workers)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_bare_scenes_are_completed(tiny: Path, tmp_path: Path) -> None:
    """A list of scenes without what can be computed gives the same data set; names and indices are the file's."""
    scenes = read(tiny, "scenes", "val")[:4]
    bare = [
        {
            "split": "mine",
            "image_index": 10 * i,
            "image_filename": f"mine_{i}.png",
            "objects": [{k: v for k, v in thing.items() if k != "pixel_coords"} for thing in scene["objects"]],
        }
        for i, scene in enumerate(scenes)
    ]
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    generate("tiny", tmp_path / "out", scenes=tmp_path / "bare.json")
    made = read(tmp_path / "out", "scenes", "mine")
    for key in ("objects", "relationships", "directions"):
        assert [scene[key] for scene in made] == [scene[key] for scene in scenes]
    assert {question["image_index"] for question in read(tmp_path / "out", "questions", "mine")} == {0, 10, 20, 30}
    for i, scene in enumerate(scenes):  # without jitter the base camera is the camera
        drawn = tmp_path / "out" / "images" / "mine" / f"mine_{i}.png"
        assert drawn.read_bytes() == (tiny / "images" / "val" / scene["image_filename"]).read_bytes()


@pytest.mark.parametrize("number", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_real_scenes_can_be_asked_about(real_clevr: Path | None, tmp_path: Path, number: int) -> None:
    """Real scenes get ten questions each; where they are not at hand, scenes of our own in their schema."""
    if real_clevr is None:
        generate("clevr", tmp_path / "made", images={"val": 20}, pictures=False)
        listed = read(tmp_path / "made", "scenes", "val")
    else:
        listed = json.loads((real_clevr / "scenes" / "CLEVR_val_scenes.json").read_text())["scenes"][:number]
    (tmp_path / "scenes.json").write_text(json.dumps(listed))
    info = generate("clevr", tmp_path / "out", scenes=tmp_path / "scenes.json", pictures=False)
    assert info["splits"] == {"val": {"images": len(listed), "questions": 10 * len(listed)}}
    scenes = {scene["image_index"]: scene for scene in listed}
    for question in read(tmp_path / "out", "questions", "val"):
        assert execute(question["program"], scenes[question["image_index"]]) == question["answer"]


def test_a_given_scene_is_drawn_by_its_own_camera(real_clevr: Path | None, tmp_path: Path) -> None:
    if real_clevr is None:
        generate("clevr", tmp_path / "made", images={"val": 1}, pictures=False)
        scene = read(tmp_path / "made", "scenes", "val")[0]
    else:
        scene = json.loads((real_clevr / "scenes" / "CLEVR_val_scenes.json").read_text())["scenes"][0]
    camera = given.camera_of(PRESETS["clevr"], scene)
    seen = camera.project(np.array([thing["3d_coords"] for thing in scene["objects"]]).T).T
    for thing, place in zip(scene["objects"], seen, strict=True):
        assert place == pytest.approx(thing["pixel_coords"], abs=0.8)
    with pytest.raises(DataError, match=scene["image_filename"]):  # its places are not those of a smaller picture
        given.camera_of(PRESETS["small"], scene)


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
