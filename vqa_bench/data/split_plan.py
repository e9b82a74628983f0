"""Which images of a CLEVR folder go into which split of a shard. Knows names and counts; opens no file."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vqa_bench.errors import UserError

SOURCE_OF_SPLIT: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "trainA"),
    "dev": ("train", "trainA"),
    "test": ("val", "valA"),
    "test_b": ("valB",),
    "unlabelled": ("test", "testA"),
    "unlabelled_b": ("testB",),
}
"""Split of a shard → the split of the release that it is taken from: of a plain folder, or of CoGenT's archive.

The official val is the test set, as CLEVR's own test set has no answers. CoGenT trains on condition A and tests on
both; the second test is a split of its own. Splits without answers are kept only if images without questions are asked
for, and their questions are not read.
"""

UNLABELLED = ("unlabelled", "unlabelled_b")


class Choice(NamedTuple):
    """A split of the shard and the split of the folder that it is taken from."""

    name: str
    source: str


def choose_splits(
    with_questions: Collection[str],
    with_images: Collection[str],
    *,
    wanted: Sequence[str] | None,
    dev: bool,
    keep_unasked: bool,
) -> list[Choice]:
    """The splits of a shard that a folder can give, or those of them that are wanted.

    Args:
        with_questions: the folder's splits that have questions.
        with_images: the folder's splits that have images.
        wanted: names out of `SOURCE_OF_SPLIT`; None for all that are possible.
        dev: whether some of the training images are set aside.
        keep_unasked: whether images without questions are kept.

    Raises:
        UserError: one that is wanted is not possible, or none is; a folder that is both plain and CoGenT.
    """
    possible = {}
    for name, origins in SOURCE_OF_SPLIT.items():
        if name == "dev" and not dev:
            continue
        there = set(with_images) if keep_unasked else set()
        if name not in UNLABELLED:
            there |= set(with_questions)
        found = [origin for origin in origins if origin in there]
        if len(found) > 1:
            raise UserError(f"expected either the plain splits or CoGenT's, got both {' and '.join(found)}; part them")
        if found:
            possible[name] = found[0]
    chosen = list(possible) if wanted is None else [name for name in SOURCE_OF_SPLIT if name in wanted]
    unknown = sorted(set(chosen if wanted is None else wanted) - set(possible))
    if unknown or not chosen:
        raise UserError(
            f"expected splits that the folder can give ({', '.join(possible) or 'none'}), "
            f"got {', '.join(unknown) or 'none'}"
        )
    return [Choice(name, possible[name]) for name in chosen]


def carve_dev(images: Sequence[str], fraction: float, seed: int) -> frozenset[str]:
    """The training images that are set aside for development: at least one, unless the fraction is 0.

    Ranked by a hash of seed and name, so the choice depends on no listing order and no version of a generator.

    Raises:
        UserError: none would be left to train on.
    """
    if fraction == 0:
        return frozenset()
    count = max(1, round(len(images) * fraction))
    if count >= len(images):
        raise UserError(
            f"expected a dev fraction that leaves images to train on, got {fraction} of {len(images)}; lower it"
        )
    ranked = sorted(images, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    return frozenset(ranked[:count])


def places_of_split(name: str, images: Sequence[str], *, dev: Collection[str]) -> np.ndarray:
    """The places in a folder's split of the images that go into the shard's split `name`, rising, int64."""
    if name not in ("train", "dev"):
        return np.arange(len(images))
    return np.flatnonzero([(image in dev) == (name == "dev") for image in images])
