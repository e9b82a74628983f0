"""Intervals and tests for accuracies whose questions come in clusters: about ten to an image.

Questions about one image stand and fall together, so an interval that takes them for independent is too
narrow. Here images are resampled, never questions. NumPy and SciPy only; this file knows arrays of right and
wrong answers, nothing of models, files or question types.

Shapes: N questions, C clusters (images), K distinct clusters' sums, R replicates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr  # scipy.stats would take seconds to import

from vqa_bench.errors import UserError

REPLICATES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A fraction (or a difference of two) and the ends of its interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedDifference(Interval):
    """`estimate` is the accuracy of a minus that of b; `p_value` is two-sided, for no difference."""

    p_value: float


@dataclass(frozen=True)
class McNemar:
    """Questions that only a, only b answers rightly, and the two-sided p values of the exact and mid-p test."""

    only_a: int
    only_b: int
    exact_p: float
    mid_p: float


def accuracy_interval(
    correct: ArrayLike,
    clusters: ArrayLike,
    *,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Accuracy with the percentile interval of a cluster bootstrap (Efron & Tibshirani 1993, ch. 13; clusters
    as the units: Davison & Hinkley 1997, sec. 3.8).

    `correct` (N,) holds 0 or 1, `clusters` (N,) says by any label which image a question is about.

    Where resampling is blind the result is defined: if all answers are right, or all wrong, the interval is that
    of Clopper & Pearson (1934) with images for trials; with one image it is [0, 1].

    Raises UserError for no question, or for arrays of different length.
    """
    hits, sizes = _cluster_sums(_binary(correct), clusters)
    estimate = float(hits.sum() / sizes.sum())
    if len(sizes) == 1:
        return Interval(estimate, 0.0, 1.0)
    tail = (1 - confidence) / 2
    if estimate in (0.0, 1.0):
        margin = 1 - tail ** (1 / len(sizes))
        return Interval(estimate, *((0.0, margin) if estimate == 0 else (1 - margin, 1.0)))
    resampled = _resampled_ratios(hits, sizes, replicates=replicates, seed=seed)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))


def paired_difference(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    clusters: ArrayLike,
    *,
    replicates: int = REPLICATES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> PairedDifference:
    """Accuracy of a minus accuracy of b on the same N questions, images resampled together for both.

    The p value inverts the percentile interval: twice the smaller share of replicates at or beyond zero,
    counted with one added to replicates and to cases (Davison & Hinkley 1997, eq. 4.11), so it is never 0. It is never
    below 2^(1-C) either, the least that swapping the models' names image by image could give.

    Defined where resampling is blind: equal everywhere gives [0, 0] and p = 1; one image gives [-1, 1] and p = 1.

    Raises UserError for no question, or for arrays of different length.
    """
    correct_a, correct_b = _binary(correct_a), _binary(correct_b)
    if len(correct_a) != len(correct_b):
        raise UserError(
            f"expected two models' answers to the same questions, got {len(correct_a)} and {len(correct_b)} answers"
        )
    gains, sizes = _cluster_sums(correct_a - correct_b, clusters)
    estimate = float(gains.sum() / sizes.sum())
    if len(sizes) == 1:
        return PairedDifference(estimate, -1.0, 1.0, 1.0)
    resampled = _resampled_ratios(gains, sizes, replicates=replicates, seed=seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    fewer = min((resampled <= 0).sum(), (resampled >= 0).sum())
    p_value = min(1.0, max(2 * (fewer + 1) / (replicates + 1), 2.0 ** (1 - len(sizes))))
    return PairedDifference(estimate, float(low), float(high), float(p_value))


def unclustered_mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """McNemar's test of two models on the same questions, exact (binomial) and mid-p.

    It takes questions for independent, which questions about one image are not: use `paired_difference` for a
    claim, this one to compare with reports that give it. Source: Fagerland, Lydersen & Laake 2013,
    BMC Medical Research Methodology 13:91. Without a discordant question both p values are 1.

    Raises UserError for no question, or for arrays of different length.
    """
    correct_a, correct_b = _binary(correct_a), _binary(correct_b)
    if len(correct_a) != len(correct_b) or len(correct_a) == 0:
        raise UserError(
            f"expected two models' answers to the same questions, got {len(correct_a)} and {len(correct_b)} answers"
        )
    only_a = int((correct_a > correct_b).sum())
    only_b = int((correct_a < correct_b).sum())
    discordant, fewer = only_a + only_b, min(only_a, only_b)
    at_most = float(bdtr(fewer, discordant, 0.5))
    below = float(bdtr(fewer - 1, discordant, 0.5)) if fewer > 0 else 0.0
    return McNemar(only_a, only_b, exact_p=min(1.0, 2 * at_most), mid_p=min(1.0, at_most + below))


def chance_level(num_candidates: ArrayLike) -> float:
    """Expected accuracy of a uniform guess among the answers possible for each question: the mean of 1/k.

    Raises UserError for no question or a question without candidates.
    """
    counts = np.asarray(num_candidates)
    if counts.size == 0 or (counts < 1).any():
        raise UserError("expected at least one question, each with at least one candidate answer")
    return float((1 / counts).mean())


def _binary(correct: ArrayLike) -> NDArray[np.int64]:
    values = np.asarray(correct)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise UserError(f"expected one 0 or 1 a question, got an array of shape {values.shape}, {values.dtype}")
    return values.astype(np.int64)


def _cluster_sums(values: NDArray[np.int64], clusters: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sum of `values` (N,) and number of questions for each cluster: two arrays (C,)."""
    labels = np.asarray(clusters)
    if len(values) == 0 or len(values) != len(labels):
        raise UserError(
            f"expected at least one question and one image name for each, got {len(values)} and {len(labels)}"
        )
    names, index = np.unique(labels, return_inverse=True)
    sums = np.zeros(len(names), dtype=np.int64)
    np.add.at(sums, index, values)
    return sums, np.bincount(index)


def _resampled_ratios(
    sums: NDArray[np.int64], sizes: NDArray[np.int64], *, replicates: int, seed: int
) -> NDArray[np.float64]:
    """Sum of `sums` over sum of `sizes` in R resamples of the C clusters with replacement: (R,).

    Clusters with the same sum and size are interchangeable, so a multinomial draw over the K kinds of cluster
    has exactly the distribution of a draw over clusters. K stays below a few hundred however many images there are:
    10,000 replicates of 15,000 images take milliseconds instead of a minute.
    """
    kinds, members = np.unique(np.stack([sums, sizes]), axis=1, return_counts=True)  # (2, K), (K,)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(sums), members / len(sums), size=replicates)  # (R, K)
    totals, questions = kinds @ weights.T  # (R,) each
    return totals / questions
