"""Light and materials: what a point of the ground, of rubber or of metal sends to the camera.

Shapes:
    N  number of points; points, normals and directions are float32 (3, N), light is linear, 1 is white.

The lamps' places and the colours are the release's. The lamps' strengths and the ambient light were fitted by us to the
median of 98 released pictures (residual 0.011 of linear light); the ground's albedo and the finishes were chosen by eye
beside released pictures. Knows nothing of scenes, solids and pictures.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_scripts.synth.camera import Array, Point, dot
from data_scripts.synth.presets import Preset

COLORS: dict[str, tuple[int, int, int]] = {
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
"""Base colours of the release; its renderer reads them as linear light times 255."""

Lamps = tuple[Point, Point, Point]
"""Places of the key, the fill and the back lamp."""

LAMPS: Lamps = ((6.4467, -2.9052, 4.2584), (-4.6711, -4.0136, 3.0112), (-1.1685, 2.6460, 5.8157))
STRENGTHS = (4.69, 0.86, 1.72)
"""What a lamp adds to the ground's light at distance 1, shining straight down."""
AMBIENT = 0.128
GROUND_ALBEDO = 0.55
LAMP_RADIUS = 0.7
"""Half the width of a lamp, which makes its shadows soft."""


class Surface(NamedTuple):
    """Points of objects to be shaded."""

    points: Array  # (3, N)
    facing: Array  # (3, N) unit normals
    bounce: Array  # (3, N) unit directions into which the view is mirrored
    ids: NDArray[np.int16]  # (N,) the object of each point


class Finish(NamedTuple):
    """How a material answers light; all but `sharpness` are shares."""

    diffuse: float
    mirror: float  # of the surroundings, tinted
    tinted_glow: float
    white_glow: float
    sharpness: float


FINISHES = {
    "rubber": Finish(diffuse=1.0, mirror=0.0, tinted_glow=0.0, white_glow=0.06, sharpness=12.0),
    "metal": Finish(diffuse=0.12, mirror=0.9, tinted_glow=1.5, white_glow=0.8, sharpness=35.0),
}


def sample_lamps(preset: Preset, rng: random.Random) -> Lamps:
    """The lamps with the preset's jitter: every coordinate uniform within +- `light_jitter`."""
    jitter = preset.light_jitter
    key, fill, back = (
        (x + rng.uniform(-jitter, jitter), y + rng.uniform(-jitter, jitter), z + rng.uniform(-jitter, jitter))
        for x, y, z in LAMPS
    )
    return key, fill, back


def lamps_on_ground(lamps: Lamps, points: Array) -> Array:
    """Light that each lamp gives to the ground at points (3, N), (lamps, N): cosine over squared distance."""
    x, y, z = _toward(lamps, points)
    squared = x * x + y * y + z * z
    return z * _column(STRENGTHS) / (squared * np.sqrt(squared))


def objects_light(lamps: Lamps, surface: Surface, lit: Array, looks: Sequence[tuple[str, str]]) -> Array:
    """Light (3, N) that points of objects send to the camera.

    Args:
        lit: how much of each lamp's light arrives, (lamps, N).
        looks: for each object its material and colour.
    """
    finishes = np.array([FINISHES[material] for material, _ in looks], dtype=np.float32).T
    diffuse_share, mirror_share, tinted_glow, white_glow, sharpness = finishes.take(surface.ids, axis=1)
    colors = np.array([COLORS[color] for _, color in looks], dtype=np.float32).T / 255
    toward = _toward(lamps, surface.points)
    inverse = 1 / np.sqrt(dot(toward, toward))
    facing = np.maximum(dot(toward, surface.facing[:, None]), 0) * (inverse * inverse * inverse) * lit
    # exp(-k (1 - cos)) is a smooth lobe and cheaper than a power.
    lobe = np.exp(sharpness * (dot(toward, surface.bounce[:, None]) * inverse - 1)) * lit
    glow = (lobe * _column(STRENGTHS)).sum(axis=0) / np.float32(STRENGTHS[0])
    diffuse = (facing * _column(STRENGTHS)).sum(axis=0)
    diffuse += np.float32(0.7 * AMBIENT) + np.float32(0.3 * AMBIENT) * surface.facing[2]  # less comes from below
    tinted = diffuse_share * diffuse / np.float32(GROUND_ALBEDO) + tinted_glow * glow
    polished = np.flatnonzero(mirror_share)
    seen = mirrored(lamps, surface.points.take(polished, axis=1), surface.bounce.take(polished, axis=1))
    tinted[polished] += mirror_share.take(polished) * seen
    return colors.take(surface.ids, axis=1) * tinted + white_glow * glow


def mirrored(lamps: Lamps, points: Array, bounce: Array) -> Array:
    """Light (N,) that metal sees in directions (3, N): the lit ground below, a dark room above."""
    up = bounce[2]
    spot = points - bounce * (points[2] / np.minimum(up, np.float32(-0.02)))
    spot[2] = 0
    floor = lamps_on_ground(lamps, spot).sum(axis=0) + np.float32(AMBIENT)
    floor *= 1 - np.float32(0.6) * up * up  # straight below it is the dark ground under the object itself
    room = np.float32(0.03) + np.float32(0.06) * (1 - up)
    blend = np.clip(np.float32(0.5) - up * np.float32(8), 0, 1)
    return room + blend * (floor - room)


def _toward(lamps: Lamps, points: Array) -> Array:
    """The ways from points (3, N) to the lamps, (3, lamps, N)."""
    return np.array(lamps, dtype=np.float32).T[:, :, None] - points[:, None]


def _column(values: Sequence[float]) -> Array:
    return np.array(values, dtype=np.float32)[:, None]


def encode_srgb(light: Array) -> NDArray[np.uint8]:
    """Linear light to 8-bit sRGB (IEC 61966-2-1), any shape."""
    return _SRGB.take((np.clip(light, 0, 1) * np.float32(_SRGB.size - 1) + np.float32(0.5)).astype(np.int32))


def _srgb_table(size: int) -> NDArray[np.uint8]:
    light = np.linspace(0, 1, size)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (encoded * 255 + 0.5).astype(np.uint8)


_SRGB = _srgb_table(1 << 14)
