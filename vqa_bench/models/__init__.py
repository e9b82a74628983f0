"""From a cell's configuration to a model that can be trained and asked. The only package that imports mblm, baselines.

A `VQAModel` makes its own batches (`collate`), gives the summed loss of one (`forward`) and either log-probabilities
over the candidates (`log_probs`) or, for byte models, what next-byte decoding needs (`ask`, `step`).

base.py         what every model of the benchmark is
byte_model.py   the byte model on questions
classifiers.py  the baselines
hierarchy.py    a configuration becomes the byte model's own
"""

from __future__ import annotations

from typing import Any

from mblm import LossSums
from mblm.decode import DecodeState
from vqa_bench.config import CellConfig
from vqa_bench.data.collate import Batch, ByteBatch
from vqa_bench.models.base import VQAModel
from vqa_bench.models.byte_model import ByteModel
from vqa_bench.models.classifiers import Classifier, ClassifierBatch, CNNLSTMModel, LSTMModel, MajorityModel

__all__ = [
    "MODELS",
    "Batch",
    "ByteBatch",
    "ByteModel",
    "Classifier",
    "ClassifierBatch",
    "DecodeState",
    "LossSums",
    "MajorityModel",
    "VQAModel",
    "build",
]

MODELS: dict[str, type[VQAModel]] = {
    "mblm": ByteModel,
    "cnn_lstm": CNNLSTMModel,
    "lstm": LSTMModel,
    "majority": MajorityModel,
}


def build(cell: CellConfig, built: dict[str, Any]) -> VQAModel:
    """A fresh model of a cell, with what the data decided about it."""
    return MODELS[cell.model.kind](cell, built)
