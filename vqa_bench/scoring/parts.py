"""How well a byte model predicts each part of its sequences, in bits per byte: image, question and right answer.

    bits per byte = −Σ ln p(id) / ln 2 / ids

over a part's bytes and its end id, which count as the loss counts them: the end is an id like the bytes, and in a
layout that asks twice both copies of the question are in the sum. Knows losses and scores, no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from vqa_bench import launch
from vqa_bench.data.answers import Answers
from vqa_bench.data.loading import Group
from vqa_bench.data.sequences import PartWeights
from vqa_bench.data.shards import SplitReader
from vqa_bench.models import ByteModel
from vqa_bench.progress import Progress, silent
from vqa_bench.scoring.batches import BatchSize, in_batches
from vqa_bench.scoring.predictions import Prediction

READ = ("image", "question")
"""The parts that are measured by a loss of their own; the answers' is in their scores."""


def part_bits(
    model: ByteModel,
    split: SplitReader,
    groups: list[Group],
    *,
    images: int | None = None,
    size: BatchSize | None = None,
    report: Progress = silent,
) -> dict[str, dict[str, float]]:
    """`bits_per_byte` and `bytes` (the predicted ids, ends included) of `image` and `question`, in every process.

    images: so many, evenly spread over the groups, with all of their questions; None takes all, 0 none. size: of a
    batch, as in `answering.answer`. An image that is read once for its questions is counted once, otherwise once with
    each.
    """
    chosen = groups if images is None else _spread(groups, images)
    if not chosen:
        return {}
    if size is None:
        size = BatchSize.of(model.cell.evaluate.images_per_batch)
    model.to(launch.device()).eval()
    return {part: _measure(model, split, _asked(model, chosen, part), part, size, report) for part in READ}


def answer_bits(predictions: Sequence[Prediction], answers: Answers, form: str) -> dict[str, float]:
    """`bits_per_byte` and `bytes` of the right answers as they are written, from the scores of the candidates."""
    nats = -sum(prediction.log_probs[answers.index[prediction.answer]] for prediction in predictions)
    ids = [len(written) for written in answers.ids(form)]
    return _entry(nats, sum(ids[answers.index[prediction.answer]] for prediction in predictions))


def _spread(groups: list[Group], count: int) -> list[Group]:
    places = np.linspace(0, len(groups), min(count, len(groups)), endpoint=False).astype(int)
    return [groups[place] for place in places]


def _asked(model: ByteModel, groups: list[Group], part: str) -> list[Group]:
    """With one question where nothing but the image is measured, and it comes before the questions."""
    once = part == "image" and model.sequencer.shares_prefix
    return [Group(group.image, group.questions[:1]) for group in groups] if once else groups


def _measure(
    model: ByteModel, split: SplitReader, groups: list[Group], part: str, size: BatchSize, report: Progress
) -> dict[str, float]:
    weights, device = PartWeights(**({"answer": 0.0} | {part: 1.0})), launch.device()

    def work(batch: list[Group]) -> tuple[float, int]:
        with torch.inference_mode():
            sums = model.loss(model.collate(split, batch).to(device), weights)
            return float(sums.total), int(sums.targets)

    with launch.alone():
        own = list(
            in_batches(model, split, groups, size, work, rank=launch.rank(), world=launch.world(), report=report)
        )
    found = launch.gather(own)
    # Exactly rounded, so that it does not depend on which process measured which batch.
    return _entry(math.fsum(nats for nats, _ in found), sum(count for _, count in found))


def _entry(nats: float, count: int) -> dict[str, float]:
    return {"bits_per_byte": nats / math.log(2) / count, "bytes": count}
