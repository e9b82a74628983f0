"""Small books, configurations and models of text that the harness's tests share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_scripts.books import pack_books
from vqa_bench.config import PretrainConfig, parse
from vqa_bench.data.books import Books, open_books

CAUSAL: dict[str, Any] = {
    "kind": "mblm",
    "hidden_dims": [16, 8],
    "seq_lens": [8, 4],
    "num_layers": [1, 1],
    "stages": [{"heads": 2, "head_dim": 8}, {"heads": 1, "head_dim": 8}],
}
MASKED = CAUSAL | {"kind": "mblm_encoder", "mask_rate": 0.25}
TRAIN = {"steps": 6, "windows_per_batch": 4, "learning_rate": 1e-3, "threads": 1}


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes of every value."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def make_books(folder: Path, splits: Mapping[str, bytes]) -> Books:
    """Packed books, one a split."""
    with pack_books(folder) as writer:
        for split, content in splits.items():
            with writer.split(split) as packed:
                packed.add("1", [content])
        writer.finish({"kind": "test"}, verified=False, complete=False)
    return open_books(folder)


def make_config(model: Mapping[str, Any] = CAUSAL, **changes: Any) -> PretrainConfig:
    """A pretraining run on books that a test opens by itself."""
    run = {"name": "text", "title": "Text", "data": {"synth_text": {"bytes": 1}}, "model": model, "train": TRAIN}
    return parse(PretrainConfig, run | changes, "test")
