"""The fitted camera: found again from projections, from few objects, and refused where there is none."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from data_scripts.errors import DataError
from data_scripts.synth.camera import Camera, Point
from data_scripts.synth.camera_fit import FEWEST, fit_camera, recorded_places
from data_scripts.synth.presets import PRESETS
from data_scripts.synth.scenes import sample_camera, sample_scene

CLEVR = PRESETS["clevr"]


def seen_objects(position: Point, places: list[Point], *, rounded: bool = True) -> list[dict[str, Any]]:
    """Objects at places as the camera at `position` sees them."""
    camera = Camera(position, 480, 320, 525.0)
    objects = []
    for place, (x, y, depth) in zip(places, camera.project(np.array(places).T).T.tolist(), strict=True):
        pixels = [round(x), round(y), depth] if rounded else [x, y, depth]
        objects.append({"3d_coords": list(place), "pixel_coords": pixels})
    return objects


near = st.floats(-0.5, 0.5)
ground = st.floats(-3, 3)


@settings(max_examples=15, deadline=None)
@given(near, near, near, st.lists(st.tuples(ground, ground, st.sampled_from((0.35, 0.7))), min_size=3, max_size=8))
def test_the_camera_is_found_again(dx: float, dy: float, dz: float, places: list[Point]) -> None:
    x, y, z = CLEVR.camera
    spread = np.array(places)[:, :2] - places[0][:2]
    if np.abs(np.linalg.svd(spread, compute_uv=False)).min() < 0.5:  # in a row, some turn of the camera goes unseen
        reject()
    position = (x + dx, y + dy, z + dz)
    exact = fit_camera(seen_objects(position, places, rounded=False))
    assert exact.position == pytest.approx(position, abs=1e-4)
    rounded = fit_camera(seen_objects(position, places))
    assert rounded.position == pytest.approx(position, abs=0.1)


def test_half_of_a_scene_tells_where_the_other_half_is_seen(real_clevr: Path | None) -> None:
    """Held-out centres are as near as rounding lets them, in scenes of the generator and, at hand, of the release."""
    scenes = []
    for seed in range(20):
        rng = random.Random(seed)
        scenes.append(sample_scene(CLEVR, sample_camera(CLEVR, rng), rng, split="train", image_index=0))
    if real_clevr is not None:
        scenes += json.loads((real_clevr / "scenes" / "CLEVR_val_scenes.json").read_text())["scenes"][:50]
    misses = []
    for objects in (scene["objects"] for scene in scenes):
        known = max(FEWEST, len(objects) // 2)
        places, recorded = recorded_places(objects[known:])
        missed = fit_camera(objects[:known]).project(places) - recorded
        misses += np.hypot(missed[0], missed[1]).tolist()
    assert len(misses) > 40
    assert np.median(misses) < 0.6
    assert max(misses) < 4


def test_another_picture_size_and_aim() -> None:
    preset = PRESETS["mini"]
    rng = random.Random(0)
    camera = sample_camera(preset, rng)
    objects = sample_scene(preset, camera, rng, split="train", image_index=0)["objects"]
    found = fit_camera(objects, width=32, height=24, focal=camera.focal, aim=camera.aim, start=(7.0, -6.0, 6.5))
    assert found.position == pytest.approx(camera.position, abs=0.3)
    assert (found.width, found.height, found.focal, found.aim) == (32, 24, camera.focal, camera.aim)


def test_too_few_objects() -> None:
    objects = seen_objects(CLEVR.camera, [(0.0, 0.0, 0.7)])
    with pytest.raises(DataError, match="expected at least 2 objects to fit a camera to, got 1"):
        fit_camera(objects)


def test_a_scene_that_no_camera_sees() -> None:
    objects = seen_objects(CLEVR.camera, [(0.0, 0.0, 0.7), (2.0, 1.0, 0.35), (-2.0, 1.5, 0.7)])
    objects[1]["pixel_coords"][0] += 40
    with pytest.raises(DataError, match="within 2 pixels of its pixel_coords, the best misses one by"):
        fit_camera(objects)
