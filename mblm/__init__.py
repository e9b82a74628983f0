"""Multiscale Byte Language Model: a hierarchy of causal sequence models over bytes.

This package knows ids, not images or questions; it imports nothing else of this project.
"""

from mblm.model.block import StageBlock
from mblm.model.config import (
    MaskReduceStrat,
    MBLMEncoderModelConfig,
    MBLMModelConfig,
    MBLMReturnType,
    block_registry,
)
from mblm.model.encoder import MBLMEncoder
from mblm.model.mamba import MambaBlock
from mblm.model.mblm import MBLM, LossSums
from mblm.model.transformer import TransformerBlock
from mblm.model.transformer_encoder import TransformerEncoderBlock

__all__ = [
    "MBLM",
    "LossSums",
    "MBLMEncoder",
    "MBLMEncoderModelConfig",
    "MBLMModelConfig",
    "MBLMReturnType",
    "MambaBlock",
    "MaskReduceStrat",
    "StageBlock",
    "TransformerBlock",
    "TransformerEncoderBlock",
    "block_registry",
]
