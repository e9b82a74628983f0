"""What the harness adds to a training step: its loop against a bare one, step by step in turn, on the same batches.

`python -m benchmarks.overhead`. The byte model and the CNN+LSTM of configs/mini.yaml, on pictures of the generator. The
bare loop is what one would write by hand: forward, backward, clipping, AdamW. Whenever the harness's loop asks for its
next batch, the bare one takes a step with a model of its own, so that whatever slows the machine meets both alike. How
long training waits for data is then read from the metrics of an ordinary training. Checkpoints and evaluations, which
come every few minutes, are not in a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.common import RECORDED, ROOT, Row, Samples, amount, growth, machine_provenance, markdown, record, say

if TYPE_CHECKING:
    from vqa_bench.config import CellConfig
    from vqa_bench.data.shards import Shard
    from vqa_bench.train.vqa import VQATask

MODULE = "benchmarks.overhead"
CELLS = {"mblm-pixels": "MBLM", "cnn-lstm": "CNN+LSTM"}
BATCHES = 8  # prepared ones, which come again and again
WARMUP = 5  # steps that are not counted
OVERHEAD = 1.05
WAITING = 5.0  # per cent


def make_cells(options: argparse.Namespace) -> list[CellConfig]:
    """The cells of configs/mini.yaml that are measured, with as many steps as asked for."""
    from vqa_bench.config import CellConfig, load_matrix, overlay, parse

    matrix = load_matrix(ROOT / "configs" / "mini.yaml")
    changes: dict[str, Any] = {"steps": WARMUP + options.steps}
    if options.images_per_batch is not None:
        changes["images_per_batch"] = options.images_per_batch
    return [
        parse(CellConfig, overlay(matrix.cell(name).model_dump(mode="json"), {"train": changes}), name)
        for name in CELLS
    ]


def make_shard(folder: Path, images: int, spec: str) -> Shard:
    """Generated pictures with their questions, as `make bench` has them."""
    from data_scripts.synth.generate import generate
    from vqa_bench.data.encodings import parse_spec
    from vqa_bench.data.serialize import serialize
    from vqa_bench.data.shards import open_shard

    generate("mini", folder / "synth", seed=0, workers=1, images={"train": images, "val": 2})
    serialize(folder / "synth", parse_spec(spec), folder / "shard", workers=1)
    return open_shard(folder / "shard")


class BareLoop:
    """A training by hand, a step at a time."""

    def __init__(self, cell: CellConfig, shard: Shard) -> None:
        import torch

        from vqa_bench.train.cell import new_model
        from vqa_bench.train.optimisation import make_optimizer

        assert cell.train is not None
        self.clip = cell.train.clip
        self.model = new_model(cell, shard).train()
        self.optimizer = make_optimizer(self.model, cell.train)
        self._clip = torch.nn.utils.clip_grad_norm_

    def step(self, batch: Any) -> None:
        import torch

        sums = self.model(batch.to(torch.device("cpu")))
        (sums.total / sums.targets).backward()
        if self.clip is not None:
            self._clip(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


class InTurn:
    """A task whose batches are ready, and which lets a bare loop take a step before it hands out each of them."""

    def __init__(self, task: VQATask, bare: BareLoop) -> None:
        self.task, self.bare = task, bare
        self.ready = list(task.batches(range(BATCHES), workers=0, pin=False))
        self.harness: list[float] = []  # seconds a step
        self.by_hand: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def batches(self, numbers: range, *, workers: int, pin: bool) -> Iterator[Any]:
        for number in numbers:
            batch = self.ready[number % BATCHES]
            began = perf_counter()
            self.bare.step(batch)
            asked = perf_counter()
            self.by_hand.append(asked - began)
            yield batch
            self.harness.append(perf_counter() - asked)


def measure_steps(cell: CellConfig, shard: Shard) -> tuple[Samples, Samples]:
    """Seconds of a step through the harness, and of a bare one."""
    from vqa_bench.train import optimise
    from vqa_bench.train.cell import new_model
    from vqa_bench.train.vqa import VQATask

    assert cell.train is not None
    made: list[InTurn] = []

    def make_task(rank: int, world: int) -> Any:
        made.append(InTurn(VQATask(new_model(cell, shard), shard, rank=rank, world=world), BareLoop(cell, shard)))
        return made[0]

    with tempfile.TemporaryDirectory() as run:
        optimise(make_task, cell.train, Path(run), seed=cell.seed, name=cell.name)
    # The harness does not come back for another batch after its last step, so that one was not timed.
    counted = slice(WARMUP, len(made[0].harness))
    return Samples(tuple(made[0].harness[counted]), "s"), Samples(tuple(made[0].by_hand[counted]), "s")


def measure_waiting(cell: CellConfig, shard: Shard) -> Samples:
    """Per cent of its time that an ordinary training waits for data, line by line of its metrics."""
    from vqa_bench.train import train

    assert cell.train is not None
    often = cell.train.model_copy(update={"log_every": WARMUP})
    with tempfile.TemporaryDirectory() as run:
        train(cell.model_copy(update={"train": often}), shard, Path(run))
        lines = (Path(run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    shares = [100 * json.loads(line)["data_wait"] for line in lines]
    return Samples(tuple(shares[1:]), "%")  # the first line has the warm-up in it


def measure(options: argparse.Namespace) -> list[Row]:
    """Two rows a model."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cells = make_cells(options)
        specs = {cell.encoding for cell in cells}
        assert len(specs) == 1, "both read the same shard"
        shard = make_shard(Path(folder), options.images, str(specs.pop()))
        for cell in cells:
            harness, bare = measure_steps(cell, shard)
            waiting = measure_waiting(cell, shard)
            name = CELLS[cell.name]
            rows += [
                growth(f"{name}: a step", harness, bare, at_most=OVERHEAD),
                amount(f"{name}: waiting for data", waiting, at_most=WAITING),
            ]
            say(f"{name}: {harness.median / bare.median:.3f} of a bare step, waiting {waiting.median:.1f} %")
    return rows


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=600, help="to train on")
    parser.add_argument("--images-per-batch", type=int, help="where not those of configs/mini.yaml")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--record", action="store_true", help="write the results under results/recorded/overhead-cpu")
    parser.add_argument("--out", type=Path, help="write the results there")
    parsed = parser.parse_args(arguments)
    if parsed.quick and parsed.record:
        parser.error("expected --out with --quick: toy numbers do not belong among the recorded ones")
    if parsed.quick:
        parsed.images, parsed.images_per_batch, parsed.steps = 12, 2, 10
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table; with --record or --out also write overhead.json, overhead.md and provenance.json."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    rows = measure(options)
    remarks = [
        f"Medians [least, most] of {options.steps} steps each, in turn in one process, on one thread; {BATCHES} "
        "prepared batches that come again and again. Asked for: at most 5 % more than the bare loop.",
        f"Waiting for data: of an ordinary training's time, every {WARMUP} steps, its batches made in its own process.",
    ]
    table = markdown(
        "What the harness adds to a training step, on this CPU", against="bare", rows=rows, remarks=remarks
    )
    out = options.out or (RECORDED / "overhead-cpu" if options.record else None)
    if out is None:
        print(table)
        return
    record(out, "overhead", table=table, rows=rows, facts={}, about=machine_provenance(MODULE, given, 1))


if __name__ == "__main__":
    main()
