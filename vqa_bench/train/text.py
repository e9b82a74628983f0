"""Training on text: windows of packed books as a task of the loop, and a whole pretraining run.

    <run>/pretrain.json                      the run's configuration
          model.safetensors + config.json    the byte model alone: a checkpoint that others begin from
          result.json                        bits per byte of the validation and the test split

Knows books and text models; how a step is taken is the loop's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqa_bench import launch
from vqa_bench.config import PretrainConfig
from vqa_bench.data.books import Books, WindowPlan
from vqa_bench.data.loading import batches
from vqa_bench.data.manifest import file_info
from vqa_bench.data.windows import Masking, WindowBatch, collate_windows, training_windows
from vqa_bench.models import TextModel, build_text
from vqa_bench.progress import Progress, silent
from vqa_bench.runs import CONFIG, DONE, RESULT, WEIGHTS, write_json, writing
from vqa_bench.scoring.bits import TextLoss, text_loss
from vqa_bench.train.keep import facts_of, is_trained
from vqa_bench.train.loop import optimise
from vqa_bench.train.task import Amount

PRETRAIN = "pretrain.json"
TRAIN, DEV, TEST = "train", "validation", "test"


def pretrain(config: PretrainConfig, books: Books, run: Path, *, report: Progress = silent) -> dict[str, Any]:
    """Train a text model, from the last checkpoint in the run's folder if there is one, and evaluate it.

    Every process of a launch calls this; `run` must be there. Writes the files named above and, last, `DONE`; returns
    the content of `result.json`.

    Raises UserError where the books do not suit the configuration, and where the loss stops being finite.
    """
    if launch.is_main():
        write_json(run / PRETRAIN, config.model_dump(mode="json"))
    if not is_trained(run):

        def make_task(rank: int, world: int) -> TextTask:
            return TextTask(new_model(config), books, rank=rank, world=world)

        optimise(make_task, config.train, run, seed=config.seed, name=config.name, report=report)
    model = build_text(config)
    model.load_state_dict(model.stored(run))
    result = {
        "format": 1,
        "kind": "pretrain",
        "name": config.name,
        "title": config.title,
        "model": {
            "kind": config.model.kind,
            "parameters": model.parameters_count,
            "config": config.model.model_dump(mode="json"),
        },
        "objective": model.objective,
        "context": config.window,
        "seed": config.seed,
        "dataset": describe(books),
        "train": config.train.model_dump(mode="json"),
        "training": facts_of(run),
        "metrics": evaluate_text(model, books, report=report),
    }
    if launch.is_main():
        with writing(run / RESULT):
            result["hashes"] = {name: file_info(run / name).sha256 for name in (CONFIG, WEIGHTS)}
            write_json(run / RESULT, result)
            (run / DONE).touch()
    launch.barrier()
    return launch.broadcast(result)


def new_model(config: PretrainConfig) -> TextModel:
    """A run's model as it is before training, the same every time."""
    torch.manual_seed(config.seed)
    return build_text(config)


def describe(books: Books) -> dict[str, Any]:
    """What a result says of the books: where they are from, whether they are all of it, and what is in each split."""
    manifest = books.manifest
    whole = manifest.verified and manifest.complete
    return {
        "name": "pg19" if whole else manifest.source["kind"],
        "source": manifest.source,
        "complete": manifest.complete,
        "splits": {
            name: counts.model_dump() | {"sha256": manifest.files[f"{name}.bytes"].sha256}
            for name, counts in manifest.splits.items()
        },
    }


def evaluate_text(model: TextModel, books: Books, *, report: Progress = silent) -> dict[str, dict[str, Any]]:
    """How well a model does on the validation and the test split, as far as the books have them.

    `bits_per_byte` over all `bytes`; of a masked model `bits_per_masked_byte` over the `masked_bytes` among them.
    """
    device = launch.device()
    measure = _measure(model.config, model.mask_rate, rank=launch.rank(), world=launch.world())
    model.to(device).eval()
    metrics: dict[str, dict[str, Any]] = {}
    for name in (DEV, TEST):
        if name not in books.manifest.splits:
            continue
        split = books.split(name)
        shares = launch.gather([measure(model, split, device=device, report=report)])
        found = TextLoss(math.fsum(share.nats for share in shares), sum(share.bytes for share in shares))
        if model.mask_rate is None:
            metrics[name] = {"bits_per_byte": found.bits_per_byte}
        else:
            metrics[name] = {"bits_per_masked_byte": found.bits_per_byte, "masked_bytes": found.bytes}
        metrics[name] |= {"bytes": len(split.data), "windows": math.ceil(len(split.data) / model.config.window)}
    return metrics


def _measure(config: PretrainConfig, mask_rate: float | None, *, rank: int, world: int) -> Callable[..., TextLoss]:
    """`text_loss` on a process's share, with as many windows at a time as in training."""
    size = math.ceil(config.train.windows_per_batch / world)
    return partial(text_loss, window=config.window, batch=size, mask_rate=mask_rate, rank=rank, world=world)


class TextTask:
    """One process's share of a pretraining; see `train.task.Task`.

    Raises UserError where the books have no train split or one shorter than a window, where a batch has fewer windows
    than there are processes, and where there is no validation split though the model is to be judged on it.
    """

    unit = "windows"

    def __init__(self, model: TextModel, books: Books, *, rank: int = 0, world: int = 1) -> None:
        self.model = model
        self.facts: Mapping[str, Any] = {}
        config = self.config = model.config
        size = config.train.windows_per_batch
        self.plan = WindowPlan(books.split(TRAIN), config.window, config.seed, size, rank, world)
        self.batches_per_epoch = self.plan.windows_per_epoch / size
        self._measure = _measure(config, model.mask_rate, rank=rank, world=world)
        self.dev = None if config.train.dev is None else books.split(DEV)

    def batches(self, numbers: range, *, workers: int, pin: bool) -> Iterator[WindowBatch]:
        rate = self.model.mask_rate
        masking = None if rate is None else Masking(rate, self.config.seed, "training")
        collate = partial(collate_windows, masking=masking)
        return batches(partial(training_windows, self.plan), collate, numbers, workers=workers, pin=pin)

    def amount(self, batch: WindowBatch) -> Amount:
        return Amount(len(batch.ids), batch.ids.numel())

    def name(self, number: int) -> str:
        starts = ", ".join(f"{start:,}" for start in self.plan.starts(number))
        return f"windows of the {TRAIN} split that begin at bytes {starts}"

    def develop(self, model: nn.Module, device: torch.device) -> dict[str, tuple[float, float]]:
        """`loss` in nats of the bytes that are predicted."""
        dev = self.config.train.dev
        assert self.dev is not None, "the loop asks for dev where it is configured"
        assert dev is not None
        found = self._measure(model, self.dev, device=device, limit=dev.samples)
        return {"loss": (found.nats, found.bytes)}

    def save(self, folder: Path, model: nn.Module) -> None:
        assert isinstance(model, TextModel)
        model.save(folder)
