"""The picture of a traced scene: ground with soft shadows, objects of rubber and metal.

Light is computed linearly for every sample, averaged over each pixel and encoded as sRGB. Shapes as in `trace.py`.
Knows nothing of which scenes are good.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_scripts.synth import shading
from data_scripts.synth.camera import Array, Camera, Point, column, dot, rays
from data_scripts.synth.shading import LAMP_RADIUS, Lamps
from data_scripts.synth.solids import Solid, box_corners, cross
from data_scripts.synth.trace import GROUND, Trace, ground_distance, put, screen_boxes, take

_SQUARE = np.array([(-1.0, -1.0, 0.0), (-1.0, 1.0, 0.0), (1.0, -1.0, 0.0), (1.0, 1.0, 0.0)]).T
CONTACT_REACH = 3.0
"""How far an object darkens the ground around it, in its radii."""
CONTACT_SHADE = 0.8
"""How much of the ambient light it takes away where it touches."""


def shade(scene: Mapping[str, Any], lamps: Lamps, traced: Trace, *, shadows: int, exposure: float) -> NDArray[np.uint8]:
    """The picture of a traced scene, RGB (height, width, 3).

    Args:
        shadows: how many of the lamps cast shadows, the brightest first.
        exposure: multiplies the light.
    """
    directions = rays(traced.camera, traced.supersampling)
    points = column(traced.camera.position)[:, :, None] + traced.distance * directions
    lit = np.ones((len(lamps), *traced.ids.shape), dtype=np.float32)
    for number in range(shadows):
        _cast_shadows(lamps[number], traced, points, lit[number])
    light = np.repeat(_ground_light(lamps, traced, points, lit)[None], 3, axis=0)
    index = np.flatnonzero(traced.ids != GROUND)
    view, facing, points = (take(array, index) for array in (directions, traced.normals, points))
    bounce = view - 2 * dot(view, facing) * facing
    surface = shading.Surface(points, facing, bounce, traced.ids.take(index))
    looks = [(thing["material"], thing["color"]) for thing in scene["objects"]]
    put(light, index, shading.objects_light(lamps, surface, take(lit, index), looks))
    pixels = _mean(light, traced.supersampling)
    return np.ascontiguousarray(shading.encode_srgb(pixels * np.float32(exposure)).transpose(1, 2, 0))


def _mean(samples: Array, supersampling: int) -> Array:
    """Means over each pixel's samples: (3, H, W) to (3, height, width). Sums of slices are quicker than `mean`."""
    across = samples[:, :, ::supersampling].copy()
    for i in range(1, supersampling):
        across += samples[:, :, i::supersampling]
    pixels = across[:, ::supersampling].copy()
    for i in range(1, supersampling):
        pixels += across[:, i::supersampling]
    return pixels / np.float32(supersampling**2)


def _ground_light(lamps: Lamps, traced: Trace, points: Array, lit: Array) -> Array:
    """The ground's light at every sample, (H, W), with shadows and the dark round where objects touch it."""
    light = np.full(traced.ids.shape, shading.AMBIENT, dtype=np.float32)
    feet = _feet(traced.solids)
    for solid, box in zip(traced.solids, screen_boxes(feet, traced.camera, traced.supersampling), strict=True):
        near = points[:, box.rows, box.columns] - column(solid.center)[:, :, None]
        closeness = np.float32(solid.radius**2) / (dot(near, near) + np.float32(1e-6))
        light[box.rows, box.columns] *= 1 - np.float32(CONTACT_SHADE) * closeness * closeness
    return light + (_bare_ground(traced.camera, lamps, traced.supersampling) * lit).sum(axis=0)


@lru_cache(maxsize=1)
def _bare_ground(camera: Camera, lamps: Lamps, supersampling: int) -> Array:
    """The light of each lamp on the ground under every sample, (lamps, H, W)."""
    # It changes slowly: one value a pixel is enough.
    distance = ground_distance(camera, 1)
    points = column(camera.position) + distance.ravel() * rays(camera, 1).reshape(3, -1)
    light = shading.lamps_on_ground(lamps, points).reshape(-1, *distance.shape)
    return light.repeat(supersampling, axis=1).repeat(supersampling, axis=2)


def _feet(solids: Sequence[Solid]) -> Array:
    """The squares of ground that solids darken by touching it, (solids, 3, 4)."""
    centers = np.array([(*solid.center[:2], 0.0) for solid in solids])
    reach = CONTACT_REACH * np.array([solid.radius for solid in solids])
    return centers[:, :, None] + reach[:, None, None] * _SQUARE


def _cast_shadows(lamp: Point, traced: Trace, points: Array, lit: Array) -> None:
    """Set `lit` (H, W) to 0 where an object stands between the lamp and the point (3, H, W) that a sample shows."""
    camera, supersampling = traced.camera, traced.supersampling
    offsets = _lamp_offsets(camera.width, camera.height, supersampling)
    boxes = screen_boxes(_shadow_outlines(traced.solids, lamp), camera, supersampling)
    for i, (solid, box) in enumerate(zip(traced.solids, boxes, strict=True)):
        part = points[:, box.rows, box.columns].reshape(3, -1)
        toward = column(lamp) + offsets[:, box.rows, box.columns].reshape(3, -1) - part
        origin = solid.to_local(part - column(solid.center))
        # The distance along the ray, which is as long as the way to the lamp, is 1 at the lamp.
        enter, leave = cross(solid, origin, solid.to_local(toward))
        dark = (enter < leave) & (leave > np.float32(1e-3)) & (enter < 1)
        other = traced.ids[box.rows, box.columns] != i  # an object's own dark side is no shadow
        lit[box.rows, box.columns] *= ~(dark.reshape(other.shape) & other)


@lru_cache(maxsize=1)
def _lamp_offsets(width: int, height: int, supersampling: int) -> Array:
    """Where on a lamp each sample looks, (3, H, W): every one of a pixel's samples elsewhere, so shadows are soft."""
    places = ((np.arange(supersampling) + 0.5) / supersampling * 2 - 1) * LAMP_RADIUS
    offsets = np.zeros((3, height * supersampling, width * supersampling), dtype=np.float32)
    offsets[0] = np.tile(places, width)[None, :]
    offsets[1] = np.tile(places, height)[:, None]
    return offsets


def _shadow_outlines(solids: list[Solid], lamp: Point) -> Array:
    """Points around all that solids can shade, (solids, 3, 40): their boxes, and these seen from the lamp's corners."""
    corners = box_corners(solids)
    place = (np.array(lamp)[:, None] + LAMP_RADIUS * _SQUARE)[None, :, None, :]
    raised = corners[:, :, :, None]
    shadow = place + (raised - place) * (lamp[2] / (lamp[2] - raised[:, 2:]))
    return np.concatenate((corners, shadow.reshape(len(solids), 3, -1)), axis=2)
