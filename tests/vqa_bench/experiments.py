"""Small experiments as files, for tests that start commands: a folder of data, a configuration, the commands on it."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_scripts.books import pack_books
from tests.vqa_bench.cells import BYTE_MODEL, PIXELS
from tests.vqa_bench.data.clevr_folder import make_clevr_folder

T_T = BYTE_MODEL
S_T = BYTE_MODEL | {"stages": [{"kind": "mamba", "d_state": 8, "head_dim": 8}, BYTE_MODEL["stages"][1]]}
CNN = {"kind": "cnn_lstm", "channels": [4, 8], "strides": [1, 2], "embedding": 8, "hidden": 16, "mlp_hidden": 16}
MODELS = {"T/T": T_T, "S/T": S_T, "CNN": CNN}


@dataclass(frozen=True)
class Experiment:
    """One cell named `cell`, and a pretraining run named `text`; every run has a results folder of its own."""

    folder: Path
    config: Path

    def train(self, results: str | Path) -> list[object]:
        """The command that fills the cell."""
        return ["train", self.config, "cell", *self._folders(results)]

    def pretrain(self, results: str | Path) -> list[object]:
        """The command that pretrains."""
        return ["pretrain", self.config, "text", *self._folders(results)]

    def run(self, results: str | Path) -> Path:
        """Where the cell's run lies."""
        return self.folder / results / "cell"

    def pretraining(self, results: str | Path) -> Path:
        """Where the pretraining run lies."""
        return self.folder / results / "pretrain" / "text"

    def log(self, results: str) -> Path:
        """A file for the output of a command."""
        return self.folder / f"{results}.log"

    def _folders(self, results: str | Path) -> list[object]:
        return ["--out", self.folder / results, "--data", self.folder / "data", "--workers", "1"]


def make_data(folder: Path, *, train: int = 20, val: int = 7) -> Path:
    """Noise images with five questions each."""
    return make_clevr_folder(folder / "clevr", {"train": train, "val": val})


def make_books(out: Path) -> Path:
    """Packed books of a few thousand bytes over a small alphabet."""
    generator = random.Random(0)
    with pack_books(out) as writer:
        for split, size in (("train", 5000), ("validation", 700), ("test", 900)):
            with writer.split(split) as packed:
                packed.add("1", [bytes(generator.choices(b"aeiou tnshr", k=size))])
        writer.finish({"kind": "test"}, verified=False, complete=False)
    return out


def make_experiment(
    folder: Path, clevr: Path, model: dict[str, Any], train: dict[str, Any], *, books: Path | None = None, **cell: Any
) -> Experiment:
    """Write the configuration of an experiment; JSON is YAML. books: packed ones, which a byte model is trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "name": "test",
        "data": {"folder": str(clevr), "dev_fraction": 0.25},
        "cells": [{"name": "cell", "title": "A cell", "encoding": PIXELS, "model": model, "train": train, **cell}],
    }
    if books is not None:
        text = {key: value for key, value in train.items() if not key.endswith("per_image")}
        text["windows_per_batch"] = text.pop("images_per_batch")
        content["pretrain"] = [
            {
                "name": "text",
                "title": "Text",
                "data": {"folder": str(books)},
                "model": model,
                "context": 96,
                "train": text,
            }
        ]
    path = folder / "config.yaml"
    path.write_text(json.dumps(content), encoding="utf-8")
    return Experiment(folder, path)
