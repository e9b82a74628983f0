"""Intervals against simulations and brute force, tests against hand-worked cases."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from vqa_bench.errors import UserError
from vqa_bench.scoring.statistics import (
    accuracy_interval,
    chance_level,
    paired_difference,
    unclustered_mcnemar,
)

ACCURACY, IMAGES, QUESTIONS = 0.6, 120, 10


def clustered_answers(
    generator: np.random.Generator, accuracy: float = ACCURACY, images: int = IMAGES
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Right and wrong answers whose difficulty varies by image (beta-binomial, intra-class correlation 1/4)."""
    of_image = generator.beta(3 * accuracy, 3 * (1 - accuracy), size=images)
    correct = generator.random((images, QUESTIONS)) < of_image[:, None]
    return correct.astype(np.int64).ravel(), np.repeat(np.arange(images), QUESTIONS)


def coverage(repetitions: int, *, clustered: bool) -> float:
    """Share of simulated test sets whose 95 % interval holds the true accuracy."""
    covered = 0
    for repetition in range(repetitions):
        correct, clusters = clustered_answers(np.random.default_rng(repetition))
        if not clustered:
            clusters = np.arange(len(correct))
        interval = accuracy_interval(correct, clusters, replicates=2_000, seed=repetition)
        covered += interval.low <= ACCURACY <= interval.high
    return covered / repetitions


def test_interval_covers_the_truth_and_the_unclustered_one_does_not() -> None:
    assert 0.915 <= coverage(400, clustered=True) <= 0.985
    assert coverage(400, clustered=False) < 0.85


@pytest.mark.slow
def test_coverage_of_the_interval() -> None:
    assert 0.935 <= coverage(2_000, clustered=True) <= 0.965


@pytest.mark.slow
@pytest.mark.parametrize("images", [12, 25])
def test_few_images_widen_the_interval_enough(images: int) -> None:
    """Without the expansion these are below 0.925 and 0.938."""
    covered = 0
    for repetition in range(2_000):
        correct, clusters = clustered_answers(np.random.default_rng(repetition), images=images)
        interval = accuracy_interval(correct, clusters, replicates=1_000, seed=repetition)
        covered += interval.low <= ACCURACY <= interval.high
    assert 0.935 <= covered / 2_000 <= 0.97


@pytest.mark.slow
def test_paired_test_keeps_its_level() -> None:
    """Two equally good models whose answers to an image are correlated: p < 0.05 in about 5 % of test sets."""
    rejected = 0
    for repetition in range(2_000):
        generator = np.random.default_rng(repetition)
        of_image = generator.beta(1.8, 1.2, size=(IMAGES, 1))
        of_model = np.clip(of_image + generator.normal(0, 0.1, size=(2, IMAGES, 1)), 0, 1)
        correct = (generator.random((2, IMAGES, QUESTIONS)) < of_model).astype(int).reshape(2, -1)
        clusters = np.repeat(np.arange(IMAGES), QUESTIONS)
        rejected += paired_difference(*correct, clusters, replicates=2_000, seed=repetition).p_value < 0.05
    assert 0.035 <= rejected / 2_000 <= 0.07


def brute_force(values: NDArray[np.float64], clusters: NDArray[np.int64], replicates: int) -> NDArray[np.float64]:
    """Means of `values` when images are drawn with replacement, one image at a time."""
    generator = np.random.default_rng(99)
    labels = np.unique(clusters)
    means = []
    for _ in range(replicates):
        drawn = [values[clusters == label] for label in generator.choice(labels, size=len(labels))]
        means.append(np.concatenate(drawn).mean())
    return np.array(means)


EXPANDED = stats.norm.cdf(np.array([-1, 1]) * np.sqrt(30 / 29) * stats.t(29).ppf(0.975))
"""The shares of replicates between which the interval of 30 images lies (Hesterberg 2015)."""


@pytest.fixture(scope="module")
def unequal_clusters() -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Answers of two models to 1 to 6 questions about each of 30 images, not in the images' order."""
    generator = np.random.default_rng(7)
    clusters = generator.permutation(np.repeat(np.arange(30), generator.integers(1, 7, size=30)))
    correct_b = (generator.random(len(clusters)) < 0.3 + 0.4 * (clusters % 2)).astype(int)
    correct_a = np.where(generator.random(len(clusters)) < 0.2, 1, correct_b)
    return correct_a, correct_b, clusters


def test_accuracy_interval_equals_brute_force(unequal_clusters) -> None:
    correct, _, clusters = unequal_clusters
    interval = accuracy_interval(correct, clusters, replicates=40_000)
    expected = np.quantile(brute_force(correct, clusters, 4_000), EXPANDED)
    assert interval.estimate == correct.mean()
    np.testing.assert_allclose([interval.low, interval.high], expected, atol=0.012)


def test_paired_interval_equals_brute_force(unequal_clusters) -> None:
    correct_a, correct_b, clusters = unequal_clusters
    difference = paired_difference(correct_a, correct_b, clusters, replicates=40_000)
    resampled = brute_force(correct_a - correct_b, clusters, 4_000)
    assert difference.estimate == pytest.approx(correct_a.mean() - correct_b.mean())
    np.testing.assert_allclose([difference.low, difference.high], np.quantile(resampled, EXPANDED), atol=0.01)
    in_deviations = stats.norm.ppf((resampled <= 0).mean()) / np.sqrt(30 / 29)
    assert difference.p_value == pytest.approx(2 * stats.t(29).cdf(in_deviations), abs=0.005)
    assert difference.low > 0
    assert difference.p_value < 0.05


def test_pairing_is_sharper_than_two_intervals(unequal_clusters) -> None:
    correct_a, correct_b, clusters = unequal_clusters
    paired = paired_difference(correct_a, correct_b, clusters)
    alone = accuracy_interval(correct_a, clusters)
    assert paired.high - paired.low < alone.high - alone.low


def test_same_seed_same_interval_whatever_the_order_and_labels(unequal_clusters) -> None:
    correct_a, correct_b, clusters = unequal_clusters
    order = np.random.default_rng(0).permutation(len(clusters))
    names = np.array([f"CLEVR_val_{29 - cluster:06d}.png" for cluster in clusters])
    assert accuracy_interval(correct_a, clusters) == accuracy_interval(correct_a[order], names[order])
    assert accuracy_interval(correct_a, clusters) != accuracy_interval(correct_a, clusters, seed=1)
    first = paired_difference(correct_a, correct_b, clusters, seed=3)
    assert first == paired_difference(correct_a[order], correct_b[order], names[order], seed=3)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 4)), min_size=1, max_size=40))
def test_intervals_are_finite_and_hold_their_estimates_range(answers: list[tuple[bool, bool, int]]) -> None:
    correct_a, correct_b, clusters = (np.array(column) for column in zip(*answers, strict=True))
    interval = accuracy_interval(correct_a, clusters, replicates=200)
    assert 0 <= interval.low <= interval.high <= 1
    assert interval.estimate == pytest.approx(correct_a.mean())
    difference = paired_difference(correct_a, correct_b, clusters, replicates=200)
    mirrored = paired_difference(correct_b, correct_a, clusters, replicates=200)
    assert -1 <= difference.low <= difference.high <= 1
    assert 0 < difference.p_value <= 1
    assert difference.estimate == pytest.approx(-mirrored.estimate)


def test_where_resampling_is_blind_the_result_is_defined() -> None:
    assert accuracy_interval([1, 0, 1], ["a", "a", "a"]).low == 0
    assert accuracy_interval([1, 0, 1], ["a", "a", "a"]).high == 1
    always = accuracy_interval(np.ones(20), np.arange(20))
    assert (always.estimate, always.high) == (1, 1)
    assert always.low == pytest.approx(0.8316, abs=1e-4)  # Clopper-Pearson, 20 of 20
    never = accuracy_interval(np.zeros(40), np.repeat(np.arange(20), 2))
    assert (never.low, never.high) == (0, pytest.approx(0.1684, abs=1e-4))
    same = paired_difference([1, 0, 1], [1, 0, 1], [1, 2, 3])
    assert (same.estimate, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    one_image = paired_difference([1, 1], [0, 0], [1, 1])
    assert (one_image.estimate, one_image.low, one_image.high, one_image.p_value) == (1, -1, 1, 1)


def test_p_value_is_never_smaller_than_the_data_allow() -> None:
    assert paired_difference(np.ones(50), np.zeros(50), np.arange(50)).p_value == 1e-9
    assert paired_difference([1, 1, 1], [0, 0, 0], ["a", "b", "c"]).p_value == pytest.approx(2 / 2**3)
    # Four images on which the models differ say no more among a hundred than alone.
    one_sided = np.arange(100) < 4
    assert paired_difference(one_sided, np.zeros(100), np.arange(100)).p_value == pytest.approx(2 / 2**4)


def test_p_value_goes_on_where_the_replicates_end() -> None:
    """Ten times the replicates must not be needed to tell 4.5 standard errors from 6."""
    generator = np.random.default_rng(3)
    clusters = np.repeat(np.arange(200), 10)
    correct_b = generator.random(2_000) < 0.5
    found = []
    for changed in (0.06, 0.12):
        correct_a = correct_b | (generator.random(2_000) < changed)
        correct_a &= generator.random(2_000) > 0.02
        few = paired_difference(correct_a, correct_b, clusters, replicates=500)
        many = paired_difference(correct_a, correct_b, clusters, replicates=20_000)
        assert few.p_value == many.p_value or many.p_value > 1 / 20_000
        found.append(many.p_value)
    assert found[1] < found[0] / 10
    assert found[1] >= 1e-9


def test_p_value_is_below_the_level_where_the_interval_leaves_zero_out() -> None:
    left_out = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        clusters = np.repeat(np.arange(15), generator.integers(1, 8, size=15))
        correct_a, correct_b = (generator.random((2, len(clusters))) < [[0.65], [0.45]]).astype(int)
        difference = paired_difference(correct_a, correct_b, clusters, replicates=1_000)
        outside = difference.low > 0 or difference.high < 0
        left_out += outside
        assert outside == (difference.p_value < 0.05) or 0.045 < difference.p_value < 0.055
    assert 10 < left_out < 50


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (9, 2), (2, 9), (4, 4), (30, 12)])
def test_mcnemar_equals_counting_by_hand(only_a: int, only_b: int) -> None:
    correct_a = [1] * only_a + [0] * only_b + [1, 1, 0]
    correct_b = [0] * only_a + [1] * only_b + [1, 1, 0]
    result = unclustered_mcnemar(correct_a, correct_b)
    discordant, fewer = only_a + only_b, min(only_a, only_b)
    at_most = sum(comb(discordant, k) for k in range(fewer + 1)) / 2**discordant
    assert (result.only_a, result.only_b) == (only_a, only_b)
    assert result.exact_p == pytest.approx(min(1, 2 * at_most))
    assert result.mid_p == pytest.approx(min(1, 2 * at_most - comb(discordant, fewer) / 2**discordant))


def test_mid_p_of_even_discordance_is_one() -> None:
    assert unclustered_mcnemar([1, 0], [0, 1]).mid_p == pytest.approx(1)
    assert unclustered_mcnemar([1], [1]) == unclustered_mcnemar([0], [0])


def test_chance_level_is_the_mean_of_the_reciprocals() -> None:
    assert chance_level([2, 2, 11, 8]) == pytest.approx((0.5 + 0.5 + 1 / 11 + 1 / 8) / 4)


def test_errors_say_what_came() -> None:
    with pytest.raises(UserError, match="at least one question"):
        accuracy_interval([], [])
    with pytest.raises(UserError, match="got 2 and 1"):
        accuracy_interval([1, 0], ["a"])
    with pytest.raises(UserError, match="0 or 1"):
        accuracy_interval([0.5], ["a"])
    with pytest.raises(UserError, match="0 or 1"):
        accuracy_interval([np.nan], ["a"])
    with pytest.raises(UserError, match="got 2 and 1 answers"):
        paired_difference([1, 0], [1], ["a", "b"])
    with pytest.raises(UserError, match="at least one question"):
        paired_difference([], [], [])
    with pytest.raises(UserError, match="got 0 and 0 answers"):
        unclustered_mcnemar([], [])
    with pytest.raises(UserError, match="at least one candidate"):
        chance_level([])
