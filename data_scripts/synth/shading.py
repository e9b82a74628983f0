"""Light and materials: what a point of the ground, of rubber or of metal sends to the camera.

Shapes:
    N  number of points; points, normals and directions are float32 (3, N), light is linear, 1 is white.

The lamps' places and the colours are the release's. The rest was fitted by us to released pictures. Studio "plain", for
small pictures: the lamps' strengths and the ambient light to the median of 98 pictures (residual 0.011 of linear
light); albedo and finishes by eye. Studio "release": tinted flat lamps to the ground of 284 pictures, by median over
squares of half a unit (residual 0.004); rubber and what metal mirrors to samples of their pixels in every second or
third of these pictures, by least squares; highlights by eye. Knows nothing of scenes, solids and pictures.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_scripts.errors import DataError
from data_scripts.synth.camera import Array, Point, column, dot
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

LAMP_PLACES: tuple[Point, Point, Point] = (
    (6.4467, -2.9052, 4.2584),
    (-4.6711, -4.0136, 3.0112),
    (-1.1685, 2.6460, 5.8157),
)
"""Of the key, the fill and the back lamp."""
GROUND_ALBEDO = 0.55
ROOM_ABOVE, ROOM_AROUND = np.float32(0.03), np.float32(0.06)
"""Light that metal sees straight above it, and how much more of it from around."""
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
    haze: float = 0.0  # how strong, beside the sharp one, the wide glow of a rough mirror is
    haze_sharpness: float = 1.0


class Lobe(NamedTuple):
    """Light out of directions around one: `light` in its middle, fading as exp(-sharpness (1 - cos))."""

    middle: Point  # unit direction
    light: float
    sharpness: float


@dataclass(frozen=True, eq=False)
class Studio:
    """What the lamps, the light from all around and the materials are like."""

    strengths: Point  # what each lamp adds to the ground's light at distance 1, shining straight down
    on_objects: Point  # the same for the objects' light, times GROUND_ALBEDO
    ambient: float  # of the ground
    ambient_on_objects: tuple[float, float]  # from all sides, and how much more from above and less from below
    finishes: Mapping[str, Finish]
    tints: tuple[Point, Point, Point] | None = None  # RGB of each lamp's light; None: white
    axes: tuple[Point, Point, Point] | None = None  # unit ways that flat lamps face; None: they shine all around alike
    room: tuple[Lobe, ...] = ()  # what metal sees above the ground, over ROOM; none: a room that darkens upwards
    horizon: float = 8.0  # how sharply metal parts the room from the ground
    dark_below: float = 0.6  # how much of the ground straight below metal is hidden by the object itself
    mirrors_objects: bool = False  # whether metal shows the other objects

    def mix(self, light: Array) -> Array:
        """The lamps' light (lamps, ...) together: (...) where it is white, else (3, ...)."""
        if self.tints is None:
            return light.sum(axis=0)
        mixed = np.empty((3, *light.shape[1:]), dtype=np.float32)
        for channel, shares in zip(mixed, np.array(self.tints, dtype=np.float32).T, strict=True):
            np.multiply(light[0], shares[0], out=channel)
            for one, share in zip(light[1:], shares[1:], strict=True):
                channel += one * share
        return mixed


STUDIOS: dict[str, Studio] = {
    "plain": Studio(
        strengths=(4.69, 0.86, 1.72),
        on_objects=(4.69, 0.86, 1.72),
        ambient=0.128,
        ambient_on_objects=(0.0896, 0.0384),
        finishes={
            "rubber": Finish(diffuse=1.0, mirror=0.0, tinted_glow=0.0, white_glow=0.06, sharpness=12.0),
            "metal": Finish(diffuse=0.12, mirror=0.9, tinted_glow=1.5, white_glow=0.8, sharpness=35.0),
        },
    ),
    "release": Studio(
        strengths=(4.55, 0.99, 2.92),
        on_objects=(4.36, 0.61, 1.83),
        ambient=0.135,
        ambient_on_objects=(0.082, 0.0),
        finishes={
            "rubber": Finish(diffuse=1.0, mirror=0.0, tinted_glow=0.0, white_glow=0.01, sharpness=2.0),
            "metal": Finish(
                0.0, mirror=0.89, tinted_glow=5.0, white_glow=0.0, sharpness=300.0, haze=0.055, haze_sharpness=11.0
            ),
        },
        room=(
            Lobe((-0.791, 0.610, -0.045), 0.172, 3.15),
            Lobe((0.401, -0.228, 0.887), 0.30, 11.3),
            Lobe((0.401, -0.228, 0.887), 6.0, 400.0),
        ),
        horizon=2.6,
        dark_below=0.0,
        tints=((1.085, 1.0, 0.850), (0.915, 1.0, 1.307), (1.006, 1.0, 0.992)),
        axes=((-0.677, 0.439, -0.590), (0.715, 0.422, -0.557), (0.004, -0.601, -0.799)),
        mirrors_objects=True,
    ),
}


@dataclass(frozen=True)
class Lamps:
    """Where the key, the fill and the back lamp stand, in which studio."""

    places: tuple[Point, Point, Point]
    studio: Studio


LAMPS = Lamps(LAMP_PLACES, STUDIOS["plain"])
"""The lamps as they stand before they are jittered."""


def sample_lamps(preset: Preset, rng: random.Random) -> Lamps:
    """The lamps with the preset's jitter: every coordinate uniform within +- `light_jitter`.

    Raises:
        DataError: the preset's studio is unknown.
    """
    if preset.studio not in STUDIOS:
        raise DataError(f"expected a studio out of {', '.join(STUDIOS)}, got {preset.studio!r}")
    jitter = preset.light_jitter
    key, fill, back = (
        (x + rng.uniform(-jitter, jitter), y + rng.uniform(-jitter, jitter), z + rng.uniform(-jitter, jitter))
        for x, y, z in LAMP_PLACES
    )
    return Lamps((key, fill, back), STUDIOS[preset.studio])


def lamps_on_ground(lamps: Lamps, points: Array) -> Array:
    """Light that each lamp gives to the ground at points (3, N), (lamps, N): cosine over squared distance."""
    toward = _toward(lamps, points)
    x, y, z = toward
    squared = x * x + y * y + z * z
    if lamps.studio.axes is None:
        return z * _column(lamps.studio.strengths) / (squared * np.sqrt(squared))
    return z * _facing_lamps(lamps, toward) / (squared * squared) * _column(lamps.studio.strengths)


def objects_light(
    lamps: Lamps,
    surface: Surface,
    lit: Array,
    looks: Sequence[tuple[str, str]],
    mirrored_objects: Callable[[Surface], tuple[NDArray[np.int64], Surface]] | None = None,
) -> Array:
    """Light (3, N) that points of objects send to the camera.

    Args:
        lit: how much of each lamp's light arrives, (lamps, N).
        looks: for each object its material and colour.
        mirrored_objects: finds for points of metal which of them show another object, and what they show of it.
    """
    studio = lamps.studio
    finishes = np.array([studio.finishes[material] for material, _ in looks], dtype=np.float32).T
    diffuse_share, mirror_share, tinted_glow, white_glow, sharpness, haze, haze_sharpness = finishes.take(
        surface.ids, axis=1
    )
    colors = np.array([COLORS[color] for _, color in looks], dtype=np.float32).T / 255
    toward = _toward(lamps, surface.points)
    inverse = 1 / np.sqrt(dot(toward, toward))
    if studio.axes is not None:
        lit = lit * _facing_lamps(lamps, toward) * inverse
    facing = np.maximum(dot(toward, surface.facing[:, None]), 0) * (inverse * inverse * inverse) * lit
    # exp(-k (1 - cos)) is a smooth lobe and cheaper than a power.
    away = dot(toward, surface.bounce[:, None]) * inverse - 1
    lobe = np.exp(sharpness * away)
    if haze.any():
        lobe += haze * np.exp(haze_sharpness * away)
    lobe *= lit
    strengths = _column(studio.on_objects)
    glow = studio.mix(lobe * strengths) / np.float32(studio.on_objects[0])
    diffuse = studio.mix(facing * strengths)
    around, above = studio.ambient_on_objects
    diffuse += np.float32(around) + np.float32(above) * surface.facing[2]
    tinted = diffuse_share * diffuse / np.float32(GROUND_ALBEDO) + tinted_glow * glow
    polished = np.flatnonzero(mirror_share)
    part = Surface(*(array.take(polished, axis=-1) for array in surface))
    seen = mirrored(lamps, part.points, part.bounce)
    if mirrored_objects is not None:
        index, beyond = mirrored_objects(part)
        seen[..., index] = objects_light(lamps, beyond, np.ones((len(lit), len(index)), dtype=np.float32), looks)
    tinted[..., polished] += mirror_share.take(polished) * seen
    return colors.take(surface.ids, axis=1) * tinted + white_glow * glow


def mirrored(lamps: Lamps, points: Array, bounce: Array) -> Array:
    """Light that metal sees in directions (3, N): the lit ground below, a dark room above; shaped as by `mix`."""
    up = bounce[2]
    spot = points - bounce * (points[2] / np.minimum(up, np.float32(-0.02)))
    spot[2] = 0
    floor = lamps.studio.mix(lamps_on_ground(lamps, spot)) + np.float32(lamps.studio.ambient)
    floor *= 1 - np.float32(lamps.studio.dark_below) * up * up
    room = _room(lamps.studio, bounce)
    blend = np.clip(np.float32(0.5) - up * np.float32(lamps.studio.horizon), 0, 1)
    return room + blend * (floor - room)


def _room(studio: Studio, directions: Array) -> Array:
    """Light (N,) from directions (3, N) of the room above the ground."""
    if not studio.room:
        return ROOM_ABOVE + ROOM_AROUND * (1 - directions[2])
    light = np.full(directions.shape[1], ROOM_ABOVE)
    for lobe in studio.room:
        light += np.float32(lobe.light) * np.exp(
            np.float32(lobe.sharpness) * (dot(column(lobe.middle), directions) - 1)
        )
    return light


def _toward(lamps: Lamps, points: Array) -> Array:
    """The ways from points (3, N) to the lamps, (3, lamps, N)."""
    return np.array(lamps.places, dtype=np.float32).T[:, :, None] - points[:, None]


def _facing_lamps(lamps: Lamps, toward: Array) -> Array:
    """How far lamps face the points that they are `toward` (3, lamps, N): cosine times distance, at least 0."""
    assert lamps.studio.axes is not None
    axes = np.array(lamps.studio.axes, dtype=np.float32).T[:, :, None]
    return np.maximum(-dot(toward, axes), 0)


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
