"""Batches are a function of the step: every image once an epoch, ranks apart, workers or not, shuffled pictures."""

import numpy as np
import pytest

from tests.vqa_bench.cells import make_shard
from vqa_bench.data.loading import TrainPlan, batches, evaluation_groups, shuffled_pictures
from vqa_bench.data.shards import SplitReader
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


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_start_anywhere(split: SplitReader, workers: int) -> None:
    plan = TrainPlan(split, seed=0, images_per_batch=6)
    found = list(batches(plan.groups, _images, range(2, 5), workers=workers))
    assert found == [_images(plan.groups(step)) for step in range(2, 5)]


def _images(groups: list) -> list[int]:
    return [group.image for group in groups]


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
