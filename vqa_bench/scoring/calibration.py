"""Whether a model's probabilities are what they say: of all answers given with 70 %, are 70 % right?

A byte model spreads its probability over all texts, so it is normalised over the candidates first, as every model's:
p(c) = exp(s(c)) / Σ exp(s(c')), with s the log-probabilities of `predictions.jsonl`. Knows arrays, no files.

Shapes: N questions, A candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp

from vqa_bench.data.answers import Answers
from vqa_bench.scoring.predictions import Prediction, correct_of

BINS = 15  # as Guo et al. 2017 have it


def calibration(predictions: Sequence[Prediction], answers: Answers) -> dict[str, Any]:
    """n, ece, brier and the bins that hold a question: low, high, n, mean confidence and accuracy of each.

    The confidence of a prediction is its normalised probability. A bin holds low < confidence ≤ high; all are of one
    width.

    ece: Σ over bins of n_b / N · |accuracy_b − confidence_b| (Naeini, Cooper & Hauskrecht 2015, AAAI; Guo et al. 2017,
    arXiv 1706.04599, eq. 3). brier: the mean over questions of Σ_c (p(c) − [c is right])², from 0 to 2 (Brier 1950,
    Monthly Weather Review 78:1, eq. 2).
    """
    probabilities = normalised(predictions)  # (N, A)
    right = np.array([answers.index[prediction.answer] for prediction in predictions])
    missed = probabilities.copy()
    missed[np.arange(len(right)), right] -= 1
    confidence = probabilities.max(1)
    bins = _bins(confidence, correct_of(predictions))
    gap = sum(entry["n"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins)
    return {
        "n": len(predictions),
        "ece": gap / len(predictions),
        "brier": float((missed**2).sum(1).mean()),
        "bins": bins,
    }


def normalised(predictions: Sequence[Prediction]) -> np.ndarray:
    """(N, A) float64: the probability of each candidate among all of them."""
    log_probs = np.array([prediction.log_probs for prediction in predictions])
    return np.exp(log_probs - logsumexp(log_probs, axis=1, keepdims=True))


def _bins(confidence: np.ndarray, correct: np.ndarray) -> list[dict[str, Any]]:
    edges = np.linspace(0, 1, BINS + 1)
    places = np.clip(np.searchsorted(edges, confidence) - 1, 0, BINS - 1)  # (N,)
    entries = []
    for place in np.unique(places):
        inside = places == place
        entries.append(
            {
                "low": float(edges[place]),
                "high": float(edges[place + 1]),
                "n": int(inside.sum()),
                "confidence": float(confidence[inside].mean()),
                "accuracy": float(correct[inside].mean()),
            }
        )
    return entries
