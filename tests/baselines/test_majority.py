"""Answer frequencies against counts by hand."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.majority import Majority

TYPES = ("exist", "count", "query_size")


@given(st.lists(st.tuples(st.sampled_from(TYPES), st.integers(0, 4)), max_size=30), st.booleans())
def test_log_probabilities_are_smoothed_frequencies(samples: list[tuple[str, int]], by_type: bool) -> None:
    model = Majority(5, TYPES if by_type else None)
    for half in (samples[::2], samples[1::2]):  # the order and the batching of updates do not matter
        answers = torch.tensor([answer for _, answer in half], dtype=torch.long)
        model.update([name for name, _ in half], answers)
    log_probs = model(list(TYPES))
    for row, name in enumerate(TYPES):
        counts = Counter(answer for other, answer in samples if not by_type or other == name)
        for answer in range(5):
            expected = math.log((counts[answer] + 1) / (counts.total() + 5))
            assert log_probs[row, answer].item() == pytest.approx(expected, abs=1e-6)


def test_majority_answer_of_each_type() -> None:
    model = Majority(3, ["exist", "count"])
    model.update(["exist", "exist", "count", "exist"], torch.tensor([1, 1, 2, 0]))
    assert model(["count", "exist", "count"]).argmax(dim=1).tolist() == [2, 1, 2]


def test_state_dict_carries_the_counts() -> None:
    model = Majority(3, ["exist", "count"])
    model.update(["exist", "count"], torch.tensor([1, 2]))
    restored = Majority(3, ["exist", "count"])
    restored.load_state_dict(model.state_dict())
    assert torch.equal(restored(["count"]), model(["count"]))


def test_a_type_that_was_not_named_gets_the_answers_of_all() -> None:
    by_type, overall = Majority(3, ["exist", "count"]), Majority(3)
    for model in (by_type, overall):
        model.update(["exist", "count", "count"], torch.tensor([1, 2, 2]))
    assert torch.equal(by_type(["colour"]), overall(["colour"]))
    assert by_type(["colour", "exist"]).argmax(dim=1).tolist() == [2, 1]


def test_errors_say_what_came() -> None:
    model = Majority(3, ["exist"])
    with pytest.raises(ValueError, match=r"among \['exist'\], got \['count'\]"):
        model.update(["count", "exist"], torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="got 2 for 1"):
        model.update(["exist"], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"classes 0\.\.2, got 0\.\.3"):
        model.update(["exist", "exist"], torch.tensor([0, 3]))
