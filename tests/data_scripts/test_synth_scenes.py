"""Scenes keep the release's rules, and the camera is the release's."""

import json
import math
import random
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_scripts.errors import DataError
from data_scripts.synth.camera import Camera, ground_directions, rays
from data_scripts.synth.presets import PRESETS, find_preset
from data_scripts.synth.scenes import relationships, sample_camera, sample_scene

CLEVR = PRESETS["clevr"]


def sample(name: str, seed: int) -> dict[str, Any]:
    preset, rng = PRESETS[name], random.Random(seed)
    return sample_scene(preset, sample_camera(preset, rng), rng, split="val", image_index=seed)


@pytest.mark.parametrize("name", ["mini", "clevr"])
def test_scenes_keep_distance_margin_and_relations(name: str) -> None:
    preset = PRESETS[name]
    numbers = set()
    for seed in range(60):
        scene = sample(name, seed)
        objects, directions = scene["objects"], scene["directions"]
        numbers.add(len(objects))
        assert scene["image_filename"] == f"CLEVR_val_{seed:06d}.png"
        for i, j in permutations(range(len(objects)), 2):
            (x, y, z), (u, v, w) = objects[i]["3d_coords"], objects[j]["3d_coords"]
            assert z == preset.sizes[objects[i]["size"]]
            assert max(abs(x), abs(y)) <= preset.half_extent
            assert math.dist((x, y), (u, v)) - z - w >= preset.min_distance
            for relation in ("left", "right", "behind", "front"):
                dx, dy, _ = directions[relation]
                along = (u - x) * dx + (v - y) * dy
                assert abs(along) >= preset.margin
                assert (j in scene["relationships"][relation][i]) == (along > 0)
    assert numbers == set(range(preset.objects[0], preset.objects[1] + 1))


def test_conditions_of_cogent_swap_their_palettes() -> None:
    seen: dict[str, set[tuple[str, str]]] = {}
    for name in ("cogent-a", "cogent-b"):
        scenes = [sample(name, seed) for seed in range(80)]
        seen[name] = {(thing["shape"], thing["color"]) for scene in scenes for thing in scene["objects"]}
    some, others = {"gray", "blue", "brown", "yellow"}, {"red", "green", "purple", "cyan"}
    spheres = {("sphere", color) for color in some | others}
    for name, cubes, cylinders in (("cogent-a", some, others), ("cogent-b", others, some)):
        assert seen[name] == spheres | {("cube", c) for c in cubes} | {("cylinder", c) for c in cylinders}
    assert set(PRESETS["cogent-a"].images) == {"train", "val"}
    assert set(PRESETS["cogent-b"].images) == {"val"}


def test_the_number_of_objects_can_be_given() -> None:
    rng = random.Random(0)
    camera = sample_camera(CLEVR, rng)
    for number in (3, 10):
        scene = sample_scene(CLEVR, camera, rng, split="val", image_index=0, number=number)
        assert len(scene["objects"]) == number


def test_rotations_go_round() -> None:
    turns = [thing["rotation"] for seed in range(40) for thing in sample("clevr", seed)["objects"]]
    assert min(turns) >= 0
    assert 340 < max(turns) < 360


def test_scene_has_the_schema_of_the_release(real_clevr: Path | None) -> None:
    scene = sample("clevr", 0)
    keys = {"split", "image_index", "image_filename", "objects", "relationships", "directions"}
    object_keys = {"shape", "size", "material", "color", "3d_coords", "rotation", "pixel_coords"}
    if real_clevr is not None:
        real = json.loads((real_clevr / "scenes/CLEVR_val_scenes.json").read_text())["scenes"][0]
        assert set(real) == keys
        assert set(real["objects"][0]) == object_keys
        assert set(real["relationships"]) == set(scene["relationships"])
    assert set(scene) == keys
    assert all(set(thing) == object_keys for thing in scene["objects"])
    assert json.loads(json.dumps(scene)) == scene


def fit_camera(scene: dict[str, Any]) -> tuple[np.ndarray, float]:
    """The camera's place by Gauss-Newton from the objects' picture positions, and the worst error in pixels."""
    places = np.array([thing["3d_coords"] for thing in scene["objects"]]).T
    seen = np.array([thing["pixel_coords"] for thing in scene["objects"]]).T

    def error(position: np.ndarray) -> np.ndarray:
        x, y, z = position.tolist()
        return Camera((x, y, z), 480, 320, 525.0).project(places) - seen

    position = np.array(CLEVR.camera)
    for _ in range(8):
        slope = np.stack([(error(position + s) - error(position - s)).ravel() / 2e-4 for s in np.eye(3) * 1e-4], axis=1)
        position = position - np.linalg.lstsq(slope, error(position).ravel(), rcond=None)[0]
    return position, float(np.abs(error(position)[:2]).max())


def test_camera_explains_the_picture_positions(real_clevr: Path | None) -> None:
    """Real positions are rounded to pixels; a camera within the release's jitter puts every object within one pixel."""
    scenes = [sample("clevr", seed) for seed in range(5)]
    if real_clevr is not None:
        scenes += json.loads((real_clevr / "scenes/CLEVR_val_scenes.json").read_text())["scenes"][:40]
    for scene in scenes:
        position, worst = fit_camera(scene)
        assert worst < 1.0
        assert np.abs(position - CLEVR.camera).max() < 0.55


def test_relations_and_directions_of_real_scenes(real_clevr: Path | None) -> None:
    directions = ground_directions(CLEVR.camera)
    assert directions["right"] == pytest.approx((0.65631, 0.75449, 0.0), abs=1e-5)
    assert directions["behind"] == pytest.approx((-0.75449, 0.65631, 0.0), abs=1e-5)
    if real_clevr is None:
        scenes = [sample("clevr", seed) for seed in range(20)]
    else:
        scenes = json.loads((real_clevr / "scenes/CLEVR_val_scenes.json").read_text())["scenes"]
    for scene in scenes:
        for name, direction in scene["directions"].items():
            assert directions[name] == pytest.approx(direction, abs=1e-5)
        found = relationships(scene["objects"], directions)
        assert found == {name: [sorted(i) for i in lists] for name, lists in scene["relationships"].items()}


def test_rays_go_through_their_pixels() -> None:
    camera = Camera((6.0, -5.0, 4.0), 16, 12, 20.0, 0.3)
    directions = rays(camera, 3).astype(np.float64)
    assert directions.shape == (3, 36, 48)
    assert np.linalg.norm(directions, axis=0) == pytest.approx(1.0, abs=1e-6)
    points = np.array(camera.position)[:, None] + 7 * directions.reshape(3, -1)
    x, y, _ = camera.project(points)
    assert x.reshape(36, 48)[0] == pytest.approx((np.arange(48) + 0.5) / 3, abs=1e-4)
    assert y.reshape(36, 48)[:, 0] == pytest.approx((np.arange(36) + 0.5) / 3, abs=1e-4)


def test_impossible_presets_are_refused() -> None:
    crowded = replace(CLEVR, half_extent=0.5, objects=(9, 9))
    with pytest.raises(DataError, match="room for 9 objects"):
        sample_scene(crowded, sample_camera(crowded, random.Random(0)), random.Random(0), split="a", image_index=0)
    with pytest.raises(DataError, match="at least one"):
        replace(CLEVR, objects=(0, 3))
    with pytest.raises(DataError, match=r"families 0\.\.89, got one for 90"):
        replace(CLEVR, weights={3: 1.0, 90: 1.0})
    with pytest.raises(DataError, match="palettes of shapes and their colors, got 'cube'"):
        replace(CLEVR, palettes={"cube": ("teal",)})
    with pytest.raises(DataError, match="expected a preset out of mini, tiny, small, clevr, clevr-64, cogent-a"):
        find_preset("huge")
