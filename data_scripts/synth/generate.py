"""Writes a whole data set in the release's layout: images, scenes, questions; the same for any number of workers.

A split is cut into blocks of BLOCK pictures. A block depends on the preset, the seed, the split and its number only
(and on its scenes where they are given), so blocks can be made by any process in any order; this file puts them
together in order. It writes into a hidden folder beside the target and renames it when complete, so that a data set
exists whole or not at all.
"""

import hashlib
import json
import platform
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from data_scripts.errors import DataError
from data_scripts.folders import expect_new, whole_folder
from data_scripts.synth import given, render, shading, trace
from data_scripts.synth.camera import Camera
from data_scripts.synth.output import JsonList, dump
from data_scripts.synth.png import encode_png
from data_scripts.synth.presets import Preset, find_preset
from data_scripts.synth.questions import QuestionWriter
from data_scripts.synth.scenes import Thing, sample_camera, sample_scene
from data_scripts.workers import ordered_map

VERSION = "1.1"
"""Of the generator; raise it when the same preset and seed give other data."""
MOST_IMAGES = 999_999
"""More have no name of six digits, as the release's have."""
BLOCK = 250
"""Pictures a block: the public generator resets its balance of answers as often."""
SCENE_TRIES = 1_000
"""Scenes drawn for one picture before the preset's visibility rule is taken to be impossible."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Block:
    """A run of pictures of one split that is made in one go: of `count` new scenes, or of the given ones."""

    split: str
    first: int
    count: int
    given: tuple[Thing, ...] | None = None


@dataclass(frozen=True)
class BlockText:
    """The JSON of a block: its scenes, and its questions without their `question_index`."""

    scenes: list[str]
    questions: list[str]


def generate(
    preset: str | Preset,
    out: Path,
    *,
    seed: int = 0,
    workers: int = 1,
    images: Mapping[str, int] | None = None,
    scenes: Path | None = None,
    pictures: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a data set; the result is a function of the preset, the seed and `images` or `scenes` only.

    Args:
        preset: a name out of `presets.PRESETS`, or a preset of one's own.
        out: the folder to make; it may exist if it is empty.
        seed: the splits draw from different streams of it, so no picture of one is a picture of another.
        workers: processes; 1 makes everything in this one. Several are spawned, so that a script that calls this
            needs the usual `if __name__ == "__main__":`.
        images: pictures per split, instead of the preset's. More pictures leave those before them as they are.
        scenes: a file of scenes to draw and ask about instead of new ones, see `given.read_scenes`; `pixel_coords` in
            it are those of a picture of the preset's size. Splits, names and indices are the file's.
        pictures: whether images are drawn; scenes and questions are the same without.
        progress: called with the pictures done and the pictures in all after each block.

    Returns:
        What `info.json` in the folder says: preset, seed, versions, and the pictures and questions of each split.

    Raises:
        DataError: `out` is not empty, the preset is unknown or cannot be met, a count is not positive, or a given scene
            cannot be used.
    """
    preset = find_preset(preset)
    if scenes is None:
        blocks = _new_blocks(preset.images if images is None else images)
        source = None
    elif images is not None:
        raise DataError(f"expected images or scenes, got both: the file {scenes} says how many pictures there are")
    else:
        by_split = given.read_scenes(scenes)
        numbers = [len(scene["objects"]) for split in by_split.values() for scene in split]
        preset = replace(preset, objects=(min(numbers), max(numbers)))
        blocks = _given_blocks(by_split)
        source = {"file": scenes.name, "sha256": hashlib.sha256(scenes.read_bytes()).hexdigest()}
    if workers < 1:
        raise DataError(f"expected at least one worker, got {workers}")
    expect_new(out)
    info = _info(preset, seed, source)
    total = sum(block.count for of_split in blocks.values() for block in of_split)
    with whole_folder(out) as folder, ordered_map(workers) as mapper:
        done = 0
        for split, of_split in blocks.items():
            if pictures:
                (folder / "images" / split).mkdir(parents=True)
            make = partial(make_block, preset, seed, folder if pictures else None)
            with (
                JsonList(folder, "scenes", split, VERSION) as scene_list,
                JsonList(folder, "questions", split, VERSION) as questions,
            ):
                for text in mapper(make, of_split):
                    _append(text, scene_list, questions)
                    if progress is not None:
                        progress(done + scene_list.count, total)
            info["splits"][split] = {"images": scene_list.count, "questions": questions.count}
            done += scene_list.count
        info_text = json.dumps(info, indent=1)
        (folder / "info.json").write_text(info_text + "\n")
    return dict(json.loads(info_text))


def make_block(preset: Preset, seed: int, folder: Path | None, block: Block) -> BlockText:
    """Draw a block's pictures into `folder`, or none where it is None; return its scenes and questions as JSON."""
    writer = QuestionWriter(preset)
    text = BlockText([], [])
    for position in range(block.count):
        known = None if block.given is None else block.given[position]
        image_index = block.first + position if known is None else known["image_index"]
        # A string seeds through SHA-512, on every platform and in every process alike.
        rng = random.Random(f"{preset.name}/{seed}/{block.split}/{image_index}")
        traced: trace.Trace | None = None
        if known is None:
            scene, traced = sample_visible_scene(preset, rng, split=block.split, image_index=image_index)
        else:
            scene = given.complete(preset, known)
            if folder is not None:
                traced = _trace(preset, scene, given.camera_of(preset, known))
        lamps = shading.sample_lamps(preset, rng)  # also without pictures, so that the questions stay the same
        if folder is not None and traced is not None:
            picture = _shade(preset, scene, lamps, traced)
            (folder / "images" / block.split / scene["image_filename"]).write_bytes(encode_png(picture))
        text.scenes.append(dump(scene))
        text.questions.extend(dump(question) for question in writer.ask(scene, rng))
    return text


def make_picture(
    preset: Preset, rng: random.Random, *, split: str = "train", image_index: int = 0
) -> tuple[Thing, np.ndarray]:
    """One scene that shows every object well enough, and its picture, uint8 RGB (height, width, 3).

    Raises:
        DataError: the preset's visibility rule is never met.
    """
    scene, traced = sample_visible_scene(preset, rng, split=split, image_index=image_index)
    return scene, _shade(preset, scene, shading.sample_lamps(preset, rng), traced)


def sample_visible_scene(
    preset: Preset, rng: random.Random, *, split: str, image_index: int
) -> tuple[Thing, trace.Trace]:
    """One scene that shows every object well enough, and what its camera sees.

    Camera and number of objects are drawn once, as in the release: scenes of many objects, which more often hide one,
    are no rarer than others.

    Raises:
        DataError: the preset's visibility rule is never met.
    """
    camera = sample_camera(preset, rng)
    number = None if preset.redraw_number else rng.randint(*preset.objects)
    for _ in range(SCENE_TRIES):
        scene = sample_scene(preset, camera, rng, split=split, image_index=image_index, number=number)
        traced = _trace(preset, scene, camera)
        if well_visible(preset, traced):
            return scene, traced
    raise DataError(
        f"expected scenes of preset {preset.name!r} to show {preset.min_visible_pixels} pixels of every object, "
        f"got none in {SCENE_TRIES} tries: lessen min_visible_pixels or min_visible_share"
    )


def well_visible(preset: Preset, traced: trace.Trace) -> bool:
    """Whether every object shows enough pixels, and enough of the outline it would show alone."""
    visible = traced.visible() / preset.supersampling**2
    alone = np.array(traced.alone) / preset.supersampling**2
    return bool((visible >= preset.min_visible_pixels).all() and (visible >= preset.min_visible_share * alone).all())


def _trace(preset: Preset, scene: Thing, camera: Camera) -> trace.Trace:
    return trace.trace(scene, camera, preset.supersampling, rounded=preset.rounded)


def _shade(preset: Preset, scene: Thing, lamps: shading.Lamps, traced: trace.Trace) -> np.ndarray:
    return render.shade(scene, lamps, traced, shadows=preset.shadows, exposure=preset.exposure)


def _append(text: BlockText, scene_list: JsonList, questions: JsonList) -> None:
    """Add a block; questions get their running number here, as only here it is known how many came before."""
    for scene in text.scenes:
        scene_list.add(scene)
    for question in text.questions:
        questions.add(f'{{"question_index":{questions.count},{question[1:]}')


def _new_blocks(images: Mapping[str, int]) -> dict[str, list[Block]]:
    if not images or not all(1 <= count <= MOST_IMAGES for count in images.values()):
        raise DataError(f"expected at least one picture for every split, at most {MOST_IMAGES:,}, got {dict(images)}")
    for split in images:
        if not given.PLAIN_NAME.fullmatch(split):
            raise DataError(f"expected a split with a plain name such as 'val', got {split!r}")
    return {
        split: [Block(split, first, min(BLOCK, count - first)) for first in range(0, count, BLOCK)]
        for split, count in images.items()
    }


def _given_blocks(by_split: Mapping[str, list[Thing]]) -> dict[str, list[Block]]:
    parts = {
        split: [(first, tuple(listed[first : first + BLOCK])) for first in range(0, len(listed), BLOCK)]
        for split, listed in by_split.items()
    }
    return {
        split: [Block(split, first, len(part), part) for first, part in of_split] for split, of_split in parts.items()
    }


def _info(preset: Preset, seed: int, source: Mapping[str, str] | None) -> dict[str, Any]:
    return {
        "generator": f"data_scripts.synth {VERSION}",
        "preset": asdict(preset),
        "seed": seed,
        **({} if source is None else {"scenes": dict(source)}),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "pillow": PIL.__version__},
        "splits": {},
    }
