"""What ResNet-101 makes of a shard's pictures, once, to disk.

As clevr-iep does it: torchvision's network trained on ImageNet, up to and with its third residual stage, shown pictures
resized (bicubic) to 224 x 224. Knows shards and the stores of features.py; knows no questions.

Shapes: B images, S the side of the square in pixels, c x i x j the features of one.
"""

from __future__ import annotations

import hashlib
import pickle
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.folders import new_folder
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.errors import UserError
from vqa_bench.models.features import (
    DTYPE,
    FEATURES,
    KEY_BYTES,
    KEYS,
    SIDE,
    FeatureFolder,
    FeatureInfo,
    key_of,
    store_name,
    write_manifest,
)

KIND = "resnet101"
TRUNK = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
# Of ImageNet's pixels in [0, 1], red, green, blue; what torchvision's weights were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Extractor(nn.Module):
    """The frozen network: pictures to features."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: dict[str, Tensor]) -> None:
        """`weights` is a state dict of torchvision's ResNet-101; of later layers than used it may have none.

        Raises UserError where it is not one.
        """
        super().__init__()
        from torchvision.models import resnet101

        with torch.device("meta"):
            network = resnet101(weights=None)
        self.trunk = nn.Sequential(OrderedDict((name, getattr(network, name)) for name in TRUNK))
        used = {name: tensor for name, tensor in weights.items() if name.partition(".")[0] in TRUNK}
        try:
            self.trunk.to_empty(device="cpu").load_state_dict(used)
        except RuntimeError as error:
            fault = " ".join(str(error).split())[:200]
            raise UserError(f"expected the weights of torchvision's ResNet-101, got others: {fault}") from error
        self.digest = _digest(self.trunk)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("deviation", torch.tensor(DEVIATION)[:, None, None])
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 3, S, S) uint8 to (B, c, i, j)."""
        return self.trunk((pictures / 255 - self.mean) / self.deviation)


def load_weights(path: Path | None) -> dict[str, Tensor]:
    """ResNet-101's state dict: from a file (`.pth`, or `.safetensors`), else by torchvision's own loader.

    The loader keeps what it downloads. Raises UserError for a file that is none, and without a network.
    """
    if path is None:
        return _downloaded()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever broken bytes lead the readers to
        if isinstance(error, OSError | RuntimeError | ValueError | EOFError | pickle.UnpicklingError) or (
            type(error).__module__.startswith("safetensors")
        ):
            refused = isinstance(error, pickle.UnpicklingError)  # whose message advises to load whatever it is
            fault = "no file of tensors" if refused else " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"expected weights of ResNet-101 in {path}, got: {fault}; download them again") from error
        raise
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"expected a state dict of ResNet-101 in {path}, got something else; save model.state_dict()")
    return dict(loaded)


def _downloaded() -> dict[str, Tensor]:
    from torchvision.models import ResNet101_Weights

    weights = ResNet101_Weights.IMAGENET1K_V1
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"expected to download ResNet-101's weights, got: {' '.join(str(error).split())}; fetch {weights.url} "
            "where there is a network, and give the file with --weights FILE"
        ) from error


def extract(
    shard: Shard,
    out: Path,
    extractor: Extractor,
    *,
    splits: Sequence[str] | None = None,
    images_per_batch: int = 32,
    workers: int = 0,
    device: torch.device | None = None,
    side: int = SIDE,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """The features of a shard's pictures into the folder `out`, beside those of other shards; returns the new stores.

    A split whose features are there is passed over, so the same command goes on after a kill. splits: None takes all.
    workers: processes that decode pictures; 0 does it here. progress: called with pictures done and of all.

    Raises UserError for a split that there is not, features of another network in `out`, and features that are not
    finite.
    """
    readers = {split: shard.split(split) for split in (shard.manifest.splits if splits is None else splits)}
    with torch.inference_mode():
        extractor = extractor.to("cpu" if device is None else device)
        shape = tuple(extractor(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=device)).shape[1:])
    info = FeatureInfo(KIND, extractor.digest, side, shape)
    there = FeatureFolder(out, expected=info)
    if not there.is_empty:
        info = there.info  # or an error: of another network
    missing = {split: reader for split, reader in readers.items() if not there.has(shard, split)}
    done, total = 0, sum(len(reader) for reader in missing.values())
    made = []
    for split, reader in missing.items():

        def report(count: int, before: int = done) -> None:
            if progress is not None:
                progress(before + count, total)

        made.append(out / store_name(shard, split))
        with new_folder(made[-1]) as folder:
            pictures = _Pictures(reader, shard.manifest.spec, side)
            loader = DataLoader(pictures, images_per_batch, num_workers=workers)
            _write(folder, extractor, loader, (len(reader), *shape), report)
            write_manifest(folder, info, shard, split, len(reader))
        done += len(reader)
    return made


def _write(
    folder: Path,
    extractor: Extractor,
    loader: DataLoader[tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, ...],
    report: Callable[[int], None],
) -> None:
    """`keys.npy` and `features.npy` of the pictures of a loader, in its order; `shape` is (n, c, i, j)."""
    keys = np.zeros((shape[0], KEY_BYTES), np.uint8)
    first = 0
    # Written, not mapped: on a full disk a mapped file ends the process without a word.
    with (folder / FEATURES).open("wb") as file:
        header = {"descr": dtype_to_descr(DTYPE), "fortran_order": False, "shape": shape}
        write_array_header_1_0(file, header)
        for names, pictures in loader:
            with torch.inference_mode():
                found = extractor(pictures.to(extractor.mean.device)).to(torch.float16).cpu().numpy()
            last = first + len(found)
            if not np.isfinite(found).all():
                raise UserError(
                    f"expected finite features in {DTYPE.name}, got others for pictures {first}-{last - 1}; are these "
                    "the weights of ResNet-101 trained on ImageNet?"
                )
            keys[first:last] = names
            file.write(found.tobytes())
            report(last)
            first = last
    np.save(folder / KEYS, keys)


class _Pictures(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Of each image of a split its key (KEY_BYTES,) uint8, and the picture as the network is shown it."""

    def __init__(self, split: SplitReader, encoding: str, side: int) -> None:
        self.split, self.encoding, self.side = split, encoding, side

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        data = self.split.image_bytes(row).tobytes()
        picture = parse_spec(self.encoding).decode(data)
        resized = np.asarray(picture.resize((self.side, self.side), Image.Resampling.BICUBIC))
        key = np.frombuffer(key_of(self.encoding, data), np.uint8)
        return key.copy(), resized.transpose(2, 0, 1).copy()  # (3, S, S)


def _digest(network: nn.Module) -> str:
    """SHA-256 over the names and values of all weights: the same whatever file they came in."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):  # which files of old have not
            digest.update(name.encode() + b"\0" + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
