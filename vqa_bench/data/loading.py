"""Which questions make up which batch, as a function of (seed, epoch, position), and a loader that runs ahead.

Nothing here is state: the batch of any step can be computed from its number, so training resumes at a step exactly.
What a batch looks like is the model's own affair (its `collate`). Knows no model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from vqa_bench.data.shards import SplitReader
from vqa_bench.errors import UserError

Batch = TypeVar("Batch")


class Group(NamedTuple):
    """An image (row of the split) and the rows of questions that are asked about it together."""

    image: int
    questions: np.ndarray


@dataclass(frozen=True)
class TrainPlan:
    """Which groups train at which step: every image once an epoch, in an order drawn for that epoch.

    questions_per_image: how many of an image's questions are drawn, anew each epoch; None takes all of them.
    rank, world: this process takes every world-th image of a batch.
    """

    split: SplitReader
    seed: int
    images_per_batch: int
    questions_per_image: int | None = None
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if len(self.split) < self.images_per_batch:
            raise UserError(
                f"expected at least {self.images_per_batch} training images for one batch, got {len(self.split)}; "
                "make train.images_per_batch smaller or the data larger"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only: what is left over waits for another epoch's order."""
        return len(self.split) // self.images_per_batch

    def groups(self, step: int) -> list[Group]:
        """The groups of a step (counted from 0 over all epochs) that this process trains on."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.split))
        images = order[place * self.images_per_batch :][: self.images_per_batch][self.rank :: self.world]
        return [Group(int(image), self._questions(int(image), epoch)) for image in images]

    def _questions(self, image: int, epoch: int) -> np.ndarray:
        rows = self.split.questions_of_image[image]
        if self.questions_per_image is None or len(rows) <= self.questions_per_image:
            return rows
        chosen = np.random.default_rng((self.seed, epoch, image)).permutation(len(rows))[: self.questions_per_image]
        return rows[np.sort(chosen)]


def evaluation_groups(split: SplitReader, pictures: Sequence[int] | np.ndarray | None = None) -> list[Group]:
    """All questions of a split, image by image in its order.

    `pictures`: the row of the image to show instead of each (for the shuffled control); None shows the right ones.
    """
    shown = range(len(split)) if pictures is None else pictures
    return [Group(int(image), rows) for image, rows in zip(shown, split.questions_of_image, strict=True)]


def shuffled_pictures(images: int, seed: int) -> np.ndarray:
    """For each image another one, none its own: (images,) rows, a cyclic shift of a seeded order.

    Raises UserError for fewer than two images.
    """
    if images < 2:
        raise UserError(f"expected at least 2 images to shuffle, got {images}")
    order = np.random.default_rng(seed).permutation(images)
    shown = np.empty(images, np.int64)
    shown[order] = np.roll(order, 1)
    return shown


class _Steps(Dataset[Batch]):
    """The batches of a plan by step number, as a map-style dataset."""

    def __init__(self, groups: Callable[[int], list[Group]], collate: Callable[[list[Group]], Batch]) -> None:
        self.groups, self.collate = groups, collate

    def __getitem__(self, step: int) -> Batch:
        return self.collate(self.groups(step))


def batches(
    groups: Callable[[int], list[Group]],
    collate: Callable[[list[Group]], Batch],
    steps: range,
    *,
    workers: int = 0,
) -> Iterator[Batch]:
    """The batches of the given steps, in order; `workers` processes prepare them ahead (0: in this process)."""
    loader: DataLoader[Batch] = DataLoader(
        _Steps(groups, collate), batch_size=None, sampler=list(steps), num_workers=workers
    )
    return iter(loader)
