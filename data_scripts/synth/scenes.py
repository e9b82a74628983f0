"""Random scenes in the release's schema: objects that keep their distance, their relations and picture positions.

The rules and numbers are the release's (read in facebookresearch/clevr-dataset-gen, checked on 1,500 real scenes:
separations of at least 0.25 between outlines and 0.4 along every direction). Knows nothing of pictures; whether every
object can be seen is decided where scenes are drawn.
"""

import math
import random
from typing import Any

import numpy as np

from data_scripts.errors import DataError
from data_scripts.synth.camera import Camera, Point, ground_directions
from data_scripts.synth.presets import Preset
from data_scripts.synth.programs import ATTRIBUTES, RELATIONS

RELATION_THRESHOLD = 0.2
"""How far apart along a direction two objects must be to stand in that relation (public generator)."""
TRIES_PER_OBJECT = 50
"""Failed tries for one object before the whole scene is begun again (public generator)."""
SCENE_RESTARTS = 2_000
"""Restarts after which the preset's distances are taken to be impossible."""

Thing = dict[str, Any]


def sample_camera(preset: Preset, rng: random.Random) -> Camera:
    """The preset's camera with its jitter: every coordinate uniform within +- `camera_jitter`."""
    x, y, z = (c + rng.uniform(-preset.camera_jitter, preset.camera_jitter) for c in preset.camera)
    return Camera((x, y, z), preset.width, preset.height, preset.focal * preset.width, preset.aim)


def sample_scene(
    preset: Preset, camera: Camera, rng: random.Random, *, split: str, image_index: int, number: int | None = None
) -> Thing:
    """One scene of the release's schema, of `number` objects or of as many as the preset draws.

    Object centres are in world units, `rotation` is 0..360 and is meant as radians by the release's renderer and by
    ours; `pixel_coords` are pixels of the preset's picture and the depth in world units.

    Raises:
        DataError: the preset leaves no room for so many objects.
    """
    directions = ground_directions(preset.camera)
    if number is None:
        number = rng.randint(*preset.objects)
    for _ in range(SCENE_RESTARTS):
        objects = _place_objects(preset, directions, number, rng)
        if objects is not None:
            break
    else:
        raise DataError(
            f"expected room for {number} objects in preset {preset.name!r}, found none in {SCENE_RESTARTS} tries: "
            "enlarge half_extent or lessen min_distance, margin or objects"
        )
    places = np.array([thing["3d_coords"] for thing in objects]).T
    for thing, (x, y, depth) in zip(objects, camera.project(places).T.tolist(), strict=True):
        thing["pixel_coords"] = [round(x), round(y), depth]
    return {
        "split": split,
        "image_index": image_index,
        "image_filename": f"CLEVR_{split}_{image_index:06d}.png",
        "objects": objects,
        "relationships": relationships(objects, directions),
        "directions": {name: list(direction) for name, direction in directions.items()},
    }


def _place_objects(preset: Preset, directions: dict[str, Point], number: int, rng: random.Random) -> list[Thing] | None:
    """Objects at allowed places, or None where one found none."""
    objects: list[Thing] = []
    while len(objects) < number:
        size = _pick(tuple(preset.sizes), rng)
        radius = preset.sizes[size]
        for _ in range(TRIES_PER_OBJECT):
            x = (2 * rng.random() - 1) * preset.half_extent
            y = (2 * rng.random() - 1) * preset.half_extent
            if all(_apart(preset, directions, x, y, radius, other) for other in objects):
                break
        else:
            return None
        shape = _pick(ATTRIBUTES["shape"], rng)
        objects.append(
            {
                "shape": shape,
                "size": size,
                "material": _pick(ATTRIBUTES["material"], rng),
                "color": _pick(preset.palettes.get(shape, ATTRIBUTES["color"]), rng),
                "3d_coords": [x, y, radius],
                "rotation": 360 * rng.random(),
            }
        )
    return objects


def _apart(preset: Preset, directions: dict[str, Point], x: float, y: float, radius: float, other: Thing) -> bool:
    """Whether a new object keeps the minimum distance to another one, and the margin along both directions."""
    dx, dy = x - other["3d_coords"][0], y - other["3d_coords"][1]
    if math.hypot(dx, dy) - radius - other["3d_coords"][2] < preset.min_distance:
        return False
    right, behind = directions["right"], directions["behind"]
    across, along = dx * right[0] + dy * right[1], dx * behind[0] + dy * behind[1]
    return abs(across) >= preset.margin and abs(along) >= preset.margin


def relationships(objects: list[Thing], directions: dict[str, Point]) -> dict[str, list[list[int]]]:
    """For each relation and object i the sorted list of objects that stand in that relation to i."""
    places = [thing["3d_coords"] for thing in objects]
    result: dict[str, list[list[int]]] = {}
    for relation in RELATIONS:
        dx, dy, _ = directions[relation]
        along = [place[0] * dx + place[1] * dy for place in places]
        result[relation] = [
            [j for j, there in enumerate(along) if there - here > RELATION_THRESHOLD and j != i]
            for i, here in enumerate(along)
        ]
    return result


def _pick(options: tuple[str, ...], rng: random.Random) -> str:
    return options[int(rng.random() * len(options))]
