"""What goes with a comparison: adjusted p values, stars, the least difference shown. statsmodels is the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from benchmarks.statistics import Setting, draw
from vqa_bench.errors import UserError
from vqa_bench.scoring.statistics import (
    holm,
    minimum_detectable_effect,
    paired_difference,
    stars,
    unclustered_mcnemar,
)

p_values = st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.05, 1.0])  # the latter for ties


@settings(max_examples=40, deadline=None)
@given(st.lists(p_values, min_size=1, max_size=20))
def test_holm_equals_statsmodels(raw: list[float]) -> None:
    np.testing.assert_allclose(holm(raw), multipletests(raw, method="holm")[1], rtol=1e-12, atol=0)


def test_holm_of_a_case_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@pytest.mark.parametrize("outside", [-0.01, 1.01, float("nan")])
def test_what_is_no_p_value_is_refused(outside: float) -> None:
    with pytest.raises(UserError, match="p value between 0 and 1"):
        holm([0.5, outside])
    with pytest.raises(UserError, match="p value between 0 and 1"):
        stars(outside)


def test_stars() -> None:
    given_for = [0.0, 0.000999, 0.001, 0.00999, 0.01, 0.0499, 0.05, 1.0]
    assert [stars(p) for p in given_for] == ["***", "***", "**", "**", "*", "*", "", ""]


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 5), (1, 0), (9, 2), (2, 9), (4, 4), (30, 12), (700, 640)])
def test_mcnemar_equals_statsmodels(only_a: int, only_b: int) -> None:
    correct_a = np.repeat([1, 0, 1, 0], [only_a, only_b, 40, 11])
    correct_b = np.repeat([0, 1, 1, 0], [only_a, only_b, 40, 11])
    table = [[40, only_a], [only_b, 11]]
    ours = unclustered_mcnemar(correct_a, correct_b)
    assert ours.exact_p == pytest.approx(mcnemar(table, exact=True).pvalue)
    if only_a + only_b > 1_000:  # where both must agree with the chi-squared test
        assert ours.mid_p == pytest.approx(mcnemar(table, exact=False, correction=False).pvalue, rel=0.01)


def two_models(seed: int, images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers to 1 to 9 questions an image; the images at the end are harder for a than for b."""
    generator = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(images), generator.integers(1, 10, size=images))
    hard = (clusters > images / 2) * generator.uniform(0.1, 0.4)
    correct_a = generator.random(len(clusters)) < 0.7 - hard
    correct_b = generator.random(len(clusters)) < 0.6
    return correct_a, correct_b, clusters


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("power", "level"), [(0.8, 0.05), (0.9, 0.01)])
def test_detectable_effect_has_the_cluster_robust_standard_error(seed: int, power: float, level: float) -> None:
    correct_a, correct_b, clusters = two_models(seed, images=60)
    gains = correct_a.astype(float) - correct_b
    fit = OLS(gains, np.ones_like(gains)).fit(cov_type="cluster", cov_kwds={"groups": clusters})
    t = stats.t(59)
    expected = (t.ppf(1 - level / 2) + t.ppf(power)) * fit.bse[0]
    found = minimum_detectable_effect(correct_a, correct_b, clusters, power=power, level=level)
    assert found == pytest.approx(expected, rel=1e-9)


def test_detectable_effect_is_detected_as_often_as_it_says() -> None:
    """By brute force: test sets on which a is better by just that much, tested one after the other."""
    setting, repetitions = Setting(0.8, icc=0.15, images=100), 300
    equal = [draw(setting, np.random.default_rng([0, seed])) for seed in range(20)]
    effect = np.mean([minimum_detectable_effect(*sample.correct, sample.clusters) for sample in equal])
    shown = 0
    for seed in range(repetitions):
        sample = draw(setting, np.random.default_rng([1, seed]), difference=float(effect))
        shown += paired_difference(*sample.correct, sample.clusters, replicates=300, seed=seed).p_value < 0.05
    assert 0.73 <= shown / repetitions <= 0.87


def test_detectable_effect_is_defined_where_nothing_can_be_estimated() -> None:
    same = np.ones(100), np.ones(100), np.repeat(np.arange(20), 5)
    assert minimum_detectable_effect(*same) == 6 / 100  # six images must differ before p can fall below 0.05
    assert minimum_detectable_effect(*same, level=0.001) == 11 / 100
    assert minimum_detectable_effect([1, 0], [0, 1], ["a", "a"]) == 1
    assert minimum_detectable_effect([1], [0], ["a"], level=0.99) == 1
    assert minimum_detectable_effect([1, 0, 1, 0, 1], [0, 1, 0, 0, 0], range(5)) == 1
    all_better = minimum_detectable_effect(np.ones(8), np.zeros(8), np.arange(8))
    assert all_better == 6 / 8


def test_as_many_images_as_the_floor_says_are_needed() -> None:
    """Six that differ, all one way, are significant at 0.05; five are not."""
    for differing, significant in ((5, False), (6, True)):
        correct_a = np.arange(100) < differing
        assert (paired_difference(correct_a, np.zeros(100), np.arange(100)).p_value < 0.05) == significant


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 9)), min_size=1, max_size=40))
def test_detectable_effect_is_a_fraction(answers: list[tuple[bool, bool, int]]) -> None:
    correct_a, correct_b, clusters = (np.array(column) for column in zip(*answers, strict=True))
    effect = minimum_detectable_effect(correct_a, correct_b, clusters)
    assert 0 < effect <= 1
    assert effect == pytest.approx(minimum_detectable_effect(correct_b, correct_a, clusters))


def test_errors_say_what_came() -> None:
    with pytest.raises(UserError, match=r"power and a level between 0 and 1, got 1 and 0\.05"):
        minimum_detectable_effect([1], [1], ["a"], power=1)
    with pytest.raises(UserError, match="at least one question"):
        minimum_detectable_effect([], [], [])
    with pytest.raises(UserError, match="got 2 and 1 answers"):
        minimum_detectable_effect([1, 0], [1], ["a", "b"])
