"""How fast data sets are generated, and that memory does not grow with their size.

`python -m benchmarks.generator`. Pictures, scenes and questions, written to a temporary folder. Every measurement runs
in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.child import ChildError, measure_apart
from benchmarks.common import (
    RECORDED,
    Row,
    Samples,
    Target,
    alternate,
    growth,
    machine_provenance,
    markdown,
    peak_memory,
    record,
    say,
)

MODULE = "benchmarks.generator"
MIB = 1 << 20
SPEED = {"mini": (2_000, 150.0), "clevr": (500, 4.0)}
"""Preset: images to make, and images a second that are asked for on two cores."""
MEMORY = (500, 5_000)
GROWTH = 1.1
"""At most so many times more memory for ten times the images; what is left is the allocator's."""


def measure(preset: str, images: int, workers: int) -> dict[str, float]:
    """In this process: generate once; seconds, and the most resident bytes of this process."""
    from data_scripts.synth.generate import generate

    seconds: list[float] = []

    def work() -> None:
        start = perf_counter()
        generate(preset, Path(folder) / preset, images={"train": images}, workers=workers)
        seconds.append(perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        memory = peak_memory(work)
    return {"seconds": seconds[0], "peak": memory.peak}


def measure_all(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every job in turn, each in a process of its own."""
    workers = options.workers
    jobs = [(preset, images, workers) for preset, (images, _) in SPEED.items()]
    jobs += [("mini", images, count) for count in sorted({1, workers}) for images in MEMORY]

    def turn(job: tuple[str, int, int]) -> Callable[[], dict[str, Any]]:
        preset, images, count = job[0], max(1, round(job[1] * options.scale)), job[2]

        def apart() -> dict[str, Any]:
            numbers = ["--measure", preset, str(images), str(count)]
            measured = measure_apart(MODULE, numbers, 1)
            say(f"{preset}, {images} images, {count} workers: {measured['seconds']:.1f} s")
            return {**measured, "images": images}

        return apart

    return alternate({name_of(*job): turn(job) for job in jobs}, options.repeats, warmup=0)


def name_of(preset: str, images: int, workers: int) -> str:
    """The key of a measurement."""
    return f"{preset}/{images}/{workers}"


def rows_of(measured: dict[str, list[dict[str, Any]]], workers: int) -> list[Row]:
    """Images a second of each preset, then memory at ten times the images."""
    rows = []
    for preset, (images, wanted) in SPEED.items():
        found = measured[name_of(preset, images, workers)]
        rate = Samples(tuple(one["images"] / one["seconds"] for one in found), "images/s")
        rows.append(Row(f"{preset}, {workers} workers", rate, None, rate.median, Target("≥", wanted), unit=" images/s"))
    for count in sorted({1, workers}):
        few, many = (
            Samples(tuple(one["peak"] / MIB for one in measured[name_of("mini", images, count)]), "MiB")
            for images in MEMORY
        )
        what = "all in one process" if count == 1 else f"the process that writes, {count} workers"
        rows.append(growth(f"mini, peak memory, {what}", many, few, at_most=GROWTH))
    return rows


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="makes so many times as many images")
    parser.add_argument("--record", action="store_true", help="write results/recorded/generator-cpu")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.record and parsed.scale != 1.0:
        parser.error("expected --scale 1 with --record: other numbers do not belong among the recorded ones")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; with --record also write it."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    if options.measure is not None:
        preset, images, workers = options.measure
        print(json.dumps(measure(preset, int(images), int(workers))))
        return
    try:
        measured = measure_all(options)
    except ChildError as error:
        raise SystemExit(f"error: {error}") from error
    rows = rows_of(measured, options.workers)
    few, many = MEMORY
    remarks = [
        f"Images, scenes and questions written; medians [least, most], the start of the processes included; "
        f"mini {SPEED['mini'][0]:,} and clevr {SPEED['clevr'][0]:,} images.",
        f"Memory: the most resident bytes at {many:,} images against {few:,}.",
    ]
    table = markdown("Generator, on this CPU", against=f"{few:,} images", rows=rows, remarks=remarks)
    if not options.record:
        print(table)
        return
    about = machine_provenance(MODULE, given, threads=1)
    record(RECORDED / "generator-cpu", "generator", table=table, rows=rows, facts={"measured": measured}, about=about)


if __name__ == "__main__":
    main()
