"""Files of scenes: what is read, and that everything out of its table is refused by scene and field."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_scripts.errors import DataError
from data_scripts.synth.given import read_scenes
from data_scripts.synth.presets import PRESETS
from data_scripts.synth.scenes import sample_camera, sample_scene


def scene(index: int = 0, split: str = "val") -> dict[str, Any]:
    preset, rng = PRESETS["mini"], random.Random(index)
    return sample_scene(preset, sample_camera(preset, rng), rng, split=split, image_index=index)


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_splits_and_order_are_the_files(tmp_path: Path) -> None:
    scenes = [scene(3), scene(1, "train"), scene(2)]
    expected = {"val": [scenes[0], scenes[2]], "train": [scenes[1]]}
    assert read_scenes(written(tmp_path / "list.json", scenes)) == expected
    release = {"info": {"split": "test"}, "scenes": [{k: v for k, v in scene(4).items() if k != "split"}]}
    (read,) = read_scenes(written(tmp_path / "release.json", release))["test"]
    assert read["image_index"] == 4


@pytest.mark.parametrize("content", ["", "[", "{}", "[]", "7", '{"scenes": 3}', "[3]", '["a"]', "nothing\x00"])
def test_files_of_something_else(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="scene") as error:
        read_scenes(written(tmp_path / "file.json", content))
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json"):
        read_scenes(tmp_path / "none.json")


def change(path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def apply(scene: dict[str, Any]) -> None:
        target: Any = scene
        *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
        for key in way:
            target = target[key]
        if value is None and isinstance(target, dict):
            del target[last]
        else:
            target[last] = value

    return apply


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("split", None, "split of scene 1"),
        ("split", "../val", "split of scene 1"),
        ("image_filename", None, "image_filename of scene 1"),
        ("image_filename", "../../a.png", "image_filename of scene 1"),
        ("image_filename", "/a.png", "image_filename of scene 1"),
        ("image_filename", "a.jpg", "image_filename of scene 1"),
        ("image_filename", "CLEVR_val_000000.png", "'CLEVR_val_000000.png' once"),
        ("image_index", 0, "expected 0 once"),
        ("image_index", True, "image_index of scene 1"),
        ("image_index", "1", "image_index of scene 1"),
        ("objects", None, "1 to 10 objects in scene 1"),
        ("objects", [], "1 to 10 objects in scene 1"),
        ("objects/1", 5, "fields for object 1 in scene 1"),
        ("objects/1/color", "teal", "color of object 1 in scene 1 .* gray, .* or yellow, got 'teal'"),
        ("objects/0/shape", None, "shape of object 0 in scene 1 .* cube, sphere or cylinder, got None"),
        ("objects/0/3d_coords", None, "3d_coords of object 0"),
        ("objects/0/3d_coords", [1, 2], "3d_coords of object 0"),
        ("objects/0/3d_coords", [1, 2, -1], "above the ground"),
        ("objects/0/3d_coords/0", float("nan"), "3d_coords of object 0"),
        ("objects/0/pixel_coords", "here", "pixel_coords of object 0"),
        ("objects/0/pixel_coords", None, "pixel_coords for all objects or for none"),
        ("objects/0/rotation", None, "rotation of object 0"),
        ("directions", [1], "directions"),
        ("directions/left", [0, 1], "directions"),
        ("relationships", [], "relationships"),
        ("relationships/front", None, "relationships"),
        ("relationships/left", [[]], "relationships"),
        ("relationships/left/0", [0], "name other objects"),
        ("relationships/left/0", [77], "name other objects"),
        ("relationships/left/0", [[1]], "name other objects"),
        ("relationships/left/0", [1, 1], "relationships"),
    ],
)
def test_fields_out_of_their_tables(tmp_path: Path, path: str, value: object, message: str) -> None:
    broken = copy.deepcopy(scene(1))
    change(path, value)(broken)
    with pytest.raises(DataError, match=message) as error:
        read_scenes(written(tmp_path / "scenes.json", [scene(0), broken]))
    assert "\n" not in str(error.value)


def test_more_objects_than_there_are_numbers(tmp_path: Path) -> None:
    crowded = scene(0) | {"objects": [scene(0)["objects"][0]] * 11}
    with pytest.raises(DataError, match=r"1 to 10 objects in scene 0 .*, got 11"):
        read_scenes(written(tmp_path / "scenes.json", [crowded]))
