"""Features of pictures on disk: what a frozen network made of them once, looked up by the pictures' own bytes.

    <folder>/<split>-<part of a hash>/manifest.json   keys.npy   features.npy

A folder holds any number of such stores, each whole or not there at all, all of one network. Knows shards; the network
itself is in extract.py.

Shapes: n images of a store, c x i x j the features of one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.errors import UserError

MANIFEST, KEYS, FEATURES = "manifest.json", "keys.npy", "features.npy"
FORMAT = "vqa-bench features 1"
KEY_BYTES = 16
DTYPE = np.dtype(np.float16)  # half of float32 on disk; a ResNet's features are at most some tens
SIDE = 224  # of the square that the network is shown, in pixels
RESNET101_SHAPE = (1024, 14, 14)  # of such a picture after the third residual stage


@dataclass(frozen=True)
class FeatureInfo:
    """What made features: network, SHA-256 of its weights, side of the square it was shown (pixels); their shape."""

    kind: str
    weights: str
    side: int
    shape: tuple[int, int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Self:
        """From a mapping that has at least what `to_dict` gives; KeyError else."""
        values = {field.name: state[field.name] for field in fields(cls)}
        return cls(**values | {"shape": tuple(values["shape"])})

    def __str__(self) -> str:
        return f"{self.kind} with weights {self.weights:.12}… at {self.side} pixels"


def key_of(encoding: str, data: bytes) -> bytes:
    """What a picture is known by: a hash of its encoding and its bytes, `KEY_BYTES` long."""
    return hashlib.blake2b(encoding.encode() + b"\0" + data, digest_size=KEY_BYTES).digest()


def store_name(shard: Shard, split: str) -> str:
    """The name of the store for a split: the same for the same pictures in the same encoding."""
    digest = hashlib.sha256(f"{shard.manifest.spec} {images_digest(shard, split)}".encode()).hexdigest()
    return f"{split}-{digest[:12]}"


def images_digest(shard: Shard, split: str) -> str:
    """SHA-256 of a split's pictures, as the shard's manifest has it."""
    return shard.manifest.files[f"{split}/images.arrow"].sha256


class _Store(NamedTuple):
    """keys (n, KEY_BYTES) uint8; features (n, c, i, j) float16, mapped, not read."""

    keys: np.ndarray
    features: np.ndarray


class FeatureFolder:
    """The features in a folder, as a model sees them. Light to pickle: the copy maps the files again.

    Opening it reads nothing but the stores' manifests.
    """

    def __init__(self, path: Path, *, encoding: str | None = None, expected: FeatureInfo | None = None) -> None:
        """encoding: of the pictures that will be asked for. expected: what must have made the features."""
        self.path, self._encoding, self._expected = path, encoding, expected

    def __reduce__(self) -> tuple[Any, tuple[Path, str | None, FeatureInfo | None]]:
        return _reopen, (self.path, self._encoding, self._expected)

    @cached_property
    def info(self) -> FeatureInfo:
        """What made these features.

        Raises UserError for a folder without any, of several networks, or of another one than expected.
        """
        found = {store: FeatureInfo.from_dict(manifest) for store, manifest in self._manifests.items()}
        if not found:
            raise UserError(
                f"expected features in {self.path}, got none; extract them: vqa-bench features SHARD --out {self.path}"
            )
        infos = dict.fromkeys(found.values())
        if len(infos) > 1:
            raise UserError(f"expected features of one network in {self.path}, got {' and '.join(map(str, infos))}")
        (info,) = infos
        if self._expected is not None and info != self._expected:
            raise UserError(
                f"expected features of {self._expected} in {self.path}, got those of {info}; extract them with the "
                "weights that the model was trained with"
            )
        return info

    @property
    def is_empty(self) -> bool:
        """Whether there is no store in the folder, or no folder."""
        return not self._manifests

    def has(self, shard: Shard, split: str) -> bool:
        """Whether all pictures of a split are here."""
        return store_name(shard, split) in {store.name for store in self._manifests}

    def check(self, shard: Shard) -> None:
        """Raises UserError unless all pictures of a shard that questions are asked about, train to test, are here."""
        info = self.info
        splits = [split for split in ("train", "dev", "test") if split in shard.manifest.splits]
        missing = [split for split in splits if not self.has(shard, split)]
        if missing:
            raise UserError(
                f"expected features of {', '.join(missing)} of {shard.path} in {self.path}, got those of other "
                f"pictures ({info}); extract them: vqa-bench features {shard.path} --out {self.path}"
            )

    def __call__(self, split: SplitReader, rows: Sequence[int]) -> Tensor:
        """The features of the pictures of the given rows, (B, c, i, j) float16.

        Raises UserError for a picture that has none here.
        """
        assert self._encoding is not None, "pictures are looked up by their encoding"
        found = []
        for row in rows:
            place = self._places.get(key_of(self._encoding, split.image_bytes(row).tobytes()))
            if place is None:
                name = split.images.column("image_filename")[row].as_py()
                raise UserError(
                    f"expected features of {name} in {self.path}, got none; extract those of its shard with "
                    "`vqa-bench features`"
                )
            store, at = place
            found.append(self._stores[store].features[at])
        return torch.from_numpy(np.stack(found))

    @cached_property
    def _manifests(self) -> dict[Path, dict[str, Any]]:
        return {path.parent: _read_manifest(path) for path in sorted(self.path.glob(f"[!.]*/{MANIFEST}"))}

    @cached_property
    def _stores(self) -> list[_Store]:
        info = self.info  # of all stores, or an error
        return [_open(folder, info, manifest["images"]) for folder, manifest in self._manifests.items()]

    @cached_property
    def _places(self) -> dict[bytes, tuple[int, int]]:
        """Key → which store, and the row in it."""
        return {
            key.tobytes(): (number, row)
            for number, store in enumerate(self._stores)
            for row, key in enumerate(store.keys)
        }


def _reopen(path: Path, encoding: str | None, expected: FeatureInfo | None) -> FeatureFolder:
    return FeatureFolder(path, encoding=encoding, expected=expected)


def write_manifest(folder: Path, info: FeatureInfo, shard: Shard, split: str, images: int) -> None:
    """The last file of a store: what it holds, and of what. No times, no absolute paths."""
    source = {"name": shard.manifest.source.name, "fingerprint": shard.manifest.source.fingerprint}
    about = {
        "spec": shard.manifest.spec,
        "source": source,
        "split": split,
        "images_sha256": images_digest(shard, split),
    }
    content = {"format": FORMAT} | info.to_dict() | about | {"images": images, "dtype": DTYPE.name}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_manifest(path: Path) -> dict[str, Any]:
    """UserError for anything but a manifest of this format."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        FeatureInfo.from_dict(content)
        parse_spec(content["spec"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"expected the manifest of extracted features at {path}, got: {error!r}; delete {path.parent} and extract "
            "them again"
        ) from error
    return dict(content)


def _open(folder: Path, info: FeatureInfo, images: int) -> _Store:
    try:
        keys = np.load(folder / KEYS)
        features = np.load(folder / FEATURES, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"expected features in {folder}, got: {error}; delete it and extract them again") from error
    expected = ((images, KEY_BYTES), (images, *info.shape))
    if (keys.shape, features.shape) != expected or features.dtype != DTYPE:
        raise UserError(
            f"expected {images} pictures with features of shape {info.shape} in {folder}, got keys {keys.shape} and "
            f"{features.dtype} features {features.shape}; delete it and extract them again"
        )
    return _Store(keys, features)
