"""Which questions are answered together: those of about one length, and as many as memory holds.

Knows lengths and sizes, not what is done with a batch.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from vqa_bench.data.loading import Group
from vqa_bench.data.questions import questions_of
from vqa_bench.data.shards import SplitReader
from vqa_bench.errors import UserError
from vqa_bench.models import ByteModel, VQAModel
from vqa_bench.progress import Progress, silent

Result = TypeVar("Result")

# How allocators say that there is no room where they raise no OutOfMemoryError: PyTorch's on a CPU, CUDA's libraries.
_NO_ROOM = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass
class BatchSize:
    """How much is done at once: so many images at most, and so many questions of each (None: all of them).

    Begins with what was `asked` for, and is halved where memory does not suffice.
    """

    asked: int
    images: int
    questions: int | None = None

    @classmethod
    def of(cls, images: int) -> BatchSize:
        return cls(asked=images, images=images)

    def halve(self, images: int, questions: int) -> None:
        """After a batch of so many images with so many questions each did not fit.

        Raises UserError where it was a single question.
        """
        if images > 1:
            self.images = -(-images // 2)
        elif questions > 1:
            self.images, self.questions = 1, -(-questions // 2)
        else:
            raise UserError(
                "expected memory for at least one question at a time, got too little; free some, or use a device with "
                "more or a smaller model"
            )


@dataclass(frozen=True)
class _Cutter:
    """Groups to batches. per_image: the most questions that an image has.

    shared: whether an image is read once for its questions, which then stay together; otherwise each question is a
    group of its own, and a batch has as many of them as so many images have.
    """

    size: BatchSize
    per_image: int
    shared: bool

    def cut(self, groups: list[Group]) -> list[list[Group]]:
        """Batches of the groups in their order, which may have been cut before."""
        piece = self._together if self.shared else 1
        pieces = [
            Group(group.image, group.questions[first : first + piece])
            for group in groups
            for first in range(0, len(group.questions), piece)
        ]
        width = self.size.images if self.shared else self.size.images * self._together
        return [pieces[first : first + width] for first in range(0, len(pieces), width)]

    def halve(self, batch: list[Group]) -> None:
        """After this one did not fit."""
        if self.shared:
            self.size.halve(len(batch), max(len(group.questions) for group in batch))
        else:
            self.size.halve(-(-len(batch) // self._together), min(len(batch), self._together))

    @property
    def _together(self) -> int:
        """The most questions of an image in one batch."""
        return self.per_image if self.size.questions is None else min(self.size.questions, self.per_image)


def in_batches(
    model: VQAModel,
    split: SplitReader,
    groups: list[Group],
    size: BatchSize,
    work: Callable[[list[Group]], Result],
    *,
    rank: int = 0,
    world: int = 1,
    report: Progress = silent,
) -> Iterator[Result]:
    """What `work` makes of each batch, the longest first; of several processes each does every world-th one.

    Which groups make a batch depends on neither rank nor world. Where `work` finds no memory, the batch and all that
    follow are halved, and `size` with them. Raises UserError where a single question does not fit.
    """
    if not groups:
        return
    shared = not isinstance(model, ByteModel) or model.sequencer.shares_prefix
    cutter = _Cutter(size, max(len(group.questions) for group in groups), shared)
    if not shared:
        groups = [
            Group(group.image, row) for group in groups for row in np.split(group.questions, len(group.questions))
        ]
    pending, done = deque(cutter.cut(_longest_first(split, groups))[rank::world]), 0
    while pending:
        result = _attempt(work, pending[0])
        if result is None:
            _let_go()
            cutter.halve(pending[0])
            pending = deque(cutter.cut([group for batch in pending for group in batch]))
            continue
        pending.popleft()
        done += 1
        report(done, done + len(pending))
        yield result


def _longest_first(split: SplitReader, groups: list[Group]) -> list[Group]:
    """By the longest question of each: what does not fit shows at once, and little of a batch is padding."""
    lengths = questions_of(split).lengths
    longest = np.array([lengths[group.questions].max() for group in groups])
    return [groups[place] for place in np.argsort(-longest, kind="stable")]


def _attempt(work: Callable[[list[Group]], Result], batch: list[Group]) -> Result | None:
    """The work's result; None where it finds no memory."""
    try:
        return work(batch)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in _NO_ROOM):
            return None
        raise


def _let_go() -> None:
    """Give back what the attempt left behind; its traceback, which held the tensors, is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
