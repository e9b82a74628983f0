"""Spheres, cubes and upright cylinders as ray targets: where rays enter and leave, and the normal where they enter.

Shapes:
    N  number of rays
    rays have float32 origins (3, N) or (3, 1) and unit directions (3, N), in world units.

Knows nothing of colours, light and cameras. Rays that miss have `enter > leave`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from data_scripts.synth.camera import Array, Point, dot

BEVEL = 0.08
"""How much of a half edge is rounded."""
_TINY = np.float32(1e-12)
_SIGNS = np.array(list(product((-1.0, 1.0), repeat=3))).T


@dataclass(frozen=True)
class Solid:
    """One object on the ground plane z = 0.

    Sizes as measured on the release: `radius` of the sphere; radius and half the height of the cylinder; half the edge
    of the cube. `yaw` turns about z, in radians.
    """

    shape: str
    center: Point
    radius: float
    yaw: float

    @classmethod
    def of(cls, thing: Mapping[str, Any]) -> "Solid":
        """The solid of a scene's object: the release rests centres at z = radius and hands `rotation` on as radians."""
        x, y, z = thing["3d_coords"]
        return cls(thing["shape"], (x, y, z), z, math.fmod(thing["rotation"], 2 * math.pi))

    @property
    def half_width(self) -> float:
        """Half the edge of the upright box around the solid, along x and along y."""
        if self.shape == "cube":
            return self.radius * (abs(math.cos(self.yaw)) + abs(math.sin(self.yaw)))
        return self.radius

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


def normals(solid: Solid, points: Array) -> Array:
    """Outward unit normals (3, N), in the solid's own axes, at points (3, N) of its surface relative to its centre.

    Edges of cubes and cylinders are slightly rounded in the release; here the normals turn over within BEVEL of an
    edge, which shows the same highlights.
    """
    scaled = points / np.float32(solid.radius)
    if solid.shape == "sphere":
        return scaled
    if solid.shape == "cube":
        outward = scaled * np.maximum(np.abs(scaled) - np.float32(1 - BEVEL), 0)
    else:
        across = np.sqrt(dot(scaled[:2], scaled[:2]))
        outward = scaled * np.maximum(across - np.float32(1 - BEVEL), 0)
        outward[2] = scaled[2] * np.maximum(np.abs(scaled[2]) - np.float32(1 - BEVEL), 0)
    return outward / np.sqrt(dot(outward, outward) + _TINY)
