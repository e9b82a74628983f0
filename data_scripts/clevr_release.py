"""The published CLEVR archives: addresses, hashes, splits, and which file belongs to which. Must not fetch or write."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

IMAGE_BYTES = 189_000
"""Mean length of the release's PNG files, for estimates of space."""
TEXTS = frozenset({"COPYRIGHT.txt", "LICENSE.txt", "README.txt"})
"""Files that go with every split."""


@dataclass(frozen=True)
class Release:
    """A published archive.

    Attributes:
        variant: what users call it.
        digest: "algorithm:hexadecimal", as published.
        bytes: its length; None where nobody published it.
        folder: its top-level folder, left out of `out`.
        images: splits and the number of their pictures.
    """

    variant: str
    url: str
    digest: str
    bytes: int | None
    folder: str
    images: Mapping[str, int]

    @property
    def file_name(self) -> str:
        return self.url.rpartition("/")[2]


RELEASES: dict[str, Release] = {
    release.variant: release
    for release in (
        # SHA-256: tensorflow/datasets (which also has the length), torchvision's prototype datasets, ParlAI.
        Release(
            "clevr",
            "https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip",
            "sha256:5cd61cf1096ed20944df93c9adb31e74d189b8459a94f54ba00090e5c59936d1",
            19_021_600_724,
            "CLEVR_v1.0",
            {"train": 70_000, "val": 15_000, "test": 15_000},
        ),
        # No SHA-256 and no length were to be found. The MD5 is that of IBM/pytorchpipe, whose MD5 of the archive
        # above is also torchvision's.
        Release(
            "cogent",
            "https://dl.fbaipublicfiles.com/clevr/CLEVR_CoGenT_v1.0.zip",
            "md5:9e4a361ab939a4899e6d2ac14a5ee434",
            None,
            "CLEVR_CoGenT_v1.0",
            {"trainA": 70_000, "valA": 15_000, "valB": 15_000, "testA": 15_000, "testB": 15_000},
        ),
    )
}


def belongs(name: str, split: str, *, images: bool) -> bool:
    """Whether a file of the release is part of a split."""
    if name in (f"scenes/CLEVR_{split}_scenes.json", f"questions/CLEVR_{split}_questions.json"):
        return True
    return images and re.fullmatch(rf"images/{re.escape(split)}/[^/]+\.png", name) is not None


def files_on_disk(out: Path, split: str, *, images: bool) -> Iterator[tuple[str, int]]:
    """Names in `out` and sizes of all that a reader would take for this split."""
    for kind in ("scenes", "questions"):
        path = out / kind / f"CLEVR_{split}_{kind}.json"
        if path.exists():
            yield path.relative_to(out).as_posix(), path.stat().st_size
    folder = out / "images" / split
    if images and folder.is_dir():
        with os.scandir(folder) as entries:
            yield from (
                (f"images/{split}/{entry.name}", entry.stat(follow_symlinks=False).st_size) for entry in entries
            )
