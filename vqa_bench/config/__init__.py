"""What an experiment is, as typed values: unknown keys are errors, and every error names its place in the file.

base.py        strictness, errors, durations
data.py        where questions, pictures and text come from
model.py       models and their stages
training.py    the optimisation
cell.py        one row of the matrix; one pretraining run
read.py        YAML, strictly
layers.py      partial cells, one laid over another
product.py     axes × overrides become cells
across.py      what cells and pretraining runs of a file must agree on
experiment.py  a whole file: its cells, its pretraining runs

Nothing here computes anything or imports torch.
"""

from vqa_bench.config.across import PRETRAIN_FOLDER
from vqa_bench.config.base import Duration, overlay, parse
from vqa_bench.config.cell import CellConfig, EvaluateConfig, PretrainConfig, PretrainedConfig
from vqa_bench.config.data import CustomDataConfig, DataConfig, SynthConfig, SynthTextConfig, TextDataConfig
from vqa_bench.config.experiment import MatrixConfig, load_matrix
from vqa_bench.config.model import (
    CNNLSTMConfig,
    CustomModelConfig,
    CustomStageConfig,
    HierarchyConfig,
    LSTMConfig,
    MajorityConfig,
    MambaStageConfig,
    MBLMConfig,
    MBLMEncoderConfig,
    TransformerStageConfig,
)
from vqa_bench.config.training import CheckpointConfig, DevConfig, LoopConfig, TextTrainConfig, TrainConfig

__all__ = [
    "PRETRAIN_FOLDER",
    "CNNLSTMConfig",
    "CellConfig",
    "CheckpointConfig",
    "CustomDataConfig",
    "CustomModelConfig",
    "CustomStageConfig",
    "DataConfig",
    "DevConfig",
    "Duration",
    "EvaluateConfig",
    "HierarchyConfig",
    "LSTMConfig",
    "LoopConfig",
    "MBLMConfig",
    "MBLMEncoderConfig",
    "MajorityConfig",
    "MambaStageConfig",
    "MatrixConfig",
    "PretrainConfig",
    "PretrainedConfig",
    "SynthConfig",
    "SynthTextConfig",
    "TextDataConfig",
    "TextTrainConfig",
    "TrainConfig",
    "TransformerStageConfig",
    "load_matrix",
    "overlay",
    "parse",
]
