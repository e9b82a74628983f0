"""Spheres, cubes and upright cylinders as ray targets: where rays enter and leave, and the normal where they enter.

Shapes:
    N  number of rays
    rays have float32 origins (3, N) or (3, 1) and unit directions (3, N), in world units.

Knows nothing of colours, light and cameras. Rays that miss have `enter > leave`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from data_scripts.synth.camera import Array, Point, dot

BEVEL = 0.08
"""The share of a half edge within which normals turn over where edges are sharp."""
ROUNDING = {"sphere": 0.0, "cube": 0.22, "cylinder": 0.08}
"""The radius of round edges as a share of half an edge: of a few, those that come nearest to the release's pictures."""
_TINY = np.float32(1e-12)
_STEPS = 8
_CLOSE = np.float32(0.01)  # of a solid's radius; less than a third of a pixel
_SIGNS = np.array(list(product((-1.0, 1.0), repeat=3))).T


@dataclass(frozen=True)
class Solid:
    """One object on the ground plane z = 0.

    Sizes as measured on the release: `radius` of the sphere; radius and half the height of the cylinder; half the edge
    of the cube. `yaw` turns about z, in radians. Where they are `rounded`, edges are
    round within `rounding`.
    """

    shape: str
    center: Point
    radius: float
    yaw: float
    rounded: bool = False

    @classmethod
    def of(cls, thing: Mapping[str, Any], *, rounded: bool = False) -> "Solid":
        """The solid of a scene's object: the release rests centres at z = radius and hands `rotation` on as radians."""
        x, y, z = thing["3d_coords"]
        return cls(thing["shape"], (x, y, z), z, math.fmod(thing["rotation"], 2 * math.pi), rounded)

    def inner(self) -> "Solid":
        """The largest solid with sharp edges inside this one, about the same centre: what casts its shadow."""
        if self.rounding == 0:
            return self
        return replace(self, radius=self.radius * (1 - self.rounding * (1 - math.sqrt(0.5))), rounded=False)

    @property
    def half_width(self) -> float:
        """Half the edge of the upright box around the solid, along x and along y."""
        if self.shape == "cube":
            return self.radius * (abs(math.cos(self.yaw)) + abs(math.sin(self.yaw)))
        return self.radius

    @property
    def rounding(self) -> float:
        """The radius of the edges, as a share of the solid's."""
        return ROUNDING[self.shape] if self.rounded else 0.0

    def to_local(self, vectors: Array) -> Array:
        """Directions (3, N) turned into the solid's own axes; only a cube's are turned."""
        return _turn(vectors, -self.yaw) if self.shape == "cube" else vectors

    def to_world(self, vectors: Array) -> Array:
        """Directions (3, N) turned from the solid's own axes into the world's."""
        return _turn(vectors, self.yaw) if self.shape == "cube" else vectors


def _turn(vectors: Array, angle: float) -> Array:
    c, s = math.cos(angle), math.sin(angle)
    # Not `@`: its last bits depend on the number of threads, and pictures must not.
    return np.einsum("ij,jn->in", np.array(((c, -s, 0), (s, c, 0), (0, 0, 1)), dtype=np.float32), vectors)


def box_corners(solids: list[Solid]) -> Array:
    """The eight corners of the upright box around each solid, float64 (solids, 3, 8)."""
    centers = np.array([solid.center for solid in solids])
    halves = np.array([(solid.half_width, solid.half_width, solid.radius) for solid in solids])
    return centers[:, :, None] + halves[:, :, None] * _SIGNS


def cross(solid: Solid, origin: Array, direction: Array) -> tuple[Array, Array]:
    """Distances (N,) at which rays in the solid's own axes, origin relative to its centre, enter and leave it."""
    if solid.shape == "sphere":
        return _cross_round(origin, direction, solid.radius)
    if solid.shape == "cube":
        near, far = _cross_slab(origin, direction, solid.radius)
        return np.maximum(np.maximum(near[0], near[1]), near[2]), np.minimum(np.minimum(far[0], far[1]), far[2])
    enter, leave = _cross_round(origin[:2], direction[:2], solid.radius)
    near, far = _cross_slab(origin[2], direction[2], solid.radius)
    return np.maximum(enter, near), np.minimum(leave, far)


def _cross_slab(origin: Array, direction: Array, half: float) -> tuple[Array, Array]:
    """Where rays enter and leave the space between two planes at +- `half`, along each given axis."""
    # A ray along the planes would divide by zero; _TINY sends the crossings far away instead.
    inverse = 1 / (direction + _TINY)
    middle, reach = -origin * inverse, np.abs(np.float32(half) * inverse)
    return middle - reach, middle + reach


def _cross_round(origin: Array, direction: Array, radius: float) -> tuple[Array, Array]:
    """The same for a ball in as many dimensions as the vectors have: a sphere in three, a cylinder's wall in two."""
    inverse = 1 / (dot(direction, direction) + _TINY)
    middle = -dot(origin, direction) * inverse
    squared = middle * middle - (dot(origin, origin) - np.float32(radius * radius)) * inverse
    # Half the way inside; below zero the ray passes by, and a negative half makes it leave before it enters.
    half = np.sqrt(np.maximum(squared, 0)) - (squared <= 0)
    return middle - half, middle + half


def round_off(solid: Solid, origin: Array, direction: Array, enter: Array) -> Array:
    """Distances (N,) at which rays enter the solid with its edges rounded, from where they `enter` it with sharp ones.

    Infinite for rays that only pass through what is rounded off. A solid is what lies within `rounding` of a smaller
    one with sharp edges, so rays can safely step on by their distance to it (Hart, Sphere tracing, 1996).
    """
    if solid.rounding == 0 or solid.shape == "sphere":
        return enter
    result = enter.copy()
    index = np.flatnonzero(_beyond_edges(solid, origin + enter * direction) > _CLOSE)
    way = direction.take(index, axis=1)
    distance = enter.take(index)
    for _ in range(_STEPS):
        gap = _beyond_edges(solid, origin + distance * way)
        distance += np.float32(solid.radius) * gap
    result[index] = np.where(gap < _CLOSE, distance, np.float32(np.inf))
    return result


def _beyond_edges(solid: Solid, points: Array) -> Array:
    """How far (N,) points (3, N) are outside the rounded solid, in its radii; at most 0 on faces and inside."""
    over = np.maximum(np.abs(_scaled(solid, points)) - np.float32(1 - solid.rounding), 0)
    return np.sqrt(dot(over, over)) - np.float32(solid.rounding)


def _scaled(solid: Solid, points: Array) -> Array:
    """Points (3, N) in radii along the axes that edges are met on: (3, N) of a cube, across and up (2, N) else."""
    scaled = points / np.float32(solid.radius)
    return scaled if solid.shape == "cube" else np.stack((np.sqrt(dot(scaled[:2], scaled[:2])), scaled[2]))


def normals(solid: Solid, points: Array) -> Array:
    """Outward unit normals (3, N), in the solid's own axes, at points (3, N) of its surface relative to its centre.

    Edges of cubes and cylinders are rounded in the release; where they are sharp here, the normals turn over within
    BEVEL of an edge all the same, which shows similar highlights.
    """
    scaled = points / np.float32(solid.radius)
    bevel = np.float32(1 - max(BEVEL, solid.rounding))
    if solid.shape == "sphere":
        return scaled
    if solid.shape == "cube":
        outward = scaled * np.maximum(np.abs(scaled) - bevel, 0)
    else:
        across = np.sqrt(dot(scaled[:2], scaled[:2]))
        outward = scaled * np.maximum(across - bevel, 0)
        outward[2] = scaled[2] * np.maximum(np.abs(scaled[2]) - bevel, 0)
    return outward / np.sqrt(dot(outward, outward) + _TINY)
