"""From a cell's configuration to a model that can be trained and asked. The only package that imports mblm, baselines.

A `VQAModel` makes its own batches (`collate`), gives the summed loss of one (`forward`) and either log-probabilities
over the candidates (`log_probs`) or, for byte models, what next-byte decoding needs (`ask`, `step`).

base.py         what every model of the benchmark is
byte_model.py   the byte model on questions
classifiers.py  what the baselines have in common
baselines.py    the baselines, a class a kind
custom.py       those of plugins
features.py     what a frozen network made of the pictures, on disk
extract.py      how it got there
text_model.py   the byte models on text alone
hierarchy.py    a configuration becomes the byte model's own
placement.py    compiled, shared out, and by which kernels
"""

from __future__ import annotations

from typing import Any

from mblm import LossSums
from mblm.decode import DecodeState
from vqa_bench.config import CellConfig
from vqa_bench.data.collate import Batch, ByteBatch
from vqa_bench.models.base import VQAModel, check_answers
from vqa_bench.models.baselines import (
    BoWModel,
    CNNBoWModel,
    CNNLSTMModel,
    CNNLSTMSAModel,
    LSTMModel,
    MajorityModel,
)
from vqa_bench.models.byte_model import ByteModel
from vqa_bench.models.classifiers import Classifier, ClassifierBatch, CountedClassifier
from vqa_bench.models.custom import CustomModel
from vqa_bench.models.placement import check_kernels, compile_layers, kernels_of, share_out
from vqa_bench.models.text_model import LanguageModel, MaskedModel, TextModel, build_text

__all__ = [
    "MODELS",
    "Batch",
    "ByteBatch",
    "ByteModel",
    "Classifier",
    "ClassifierBatch",
    "CountedClassifier",
    "DecodeState",
    "LanguageModel",
    "LossSums",
    "MajorityModel",
    "MaskedModel",
    "TextModel",
    "VQAModel",
    "build",
    "build_text",
    "check_answers",
    "check_kernels",
    "compile_layers",
    "kernels_of",
    "share_out",
]

MODELS: dict[str, type[VQAModel]] = {
    "mblm": ByteModel,
    "cnn_lstm": CNNLSTMModel,
    "cnn_lstm_sa": CNNLSTMSAModel,
    "cnn_bow": CNNBoWModel,
    "lstm": LSTMModel,
    "bow": BoWModel,
    "majority": MajorityModel,
    "custom": CustomModel,
}


def build(cell: CellConfig, built: dict[str, Any]) -> VQAModel:
    """A fresh model of a cell, with what the data decided about it."""
    return MODELS[cell.model.kind](cell, built)
