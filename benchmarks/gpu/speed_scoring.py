"""Answering questions, timed: an image read once for its questions, against once for each; 28 answers behind both.

The model is the harness's own on random weights, and so is the scoring; pictures and questions are random bytes of
the data's lengths. Knows no rows.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import PaperShape
from benchmarks.gpu.speed_cases import stage_values
from benchmarks.gpu.speed_step import Result, with_fitting_batch
from benchmarks.gpu.training import HALF
from vqa_bench.config import CellConfig
from vqa_bench.data.collate import ByteBatch
from vqa_bench.estimate.samples import samples_of
from vqa_bench.models import ByteModel
from vqa_bench.scoring.score import score

SEED = 0
TEXT = (32, 127)  # the bytes that questions are drawn from


@dataclass(frozen=True, kw_only=True)
class ScoringCase:
    """encoding: of the pictures. images: at once, each with its questions; fewer where memory does not suffice.

    half: under autocast to bfloat16; the harness itself scores in float32. seconds: about how long it takes.
    """

    shape: PaperShape
    encoding: str
    images: int
    questions: int = 10
    half: bool = True
    repeats: int = 3
    seconds: float = 10.0

    @property
    def name(self) -> str:
        return f"{self.shape.name}, scoring in {'bfloat16' if self.half else 'float32'}"

    def settings(self) -> dict[str, Any]:
        """What a kept measurement must have been made with, JSON-able."""
        return asdict(self)


def measure_scoring(device: Device, case: ScoringCase) -> Result:
    """Seconds of scoring all questions of a batch, shared and not, and how far apart the log-probabilities are (nats).

    agree: the share of questions whose likeliest answer is the same both ways. spread: the mean over answers of the
    standard deviation over questions, which a mix-up would show as. peak: bytes, of the shared way.
    """
    model = make_model(case, device.torch_device)
    return with_fitting_batch(lambda images: _measure(device, case, model, images), case.images)


def _measure(device: Device, case: ScoringCase, model: ByteModel, images: int) -> Result:
    batch = make_batch(model, images, case.questions).to(device.torch_device)
    apart = alone(batch)

    def log_probs(asked: ByteBatch) -> torch.Tensor:
        with torch.inference_mode(), precision(device, half=case.half):
            return score(model, asked).log_probs

    shared, separate = log_probs(batch), log_probs(apart)
    ways = {"shared": batch, "alone": apart}
    times = {
        name: device.seconds(lambda asked=asked: log_probs(asked), repeats=case.repeats, warmup=1)  # type: ignore[misc]
        for name, asked in ways.items()
    }
    return {
        "batch": images,
        "samples": images * case.questions,
        "seconds": {name: list(samples.values) for name, samples in times.items()},
        "peak": device.peak_memory(lambda: log_probs(batch)),
        "apart": float((shared - separate).abs().max()),
        "spread": float(shared.std(0).mean()),
        "agree": float((shared.argmax(-1) == separate.argmax(-1)).double().mean()),
    }


def precision(device: Device, *, half: bool) -> AbstractContextManager[object]:
    """Autocast to bfloat16, or nothing."""
    return torch.autocast(device.torch_device.type, dtype=HALF) if half else nullcontext()


def make_model(case: ScoringCase, device: torch.device) -> ByteModel:
    """The byte model of a cell with this shape, made on the device, in evaluation mode."""
    cell = CellConfig.model_validate(
        {
            "name": "speed",
            "title": case.shape.name,
            "encoding": case.encoding,
            "model": {"kind": "mblm", **stage_values(case.shape)},
            "train": {"steps": 1, "images_per_batch": 1, "learning_rate": 1e-4},  # a cell must say how it is trained
        }
    )
    torch.manual_seed(SEED)
    with torch.device(device):
        model = ByteModel(cell, {"image_bytes": samples_of(cell, None).image_bytes})
    return model.eval()


def make_batch(model: ByteModel, images: int, questions: int) -> ByteBatch:
    """Random pictures, each with random questions of CLEVR's lengths, as the harness's collation lays them out."""
    random, sequencer = np.random.default_rng(SEED), model.sequencer
    samples, at = samples_of(model.cell, None), np.arange(images * questions)
    asked = samples.asked(len(at))
    asked = asked._replace(text=random.integers(*TEXT, size=len(asked.text), dtype=np.uint8))
    pictures = random.integers(256, size=(images, samples.image_bytes), dtype=np.uint8)
    parts = sequencer.images(list(pictures))
    suffixes, starts = sequencer.suffixes(asked, at, len(at), images=parts, image_of=at // questions)
    nowhere = torch.zeros(images, questions, dtype=torch.long)
    return ByteBatch(
        present=torch.ones(images, questions, dtype=torch.bool),
        rows=nowhere,
        targets=nowhere,
        prefix=torch.from_numpy(parts),
        suffixes=torch.from_numpy(suffixes).unflatten(0, (images, questions)),
        answer_patches=torch.from_numpy(starts // sequencer.patch_size).view(images, questions),
    )


def alone(batch: ByteBatch) -> ByteBatch:
    """The same questions in the same order, each with an image of its own."""
    return replace(
        batch,
        present=batch.present.view(-1, 1),
        rows=batch.rows.view(-1, 1),
        targets=batch.targets.view(-1, 1),
        prefix=batch.prefix.repeat_interleave(batch.present.shape[1], 0),
        suffixes=batch.suffixes.flatten(0, 1)[:, None],
        answer_patches=batch.answer_patches.view(-1, 1),
    )
