"""How fast batches come: from the files of a shard to what a byte model trains on, beside a bare copy of as many bytes.

`python -m benchmarks.reading`. Pictures of 62 by 41 pixels (random bytes), ten questions each, sequences of 8 KB: for
layout `iqa` a picture is read once for its questions, for `qia` it is part of every sequence. The batches come as in
training, by a plan and a loader; the copy writes the bytes of as many such batches into memory that is already there.
This file times reading only and runs no model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
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
    record,
    say,
    speedup,
)

MODULE = "benchmarks.reading"
ENCODING, IMAGE_BYTES = "pixels:62x41", 62 * 41 * 3
SEQUENCE, PATCH = 8192, 8
ROOM = SEQUENCE - 2 * PATCH - 208 - 8  # for the picture, so that the longest question makes 8,192 ids
QUESTIONS = 10
LAYOUTS = ("iqa", "qia")
RATE = 20_000.0  # samples a second that are asked for, where a copy would not allow more
MEMORY = (500, 5000)  # images between which memory may not grow
MEMORY_GROWTH = 1.1


def write_split(folder: Path, images: int) -> None:
    """The tables of one split: random pictures, questions as long as CLEVR's."""
    import numpy as np

    from vqa_bench.data.shards import IMAGE_SCHEMA, QUESTION_SCHEMA, ImageRow, QuestionRow, write_rows
    from vqa_bench.data.vocab import ANSWERS

    random = np.random.default_rng(0)
    words = ["is", "the", "same", "size", "of", "large", "rubber", "sphere", "that", "left", "purple", "cylinders"]

    def pictures() -> Iterator[ImageRow]:
        for index in range(images):
            yield ImageRow(f"{index:06}.png", index, random.bytes(IMAGE_BYTES), 62, 41)

    def questions() -> Iterator[QuestionRow]:
        for index in range(images * QUESTIONS):
            text = " ".join(random.choice(words, random.integers(8, 35)).tolist()) + "?"
            answer = ANSWERS[int(random.integers(len(ANSWERS)))]
            yield QuestionRow(index, index // QUESTIONS, text[-205:], answer, "exist", None, "[]", None)

    write_rows(folder / "images.arrow", IMAGE_SCHEMA, pictures())
    write_rows(folder / "questions.arrow", QUESTION_SCHEMA, questions())


class Reading:
    """Batches of one layout over a split, and how much is in them."""

    def __init__(self, folder: Path, layout: str, images_per_batch: int, workers: int) -> None:
        from vqa_bench.config import CellConfig, parse
        from vqa_bench.data.loading import TrainPlan
        from vqa_bench.data.shards import SplitReader
        from vqa_bench.models import build

        cell = {
            "name": "reading",
            "title": "Reading",
            "encoding": ENCODING,
            "sequence": {"layout": layout, "image_bytes": ROOM},
            "model": {
                "kind": "mblm",
                "hidden_dims": [8, 8],
                "seq_lens": [SEQUENCE // PATCH, PATCH],
                "num_layers": [1, 1],
                "stages": [{"heads": 1, "head_dim": 8}, {"heads": 1, "head_dim": 8}],
            },
            "train": {"steps": 1, "images_per_batch": images_per_batch, "learning_rate": 1e-3},
        }
        split = SplitReader(folder)
        model = build(parse(CellConfig, cell, "the benchmark"), {"image_bytes": IMAGE_BYTES})
        self.plan = TrainPlan(split, seed=0, images_per_batch=images_per_batch)
        self.collate = partial(model.collate, split)
        self.workers = workers
        self.samples = images_per_batch * QUESTIONS  # in a batch
        self.steps = self.plan.steps_per_epoch

    def batches(self) -> Iterator[Any]:
        from vqa_bench.data.loading import batches

        return batches(self.plan.groups, self.collate, range(1 + self.steps), workers=self.workers)

    def bytes_of_batch(self) -> int:
        """How many bytes the tensors of the first batch have."""
        from torch import Tensor

        batch = self.collate(self.plan.groups(0))
        found = [value for field in fields(batch) if isinstance(value := getattr(batch, field.name), Tensor)]
        return sum(tensor.nbytes for tensor in found)

    def seconds(self) -> float:
        """An epoch; the first batch is not timed, so that starting workers is not either."""
        stream = self.batches()
        next(stream)
        began = perf_counter()
        for _ in stream:
            pass
        return (perf_counter() - began) / (self.steps * self.samples)


def copying(size: int, samples: int) -> Callable[[], float]:
    """Seconds a sample for copying the bytes (`size`) of a batch of some samples."""
    import numpy as np

    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)

    def seconds() -> float:
        rounds = 50
        began = perf_counter()
        for _ in range(rounds):
            np.copyto(target, source)
        return (perf_counter() - began) / (rounds * samples)

    return seconds


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Every layout and number of workers, each in turn with the copy of its bytes."""
    rows: list[Row] = []
    facts: dict[str, Any] = {}
    for layout in options.layouts:
        for workers in options.workers:
            reading = Reading(folder, layout, options.images_per_batch, workers)
            size = reading.bytes_of_batch()
            turns = {"ours": reading.seconds, "copy": copying(size, reading.samples)}
            found = alternate(turns, options.repeats)
            ours, copied = (Samples(tuple(found[name]), "s/sample") for name in ("ours", "copy"))
            name = f"{layout}, {_workers(workers)}"
            rate = 1 / ours.median
            rows += [
                Row(name, ours, None, rate, Target("≥", RATE) if workers == 0 else None, unit=" samples/s"),
                speedup(f"{name}, of a copy's speed", ours, copied),
            ]
            facts[name] = {"samples_per_second": rate, "bytes_per_sample": size / reading.samples}
            say(f"{name}: {rate:,.0f} samples/s, {copied.median / ours.median:.2f} of a copy's speed")
    return rows, facts


def _workers(count: int) -> str:
    return {0: "in the training process", 1: "1 worker"}.get(count, f"{count} workers")


def anonymous_bytes() -> int:
    """Memory of this process that is not a mapped file."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("expected RssAnon in /proc/self/status, got none; measure memory on Linux")


def measure_memory(options: argparse.Namespace) -> dict[str, int]:
    """In this process: the most memory, mapped files aside, over an epoch of `options.memory_of` images."""
    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder), options.memory_of)
        reading = Reading(Path(folder), "iqa", options.images_per_batch, 0)
        return {"bytes": max(anonymous_bytes() for _ in reading.batches())}


def memory_row(options: argparse.Namespace) -> Row:
    """Memory over an epoch of many images, beside that of few."""
    found: dict[int, Samples] = {}
    for images in options.memory:
        arguments = ["--memory-of", str(images), "--images-per-batch", str(options.images_per_batch)]
        peak = measure_apart(MODULE, arguments, 1)["bytes"]
        found[images] = Samples((peak / (1 << 20),), "MiB")
    few, many = options.memory
    what = f"memory, {many:,} images over {few:,}"
    return growth(what, found[many], found[few], at_most=MEMORY_GROWTH)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--images-per-batch", type=int, default=32)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--memory", nargs=2, type=int, default=list(MEMORY), help="images, few and many")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    parser.add_argument("--record", action="store_true", help="write the results under results/recorded/reading-cpu")
    parser.add_argument("--out", type=Path, help="write the results there")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.quick and parsed.record:
        parser.error("expected --out with --quick: toy numbers do not belong among the recorded ones")
    if parsed.quick:
        parsed.images, parsed.images_per_batch, parsed.memory = 24, 4, [8, 16]
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table; with --record or --out also write reading.json, reading.md and provenance.json."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    if options.memory_of is not None:
        print(json.dumps(measure_memory(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder), options.images)
        rows, facts = measure(options, Path(folder))
    try:
        rows.append(memory_row(options))
    except ChildError as error:
        raise SystemExit(f"error: {error}") from error
    remarks = [
        f"{options.images:,} images of {IMAGE_BYTES:,} bytes with {QUESTIONS} questions each, sequences of up to "
        f"{SEQUENCE:,} ids, {options.images_per_batch} images a batch, all files in the page cache.",
        f"Asked for: {RATE:,.0f} samples a second of one process, or 0.8 of a copy's speed. The copy moves as many "
        "bytes as the batches have, from memory to memory that is there already. What workers make travels through "
        "shared memory too; they run beside the training.",
        "Medians [least, most], in turn. Memory: the most over an epoch in a process of its own, mapped files aside.",
    ]
    table = markdown("Reading a shard, on this CPU", against="a copy", rows=rows, remarks=remarks)
    out = options.out or (RECORDED / "reading-cpu" if options.record else None)
    if out is None:
        print(table)
        return
    about = machine_provenance(MODULE, given, 1)
    record(out, "reading", table=table, rows=rows, facts={"measured": facts}, about=about)


if __name__ == "__main__":
    main()
