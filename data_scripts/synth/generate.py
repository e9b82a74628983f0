"""Writes a whole data set in the release's layout: images, scenes, questions; the same for any number of workers.

A split is cut into blocks of BLOCK pictures. A block depends on the preset, the seed, the split and its number only,
so blocks can be made by any process in any order; this file puts them together in order. It writes into a hidden
folder beside the target and renames it when complete, so that a data set exists whole or not at all.
"""

import contextlib
import gc
import json
import multiprocessing
import os
import platform
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL

from data_scripts.errors import DataError
from data_scripts.synth import render, scenes, shading, trace
from data_scripts.synth.png import encode_png
from data_scripts.synth.presets import Preset, find_preset
from data_scripts.synth.questions import QuestionWriter

VERSION = "1.0"
"""Of the generator; raise it when the same preset and seed give other data."""
BLOCK = 250
"""Pictures a block: the public generator resets its balance of answers as often."""
SCENE_TRIES = 1_000
"""Scenes drawn for one picture before the preset's visibility rule is taken to be impossible."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Block:
    """A run of pictures of one split that is made in one go."""

    split: str
    first: int
    count: int


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
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a data set; the result is a function of the preset, the seed and `images` only.

    Args:
        preset: a name out of `presets.PRESETS`, or a preset of one's own.
        out: the folder to make; it may exist if it is empty.
        seed: the splits draw from different streams of it, so no picture of one is a picture of another.
        workers: processes; 1 makes everything in this one. Several are spawned, so that a script that calls this
            needs the usual `if __name__ == "__main__":`.
        images: pictures per split, instead of the preset's. More pictures leave those before them as they are.
        progress: called with the pictures done and the pictures in all after each block.

    Returns:
        What `info.json` in the folder says: preset, seed, versions, and the pictures and questions of each split.

    Raises:
        DataError: `out` is not empty, the preset is unknown or cannot be met, or a count is not positive.
    """
    preset = find_preset(preset)
    images = dict(preset.images if images is None else images)
    _check(out, images, workers)
    blocks = {
        split: [Block(split, first, min(BLOCK, count - first)) for first in range(0, count, BLOCK)]
        for split, count in images.items()
    }
    info = _info(preset, seed)
    with _partial_folder(out) as folder, _block_mapper(workers) as mapper:
        done = 0
        for split in images:
            (folder / "images" / split).mkdir(parents=True)
            texts = mapper(partial(make_block, preset, seed, folder), blocks[split])
            with _JsonList(folder, "scenes", split) as scene_list, _JsonList(folder, "questions", split) as questions:
                for text in texts:
                    _append(text, scene_list, questions)
                    if progress is not None:
                        progress(done + scene_list.count, sum(images.values()))
            info["splits"][split] = {"images": scene_list.count, "questions": questions.count}
            done += scene_list.count
        info_text = json.dumps(info, indent=1)
        (folder / "info.json").write_text(info_text + "\n")
    return dict(json.loads(info_text))


def make_block(preset: Preset, seed: int, folder: Path, block: Block) -> BlockText:
    """Draw a block's pictures into `folder` and return its scenes and questions as JSON."""
    writer = QuestionWriter(preset)
    text = BlockText([], [])
    for image_index in range(block.first, block.first + block.count):
        # A string seeds through SHA-512, on every platform and in every process alike.
        rng = random.Random(f"{preset.name}/{seed}/{block.split}/{image_index}")
        scene, picture = make_picture(preset, rng, split=block.split, image_index=image_index)
        (folder / "images" / block.split / scene["image_filename"]).write_bytes(encode_png(picture))
        text.scenes.append(_dump(scene))
        text.questions.extend(_dump(question) for question in writer.ask(scene, rng))
    return text


def make_picture(
    preset: Preset, rng: random.Random, *, split: str = "train", image_index: int = 0
) -> tuple[dict[str, Any], np.ndarray]:
    """One scene that shows every object well enough, and its picture, uint8 RGB (height, width, 3).

    Raises:
        DataError: the preset's visibility rule is never met.
    """
    camera = scenes.sample_camera(preset, rng)
    for _ in range(SCENE_TRIES):
        scene = scenes.sample_scene(preset, camera, rng, split=split, image_index=image_index)
        traced = trace.trace(scene, camera, preset.supersampling)
        if well_visible(preset, traced):
            lamps = shading.sample_lamps(preset, rng)
            return scene, render.shade(scene, lamps, traced, shadows=preset.shadows, exposure=preset.exposure)
    raise DataError(
        f"expected scenes of preset {preset.name!r} to show {preset.min_visible_pixels} pixels of every object, "
        f"got none in {SCENE_TRIES} tries: lessen min_visible_pixels or min_visible_share"
    )


def well_visible(preset: Preset, traced: trace.Trace) -> bool:
    """Whether every object shows enough pixels, and enough of the outline it would show alone."""
    visible = traced.visible() / preset.supersampling**2
    alone = np.array(traced.alone) / preset.supersampling**2
    return bool((visible >= preset.min_visible_pixels).all() and (visible >= preset.min_visible_share * alone).all())


class _JsonList:
    """`<kind>/CLEVR_<split>_<kind>.json`: a header and one long list, written item by item."""

    def __init__(self, folder: Path, kind: str, split: str) -> None:
        self.count = 0
        (folder / kind).mkdir(exist_ok=True)
        self._file: IO[str] = open(folder / kind / f"CLEVR_{split}_{kind}.json", "w", encoding="ascii")  # noqa: SIM115
        header = {"split": split, "license": "unspecified", "version": VERSION, "date": ""}
        self._file.write(f'{{"info":{_dump(header)},"{kind}":[')

    def __enter__(self) -> "_JsonList":
        return self

    def add(self, item: str) -> None:
        """Append one item, given as JSON."""
        self._file.write(("," if self.count else "") + "\n" + item)
        self.count += 1

    def __exit__(self, *_: object) -> None:
        self._file.write("\n]}\n")
        self._file.close()


def _append(text: BlockText, scene_list: _JsonList, questions: _JsonList) -> None:
    """Add a block; questions get their running number here, as only here it is known how many came before."""
    for scene in text.scenes:
        scene_list.add(scene)
    for question in text.questions:
        questions.add(f'{{"question_index":{questions.count},{question[1:]}')


def _check(out: Path, images: Mapping[str, int], workers: int) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"expected a new or empty folder for the data set, got {out}: remove it or name another")
    if not images or any(count < 1 for count in images.values()):
        raise DataError(f"expected at least one picture for every split, got {dict(images)}")
    if workers < 1:
        raise DataError(f"expected at least one worker, got {workers}")


@contextlib.contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the `with` block ends well, and goes away when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.partial-"
    for leftover in sorted(path for path in out.parent.iterdir() if path.name.startswith(prefix)):
        owner = leftover.name.removeprefix(prefix)
        if owner.isdigit() and (int(owner) == os.getpid() or not _is_running(int(owner))):
            shutil.rmtree(leftover)
    folder = out.with_name(f"{prefix}{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
        if out.exists():
            out.rmdir()
        os.replace(folder, out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _block_mapper(workers: int) -> Iterator[Callable[..., Iterator[BlockText]]]:
    """An ordered `map` over blocks in this process or in several, each with one thread."""
    if workers == 1:
        yield map
        return
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))  # read by the children when they import NumPy
    try:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
            try:
                yield pool.map
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _start_worker() -> None:
    """Watch the parent from a thread: workers of a killed run would otherwise wait for more blocks for ever."""
    gc.disable()  # blocks make no reference cycles, and the search for them takes a twelfth of the time

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _info(preset: Preset, seed: int) -> dict[str, Any]:
    return {
        "generator": f"data_scripts.synth {VERSION}",
        "preset": asdict(preset),
        "seed": seed,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "pillow": PIL.__version__},
        "splits": {},
    }


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
