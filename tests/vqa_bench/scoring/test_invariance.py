"""Scores that depend on their company are found, by the check that is meant to; those of honest models are not."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.vqa_bench.cells import make_cell, make_model, make_shard
from tests.vqa_bench.experiments import CNN, S_T, T_T
from vqa_bench.data.answers import Answers
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.data.vocab import ANSWERS
from vqa_bench.errors import SharedError
from vqa_bench.models import ByteBatch, ByteModel, ClassifierBatch, VQAModel
from vqa_bench.scoring import invariance
from vqa_bench.scoring.answering import answer
from vqa_bench.scoring.batches import BatchSize
from vqa_bench.scoring.invariance import InvarianceError, check

EVERY = {
    *("one question", "small batches", "usual batches", "large batches", "more padding", "reversed order"),
    *("2 processes", "3 processes", "image not shared"),
}
LSTM = {"kind": "lstm", "embedding": 8, "hidden": 16}
ANY = 1e9  # tolerates everything, so that all checks can be looked at


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("invariance"), val=14)


def checked(model: VQAModel, shard: Shard, *, questions: int = 24, tolerance: float = ANY, **options: Any) -> Any:
    """The check of a model that answered all of the test split, 4 images at a time."""
    split = shard.split("test")
    size = BatchSize.of(4)
    predictions = answer(model, split, evaluation_groups(split), size=size, answers=options.get("answers"))
    return check(model, split, predictions, questions=questions, tolerance=tolerance, **({"size": size} | options))


@pytest.fixture
def two_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two questions of every second image are scored again: no batch of them has an absent place."""

    def chosen(split: SplitReader, questions: int) -> np.ndarray:
        return np.concatenate([rows[:2] for rows in split.questions_of_image[::2]])

    monkeypatch.setattr(invariance, "_chosen", chosen)


def moved(found: Any) -> set[str]:
    """The checks in which something changed."""
    return {name for name, numbers in found["checks"].items() if numbers["max_abs_delta"] > 1e-5}


@pytest.mark.parametrize(
    ("model", "cell"),
    [
        pytest.param(T_T, {}, id="iqa"),
        pytest.param(T_T, {"sequence": {"layout": "qia"}}, id="qia"),
        pytest.param(T_T, {"sequence": {"layout": "qiqa", "answer": "text"}}, id="qiqa", marks=pytest.mark.slow),
        pytest.param(S_T, {"sequence": {"answer": "text"}}, id="S/T", marks=pytest.mark.slow),
        pytest.param(CNN, {}, id="cnn_lstm"),
        pytest.param(LSTM, {"encoding": None}, id="lstm"),
        pytest.param("majority", {"encoding": None}, id="majority"),
    ],
)
def test_honest_models_pass(shard: Shard, model: Any, cell: dict[str, Any]) -> None:
    """In float64 nothing is left of other sums of the same numbers but the last decimal of the predictions."""
    made = make_model(make_cell(model, **cell), shard)
    found = checked(made, shard, questions=12, tolerance=2e-6)
    assert set(found["checks"]) == (EVERY - {"image not shared"} if made.blind else EVERY)
    assert found["questions"] == 12
    assert found["tolerance"] == 2e-6
    assert found["max_abs_delta"] == max(numbers["max_abs_delta"] for numbers in found["checks"].values()) <= 2e-6
    assert found["flipped"] == 0


# -- models with a fault ----------------------------------------------------------------------------------------------

Fault = Callable[[ClassifierBatch], Tensor]
"""What is wrong with each place of a batch, (B, K) nats, on the log-probability of one answer."""


def faulty(shard: Shard, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> VQAModel:
    model = make_model(make_cell(CNN), shard)
    honest = model.log_probs

    def log_probs(batch: ClassifierBatch) -> Tensor:
        values = honest(batch)
        values[:, 5] += fault(batch).flatten()
        return values

    monkeypatch.setattr(model, "log_probs", log_probs)
    return model


def by_size(batch: ClassifierBatch) -> Tensor:
    return torch.full(batch.present.shape, 0.01 * len(batch.present))


def by_absent_places(batch: ClassifierBatch) -> Tensor:
    return 0.01 * (~batch.present).sum(1, keepdim=True).expand_as(batch.present)


def by_padding(batch: ClassifierBatch) -> Tensor:
    return 0.01 * (batch.tokens.shape[-1] - batch.lengths)


def by_order(batch: ClassifierBatch) -> Tensor:
    """Where a question comes before one that stands before it in the split."""
    first, second = batch.rows[:, :1], batch.rows[:, 1:2]
    late = (first > second) & batch.present[:, 1:2] if second.numel() else torch.zeros_like(first, dtype=torch.bool)
    return 0.01 * late.expand_as(batch.present)


def by_company(batch: ClassifierBatch) -> Tensor:
    """What else is asked in the same batch."""
    return torch.full(batch.present.shape, 1e-4 * float(batch.rows[batch.present].sum()))


def by_images_twice(batch: ClassifierBatch) -> Tensor:
    """An image that is in the batch once more."""
    assert batch.images is not None
    pictures = batch.images.flatten(1)
    twice = (pictures[:, None] == pictures).all(-1).sum(1) > 1
    return 0.01 * twice[:, None].expand_as(batch.present)


@pytest.mark.parametrize(
    ("fault", "found_by"),
    [
        pytest.param(by_size, {"one question", "small batches", "large batches"}, id="batch size"),
        pytest.param(by_absent_places, {"more padding"}, id="absent places"),
        pytest.param(by_padding, {"one question", "image not shared"}, id="padding"),
        pytest.param(by_order, {"reversed order"}, id="order"),
        pytest.param(by_company, EVERY, id="company"),
        pytest.param(by_images_twice, {"image not shared"}, id="image twice"),
    ],
)
@pytest.mark.usefixtures("two_of_each")
def test_a_fault_is_found_by_the_check_for_it(
    shard: Shard, fault: Fault, found_by: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = faulty(shard, fault, monkeypatch)
    found = moved(checked(model, shard))
    assert found >= found_by
    if fault in (by_absent_places, by_order):
        assert found == found_by
    with pytest.raises(InvarianceError) as error:
        checked(model, shard, tolerance=1e-3)
    message = str(error.value)
    assert "\n" not in message
    assert "change by 0.001 nats at most" in message
    assert any(f"in the check '{name}'" in message for name in found)
    assert "question_index" in message
    assert "--tolerance" in message
    assert isinstance(error.value, SharedError), "all processes go on with the next run"


def test_shares_of_other_processes_are_scored(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that remembers what it was asked before: the shares differ from each other in just that."""
    asked: list[int] = []

    def remembers(batch: ClassifierBatch) -> Tensor:
        asked.append(int(batch.rows[batch.present].max()))
        return torch.full(batch.present.shape, 0.001 * (len(asked) % 7))

    assert {"2 processes", "3 processes"} <= moved(checked(faulty(shard, remembers, monkeypatch), shard))


def test_a_byte_model_that_reads_padding_is_found(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer is taken to begin where that of the batch's longest question does."""
    model = make_model(make_cell(), shard)
    assert isinstance(model, ByteModel)
    honest = model.ask

    def ask(batch: ByteBatch) -> Any:
        return honest(replace(batch, answer_patches=torch.full_like(batch.answer_patches, batch.answer_patches.max())))

    monkeypatch.setattr(model, "ask", ask)
    assert {"one question", "image not shared"} <= moved(checked(model, shard, questions=10))


def test_a_question_that_the_longest_one_pads_is_found(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all questions that are asked again are short, only the company of the longest one shows it."""
    model = faulty(shard, lambda batch: torch.full(batch.present.shape, 0.01 * batch.tokens.shape[-1]), monkeypatch)
    split = shard.split("test")
    short = [group._replace(questions=group.questions[:2]) for group in evaluation_groups(split)]
    monkeypatch.setattr(invariance, "_chosen", lambda split, questions: np.concatenate([g.questions for g in short]))
    predictions = answer(model, split, short, size=BatchSize.of(4))
    found = check(model, split, predictions, questions=24, tolerance=ANY, size=BatchSize.of(4))
    assert "more padding" in moved(found)
    assert "usual batches" not in moved(found)


@pytest.mark.usefixtures("two_of_each")
def test_scores_that_are_no_numbers_fail(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    def sometimes_nan(batch: ClassifierBatch) -> Tensor:
        return torch.full(batch.present.shape, torch.nan if (~batch.present).any() else 0.0)

    with pytest.raises(InvarianceError, match="'more padding'"):
        checked(faulty(shard, sometimes_nan, monkeypatch), shard)


@pytest.mark.usefixtures("two_of_each")
def test_another_answer_fails_where_it_was_further_behind_than_tolerated(
    shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two log-probabilities that change by less than the tolerance each, but against each other."""
    model = make_model(make_cell(LSTM, encoding=None), shard)

    def log_probs(batch: ClassifierBatch) -> Tensor:
        values = torch.full((batch.present.numel(), len(ANSWERS)), -9.0, dtype=torch.float64)
        shift = 0.8e-3 if (~batch.present).any() else 0.0
        values[:, 3], values[:, 4] = -1.0 - shift, -1.0012 + shift
        return values

    monkeypatch.setattr(model, "log_probs", log_probs)
    found = checked(model, shard, tolerance=2e-3)
    assert found["flipped"] == found["questions"] == 14
    assert found["checks"]["more padding"] == {"max_abs_delta": pytest.approx(0.8e-3), "flipped": 14}
    assert found["checks"]["reversed order"] == {"max_abs_delta": 0.0, "flipped": 0}
    with pytest.raises(InvarianceError, match=r"another answer than the one ahead by 0\.0012 for question_index 0 in"):
        checked(model, shard, tolerance=1e-3)


# -- what is scored again ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("questions", [1, 2, 7, 24, 69, 70, 1000])
def test_questions_are_pairs_spread_over_the_split(shard: Shard, questions: int) -> None:
    split = shard.split("test")
    rows = invariance._chosen(split, questions)
    assert len(rows) == len(set(rows.tolist())) == min(questions, 70)
    assert rows.tolist() == sorted(rows.tolist())
    if questions == 24:
        assert rows[::2].tolist() == [row - 1 for row in rows[1::2].tolist()]
        images = split.image_of_question[rows]
        assert images[0] == 0
        assert images[-1] == 13
        assert np.diff(images).max() <= 2


def test_a_few_questions_are_enough(shard: Shard) -> None:
    model = make_model(make_cell(CNN), shard)
    for questions in (1, 2, 3):
        assert checked(model, shard, questions=questions, tolerance=2e-6)["questions"] == questions


@pytest.mark.parametrize("size", [BatchSize(50, 1, 2), BatchSize(50, 1), BatchSize(1, 1)])
def test_a_machine_with_little_memory_is_not_asked_for_more(
    shard: Shard, size: BatchSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of more than what fitted belong to the checks themselves: twice the images, and one for the padding."""
    largest = 0

    def watch(batch: ClassifierBatch) -> Tensor:
        nonlocal largest
        largest = max(largest, len(batch.present))
        return torch.zeros(batch.present.shape)

    model = faulty(shard, watch, monkeypatch)
    split = shard.split("test")
    predictions = answer(model, split, evaluation_groups(split), images_per_batch=1)
    before = replace(size)
    check(model, split, predictions, questions=24, tolerance=1e-5, size=size)
    assert largest <= 3
    assert size == before


def test_other_candidates_are_held_against_their_own_predictions(shard: Shard) -> None:
    model = make_model(make_cell(sequence={"answer": "text"}), shard)
    answers = Answers((*ANSWERS[::-1], "reddish", "größer"))
    found = checked(model, shard, questions=4, tolerance=2e-6, answers=answers)
    assert found["max_abs_delta"] <= 2e-6


def test_a_check_without_a_prediction_is_a_fault_of_ours(shard: Shard) -> None:
    model = make_model(make_cell(LSTM, encoding=None), shard)
    split = shard.split("test")
    some: Sequence[Any] = answer(model, split, evaluation_groups(split)[:3])
    with pytest.raises(KeyError):
        check(model, split, some, questions=24, tolerance=ANY)
