"""Batches are a function of the step: every image once an epoch, ranks apart, workers or not, shuffled pictures."""

from pathlib import Path

import numpy as np
import pytest

from tests.vqa_bench.cells import make_shard
from vqa_bench.data.loading import Group, Position, TrainPlan, batches, evaluation_groups, shuffled_pictures, spread
from vqa_bench.data.shards import IMAGE_SCHEMA, QUESTION_SCHEMA, SplitReader, write_rows
from vqa_bench.errors import UserError


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    return make_shard(tmp_path_factory.mktemp("loading")).split("train")


def test_every_image_once_an_epoch_in_a_new_order(split: SplitReader) -> None:
    plan = TrainPlan(split, seed=3, images_per_batch=6)
    assert plan.steps_per_epoch == 3
    epochs = [[g.image for step in range(3 * e, 3 * e + 3) for g in plan.groups(step)] for e in range(2)]
    assert all(len(set(images)) == 18 for images in epochs)
    assert epochs[0] != epochs[1]
    assert [g.image for g in TrainPlan(split, 3, 6).groups(4)] == epochs[1][6:12]
    assert epochs[0] != [g.image for s in range(3) for g in TrainPlan(split, 4, 6).groups(s)]


def test_ranks_share_a_batch_out(split: SplitReader) -> None:
    whole = [g.image for g in TrainPlan(split, 0, 6).groups(1)]
    parts = [[g.image for g in TrainPlan(split, 0, 6, rank=r, world=2).groups(1)] for r in range(2)]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    assert len(parts[0]) == len(parts[1]) == 3


def test_some_questions_of_an_image_drawn_anew_each_epoch(split: SplitReader) -> None:
    plan = TrainPlan(split, seed=0, images_per_batch=18, questions_per_image=2)
    drawn = [{g.image: tuple(g.questions) for g in plan.groups(epoch)} for epoch in range(3)]
    for groups in drawn:
        for image, rows in groups.items():
            assert len(set(rows)) == 2
            assert (split.image_of_question[list(rows)] == image).all()
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("questions", [None, 2])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_together_see_exactly_the_samples_of_one(split: SplitReader, world: int, questions: int | None) -> None:
    one = TrainPlan(split, 0, 5, questions)  # 5 images a batch: neither 2 nor 3 divide it, and 18 images leave 3 over
    ranks = [TrainPlan(split, 0, 5, questions, rank=rank, world=world) for rank in range(world)]
    assert {rank.steps_per_epoch for rank in ranks} == {3}
    for step in range(7):
        parts = [rank.groups(step) for rank in ranks]
        assert min(map(len, parts)) >= 1
        together = [group for place in range(5) for part in parts for group in part[place : place + 1]]
        assert _samples(together) == _samples(one.groups(step))


def test_more_processes_than_images_of_a_batch(split: SplitReader) -> None:
    with pytest.raises(UserError, match=r"each of 4 processes, got train\.images_per_batch 3"):
        TrainPlan(split, 0, 3, rank=1, world=4)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_start_anywhere(split: SplitReader, workers: int) -> None:
    plan = TrainPlan(split, seed=0, images_per_batch=6)
    found = list(batches(plan.groups, _samples, range(2, 5), workers=workers))
    assert found == [_samples(plan.groups(step)) for step in range(2, 5)]


def test_training_goes_on_at_any_image(split: SplitReader) -> None:
    whole = TrainPlan(split, 0, 4, 2)
    assert [whole.position(step) for step in (0, 3, 4, 9)] == [(0, 0), (0, 12), (1, 0), (2, 4)]
    for step in (1, 3, 4, 6):
        rest = TrainPlan(split, 0, 4, 2, start=whole.position(step))
        assert [_samples(rest.groups(later)) for later in range(6)] == [
            _samples(whole.groups(step + later)) for later in range(6)
        ]
    # Behind 7 images of the second epoch, with batches of another size: the other 11 images, then the third epoch's.
    other = TrainPlan(split, 0, 5, start=Position(1, 7))
    order = [group.image for step in range(18, 36) for group in TrainPlan(split, 0, 1).groups(step)]
    assert [group.image for step in range(2) for group in other.groups(step)] == order[7:17]
    assert [other.position(step) for step in range(4)] == [(1, 7), (1, 12), (2, 0), (2, 5)]
    assert TrainPlan(split, 0, 5, start=Position(1, 18)).position(0) == (2, 0)


def test_images_that_no_question_asks_about_are_passed_over(tmp_path: Path) -> None:
    pictures = [(f"{i}.png", i, b"x", 1, 1) for i in range(6)]
    asked = [(row, image, "What?", "no", "exist", None, "[]", None) for row, image in enumerate([4, 1, 1, 3])]
    write_rows(tmp_path / "images.arrow", IMAGE_SCHEMA, pictures)
    write_rows(tmp_path / "questions.arrow", QUESTION_SCHEMA, asked)
    some = SplitReader(tmp_path)
    plan = TrainPlan(some, 0, 3)
    for step in range(3):
        assert sorted(_samples(plan.groups(step))) == [(1, [1, 2]), (3, [3]), (4, [0])]
    assert _samples(evaluation_groups(some)) == [(1, [1, 2]), (3, [3]), (4, [0])]
    with pytest.raises(UserError, match="at least 4 training images for one batch, got 3"):
        TrainPlan(some, 0, 4)


def _samples(groups: list[Group]) -> list[tuple[int, list[int]]]:
    return [(group.image, group.questions.tolist()) for group in groups]


def test_shuffled_pictures_are_all_others() -> None:
    shown = shuffled_pictures(50, seed=1)
    assert sorted(shown) == list(range(50))
    assert (shown != np.arange(50)).all()
    with pytest.raises(UserError, match="at least 2 images"):
        shuffled_pictures(1, seed=1)


def test_evaluation_asks_every_question_of_its_own_image(split: SplitReader) -> None:
    groups = evaluation_groups(split)
    assert [g.image for g in groups] == list(range(len(split)))
    assert sorted(np.concatenate([g.questions for g in groups])) == list(range(len(split.question)))
    other = evaluation_groups(split, shuffled_pictures(len(split), 0))
    assert all((a.questions == b.questions).all() and a.image != b.image for a, b in zip(groups, other, strict=True))


def test_too_few_images_for_a_batch(split: SplitReader) -> None:
    with pytest.raises(UserError, match="at least 19 training images for one batch, got 18"):
        TrainPlan(split, seed=0, images_per_batch=19)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_a_worker_arrives_as_its_one_line(workers: int) -> None:
    """Out of another process too; the batches before it come first."""
    found = batches(_items_up_to_two, list, range(5), workers=workers)
    assert [next(found), next(found)] == [[0], [1]]
    with pytest.raises(UserError) as error:
        next(found)
    assert type(error.value) is UserError
    assert str(error.value) == "expected an item below 2, got 2; ask for fewer"


def _items_up_to_two(step: int) -> list[int]:
    if step >= 2:
        raise UserError(f"expected an item below 2, got {step}; ask for fewer")
    return [step]


@pytest.mark.parametrize(("count", "most", "places"), [(5, 3, [0, 2, 4]), (3, 9, [0, 1, 2]), (1, 1, [0]), (0, 4, [])])
def test_things_spread_evenly(count: int, most: int, places: list[int]) -> None:
    assert spread(count, most).tolist() == places
