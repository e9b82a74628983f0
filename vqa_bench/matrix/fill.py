"""One run from its beginning to its end: trained, then tested. Knows nothing of other runs and processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from vqa_bench import launch
from vqa_bench.config import LoopConfig
from vqa_bench.matrix.cells import Cell, Pretraining, Trainable
from vqa_bench.matrix.folder import Invocation, begin
from vqa_bench.progress import Progress, progress, silent


def fill(trainable: Trainable, invocation: Invocation) -> None:
    """Begin a run or take it up, and bring it to its end. Every process of a launch calls this.

    Raises UserError where something is wrong with data or settings, or training cannot go on.
    """
    if launch.is_main():
        say(f"{trainable.label}: {trainable.config.title}")
        with launch.alone():
            begin(trainable, invocation)
    launch.barrier()
    if isinstance(trainable, Cell):
        _fill_cell(trainable)
    else:
        _fill_pretraining(trainable)


def say(text: str) -> None:
    """A line on stderr, at once."""
    print(text, file=sys.stderr, flush=True)


def _fill_cell(cell: Cell) -> None:
    from vqa_bench.scoring.evaluate import evaluate
    from vqa_bench.train import train

    with _threads(cell.config.train):
        with _reporter(f"{cell.label}: train", "steps") as report:
            model = train(cell.config, cell.shard, cell.run, initial=cell.pretraining, report=report)
        with _reporter(f"{cell.label}: evaluate", "batches") as report:
            evaluate(model, cell.shard, cell.run, report=report)


def _fill_pretraining(pretraining: Pretraining) -> None:
    from vqa_bench.train.text import pretrain

    with _threads(pretraining.config.train), _reporter(f"{pretraining.label}: train", "steps") as report:
        pretrain(pretraining.config, pretraining.books, pretraining.run, report=report)


@contextmanager
def _reporter(label: str, unit: str) -> Iterator[Progress]:
    """Progress of the main process; the others are silent."""
    with progress(label, unit) if launch.is_main() else nullcontext(silent) as report:
        yield report


@contextmanager
def _threads(config: LoopConfig | None) -> Iterator[None]:
    """PyTorch's threads as the run wants them, for its test too, so that sums are taken in the same order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if config is None or config.threads is None else config.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
