"""How fast a CLEVR folder becomes a shard, held against opening and resizing its images alone, and in how much memory.

`python -m benchmarks.serialize --source FOLDER`. The images of the folder are listed many times under new names, with
the folder's questions asked of them in turn. The bare loop is: open, decode, convert to RGB, resize with Lanczos, take
the bytes; no file is checked, hashed or written, and no question read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, sleep

from benchmarks.common import (
    RECORDED,
    Row,
    Samples,
    alternate,
    growth,
    machine_provenance,
    markdown,
    record,
    say,
    speedup,
)

MODULE = "benchmarks.serialize"
ENCODING, SMALL_ENCODING, SMALL_SIZE = "pixels:62x41", "pixels:16x12", (32, 24)
IMAGES, QUESTIONS_PER_IMAGE, MADE_IMAGES = 2000, 10, 60
MEMORY_IMAGES = (500, 5000)
SHARE = 0.85  # of the bare loop's speed, at least
MEMORY_GROWTH = 1.1  # of the peak for ten times the images, at most
MIB = 1 << 20


def enlarge(source: Path, folder: Path, images: int, *, size: tuple[int, int] | None = None) -> Path:
    """A CLEVR folder with so many images, which are those of `source` again and again, each with ten of its questions.

    `size`: width and height that the images are made smaller to; None links to them as they are.
    """
    from PIL import Image

    pictures = sorted(path for path in (source / "images").glob("*/*") if path.is_file())
    questions = [
        question
        for path in sorted((source / "questions").glob("CLEVR_*_questions.json"))
        for question in json.loads(path.read_text(encoding="utf-8"))["questions"]
        if "answer" in question
    ]
    if not pictures or not questions:
        raise ValueError(f"expected images and questions with answers in {source}, got none; name a CLEVR folder")
    (folder / "images" / "train").mkdir(parents=True)
    (folder / "questions").mkdir()
    if size is not None:
        (folder / "small").mkdir()
        for number, picture in enumerate(pictures[:images]):
            with Image.open(picture) as image:
                pictures[number] = folder / "small" / f"{number}.png"
                image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(pictures[number])
    with open(folder / "questions" / "CLEVR_train_questions.json", "w", encoding="utf-8") as file:
        file.write('{"info": {}, "questions": [')
        for number in range(images):
            name = f"CLEVR_train_{number:06d}.png"
            (folder / "images" / "train" / name).symlink_to(pictures[number % len(pictures)].resolve())
            for index in range(number * QUESTIONS_PER_IMAGE, (number + 1) * QUESTIONS_PER_IMAGE):
                question = questions[index % len(questions)] | {
                    "image_index": number,
                    "image_filename": name,
                    "question_index": index,
                }
                file.write((", " if index else "") + json.dumps(question))
        file.write("]}")
    return folder


def bare_loop(folder: Path, encoding: str) -> float:
    """Seconds to open, convert, resize and flatten every image of the folder."""
    from PIL import Image

    from vqa_bench.data.encodings import parse_spec

    size = parse_spec(encoding).size
    assert size is not None
    start = perf_counter()
    for path in sorted((folder / "images" / "train").iterdir()):
        with Image.open(path) as image:
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).tobytes()
    return perf_counter() - start


def _command(folder: Path, encoding: str, workers: int, out: str) -> list[str]:
    """What a user types; in a process of its own, as the workers import what started them."""
    arguments = ["serialize", str(folder), "--encoding", encoding, "--workers", str(workers), "--out", f"{out}/shard"]
    return [sys.executable, "-m", "vqa_bench", *arguments]


def serialise(folder: Path, encoding: str, workers: int) -> float:
    """Seconds that the command takes to make a shard of the folder, which is then thrown away."""
    with tempfile.TemporaryDirectory() as out:
        start = perf_counter()
        subprocess.run(_command(folder, encoding, workers, out), check=True, capture_output=True)
        return perf_counter() - start


def speed_rows(folder: Path, encoding: str, options: argparse.Namespace, *, target: float | None) -> list[Row]:
    """Seconds an image of the bare loop and of serialising with each number of workers, in turn."""
    images = len(list((folder / "images" / "train").iterdir()))

    def turn(workers: int) -> Callable[[], float]:
        def run() -> float:
            seconds = serialise(folder, encoding, workers) if workers else bare_loop(folder, encoding)
            say(f"{encoding}, {f'{workers} workers' if workers else 'bare loop'}: {images / seconds:.0f} images/s")
            return seconds / images

        return run

    found = alternate({str(count): turn(count) for count in (0, *options.workers)}, options.repeats, options.warmup)
    rows = []
    for workers in options.workers:
        bare = Samples(tuple(seconds / workers for seconds in found["0"]), "s")
        ours = Samples(tuple(found[str(workers)]), "s")
        rows.append(speedup(f"{encoding}, {images:,} images, {workers} workers, an image", ours, bare, at_least=target))
    return rows


def peak_of_all(folder: Path, encoding: str, workers: int) -> float:
    """The most resident MiB of the command's process and of each of its workers, added up."""
    peaks: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as out:
        with subprocess.Popen(
            _command(folder, encoding, workers, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as command:
            while command.poll() is None:
                for process in (command.pid, *_children(command.pid)):
                    peaks[process] = max(peaks.get(process, 0), _peak_of(process))
                sleep(0.02)
        if command.returncode:
            raise subprocess.CalledProcessError(command.returncode, command.args)
    return sum(peaks.values()) / MIB


def _children(process: int) -> list[int]:
    """Those of all its threads; none where it, or a thread, has just ended."""
    found = []
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in children.read_text(encoding="ascii").split()]
    return found


def _peak_of(process: int) -> int:
    """VmHWM of /proc/PROCESS/status in bytes (proc(5)); 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def memory_row(source: Path, workspace: Path, options: argparse.Namespace) -> Row:
    """Peak memory at the larger number of images over that at the smaller, each in a process of its own."""
    few, many = options.memory_images
    folders = {n: enlarge(source, workspace / f"memory-{n}", n, size=SMALL_SIZE) for n in (few, many)}

    def turn(images: int) -> Callable[[], float]:
        return lambda: peak_of_all(folders[images], SMALL_ENCODING, max(options.workers))

    found = alternate({str(images): turn(images) for images in (few, many)}, options.repeats, warmup=0)
    peaks = {name: Samples(tuple(values), "MiB") for name, values in found.items()}
    what = f"{SMALL_ENCODING}, {many:,} images against {few:,}, {max(options.workers)} workers, peak of all processes"
    return growth(what, peaks[str(many)], peaks[str(few)], at_most=MEMORY_GROWTH)


def default_source(workspace: Path) -> Path:
    """A folder of pictures like CLEVR's, made for the purpose."""
    from data_scripts.synth.generate import generate

    say(f"making {MADE_IMAGES} pictures with the preset `clevr`")
    generate("clevr", workspace / "made", workers=2, images={"train": MADE_IMAGES})
    return workspace / "made"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, help="a CLEVR folder; default: one made with the preset `clevr`")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"images to serialise (default {IMAGES:,})")
    parser.add_argument("--memory-images", type=int, nargs=2, default=MEMORY_IMAGES, help="for the memory's growth")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes (default 1 2)")
    parser.add_argument("--repeats", type=int, default=3, help="measured turns of each (default 3)")
    parser.add_argument("--warmup", type=int, default=1, help="turns of each before those (default 1)")
    parser.add_argument("--record", action="store_true", help="write to results/recorded/serialize-cpu")
    parser.add_argument("--out", type=Path, help="write the table and the numbers to this folder")
    parsed = parser.parse_args(arguments)
    if parsed.record and parsed.out is not None:
        parser.error("expected --record or --out, got both")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table; with `--record` or `--out` write serialize.json, serialize.md and provenance.json."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        try:
            source = options.source or default_source(workspace)
            large = enlarge(source, workspace / "large", options.images)
            small = enlarge(source, workspace / "small", options.images, size=SMALL_SIZE)
            rows = [
                *speed_rows(large, ENCODING, options, target=SHARE),
                *speed_rows(small, SMALL_ENCODING, options, target=None),
                memory_row(source, workspace, options),
            ]
        except (subprocess.CalledProcessError, ValueError) as error:
            raise SystemExit(f"error: {error}") from error
    remarks = [
        f"The images of {source.name} listed again and again, {QUESTIONS_PER_IMAGE} of its questions each; for "
        f"{SMALL_ENCODING} and for memory made {SMALL_SIZE[0]}×{SMALL_SIZE[1]} first.",
        "Against: one process that opens, decodes, converts, resizes and flattens every image and does nothing else, "
        "its time divided by the number of workers; for memory: the smaller number of images.",
        "Medians [least, most], taken in turn; serialising is the whole command, starting its processes included.",
    ]
    table = markdown("Serialising, on this CPU", against="bare loop ÷ workers", rows=rows, remarks=remarks)
    out = RECORDED / "serialize-cpu" if options.record else options.out
    if out is None:
        print(table)
    else:
        about = machine_provenance(MODULE, ["--source", source.name, *_without_source(given)], 1)
        record(out, "serialize", table=table, rows=rows, facts={"images": options.images}, about=about)


def _without_source(given: Sequence[str]) -> list[str]:
    """The arguments without the source's and the output's path, which are this machine's business."""
    kept, skip = [], False
    for argument in given:
        if not skip and argument not in ("--source", "--out"):
            kept.append(argument)
        skip = argument in ("--source", "--out")
    return kept


if __name__ == "__main__":
    main()
