"""Which object every sample of a picture shows, how far away and with which normal.

Samples: every pixel is cast `supersampling` x `supersampling` times; arrays over samples have the shape (H, W) or
(3, H, W) with H = height * supersampling. Objects are met by the rays inside their screen box only. Knows scenes in the
release's schema and a camera, no light.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_scripts.synth.camera import Array, Camera, column, rays
from data_scripts.synth.solids import Solid, box_corners, cross, normals, round_off

GROUND = -1
"""The object index of samples that show the ground."""
BAND = 1 << 13
"""Samples worked on at a time: few enough for the processor's cache, which makes large pictures quicker."""
_NEAR = 0.1  # depth in world units before which a projection is of no use


@dataclass(frozen=True)
class Trace:
    """What every sample sees.

    ids (H, W) int16: object index or GROUND. distance (H, W): along the ray. normals (3, H, W): zero on the ground.
    alone: samples each object would show if no other hid it.
    """

    camera: Camera
    supersampling: int
    solids: list[Solid]
    ids: NDArray[np.int16]
    distance: Array
    normals: Array
    alone: list[int]

    def visible(self) -> NDArray[np.int64]:
        """The number of samples that show each object, (objects,)."""
        return np.bincount(self.ids.ravel() + 1, minlength=len(self.solids) + 1)[1:]


@dataclass(frozen=True)
class Box:
    """A rectangle of samples."""

    rows: slice
    columns: slice

    def bands(self) -> "list[Box]":
        """The box in bands of rows with about BAND samples each."""
        width = self.columns.stop - self.columns.start
        height = max(1, BAND // max(1, width))
        starts = range(self.rows.start, self.rows.stop, height)
        return [Box(slice(start, min(start + height, self.rows.stop)), self.columns) for start in starts]


def whole(samples: Array) -> Box:
    """The box of all samples (H, W)."""
    height, width = samples.shape
    return Box(slice(0, height), slice(0, width))


def trace(scene: Mapping[str, Any], camera: Camera, supersampling: int, *, rounded: bool = False) -> Trace:
    """Cast the rays of a camera at a scene whose cubes and cylinders have sharp or `rounded` edges."""
    directions = rays(camera, supersampling)
    distance = ground_distance(camera, supersampling).copy()
    ids = np.full(distance.shape, GROUND, dtype=np.int16)
    facing = np.zeros_like(directions)
    position = column(camera.position)
    solids = [Solid.of(thing, rounded=rounded) for thing in scene["objects"]]
    numbers = _sample_numbers(*distance.shape)
    alone = []
    boxes = screen_boxes(box_corners(solids), camera, supersampling)
    for i, (solid, box) in enumerate(zip(solids, boxes, strict=True)):
        origin = solid.to_local(position - column(solid.center))
        local = solid.to_local(directions[:, box.rows, box.columns].reshape(3, -1))
        enter, leave = cross(solid, origin, local)
        hit = enter < leave
        if solid.rounding > 0:
            inside = np.flatnonzero(hit)
            enter[inside] = round_off(solid, origin, local.take(inside, axis=1), enter.take(inside))
            hit = enter < leave
        alone.append(int(np.count_nonzero(hit)))
        nearer = np.flatnonzero(hit & (enter < distance[box.rows, box.columns].ravel()))
        enter = enter.take(nearer)
        index = numbers[box.rows, box.columns].ravel().take(nearer)
        distance.reshape(-1)[index] = enter
        ids.reshape(-1)[index] = i
        put(facing, index, solid.to_world(normals(solid, origin + enter * local.take(nearer, axis=1))))
    return Trace(camera, supersampling, solids, ids, distance, facing, alone)


@lru_cache(maxsize=2)
def ground_distance(camera: Camera, supersampling: int) -> Array:
    """Distances (H, W) along the camera's rays to the plane z = 0; read-only."""
    down = np.minimum(rays(camera, supersampling)[2], np.float32(-1e-3))
    distance = np.float32(-camera.position[2]) / down
    distance.flags.writeable = False
    return distance


@lru_cache(maxsize=1)
def _sample_numbers(height: int, width: int) -> NDArray[np.int64]:
    """Flat indices of samples by row and column; cheaper to look up than to compute."""
    return np.arange(height * width).reshape(height, width)


def screen_boxes(outlines: Array, camera: Camera, supersampling: int) -> list[Box]:
    """For each outline, points (outlines, 3, N), the box of samples that holds it, clipped to the picture.

    An outline that reaches behind the camera has the whole picture for its box.
    """
    projected = camera.project(outlines.transpose(1, 0, 2).reshape(3, -1)).reshape(3, len(outlines), -1)
    low, high = projected.min(axis=2).T.tolist(), projected.max(axis=2).T.tolist()
    boxes = []
    for (left, top, nearest), (right, bottom, _) in zip(low, high, strict=True):
        if nearest < _NEAR:
            left, top, right, bottom = 0, 0, camera.width, camera.height
        rows = _clip(top * supersampling, bottom * supersampling, camera.height * supersampling)
        boxes.append(Box(rows, _clip(left * supersampling, right * supersampling, camera.width * supersampling)))
    return boxes


def _clip(first: float, last: float, size: int) -> slice:
    start = min(max(math.floor(first), 0), size)
    return slice(start, min(max(math.ceil(last) + 1, start), size))


def take(source: Array, index: NDArray[np.int64]) -> Array:
    """`source[:, index]` of a source (M, ...) that is flat behind its first axis; four times as fast."""
    return source.reshape(len(source), -1).take(index, axis=1)


def put(target: Array, index: NDArray[np.int64], values: Array) -> None:
    """`target[:, index] = values` for a target (3, ...) that is flat behind its first axis; three times as fast."""
    for row, value in zip(target.reshape(3, -1), values, strict=True):
        row[index] = value
