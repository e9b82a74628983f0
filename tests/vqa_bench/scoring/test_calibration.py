"""ECE and Brier score against their definitions, one question at a time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vqa_bench.scoring.predictions import make_prediction
from vqa_bench.data.answers import CLEVR_ANSWERS
from vqa_bench.data.vocab import ANSWERS
from vqa_bench.scoring.calibration import BINS, _bins, calibration, normalised
from vqa_bench.scoring.predictions import Prediction


def prediction(index: int, answer: str, probabilities: list[float], mass: float = 1.0) -> Prediction:
    """A record with these probabilities of the candidates, each a share of `mass`."""
    best = ANSWERS[int(np.argmax(probabilities))]
    log_probs = [math.log(mass * p) for p in probabilities]
    return make_prediction(index, answer=answer, prediction=best, log_probs=log_probs)


def drawn(count: int, seed: int) -> list[Prediction]:
    random = np.random.default_rng(seed)
    draws = [random.dirichlet(np.full(len(ANSWERS), 0.1)) + 1e-9 for _ in range(count)]
    rights = [ANSWERS[int(random.choice(len(ANSWERS), p=draw / draw.sum()))] for draw in draws]
    masses = random.uniform(0.01, 1, count)
    return [
        prediction(i, right, (draw / draw.sum()).tolist(), float(mass))
        for i, (right, draw, mass) in enumerate(zip(rights, draws, masses, strict=True))
    ]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000))
def test_equals_the_definitions(count: int, seed: int) -> None:
    records = drawn(count, seed)
    brier, bins = 0.0, [[] for _ in range(BINS)]
    for record in records:
        exps = [math.exp(value) for value in record.log_probs]
        p = [value / sum(exps) for value in exps]
        brier += sum((p[c] - (ANSWERS[c] == record.answer)) ** 2 for c in range(len(ANSWERS)))
        place = next(b for b in range(BINS) if max(p) <= (b + 1) / BINS or b == BINS - 1)
        bins[place].append((max(p), record.prediction == record.answer))
    ece = sum(abs(sum(c for c, _ in held) - sum(right for _, right in held)) for held in bins) / count
    found = calibration(records, CLEVR_ANSWERS)
    assert found["n"] == count
    assert found["brier"] == pytest.approx(brier / count)
    assert found["ece"] == pytest.approx(ece)
    filled = [(b / BINS, (b + 1) / BINS, len(held)) for b, held in enumerate(bins) if held]
    assert [(e["low"], e["high"], e["n"]) for e in found["bins"]] == [
        (pytest.approx(low), pytest.approx(high), n) for low, high, n in filled
    ]


def test_certain_and_right_is_perfect_and_certain_and_wrong_the_worst() -> None:
    certain = [1 - 27e-12, *[1e-12] * 27]
    right = calibration([prediction(i, "yes", certain) for i in range(5)], CLEVR_ANSWERS)
    wrong = calibration([prediction(i, "no", certain) for i in range(5)], CLEVR_ANSWERS)
    assert (right["ece"], right["brier"]) == pytest.approx((0, 0), abs=1e-9)
    assert (wrong["ece"], wrong["brier"]) == pytest.approx((1, 2), abs=1e-9)


def test_only_the_candidates_share_the_probability() -> None:
    """Scores are of whole texts and may be as small as one likes; what counts is their ratio."""
    probabilities = [0.6, 0.3, *[0.1 / 26] * 26]
    some = [prediction(0, "yes", probabilities, mass) for mass in (1.0, 1e-3)]
    np.testing.assert_allclose(normalised(some), [probabilities, probabilities])
    tiny = make_prediction(0, answer="yes", prediction="yes", log_probs=[-2000.0, *[-2001.0] * 27])
    assert normalised([tiny])[0, 0] == pytest.approx(1 / (1 + 27 / math.e))


@pytest.mark.parametrize(("confidence", "low", "high"), [(0.2, 2, 3), (1.0, 14, 15), (1 / 15, 0, 1), (0.0, 0, 1)])
def test_a_bin_holds_its_upper_edge(confidence: float, low: int, high: int) -> None:
    edges = np.linspace(0, 1, BINS + 1)
    (found,) = _bins(np.array([edges[np.abs(edges - confidence).argmin()]]), np.array([True]))
    assert (found["low"], found["high"]) == (edges[low], edges[high])
