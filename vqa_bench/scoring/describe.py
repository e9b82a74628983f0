"""What a result says beside its numbers: the model, the data, what it cost, and the hashes of all that it rests on.

Knows folders and configurations; asks no model anything. Paths in a result are relative to the run's folder, so that
results and data can be moved together.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vqa_bench.data.answers import Answers
from vqa_bench.data.manifest import MANIFEST_NAME, file_info
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.models import VQAModel
from vqa_bench.runs import RESULT, read_json

FORMAT = 2


def describe(
    model: VQAModel, shard: Shard, split: str, *, answers: Answers, out: Path, training: dict[str, Any]
) -> dict[str, Any]:
    """The model, how it was trained, and what it was asked."""
    cell, info = model.cell, shard.manifest.splits[split]
    reads_bytes = cell.model.kind == "mblm"
    return {
        "format": FORMAT,
        "cell": cell.name,
        "title": cell.title,
        "model": {
            "kind": cell.model.kind,
            "parameters": model.parameters_count,
            "blind": model.blind,
            "config": cell.model.model_dump(mode="json"),
        },
        "encoding": cell.encoding,
        "layout": cell.sequence.layout if reads_bytes else None,
        "sequence": cell.sequence.model_dump(mode="json") if reads_bytes else None,
        "answers": list(answers.names),
        "init": cell.init,
        "initial": training.get("initial"),
        "seed": cell.seed,
        "dataset": {
            "name": shard.manifest.source.name,
            "fingerprint": shard.manifest.source.fingerprint,
            "questions": info.questions,
            "images": info.images,
            "missing_images": info.missing_images,
            "missing_questions": info.missing_questions,
        },
        "shard": {
            "path": _relative(shard.path, out),
            "split": split,
            "spec": shard.manifest.spec,
            "manifest": file_info(shard.path / MANIFEST_NAME).sha256,
        },
        "train": None if cell.train is None else cell.train.model_dump(mode="json"),
        "training": training,
    }


def hashes(out: Path, files: list[Path]) -> dict[str, str]:
    """SHA-256 of those of the files that are there, by their paths from `out`."""
    return {_relative(file, out): file_info(file).sha256 for file in files if file.is_file()}


def cost(
    model: VQAModel, shard: Shard, asked: SplitReader, *, run: Path, out: Path, training: dict[str, Any]
) -> dict[str, float | None]:
    """image_bytes: of an encoded picture of the split, in the mean; None for a model that sees none.

    train_flops: of all training steps that were done, those before it (pretraining) not counted; None for a model that
    is not trained by steps. Evaluated elsewhere, a model has cost what the result of its run says, None without one.
    """
    image_bytes = None if model.blind else float(asked.image_lengths.mean())
    if run == out:
        return {"image_bytes": image_bytes, "train_flops": _train_flops(model, shard, training)}
    known = read_json(run / RESULT).get("cost", {}) if (run / RESULT).is_file() else {}
    return {"image_bytes": image_bytes, "train_flops": known.get("train_flops")}


def _train_flops(model: VQAModel, shard: Shard, training: dict[str, Any]) -> float | None:
    if model.cell.train is None or "steps" not in training or "train" not in shard.manifest.splits:
        return None
    import torch

    from vqa_bench.estimate import estimate

    # As a CPU does it, whatever the run was on: elsewhere, work that is shared there is done twice, and a result would
    # not hold where it is verified on another machine.
    counted = estimate(model.cell, shard, device=torch.device("cpu")).flops * int(training["steps"])
    return float(f"{counted:.12g}")  # shared out over 3 processes, sums may differ in their last bit


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
