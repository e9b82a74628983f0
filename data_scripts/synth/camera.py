"""A pinhole camera that looks at the origin, or a point above it, with z up, as the release's scenes were seen.

Fitted to the release: focal length 525 pixels for a picture 480 wide, principal point in the middle, residual 0.2
pixels. Knows geometry only; world units are those of the scenes.
"""

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]
Array = NDArray[Any]
"""float32, unless said otherwise."""


@dataclass(frozen=True)
class Camera:
    """Where the camera stands, the picture's size in pixels, the focal length in pixels, the height it looks at."""

    position: Point
    width: int
    height: int
    focal: float
    aim: float = 0.0  # above the origin, world units

    @cached_property
    def axes(self) -> tuple[Point, Point, Point]:
        """Unit vectors to the right, up and forward in the picture."""
        x, y, z = self.position[0], self.position[1], self.position[2] - self.aim
        distance, ground = math.sqrt(x * x + y * y + z * z), math.hypot(x, y)
        forward = (-x / distance, -y / distance, -z / distance)
        right = (-y / ground, x / ground, 0.0)
        up = (
            right[1] * forward[2] - right[2] * forward[1],
            right[2] * forward[0] - right[0] * forward[2],
            right[0] * forward[1] - right[1] * forward[0],
        )
        return right, up, forward

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """World points (3, N) in the picture: x from the left and y from the top in pixels, depth in world units."""
        across, above, depth = np.array(self.axes) @ (points - np.array(self.position)[:, None])
        scale = self.focal / depth
        return np.stack((self.width / 2 + scale * across, self.height / 2 - scale * above, depth))


def ground_directions(position: Point) -> dict[str, Point]:
    """The scene's `directions` for a camera at `position`: unit vectors on the ground, plus above and below.

    The release has the same constants in all scenes: those of the camera before it was jittered.
    """
    right, _, forward = Camera(position, 1, 1, 1.0).axes
    ground = math.hypot(forward[0], forward[1])
    behind = (forward[0] / ground, forward[1] / ground, 0.0)
    return {
        "right": right,
        "left": _negative(right),
        "behind": behind,
        "front": _negative(behind),
        "above": (0.0, 0.0, 1.0),
        "below": (0.0, 0.0, -1.0),
    }


def _negative(vector: Point) -> Point:
    return (0.0 - vector[0], 0.0 - vector[1], 0.0 - vector[2])


@lru_cache(maxsize=2)
def rays(camera: Camera, samples: int) -> Array:
    """Unit directions of the rays through `samples` x `samples` points of every pixel, read-only.

    Returns:
        float32 (3, height * samples, width * samples).
    """
    x, y = _offsets(camera.width, camera.height, samples)
    shrink = _inverse_lengths(camera.width, camera.height, camera.focal, samples)
    result = np.empty((3, *shrink.shape), dtype=np.float32)
    for part, right, up, forward in zip(result, *camera.axes, strict=True):
        np.multiply((forward * camera.focal + up * y) + right * x, shrink, out=part, casting="same_kind")
    result.flags.writeable = False
    return result


def _offsets(width: int, height: int, samples: int) -> tuple[Array, Array]:
    """Where samples lie from the middle of the picture, float64 pixels: to the right (1, W), and up (H, 1)."""
    x = (np.arange(width * samples) + 0.5) / samples - width / 2
    y = height / 2 - (np.arange(height * samples) + 0.5) / samples
    return x[None, :], y[:, None]


@lru_cache(maxsize=2)
def _inverse_lengths(width: int, height: int, focal: float, samples: int) -> Array:
    """What makes the rays unit vectors, float64 (H, W); the same wherever the camera stands."""
    x, y = _offsets(width, height, samples)
    return 1 / np.sqrt(x * x + y * y + focal * focal)


def dot(a: Array, b: Array) -> Array:
    """Scalar products of vectors (3, ...) or (2, ...) along the first axis; quicker than a product and a sum."""
    result = a[0] * b[0] + a[1] * b[1]
    return result + a[2] * b[2] if len(a) == 3 else result


def mirror(ways: Array, facing: Array) -> Array:
    """Directions (3, N) thrown back by a surface with unit normals `facing` (3, N)."""
    return ways - 2 * dot(ways, facing) * facing


def column(point: Point) -> Array:
    """A point as float32 (3, 1)."""
    return np.array(point, dtype=np.float32)[:, None]
