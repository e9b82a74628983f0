"""The ray caster: hits against slow marching, who hides whom, colours, shadows, and the PNG writer."""

import io
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from data_scripts.errors import DataError
from data_scripts.synth import shading
from data_scripts.synth.camera import Camera, mirror
from data_scripts.synth.generate import make_picture
from data_scripts.synth.png import encode_png
from data_scripts.synth.presets import PRESETS
from data_scripts.synth.render import shade
from data_scripts.synth.solids import ROUNDING, Solid, cross, normals, round_off
from data_scripts.synth.trace import GROUND, Trace, screen_boxes, trace

CAMERA = Camera(PRESETS["clevr"].camera, 120, 80, 525 / 4)


def thing(x: float, y: float, **looks: Any) -> dict[str, Any]:
    radius = 0.35 if looks.get("size") == "small" else 0.7
    defaults = {"shape": "sphere", "size": "large", "material": "rubber", "color": "red", "rotation": 30.0}
    return {**defaults, **looks, "3d_coords": [x, y, radius]}


RELEASE = shading.Lamps(shading.LAMP_PLACES, shading.STUDIOS["release"])


def picture(
    *things: dict[str, Any], shadows: int = 3, lamps: shading.Lamps = shading.LAMPS
) -> tuple[np.ndarray, Trace]:
    scene = {"objects": list(things)}
    traced = trace(scene, CAMERA, 2)
    return shade(scene, lamps, traced, shadows=shadows, exposure=1.0).astype(float), traced


def inside(solid: Solid, points: np.ndarray) -> np.ndarray:
    x, y, z = points - np.array(solid.center)[:, None]
    if solid.shape == "sphere":
        return x * x + y * y + z * z < solid.radius**2
    if solid.shape == "cylinder":
        return (np.hypot(x, y) < solid.radius) & (np.abs(z) < solid.radius)
    along = np.abs(math.cos(solid.yaw) * x + math.sin(solid.yaw) * y)
    beside = np.abs(-math.sin(solid.yaw) * x + math.cos(solid.yaw) * y)
    return (np.maximum(along, beside) < solid.radius) & (np.abs(z) < solid.radius)


@pytest.mark.parametrize("shape", ["sphere", "cube", "cylinder"])
def test_crossings_agree_with_marching(shape: str) -> None:
    """Walk along random rays in small steps: the first and the last step inside are where the ray enters and leaves."""
    rng = np.random.default_rng(0)
    solid = Solid(shape, (0.3, -0.2, 0.7), 0.7, 0.6)
    origin = np.array([[4.0], [-3.0], [2.5]])
    target = np.array(solid.center)[:, None] + rng.uniform(-1, 1, (3, 200))
    direction = (target - origin) / np.linalg.norm(target - origin, axis=0)
    local_origin = solid.to_local((origin - np.array(solid.center)[:, None]).astype(np.float32))
    local = solid.to_local(direction.astype(np.float32))
    enter, leave = cross(solid, local_origin, local)
    steps = np.arange(0, 9, 0.01)
    hits = 0
    for ray in range(200):
        within = np.flatnonzero(inside(solid, origin + direction[:, ray : ray + 1] * steps))
        if len(within) > 3:
            hits += 1
            assert steps[within[0]] == pytest.approx(enter[ray], abs=0.02)
            assert steps[within[-1]] == pytest.approx(leave[ray], abs=0.02)
        else:
            assert leave[ray] - enter[ray] < 0.06
    assert 40 < hits < 190
    hit = np.flatnonzero(enter < leave)
    surface = local_origin + enter[hit] * local[:, hit]
    outward = normals(solid, surface)
    assert np.linalg.norm(outward, axis=0) == pytest.approx(1, abs=1e-3)
    assert ((outward * local[:, hit]).sum(axis=0) < 0.5).all()
    if shape == "sphere":
        assert outward == pytest.approx(surface / 0.7, abs=1e-3)


@pytest.mark.parametrize("shape", ["cube", "cylinder"])
def test_round_edges_agree_with_marching(shape: str) -> None:
    """The rounded solid is every point within the edge's radius of a smaller sharp one; walk rays until they are in."""
    rng = np.random.default_rng(1)
    solid = Solid(shape, (0.0, 0.0, 0.7), 0.7, 0.0, rounded=True)
    radius = 0.7 * ROUNDING[shape]
    origin = np.array([[4.0], [-3.0], [2.5]])
    target = rng.uniform(-0.7, 0.7, (3, 400))
    direction = (target - origin) / np.linalg.norm(target - origin, axis=0)
    sharp, leave = cross(solid, origin.astype(np.float32), direction.astype(np.float32))
    hit = np.flatnonzero(sharp < leave)
    entered = round_off(solid, origin.astype(np.float32), direction[:, hit].astype(np.float32), sharp[hit])
    steps = np.arange(3, 7, 0.005)
    missed = moved = 0
    for ray, distance, before in zip(direction[:, hit].T, entered, sharp[hit], strict=True):
        points = np.abs(origin + ray[:, None] * steps)
        if shape == "cylinder":
            points = np.stack((np.hypot(points[0], points[1]), points[2]))
        gaps = np.linalg.norm(np.maximum(points - (0.7 - radius), 0), axis=0) - radius
        if np.isinf(distance):
            missed += 1
            assert gaps.min() > 0
        elif gaps.min() < -0.02:
            moved += distance > before + 1e-3
            assert steps[np.flatnonzero(gaps <= 0)[0]] == pytest.approx(distance, abs=0.03)
    assert len(hit) > 200
    assert moved > 10
    assert missed > 0 or shape == "cylinder"


def test_rounding_takes_off_corners_only() -> None:
    scene = {"objects": [thing(0.5, 0.5, shape="cube"), thing(-2, 0, shape="cylinder"), thing(1, -2.5)]}
    sharp, rounded = (trace(scene, CAMERA, 3, rounded=flag) for flag in (False, True))
    lost = sharp.visible() - rounded.visible()
    assert lost[0] > lost[1] > 0 == lost[2]
    assert lost[0] < 0.15 * sharp.visible()[0]
    assert ((rounded.ids == sharp.ids) | (rounded.ids == GROUND)).all()


@pytest.mark.parametrize("shape", ["sphere", "cube", "cylinder"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_objects_are_seen_where_their_centre_is_projected(shape: str, size: str) -> None:
    for x, y in ((0.0, 0.0), (2.0, -1.5), (-2.0, 2.5)):
        solid = thing(x, y, shape=shape, size=size)
        ids = trace({"objects": [solid]}, CAMERA, 2).ids
        rows, columns = np.nonzero(ids == 0)
        across, down, depth = CAMERA.project(np.array(solid["3d_coords"])[:, None])[:, 0]
        assert (columns.mean() + 0.5) / 2 == pytest.approx(across, abs=1.0)
        assert (rows.mean() + 0.5) / 2 == pytest.approx(down, abs=1.0)
        if shape == "sphere":
            apparent = math.pi * (solid["3d_coords"][2] * CAMERA.focal / depth) ** 2
            assert len(rows) / 4 == pytest.approx(apparent, rel=0.06)


def test_the_nearer_object_hides_the_other() -> None:
    toward = np.array(CAMERA.position[:2]) / np.hypot(*CAMERA.position[:2])
    near, far = thing(*(1.0 * toward), size="large"), thing(*(-1.0 * toward), size="large", shape="cube")
    for order in ([near, far], [far, near]):
        traced = trace({"objects": order}, CAMERA, 2)
        visible, alone = traced.visible(), traced.alone
        assert visible[order.index(near)] == alone[order.index(near)]
        assert 0 < visible[order.index(far)] < 0.8 * alone[order.index(far)]
    assert trace({"objects": [far]}, CAMERA, 2).visible()[0] == alone[0]


def test_colors_and_materials_look_different() -> None:
    places = [(-2.5, -1.5), (-0.8, -2.4), (1.0, -2.4), (2.6, -1.2), (-1.8, 1.2), (0.2, 0.2), (1.6, 1.6), (-0.4, 2.6)]
    things = [thing(*place, color=color) for place, color in zip(places, shading.COLORS, strict=True)]
    image, traced = picture(*things)
    ids = traced.ids[::2, ::2]
    means = np.array([image[ids == i].mean(axis=0) for i in range(len(things))])
    for i, color in enumerate(shading.COLORS.values()):
        if len(set(color)) > 1:
            assert means[i].argmax() == int(np.argmax(color)) or color[means[i].argmax()] > 0.9 * max(color)
    distances = np.linalg.norm(means[:, None] - means[None], axis=2)
    assert distances[~np.eye(8, dtype=bool)].min() > 25


@pytest.mark.parametrize("shape", ["sphere", "cube", "cylinder"])
def test_metal_looks_unlike_rubber(shape: str) -> None:
    matte, _ = picture(thing(0, 0, shape=shape))
    shiny, traced = picture(thing(0, 0, shape=shape, material="metal"))
    seen = (traced.ids == 0).reshape(80, 2, 120, 2).all(axis=(1, 3))
    red, red_matte = shiny[seen][:, 0], matte[seen][:, 0]
    assert np.abs(red - red_matte).mean() > 15
    assert red.min() < red_matte.min() - 10
    if shape == "sphere":  # only a round surface is sure to mirror a lamp into the camera
        assert red.max() > red_matte.max() + 40


def test_shadows_darken_the_ground_only() -> None:
    lit, traced = picture(thing(0, 0), shadows=0)
    shaded, _ = picture(thing(0, 0), shadows=3)
    ground = (traced.ids == GROUND).reshape(80, 2, 120, 2).all(axis=(1, 3))
    darker = lit.mean(axis=2) - shaded.mean(axis=2)
    assert (darker > -1e-6).all()
    assert (darker[ground] > 8).mean() > 0.01
    assert darker[~ground].max() <= lit[~ground].max()
    # The key lamp stands to the right of the camera: its shadow falls to the left of the object.
    columns = np.nonzero(ground & (darker > 8))[1]
    assert columns.mean() < 60


def test_empty_ground_is_as_gray_as_the_release() -> None:
    """Against the medians of 292 released pictures at the top, middle, bottom, left and right."""
    image, _ = picture(thing(0, 0, size="small"))
    gray = image.mean(axis=2)
    places = {(2, 60): 106, (55, 60): 131, (78, 60): 144, (40, 2): 132, (40, 117): 119}
    for (row, column), expected in places.items():
        assert gray[row, column] == pytest.approx(expected, abs=12)


def test_the_release_studio_lights_the_ground_as_the_release_does() -> None:
    """Against the median colours of 292 released pictures: bluish on the left, where the fill lamp stands."""
    image, _ = picture(thing(0, 0, size="small"), lamps=RELEASE)
    places = {
        (2, 60): (106, 105, 105),
        (55, 60): (131, 131, 130),
        (78, 60): (146, 144, 140),
        (40, 2): (132, 133, 138),
        (40, 117): (119, 119, 117),
    }
    for (row, column), expected in places.items():
        assert image[row, column] == pytest.approx(expected, abs=8)


def test_flat_lamps_shine_before_them_only() -> None:
    """By hand: strength times both cosines over the squared distance, nothing behind the lamp's plane."""
    strengths, axes = RELEASE.studio.strengths, RELEASE.studio.axes
    assert axes is not None
    points = np.array([[0.0, 2.0, -2.0, 30.0], [0.0, 1.0, -1.0, -30.0], [0.0] * 4])
    light = shading.lamps_on_ground(RELEASE, points.astype(np.float32))
    for place, strength, axis, row in zip(RELEASE.places, strengths, axes, light, strict=True):
        for point, value in zip(points.T, row, strict=True):
            way = point - np.array(place)
            distance = np.linalg.norm(way)
            along = max(0.0, float(way @ np.array(axis)) / distance)
            assert value == pytest.approx(strength * along * (place[2] / distance) / distance**2, rel=1e-3, abs=1e-6)
    assert (light == 0).any()
    mixed = RELEASE.studio.mix(light)
    assert mixed == pytest.approx(np.array(RELEASE.studio.tints).T @ light, rel=1e-5)


def test_metal_mirrors_its_neighbour_in_the_release_studio() -> None:
    """A red neighbour appears in gray metal, on the side that faces it and nowhere in rubber."""
    ball, neighbour = thing(0, 0, material="metal", color="gray"), thing(1.5, 0.7, color="red")
    seen = {}
    for material in ("metal", "rubber"):
        image, traced = picture({**ball, "material": material}, neighbour, lamps=RELEASE)
        own = (traced.ids == 0).reshape(80, 2, 120, 2).all(axis=(1, 3))
        seen[material] = own & (image[..., 0] > 1.5 * image[..., 2])
        centre = np.nonzero(own)[1].mean()
    assert seen["metal"].sum() > 5
    assert not seen["rubber"].any()
    assert np.nonzero(seen["metal"])[1].mean() > centre
    image, _ = picture(ball, neighbour)
    assert not (own & (image[..., 0] > 1.5 * image[..., 2])).any()  # the plain studio has no such mirrors


def test_mirroring_keeps_the_length_and_turns_the_normal_part() -> None:
    ways = np.array([[1.0, 0.6], [0.0, 0.0], [-1.0, -0.8]])
    facing = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    assert mirror(ways, facing) == pytest.approx(np.array([[1.0, 0.6], [0.0, 0.0], [1.0, 0.8]]))


def test_small_preset_pictures_show_every_object() -> None:
    preset = PRESETS["mini"]
    for seed in range(10):
        scene, image = make_picture(preset, random.Random(seed))
        assert image.shape == (24, 32, 3)
        traced = trace(scene, Camera(preset.camera, 32, 24, 32 * preset.focal, preset.aim), preset.supersampling)
        assert (traced.visible() >= preset.min_visible_pixels * preset.supersampling**2).all()


def test_the_small_size_of_the_release_shows_what_scaling_its_pictures_down_shows() -> None:
    box = (35.2, 32, 444.8, 288)  # the middle 409.6 x 256 of 480 x 320
    for seed in range(2):
        scene, image = make_picture(PRESETS["clevr"], random.Random(seed))
        small_scene, small = make_picture(PRESETS["clevr-64"], random.Random(seed))
        places = [[thing["3d_coords"] for thing in one["objects"]] for one in (scene, small_scene)]
        assert places[0] == places[1]
        scaled = Image.fromarray(image).resize((64, 40), Image.Resampling.LANCZOS, box=box)
        assert np.abs(np.asarray(scaled, dtype=float) - small).mean() < 1.6
        shifted = np.roll(small, 1, axis=1)
        assert np.abs(np.asarray(scaled, dtype=float) - shifted).mean() > 2


def test_an_unknown_studio_is_refused() -> None:
    with pytest.raises(DataError, match="expected a studio out of plain, release, got 'dark'"):
        shading.sample_lamps(replace(PRESETS["clevr"], studio="dark"), random.Random(0))


def test_srgb_encoding() -> None:
    light = np.linspace(-0.1, 1.1, 500)
    clipped = np.clip(light, 0, 1)
    exact = np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055) * 255
    assert np.abs(shading.encode_srgb(light) - exact).max() < 0.75


@settings(deadline=None)
@given(
    arrays(
        np.uint8,
        array_shapes(min_dims=2, max_dims=2, max_side=20).map(lambda shape: (*shape, 3)),
        elements=st.integers(0, 255),
    )
)
def test_png_round_trip(image: np.ndarray) -> None:
    with Image.open(io.BytesIO(encode_png(image))) as read:
        assert read.format == "PNG"
        assert read.mode == "RGB"
        assert np.array_equal(np.asarray(read), image)


def test_boxes_hold_what_they_are_drawn_around() -> None:
    """Boxes of points before the camera hold their projections; points behind it make the box the whole picture."""
    rng = np.random.default_rng(0)
    outlines = rng.uniform(-3, 3, (50, 3, 5))
    for outline, box in zip(outlines, screen_boxes(outlines, CAMERA, 2), strict=True):
        x, y, _ = CAMERA.project(outline) * 2
        inside = (x >= 0) & (x < 240) & (y >= 0) & (y < 160)
        assert ((box.columns.start <= x) & (x < box.columns.stop))[inside].all()
        assert ((box.rows.start <= y) & (y < box.rows.stop))[inside].all()
    behind = np.array([[[0.0, 20.0], [0.0, -20.0], [0.0, 10.0]]])
    (box,) = screen_boxes(behind, CAMERA, 2)
    assert (box.rows, box.columns) == (slice(0, 160), slice(0, 240))
