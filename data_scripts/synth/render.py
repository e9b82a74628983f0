"""The picture of a traced scene: ground with soft shadows, objects of rubber and metal.

Light is computed linearly for every sample, averaged over each pixel and encoded as sRGB. Shapes as in `trace.py`.
Knows nothing of which scenes are good.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_scripts.synth import shading
from data_scripts.synth.camera import Array, Camera, Point, column, dot, mirror, rays
from data_scripts.synth.shading import LAMP_RADIUS, Lamps, Surface
from data_scripts.synth.solids import Solid, box_corners, cross, normals
from data_scripts.synth.trace import BAND, GROUND, Trace, ground_distance, put, screen_boxes, take, whole

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
    lit = np.ones((len(lamps.places), *traced.ids.shape), dtype=np.float32)
    for number in range(shadows):
        _cast_shadows(lamps.places[number], traced, points, lit[number])
    light = _ground_light(lamps, traced, points, lit)
    looks = [(thing["material"], thing["color"]) for thing in scene["objects"]]
    mirrored = partial(_mirrored_objects, traced.solids) if lamps.studio.mirrors_objects else None
    seen = np.flatnonzero(traced.ids != GROUND)
    for index in (seen[start : start + BAND] for start in range(0, len(seen), BAND)):
        way, facing = take(directions, index), take(traced.normals, index)
        surface = Surface(take(points, index), facing, mirror(way, facing), traced.ids.take(index))
        put(light, index, shading.objects_light(lamps, surface, take(lit, index), looks, mirrored))
    pixels = _mean(light, traced.supersampling)
    return np.ascontiguousarray(shading.encode_srgb(pixels * np.float32(exposure)).transpose(1, 2, 0))


def _mirrored_objects(solids: Sequence[Solid], surface: Surface) -> tuple[NDArray[np.int64], Surface]:
    """Which points of a surface mirror an object towards the camera, and the points of objects that they mirror."""
    nearest = np.full(len(surface.ids), np.inf, dtype=np.float32)
    ids = np.full(len(surface.ids), GROUND, dtype=np.int16)
    facing = np.zeros_like(surface.facing)
    for i, solid in enumerate(solids):
        # A convex object never mirrors itself.
        away = column(solid.center) - surface.points
        along = dot(away, surface.bounce)
        reach = np.float32(3 * solid.radius**2)  # of the ball around the solid's box, squared
        index = np.flatnonzero((along > 0) & (dot(away, away) - along * along < reach) & (surface.ids != i))
        origin, local = solid.to_local(-take(away, index)), solid.to_local(take(surface.bounce, index))
        enter, leave = cross(solid, origin, local)
        hit = np.flatnonzero((enter < leave) & (enter > 0) & (enter < nearest.take(index)))
        enter, index = enter.take(hit), index.take(hit)
        nearest[index], ids[index] = enter, i
        put(facing, index, solid.to_world(normals(solid, take(origin, hit) + enter * take(local, hit))))
    index = np.flatnonzero(ids != GROUND)
    way, facing = take(surface.bounce, index), take(facing, index)
    points = take(surface.points, index) + nearest.take(index) * way
    return index, Surface(points, facing, mirror(way, facing), ids.take(index))


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
    """The ground's light at every sample, (3, H, W), with shadows and the dark round where objects touch it."""
    ambient = np.full(traced.ids.shape, lamps.studio.ambient, dtype=np.float32)
    feet = _feet(traced.solids)
    for solid, box in zip(traced.solids, screen_boxes(feet, traced.camera, traced.supersampling), strict=True):
        near = points[:, box.rows, box.columns] - column(solid.center)[:, :, None]
        closeness = np.float32(solid.radius**2) / (dot(near, near) + np.float32(1e-6))
        ambient[box.rows, box.columns] *= 1 - np.float32(CONTACT_SHADE) * closeness * closeness
    bare = _bare_ground(traced.camera, lamps, traced.supersampling)
    light = np.empty((3, *lit.shape[1:]), dtype=np.float32)
    for rows in (band.rows for band in whole(traced.ids).bands()):
        light[:, rows] = ambient[rows] + lamps.studio.mix(bare[:, rows] * lit[:, rows])
    return light


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
    solids = zip(range(len(boxes)), [solid.inner() for solid in traced.solids], boxes, strict=True)
    for i, solid, box in ((i, solid, band) for i, solid, whole_box in solids for band in whole_box.bands()):
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
