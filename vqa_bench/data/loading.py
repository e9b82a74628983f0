"""Which questions make up which batch, as a function of (seed, epoch, position), and a loader that runs ahead.

Nothing here is state: the batch of any step can be computed from its number, so training resumes at a step exactly.
What a batch looks like is the model's own affair (its `collate`). Knows no model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, TypeVar, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset

from vqa_bench.data.shards import SplitReader
from vqa_bench.errors import UserError

Item = TypeVar("Item")
Batch = TypeVar("Batch")
PREFETCH = 4  # batches that each worker is ahead


class Group(NamedTuple):
    """An image (row of the split) and the rows of questions that are asked about it together."""

    image: int
    questions: np.ndarray


class Position(NamedTuple):
    """How far training has come: an epoch, and how many images of its order have been trained on."""

    epoch: int
    images: int


BEGINNING = Position(0, 0)


@dataclass(frozen=True)
class TrainPlan:
    """Which groups train at which step: every image once an epoch, in an order drawn for that epoch.

    An epoch is whole batches only; the images left over wait for another epoch's order. Images that no question asks
    about are passed over. The batches depend neither on the number of processes nor on where training began again.

    questions_per_image: how many of an image's questions are drawn, anew each epoch; None takes all of them.
    rank, world: this process takes every world-th image of a batch. All processes have the same number of steps; where
    world does not divide a batch, some have an image more than others, so losses are summed, not averaged.
    start: step 0 begins behind it, at any image, also one that was reached with batches of another size.

    Raises UserError for fewer images than a batch, or fewer images in a batch than processes.
    """

    split: SplitReader
    seed: int
    images_per_batch: int
    questions_per_image: int | None = None
    rank: int = 0
    world: int = 1
    start: Position = BEGINNING

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world, "a rank counts from 0"
        if len(self._asked) < self.images_per_batch:
            raise UserError(
                f"expected at least {self.images_per_batch} training images for one batch, got {len(self._asked)}; "
                "make train.images_per_batch smaller or the data larger"
            )
        if self.images_per_batch < self.world:
            raise UserError(
                f"expected at least one image a batch for each of {self.world} processes, got train.images_per_batch "
                f"{self.images_per_batch}; make it larger or start fewer processes"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches only."""
        return len(self._asked) // self.images_per_batch

    def position(self, step: int) -> Position:
        """Where a step (counted from 0 over all epochs) begins: `start` of a plan that goes on from there."""
        first = (len(self._asked) - self.start.images) // self.images_per_batch  # batches left of the first epoch
        if step < first:
            return Position(self.start.epoch, self.start.images + step * self.images_per_batch)
        epochs, place = divmod(step - first, self.steps_per_epoch)
        return Position(self.start.epoch + 1 + epochs, place * self.images_per_batch)

    def groups(self, step: int) -> list[Group]:
        """The groups of a step that this process trains on."""
        epoch, done = self.position(step)
        images = self._order(epoch)[done : done + self.images_per_batch][self.rank :: self.world]
        return [Group(int(image), self._questions(int(image), epoch)) for image in images]

    @cached_property
    def _asked(self) -> np.ndarray:
        """The rows of images that are asked about, rising."""
        return np.unique(self.split.image_of_question)

    def _order(self, epoch: int) -> np.ndarray:
        """The rows of an epoch's images; that of the last epoch asked for is kept."""
        if epoch not in self._orders:
            self._orders.clear()
            random = np.random.default_rng((self.seed, epoch))
            self._orders[epoch] = self._asked[random.permutation(len(self._asked))]
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> dict[int, np.ndarray]:
        return {}

    def _questions(self, image: int, epoch: int) -> np.ndarray:
        rows = self.split.questions_of_image[image]
        if self.questions_per_image is None or len(rows) <= self.questions_per_image:
            return rows
        chosen = np.random.default_rng((self.seed, epoch, image)).permutation(len(rows))[: self.questions_per_image]
        return rows[np.sort(chosen)]


def evaluation_groups(split: SplitReader, pictures: Sequence[int] | np.ndarray | None = None) -> list[Group]:
    """All questions of a split, image by image in its order.

    `pictures`: the row of the image to show instead of each (for the shuffled control); None shows the right ones.
    Images that no question asks about have no group.
    """
    shown = range(len(split)) if pictures is None else pictures
    pairs = zip(shown, split.questions_of_image, strict=True)
    return [Group(int(image), rows) for image, rows in pairs if len(rows)]


def spread(count: int, most: int) -> np.ndarray:
    """Places of at most `most` of `count` things in a row, evenly, the ends among them: (min(count, most),)."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int)


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


class _Steps(Dataset[Batch], Generic[Item, Batch]):
    """The batches of a plan by step number, as a map-style dataset."""

    def __init__(self, items: Callable[[int], Item], collate: Callable[[Item], Batch]) -> None:
        self.items, self.collate = items, collate

    def __getitem__(self, step: int) -> Batch:
        try:
            return self.collate(self.items(step))
        except UserError as error:
            # Out of a worker process the loader would pass it on with a traceback for a message.
            return cast(Batch, _Fault(str(error)))


class _Fault(str):
    """What went wrong with a batch, in place of it."""


def _as_made(batch: Batch) -> Batch:
    """In place of the loader's own conversion of what it is given."""
    return batch


def batches(
    items: Callable[[int], Item],
    collate: Callable[[Item], Batch],
    steps: range,
    *,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """The batches of the given steps, in order, each made by `collate` of the step's `items`.

    `workers` processes prepare them ahead (0: in this process). One iterator serves all epochs, so workers start once.
    They map the shard's files themselves; nothing of it is copied. `pin` puts batches into page-locked memory, from
    which a GPU reads beside its work; only where there is one.
    """
    loader: DataLoader[Batch] = DataLoader(
        _Steps(items, collate),
        batch_size=None,
        sampler=steps,
        collate_fn=_as_made,
        num_workers=workers,
        pin_memory=pin,
        prefetch_factor=PREFETCH if workers else None,
    )
    for batch in loader:
        if isinstance(batch, _Fault):
            raise UserError(batch)
        yield batch
