"""The pictures and questions that cells are trained on: drawn on the spot, or packed into one file that can travel.

`python -m benchmarks.gpu.pictures --images 20000 --out FOLDER` draws the preset `clevr-64` and packs it; a machine with
a GPU is then given `VQA_GPU_DATA=FOLDER`. A packed picture takes 2.6 KB with its ten questions (as lossless WebP; PNG
would make it 3.1), so 21,000 take 54 MB. The alternative, to send nothing and draw them there, takes a core 24 ms each:
half a minute of 16 such cores, a sixth of what the part has by default. So they are packed; without a pack they are
drawn.

The packed file is a ZIP of an ordinary folder in the release's layout, whose questions have a type for their program
(programs are most of the text and nothing here reads them). Knows data, no models.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.common import say
from data_scripts.errors import DataError
from data_scripts.synth.generate import Progress, generate
from data_scripts.synth.presets import PRESETS
from data_scripts.workers import ordered_map

VARIABLE = "VQA_GPU_DATA"
PRESET = "clevr-64"
PACK = "pictures.zip"
VAL_IMAGES = PRESETS[PRESET].images["val"]
_KEPT = ("question_index", "image_index", "question_family_index", "question", "answer")


class PicturesError(Exception):
    """Data that cannot be used; the message is one line."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kept_folder(name: str) -> Path:
    """A place that outlives this process, so that a part that was cut finds what it had made."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"vqa-gpu-{user}-{name}"


def draw(preset: str, images: Mapping[str, int], *, workers: int) -> Path:
    """A folder in the release's layout with so many pictures a split, drawn now or before."""
    counts = "-".join(f"{split}{count}" for split, count in sorted(images.items()))
    folder = kept_folder(f"{preset}-{counts}")
    if not (folder / "info.json").is_file():
        generate(preset, folder, images=images, workers=workers, progress=_told(f"drawing {preset}"))
    return folder


def find(given: str) -> Path:
    """The folder in the release's layout that `VQA_GPU_DATA` means: itself, or what a pack in it holds.

    Raises PicturesError where there is neither.
    """
    path = Path(given)
    pack = path / PACK if path.is_dir() else path
    if (path / "questions").is_dir():
        return path
    if not pack.is_file():
        raise PicturesError(
            f"expected {VARIABLE} to name a folder with questions/ and images/, or with {PACK}, got {given}; make one: "
            f"python -m benchmarks.gpu.pictures --out {given}"
        )
    return unpack(pack)


def pack(folder: Path, out: Path, *, workers: int) -> int:
    """Write a folder in the release's layout as one file that appears when it is whole; returns its bytes.

    The same folder gives the same bytes on one installation of Pillow. Raises PicturesError for a folder of nothing.
    """
    questions = sorted((folder / "questions").glob("*.json"))
    pictures = sorted((folder / "images").glob("*/*.png"))
    if not questions or not pictures:
        raise PicturesError(
            f"expected questions/*.json and images/*/*.png in {folder}, got {len(questions)} and {len(pictures)} of "
            "them; name a folder in the release's layout, as `vqa-bench data synth` makes it"
        )
    partial_file = out.with_name(f"{out.name}.partial")
    with zipfile.ZipFile(partial_file, "w") as archive, ordered_map(workers) as mapper:
        for path in questions:
            _add(archive, f"questions/{path.name}", _lean(path), zipfile.ZIP_LZMA)
        told = _told(f"packing {folder.name}")
        for done, (path, data) in enumerate(zip(pictures, mapper(_as_webp, pictures), strict=True), 1):
            _add(archive, f"images/{path.parent.name}/{path.stem}.webp", data, zipfile.ZIP_STORED)
            told(done, len(pictures))
    partial_file.replace(out)
    return out.stat().st_size


def unpack(file: Path) -> Path:
    """A folder with what a packed file holds, made once for the same file. Raises PicturesError for another file."""
    status = file.stat()
    digest = hashlib.sha256(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()
    target = kept_folder(f"pictures-{digest[:16]}")
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.name}-") as making:
            try:
                with zipfile.ZipFile(file) as archive:
                    archive.extractall(making)
            except zipfile.BadZipFile as error:
                raise PicturesError(f"expected packed pictures, got {file}: {error}; pack them again") from error
            Path(making).rename(target)
            Path(making).mkdir()  # for the context manager to remove
    return target


def _add(archive: zipfile.ZipFile, name: str, data: bytes, compression: int) -> None:
    """A member without a date, so that the same data give the same file."""
    archive.writestr(zipfile.ZipInfo(name), data, compress_type=compression)


def _as_webp(path: Path) -> bytes:
    with Image.open(path) as picture, io.BytesIO() as file:
        picture.convert("RGB").save(file, "WEBP", lossless=True)
        return file.getvalue()


def _lean(path: Path) -> bytes:
    """A questions file whose questions say their type instead of their program, and name packed pictures."""
    content = json.loads(path.read_text(encoding="utf-8"))
    questions = [_lean_question(question) for question in content["questions"]]
    return json.dumps({"info": content["info"], "questions": questions}, separators=(",", ":")).encode()


def _lean_question(question: Mapping[str, Any]) -> dict[str, Any]:
    name = Path(question["image_filename"]).with_suffix(".webp").name
    kind = question["program"][-1]["function"]
    return {key: question[key] for key in _KEPT} | {"image_filename": name, "question_type": kind}


def _told(what: str) -> Progress:
    """Progress in tenths on stderr."""
    said = -1

    def tell(done: int, total: int) -> None:
        nonlocal said
        if (tenth := 10 * done // total) > said:
            said = tenth
            say(f"{what}: {done:,} of {total:,}")

    return tell


@contextmanager
def _drawn(images: Mapping[str, int], workers: int) -> Iterator[Path]:
    """The preset's pictures in a folder that goes away."""
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above) / PRESET
        generate(PRESET, folder, images=images, workers=workers, progress=_told(f"drawing {PRESET}"))
        yield folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw pictures, or take those of a folder, and pack them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.pictures", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--images", type=int, default=PRESETS[PRESET].images["train"], help="to train on")
    parser.add_argument("--val-images", type=int, default=VAL_IMAGES, help="to test on")
    parser.add_argument("--folder", type=Path, help="pack this folder in the release's layout instead")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--out", type=Path, required=True, help=f"a folder, in which {PACK} is written")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemExit(f"error: expected a folder to write into at {options.out}, got: {error.strerror}") from error
    write = partial(pack, out=options.out / PACK, workers=options.workers)
    try:
        if options.folder is not None:
            size = write(options.folder)
        else:
            with _drawn({"train": options.images, "val": options.val_images}, options.workers) as folder:
                size = write(folder)
    except (DataError, PicturesError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{options.out / PACK}: {size:,} bytes", file=sys.stdout)


if __name__ == "__main__":
    main()
