"""Scoring that is timed: batches as the harness makes them, and the same answers whether images are shared or not."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter

import numpy as np
import pytest
import torch

from benchmarks.gpu import shapes, speed
from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import PaperShape
from benchmarks.gpu.speed_scoring import ScoringCase, alone, make_batch, make_model, measure_scoring
from vqa_bench.scoring.score import score

CPU = torch.device("cpu")
TINY = Device(CPU, tiny=True)
NAME = attrgetter("name")
SCORING = next(job for job in speed.TINY.jobs if isinstance(job, ScoringCase))


def test_questions_are_laid_out_as_the_harness_lays_them_out() -> None:
    model = make_model(SCORING, CPU)
    batch = make_batch(model, 2, 3)
    R = model.sequencer.patch_size
    for image in range(2):
        picture = batch.prefix[image, R : R + 36].numpy().astype(np.uint8)
        for question in range(3):
            ids, start = batch.suffixes[image, question], int(batch.answer_patches[image, question]) * R
            end = int((ids == 259).nonzero()[0])  # of the question
            text, letter = bytes(ids[1:end].tolist()).decode(), chr(int(ids[start + 1]))
            [answer] = [name for name in model.answers.names if model.answers.letters[name] == letter]
            sample = model.sequencer.sample(picture, text, answer)
            assert sample.answer_start == start
            assert sample.prefix.tolist() == batch.prefix[image].tolist()
            assert sample.suffix.tolist() == ids[: len(sample.suffix)].tolist()
    assert len({tuple(row.tolist()) for row in batch.suffixes.flatten(0, 1)}) == 6


@pytest.mark.parametrize("shape", [SCORING.shape, replace(shapes.TWO_TT.tiny(), seq_lens=(80, 4))], ids=NAME)
def test_shared_images_change_no_answer(shape: PaperShape) -> None:
    case = replace(SCORING, shape=shape)
    model = make_model(case, CPU)
    batch = make_batch(model, 2, 3).to(CPU)
    shared, separate = (score(model, asked).log_probs for asked in (batch, alone(batch)))
    assert shared.shape == (6, 28)
    torch.testing.assert_close(shared, separate, rtol=0, atol=1e-4)
    assert float((shared[0] - shared[1]).abs().max()) > 1e-3  # questions are told apart
    assert float((shared[:3] - shared[3:]).abs().max()) > 1e-3


def test_what_is_measured_of_scoring() -> None:
    found = measure_scoring(TINY, replace(SCORING, half=False, repeats=2))
    assert found["samples"] == 4
    assert {way: len(seconds) for way, seconds in found["seconds"].items()} == {"shared": 2, "alone": 2}
    assert found["apart"] < 1e-4 < found["spread"]
    assert found["agree"] == 1.0
