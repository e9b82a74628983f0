"""Every question answered once, whatever is in a batch, however little memory there is, and among which candidates."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from tests.vqa_bench.cells import make_cell, make_model, make_shard
from tests.vqa_bench.scoring.full_forward import FullForward, byte_model
from vqa_bench.data.answers import Answers
from vqa_bench.data.loading import Group, evaluation_groups, shuffled_pictures
from vqa_bench.data.questions import questions_of
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.data.vocab import ANSWERS
from vqa_bench.errors import UserError
from vqa_bench.models import VQAModel
from vqa_bench.scoring import answering
from vqa_bench.scoring.answering import answer, score_in_batches
from vqa_bench.scoring.batches import BatchSize, in_batches
from vqa_bench.scoring.predictions import Prediction

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("answering"))


@pytest.fixture(scope="module")
def split(shard: Shard) -> SplitReader:
    return shard.split("test")  # 6 images with 5 questions each


@pytest.fixture(scope="module", params=["iqa", "qia", "cnn_lstm"])
def model(request: pytest.FixtureRequest, shard: Shard) -> VQAModel:
    """One that reads an image once for its questions, one that does not, and a baseline."""
    if request.param == "cnn_lstm":
        return make_model(make_cell("cnn_lstm"), shard)
    return byte_model(shard, "T/T, crossing", layout=request.param)


def expect_same(got: list[Prediction], expected: list[Prediction]) -> None:
    assert [p.question_index for p in got] == [p.question_index for p in expected]
    np.testing.assert_allclose([p.log_probs for p in got], [p.log_probs for p in expected], rtol=0, atol=2e-6)
    without = {"log_probs", "trie_mass"}
    assert [p.model_dump(exclude=without) for p in got] == [p.model_dump(exclude=without) for p in expected]


def test_records_say_what_the_split_says(model: VQAModel, split: SplitReader) -> None:
    predictions = answer(model, split, evaluation_groups(split))
    assert [p.question_index for p in predictions] == sorted(split.question_index)
    row_of = {int(index): row for row, index in enumerate(split.question_index)}
    names = split.images.column("image_filename").to_pylist()
    for prediction in predictions:
        row = row_of[prediction.question_index]
        assert prediction.image == names[split.image_of_question[row]]
        assert (prediction.question_type, prediction.answer) == (split.question_type[row], split.answer[row])
        assert prediction.program_length == len(split.program(row))
        assert prediction.num_objects == split.num_objects[row]
        assert prediction.prediction == ANSWERS[int(np.argmax(prediction.log_probs))]


def test_scores_are_the_same_one_by_one(model: VQAModel, split: SplitReader) -> None:
    together = {p.question_index: p for p in answer(model, split, evaluation_groups(split))}
    alone = [[Group(int(split.image_of_question[row]), np.array([row]))] for row in range(0, 30, 7)]
    for rows, scores in score_in_batches(model, split, alone, device=CPU):
        expected = together[int(split.question_index[rows[0]])]
        assert scores.log_probs[0].tolist() == pytest.approx(expected.log_probs, abs=1e-6)


def test_shown_images_may_be_others(model: VQAModel, split: SplitReader) -> None:
    own = answer(model, split, evaluation_groups(split))
    other = answer(model, split, evaluation_groups(split, shuffled_pictures(len(split), 0)))
    assert [p.image for p in other] == [p.image for p in own]
    assert all(a.log_probs != b.log_probs for a, b in zip(own, other, strict=True))


# -- which questions make a batch -------------------------------------------------------------------------------------


def batches_of(model: VQAModel, split: SplitReader, size: int, **launched: int) -> list[list[Group]]:
    return list(in_batches(model, split, evaluation_groups(split), BatchSize.of(size), list, **launched))


def rows_of(batches: list[list[Group]]) -> list[list[int]]:
    return [[int(row) for group in batch for row in group.questions] for batch in batches]


@pytest.mark.parametrize("size", [1, 2, 4, 50])
def test_batches_hold_questions_of_about_one_length(model: VQAModel, split: SplitReader, size: int) -> None:
    batches = batches_of(model, split, size)
    assert sorted(chain(*rows_of(batches))) == list(range(30))
    lengths = questions_of(split).lengths
    longest = [max(lengths[group.questions]) for batch in batches for group in batch]
    assert longest == sorted(longest, reverse=True)
    assert max(len(rows) for rows in rows_of(batches)) == min(5 * size, 30)
    shared = len(batches[0]) < 5 * size
    assert all(len(group.questions) == (5 if shared else 1) for batch in batches for group in batch) or size == 50


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_share_the_batches_of_one(model: VQAModel, split: SplitReader, world: int) -> None:
    alone = rows_of(batches_of(model, split, 2))
    shares = [rows_of(batches_of(model, split, 2, rank=rank, world=world)) for rank in range(world)]
    assert sorted(chain(*shares)) == sorted(alone)
    assert [share == alone[rank::world] for rank, share in enumerate(shares)] == [True] * world


# -- memory -----------------------------------------------------------------------------------------------------------


def no_more_than(questions: int, fault: Callable[[], Any]) -> Callable[..., Any]:
    """A `score` that finds memory for so many places of a batch only."""

    def limited(model: VQAModel, batch: Any, answers: Answers | None = None) -> Any:
        if batch.present.numel() > questions:
            fault()
        return SCORE(model, batch, answers)

    return limited


SCORE = answering.score


def on_the_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def on_the_cpu() -> None:
    torch.empty(2**60, dtype=torch.uint8)  # PyTorch's own complaint, a RuntimeError


def in_python() -> None:
    raise MemoryError


@pytest.mark.parametrize(("room", "fault"), [(23, on_the_gpu), (7, on_the_cpu), (1, in_python)])
def test_batches_are_halved_until_they_fit(
    model: VQAModel, split: SplitReader, room: int, fault: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = evaluation_groups(split)
    expected = answer(model, split, groups)
    monkeypatch.setattr(answering, "score", no_more_than(room, fault))
    size = BatchSize.of(50)
    expect_same(answer(model, split, groups, size=size), expected)
    # 6 images with 5 questions: 3, 2 and 1 of them, then 3, 2 and 1 of their questions.
    assert (size.asked, size.images, size.questions) == (50, *{23: (3, None), 7: (1, None), 1: (1, 1)}[room])
    left = replace(size)
    expect_same(answer(model, split, groups[:1], size=size), [p for p in expected if p.image == expected[0].image])
    assert size == left


def test_a_question_that_does_not_fit_is_an_error(
    model: VQAModel, split: SplitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "score", no_more_than(0, on_the_gpu))
    with pytest.raises(UserError, match="expected memory for at least one question at a time") as error:
        answer(model, split, evaluation_groups(split))
    assert "\n" not in str(error.value)


def test_other_faults_are_not_taken_for_memory(
    model: VQAModel, split: SplitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(answering, "score", no_more_than(0, fault))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        answer(model, split, evaluation_groups(split))


# -- candidates -------------------------------------------------------------------------------------------------------


def test_other_candidates_are_asked_for(shard: Shard, split: SplitReader) -> None:
    groups = evaluation_groups(split)[:2]
    answers = Answers((*ANSWERS[::-1], "reddish", "größe"))
    model = byte_model(shard, "T/T, crossing", answer="text")
    predictions = answer(model, split, groups, answers=answers)
    row_of = {int(index): row for row, index in enumerate(split.question_index)}
    for prediction in predictions[:2]:
        expected = FullForward(model, shard, row_of[prediction.question_index], answers).answer_log_probs()
        assert prediction.log_probs == pytest.approx(expected.tolist(), abs=1e-6)
        assert prediction.prediction == answers.names[int(expected.argmax())]


@pytest.mark.parametrize("kind", ["cnn_lstm", "letters"])
def test_what_knows_places_or_letters_refuses_other_candidates(shard: Shard, split: SplitReader, kind: str) -> None:
    model = make_model(make_cell("cnn_lstm" if kind == "cnn_lstm" else "mblm"), shard)
    with pytest.raises(UserError, match="expected the 28 answers that cell was trained on, got 29 others"):
        answer(model, split, evaluation_groups(split), answers=Answers((*ANSWERS, "reddish")))


def test_every_right_answer_must_be_a_candidate(shard: Shard, split: SplitReader) -> None:
    model = byte_model(shard, "T/T, crossing", answer="text")
    missing = sorted(set(split.answer))[0]
    answers = Answers(tuple(name for name in ANSWERS if name != missing))
    with pytest.raises(UserError, match=f"expected every right answer among the 27 candidates, got '{missing}'; give"):
        answer(model, split, evaluation_groups(split), answers=answers)


def test_a_model_that_lost_its_numbers_is_refused(shard: Shard, split: SplitReader) -> None:
    model = byte_model(shard, "T/T, crossing")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="expected finite log-probabilities, got others for question_index"):
        answer(model, split, evaluation_groups(split))


def test_nothing_asked_is_nothing_answered(model: VQAModel, split: SplitReader) -> None:
    assert answer(model, split, []) == []


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
