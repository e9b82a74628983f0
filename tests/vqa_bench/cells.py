"""Small cells, shards and models that the harness's tests share."""

from pathlib import Path
from typing import Any

import torch

from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from vqa_bench.config import CellConfig, parse
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import Shard, open_shard
from vqa_bench.models import MODELS, VQAModel, build

PIXELS = "pixels:6x4,order=block2"
TRAIN = {"steps": 4, "images_per_batch": 4, "learning_rate": 1e-3, "threads": 1}
BYTE_MODEL = {
    "kind": "mblm",
    "hidden_dims": [16, 8],
    "seq_lens": [60, 12],
    "num_layers": [1, 1],
    "stages": [{"heads": 2, "head_dim": 8}, {"heads": 1, "head_dim": 8}],
}


def make_shard(folder: Path, *, spec: str = PIXELS, train: int = 20, val: int = 6) -> Shard:
    """A shard of noise images with five questions each."""
    source = make_clevr_folder(folder / "clevr", {"train": train, "val": val})
    serialize(source, parse_spec(spec), folder / "shard", workers=1, dev_fraction=0.1)
    return open_shard(folder / "shard")


def make_cell(model: dict[str, Any] | str = "mblm", **changes: Any) -> CellConfig:
    """A cell of the model given by its kind or its configuration."""
    config = BYTE_MODEL if model == "mblm" else {"kind": model} if isinstance(model, str) else model
    cell = {"name": "cell", "title": "A cell", "encoding": PIXELS, "model": config}
    if config["kind"] not in ("majority", "bow"):
        cell["train"] = TRAIN
    return parse(CellConfig, cell | changes, "test")


def make_model(cell: CellConfig, shard: Shard, *, seed: int = 0) -> VQAModel:
    """A fresh model in evaluation mode, in float64 so that differences show."""
    torch.manual_seed(seed)
    return build(cell, MODELS[cell.model.kind].decide(cell, shard)).double().eval()
