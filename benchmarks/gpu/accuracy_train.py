"""Trains one cell for a given time through the harness, and keeps of it what the table needs.

The time of a step is measured first, by a short run of the same loop, so that the learning rate's schedule can be as
long as the time allows: stopped by a clock, a cosine would be cut. Waiting for data does not count, neither do dev,
checkpoints and the test. Knows the harness, not which cells there are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from benchmarks.gpu.device import Device
from vqa_bench.config import CellConfig, DataConfig, MatrixConfig
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.matrix import Source, Warehouse, run_matrix
from vqa_bench.runs import METRICS, PREDICTIONS, RESULT, read_json
from vqa_bench.scoring.predictions import correct_of, images_of, read_predictions
from vqa_bench.train import train

LEAST_STEPS = 2
LOADERS_NEED = 1 << 30
"""Bytes of shared memory through which processes that prepare batches pass them on."""
FAULT = "fault"


class MakeCell(Protocol):
    """A cell without its length. judged: whether dev is looked at while it trains."""

    def __call__(self, *, steps: int, judged: bool = True) -> CellConfig: ...


@dataclass(frozen=True)
class Place:
    """Where a training finds its data and leaves its files. work: one folder for all trainings on the same pictures."""

    data: DataConfig
    work: Path
    workers: int

    @property
    def warehouse(self) -> Warehouse:
        """The shards of the data, made by so many processes."""
        assert self.data.folder is not None, "pictures are drawn or unpacked before"
        source = Source(self.data.folder)
        return Warehouse(self.work / "data", lambda _: source, self.workers)

    @property
    def runs(self) -> Path:
        """The harness's results folder."""
        return self.work / "runs"


@contextmanager
def harness_on(device: Device) -> Iterator[None]:
    """The harness takes the current GPU, or the CPU where it sees none: show it the device that is measured."""
    if device.is_cuda:
        with torch.cuda.device(device.torch_device):
            yield
        return
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first used, which a dry run never does
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def loader_processes(wanted: int) -> int:
    """As many as wanted, none where the machine has too little shared memory for them, as containers often have."""
    shared = Path("/dev/shm")
    return wanted if shared.is_dir() and shutil.disk_usage(shared).free >= LOADERS_NEED else 0


def measure(
    make: MakeCell, place: Place, *, seconds: float, probe: int, most_steps: int | None = None
) -> dict[str, Any]:
    """Train a cell for so many seconds and test it; what came of it, JSON-able.

    Returns `training` (see `training_of`), `step_seconds` as measured before, `accuracy`, `groups`, `vision_gain`,
    `correct` (see `packed`), `images` (how many questions each test picture has, in the order of the questions), and
    facts of the run. Or {"fault": why it could not be trained}, such as a loss that is not finite.

    Raises torch.OutOfMemoryError.
    """
    try:
        step_seconds = time_of_step(make(steps=probe, judged=False), place)
        steps = max(LEAST_STEPS, round(seconds / step_seconds))
        cell = make(steps=steps if most_steps is None else min(steps, most_steps))
        run = place.runs / cell.name
        shutil.rmtree(run, ignore_errors=True)  # of a start that was cut: its steps were others
        config = MatrixConfig(name="accuracy", data=place.data, cells=[cell])
        faults = run_matrix(config, place.runs, place.warehouse)
    except UserError as error:
        return {FAULT: str(error)}
    if faults:
        return {FAULT: "; ".join(faults)}
    return {"step_seconds": step_seconds} | summary(run, questions_a_step(cell, place))


def time_of_step(cell: CellConfig, place: Place) -> float:
    """Seconds of a step without waiting for data: the median over groups of steps, of which the first is warm-up."""
    run = place.work / "probe"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    train(cell, _shard(cell, place), run)
    return median(times.took / times.steps for times in times_of(run, questions_a_step(cell, place))[1:])


def summary(run: Path, questions: float) -> dict[str, Any]:
    """What a finished run says, as far as the table needs it. questions: of a step."""
    result, predictions = read_json(run / RESULT), read_predictions(run / PREDICTIONS)
    metrics = result["metrics"]
    developed = [line["accuracy"] for line in _lines(run) if line["kind"] == "dev"]
    return {
        "training": training_of(run, questions),
        "accuracy": _interval(metrics["overall"]),
        "groups": {name: _interval(group) for name, group in metrics["groups"].items()},
        "vision_gain": result["vision_gain"],
        "dev": max(developed, default=None),
        "correct": packed(correct_of(predictions)),
        "images": _lengths(images_of(predictions)),
        "parameters": result["model"]["parameters"],
        "train_flops": result["cost"]["train_flops"],
        "image_bytes": result["cost"]["image_bytes"],
        "kernels": result["training"]["kernels"],
        "used_step": result["training"]["used_step"],
    }


class Times(NamedTuple):
    """Of a line of the log: its last step, how many steps it is about, their seconds without and with waiting."""

    step: int
    steps: int
    took: float
    waited: float


def times_of(run: Path, questions: float) -> list[Times]:
    """The times of a training, line by line of its log, which gives rates; questions: of a step."""
    found: list[Times] = []
    for line in _lines(run):
        if line["kind"] == "train":
            steps = line["step"] - (found[-1].step if found else 0)
            whole = steps * questions / line["samples_per_second"]
            waited = whole * line["data_wait"]
            found.append(Times(line["step"], steps, whole - waited, waited))
    return found


def training_of(run: Path, questions: float) -> dict[str, float]:
    """Steps, questions and epochs of a training, its seconds without waiting for data, and those it waited."""
    times = times_of(run, questions)
    return {
        "steps": times[-1].step,
        "questions": round(times[-1].step * questions),
        "epochs": [line["epoch"] for line in _lines(run) if line["kind"] == "train"][-1],
        "seconds": sum(one.took for one in times),
        "waited": sum(one.waited for one in times),
    }


def questions_a_step(cell: CellConfig, place: Place) -> float:
    """In the mean; exact where every picture has as many, as those of the generator have."""
    train_split = _shard(cell, place).manifest.splits["train"]
    assert cell.train is not None, "every cell here is trained"
    return cell.train.images_per_batch * train_split.questions / train_split.images


def packed(correct: np.ndarray) -> str:
    """Booleans (N,) as hexadecimal digits, four a digit."""
    return np.packbits(correct).tobytes().hex()


def unpacked(text: str, count: int) -> np.ndarray:
    """The first `count` booleans of `packed`."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def _shard(cell: CellConfig, place: Place) -> Shard:
    assert cell.encoding is not None, "every cell here names the shard it takes"
    return place.warehouse.shard(place.data, cell.encoding)


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]


def _interval(metrics: Mapping[str, float]) -> list[float]:
    """Low end, estimate, high end."""
    return [metrics["low"], metrics["accuracy"], metrics["high"]]


def _lengths(names: np.ndarray) -> list[int]:
    """How often each name comes in a row."""
    return [len(list(group)) for _, group in groupby(names.tolist())]
