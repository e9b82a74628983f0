"""Intervals and tests for accuracies whose questions come in clusters: about ten to an image.

Questions about one image stand and fall together, so an interval that takes them for independent is too
narrow. Here images are resampled, never questions. NumPy and SciPy only; this file knows arrays of right and
wrong answers, nothing of models, files or question types.

Shapes: N questions, C clusters (images), D clusters on which two models differ, K distinct clusters' sums,
R replicates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtr, stdtrit  # scipy.stats would take seconds to import

from vqa_bench.errors import UserError

REPLICATES = 10_000
CONFIDENCE = 0.95

LEAST_P = 1e-9
"""No smaller p value is claimed: so far out the shape of a tail is anybody's guess."""

STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))
"""Below which p value how many stars are given."""


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
    as the units: Davison & Hinkley 1997, sec. 3.8), expanded for few clusters (Hesterberg 2015, The American
    Statistician 69:371): the percentiles are taken as far out as Student's t with C - 1 degrees of freedom is.

    `correct` (N,) holds 0 or 1, `clusters` (N,) says by any label which image a question is about.

    Where resampling is blind the result is defined: if all answers are right, or all wrong, the interval is that
    of Clopper & Pearson (1934) with images for trials; with one image it is [0, 1].

    Raises UserError for no question, or for arrays of different length.
    """
    hits, sizes = _cluster_sums(_binary(correct), clusters)
    estimate = float(hits.sum() / sizes.sum())
    if len(sizes) == 1:
        return Interval(estimate, 0.0, 1.0)
    if estimate in (0.0, 1.0):
        tail = (1 - confidence) / 2
        margin = 1 - tail ** (1 / len(sizes))
        return Interval(estimate, *((0.0, margin) if estimate == 0 else (1 - margin, 1.0)))
    resampled = _resampled_ratios(hits, sizes, replicates=replicates, seed=seed)
    return Interval(estimate, *_ends(resampled, len(sizes), confidence))


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

    The p value inverts that interval, which is `accuracy_interval`'s: from the smaller share of replicates at or beyond
    zero, counted with one added to replicates and to cases (Davison & Hinkley 1997, eq. 4.11). Where no replicate
    gets there, Student's t of the difference over its standard error tells how far out it is, down to `LEAST_P`. And
    it is never below 2^(1-D), D images on which the sums differ: the least that swapping the models' names image by
    image could give.

    Defined where resampling is blind: equal everywhere gives [0, 0] and p = 1; one image gives [-1, 1] and p = 1.

    Raises UserError for no question, or for arrays of different length.
    """
    gains, sizes = _paired_sums(correct_a, correct_b, clusters)
    estimate = float(gains.sum() / sizes.sum())
    if len(sizes) == 1:
        return PairedDifference(estimate, -1.0, 1.0, 1.0)
    resampled = _resampled_ratios(gains, sizes, replicates=replicates, seed=seed)
    return PairedDifference(estimate, *_ends(resampled, len(sizes), confidence), _p_value(resampled, gains, sizes))


def minimum_detectable_effect(
    correct_a: ArrayLike,
    correct_b: ArrayLike,
    clusters: ArrayLike,
    *,
    power: float = 0.8,
    level: float = 0.05,
) -> float:
    """The least true difference of accuracy that a test set like this one would show with probability `power`.

    (t_{1-level/2} + t_power) · SE, with quantiles of Student's t of C - 1 degrees of freedom: the usual formula for a
    two-sided test of a mean (Bloom 1995, Evaluation Review 19:547). SE is that of a ratio of sums over images.

    It is never less than D / N, D being the images on which two models must differ, all in favour of one, before
    `paired_difference` can fall below `level`: without a difference anywhere that is the answer. It is 1, all that a
    difference can be, with fewer images than D.

    Raises UserError for no question, or for arrays of different length.
    """
    if not (0 < level < 1 and 0 < power < 1):
        raise UserError(f"expected a power and a level between 0 and 1, got {power} and {level}")
    gains, sizes = _paired_sums(correct_a, correct_b, clusters)
    images, questions = len(sizes), sizes.sum()
    needed = math.floor(1 - math.log2(level)) + 1  # the least D with 2^(1-D) < level
    if images < max(needed, 2):
        return 1.0
    effect = (stdtrit(images - 1, 1 - level / 2) + stdtrit(images - 1, power)) * _standard_error(gains, sizes)
    return float(min(1.0, max(effect, needed / questions)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values adjusted for being many, in the order given: step-down (Holm 1979, Scand. J. Statistics 6:65).

    Rejecting what is below a level keeps the chance of a single false rejection among all below it, however the tests
    depend on each other. Nothing for no p value. Raises UserError for one outside [0, 1].
    """
    for p_value in p_values:
        _check_p_value(p_value)
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * float(p_values[place])))
        adjusted[place] = highest
    return adjusted


def stars(p_value: float) -> str:
    """`***` for a p value below 0.001, `**` below 0.01, `*` below 0.05, else nothing.

    Raises UserError for one outside [0, 1].
    """
    _check_p_value(p_value)
    return next((marks for level, marks in STARS if p_value < level), "")


def unclustered_mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """McNemar's test of two models on the same questions, exact (binomial) and mid-p.

    It takes questions for independent, which questions about one image are not: use `paired_difference` for a
    claim, this one to compare with reports that give it. Source: Fagerland, Lydersen & Laake 2013,
    BMC Medical Research Methodology 13:91. Without a discordant question both p values are 1.

    Raises UserError for no question, or for arrays of different length.
    """
    correct_a, correct_b = _binary_pair(correct_a, correct_b)
    if len(correct_a) == 0:
        raise UserError("expected two models' answers to the same questions, got 0 and 0 answers")
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


def _check_p_value(p_value: float) -> None:
    if not 0 <= p_value <= 1:
        raise UserError(f"expected a p value between 0 and 1, got {p_value}")


def _binary(correct: ArrayLike) -> NDArray[np.int64]:
    values = np.asarray(correct)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise UserError(f"expected one 0 or 1 a question, got an array of shape {values.shape}, {values.dtype}")
    return values.astype(np.int64)


def _binary_pair(correct_a: ArrayLike, correct_b: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pair = _binary(correct_a), _binary(correct_b)
    if len(pair[0]) != len(pair[1]):
        raise UserError(
            f"expected two models' answers to the same questions, got {len(pair[0])} and {len(pair[1])} answers"
        )
    return pair


def _paired_sums(
    correct_a: ArrayLike, correct_b: ArrayLike, clusters: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What a has more right than b, and the number of questions, for each cluster: two arrays (C,)."""
    right_a, right_b = _binary_pair(correct_a, correct_b)
    return _cluster_sums(right_a - right_b, clusters)


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


def _standard_error(sums: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    """Of the ratio r = sum of `sums` / N, from its residuals e_c = sum_c - r · size_c over at least two clusters:
    sqrt(C / (C - 1) · sum of e_c^2) / N (Cochran 1977, Sampling Techniques, sec. 2.11).
    """
    count, questions = len(sizes), sizes.sum()
    residuals = sums - sums.sum() / questions * sizes
    return math.sqrt(count / (count - 1) * (residuals**2).sum()) / float(questions)


def _ends(resampled: NDArray[np.float64], count: int, confidence: float) -> tuple[float, float]:
    """The ends of the expanded percentile interval of replicates (R,) that each draw `count` clusters."""
    t = stdtrit(count - 1, (1 - confidence) / 2)
    tail = ndtr(t * math.sqrt(count / (count - 1)))
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return float(low), float(high)


def _p_value(resampled: NDArray[np.float64], sums: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    """Two-sided, for a ratio of 0, from its replicates (R,); see `paired_difference`."""
    count, expansion = len(sizes), math.sqrt(len(sizes) / (len(sizes) - 1))
    beyond = int(min((resampled <= 0).sum(), (resampled >= 0).sum()))
    t = float(ndtri((beyond + 1) / (len(resampled) + 1))) / expansion  # where `_ends` would put the end at 0
    if beyond == 0:
        standard_error = _standard_error(sums, sizes)
        distance = math.inf if standard_error == 0 else abs(sums.sum() / sizes.sum()) / standard_error
        t = min(t, -float(distance))
    least = max(LEAST_P, 2.0 ** (1 - int(np.count_nonzero(sums))))
    return min(1.0, max(2 * float(stdtr(count - 1, t)), least))


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
