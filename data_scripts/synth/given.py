"""Scenes from a file, to be drawn and asked about: read, checked, and completed where only what can be computed lacks.

Knows the release's schema and the preset's camera; neither questions nor pictures.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_scripts.errors import DataError
from data_scripts.synth.camera import Camera, ground_directions
from data_scripts.synth.camera_fit import fit_camera
from data_scripts.synth.presets import Preset
from data_scripts.synth.programs import ATTRIBUTES, RELATIONS
from data_scripts.synth.scenes import Thing, relationships

MOST_OBJECTS = 10
"""More cannot be counted with the release's answers."""
_NUMBERS = {"3d_coords": 3, "pixel_coords": 3}
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def read_scenes(path: Path) -> dict[str, list[Thing]]:
    """The scenes of each split, in the file's order.

    The file is the release's `CLEVR_<split>_scenes.json`, or a plain list of scenes. Of a scene, `split` (else that of
    the file's `info`), `image_index`, `image_filename` and `objects` are needed; of an object its four attributes,
    `3d_coords` and `rotation`. `directions`, `relationships` and `pixel_coords` are optional.

    Raises:
        DataError: the file is no such JSON; or the scene, the object and the field that is missing or out of its table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"expected a JSON file of scenes at {path}, got {error}") from error
    scenes, info = (content.get("scenes"), content.get("info")) if isinstance(content, dict) else (content, None)
    if not isinstance(scenes, list) or not scenes:
        raise DataError(f"expected a list of scenes, or one under the key 'scenes', in {path}, got none")
    default = info.get("split") if isinstance(info, dict) else None
    by_split: dict[str, list[Thing]] = {}
    seen: set[tuple[str, Any]] = set()
    for number, scene in enumerate(scenes):
        if not isinstance(scene, dict):
            raise DataError(f"expected an object for scene {number} of {path}, got {scene!r:.40}")
        scene = {"split": default, **scene}
        _check_scene(scene, f"scene {number} of {path}")
        for key in (scene["image_index"], scene["image_filename"]):
            if (scene["split"], key) in seen:
                raise DataError(f"expected {key!r} once in split {scene['split']!r} of {path}, got it in two scenes")
            seen.add((scene["split"], key))
        by_split.setdefault(scene["split"], []).append(scene)
    return by_split


def complete(preset: Preset, scene: Thing) -> Thing:
    """A scene with `directions`, `relationships` and `pixel_coords`: the recorded ones, else the preset's camera's."""
    directions = scene.get("directions") or ground_directions(preset.camera)
    objects = [dict(thing) for thing in scene["objects"]]
    if any("pixel_coords" not in thing for thing in objects):
        places = np.array([thing["3d_coords"] for thing in objects]).T
        for thing, (x, y, depth) in zip(objects, base_camera(preset).project(places).T.tolist(), strict=True):
            thing["pixel_coords"] = [round(x), round(y), depth]
    related = scene.get("relationships") or relationships(objects, directions)
    return {**scene, "objects": objects, "relationships": related, "directions": directions}


def base_camera(preset: Preset) -> Camera:
    """The preset's camera without jitter."""
    return Camera(preset.camera, preset.width, preset.height, preset.focal * preset.width, preset.aim)


def camera_of(preset: Preset, scene: Thing) -> Camera:
    """The camera that explains the recorded `pixel_coords`, which are those of a picture of the preset's size.

    Where the scene records none it is the preset's camera without jitter. Raises DataError, with the scene's name.
    """
    objects = scene["objects"]
    if any("pixel_coords" not in thing for thing in objects):
        return base_camera(preset)
    base = base_camera(preset)
    size = {"width": base.width, "height": base.height}
    try:
        return fit_camera(objects, **size, focal=base.focal, aim=base.aim, start=base.position)
    except DataError as error:
        raise DataError(f"{scene['image_filename']}: {error}") from error


def _check_scene(scene: Thing, where: str) -> None:
    """Raise DataError for the first field that cannot be used."""
    split, name = scene["split"], scene.get("image_filename")
    if not isinstance(split, str) or not PLAIN_NAME.fullmatch(split):
        raise DataError(f"expected split of {where} to be a plain name such as 'val', got {split!r}")
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name) or not name.endswith(".png"):
        raise DataError(f"expected image_filename of {where} to be a plain name that ends in .png, got {name!r}")
    index = scene.get("image_index")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise DataError(f"expected image_index of {where} to be a number from 0, got {index!r}")
    objects = scene.get("objects")
    if not isinstance(objects, list) or not 1 <= len(objects) <= MOST_OBJECTS:
        got = f"{len(objects)}" if isinstance(objects, list) else repr(objects)
        raise DataError(f"expected 1 to {MOST_OBJECTS} objects in {where}, got {got}")
    for number, thing in enumerate(objects):
        _check_object(thing, f"object {number} in {where}")
    if len({"pixel_coords" in thing for thing in objects}) > 1:
        raise DataError(f"expected pixel_coords for all objects or for none in {where}, got them for some")
    if scene.get("directions") is not None:
        _check_directions(scene["directions"], where)
    if scene.get("relationships") is not None:
        _check_relationships(scene["relationships"], len(objects), where)


def _check_object(thing: Any, where: str) -> None:
    if not isinstance(thing, dict):
        raise DataError(f"expected fields for {where}, got {thing!r:.40}")
    for attribute, values in ATTRIBUTES.items():
        if thing.get(attribute) not in values:
            raise DataError(f"expected {attribute} of {where} to be {_either(values)}, got {thing.get(attribute)!r}")
    for name, length in _NUMBERS.items():
        if name in thing or name == "3d_coords":
            _check_numbers(thing.get(name), length, f"{name} of {where}")
    if thing["3d_coords"][2] <= 0:
        raise DataError(f"expected 3d_coords of {where} above the ground, got a height of {thing['3d_coords'][2]}")
    if not _is_number(thing.get("rotation")):
        raise DataError(f"expected rotation of {where} to be a number, got {thing.get('rotation')!r}")


def _check_numbers(values: Any, length: int, what: str) -> None:
    if not isinstance(values, list) or len(values) != length or not all(map(_is_number, values)):
        raise DataError(f"expected {what} to be {length} numbers, got {values!r:.60}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_directions(directions: Any, where: str) -> None:
    for relation in RELATIONS:
        vector = directions.get(relation) if isinstance(directions, dict) else None
        _check_numbers(vector, 3, f"directions[{relation!r}] of {where}")


def _check_relationships(related: Any, number: int, where: str) -> None:
    for relation in RELATIONS:
        lists = related.get(relation) if isinstance(related, Mapping) else None
        if not isinstance(lists, list) or len(lists) != number:
            raise DataError(f"expected relationships[{relation!r}] of {where} to be {number} lists, got {lists!r:.60}")
        for i, members in enumerate(lists):
            others = set(range(number)) - {i}
            if not isinstance(members, list) or len(set(map(repr, members))) != len(members):
                raise DataError(f"expected relationships[{relation!r}][{i}] of {where} to be a list, got {members!r}")
            if not all(type(j) is int and j in others for j in members):
                raise DataError(
                    f"expected relationships[{relation!r}][{i}] of {where} to name other objects, got {members}"
                )


def _either(values: tuple[str, ...]) -> str:
    return ", ".join(values[:-1]) + f" or {values[-1]}"
