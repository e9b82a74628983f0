"""Multiscale Byte Language Model: a hierarchy of causal sequence models over bytes.

This package knows ids, not images or questions; it imports nothing else of this project.
"""

from mblm.model.block import StageBlock
from mblm.model.config import MBLMModelConfig, MBLMReturnType, block_registry
from mblm.model.mblm import MBLM, LossSums
from mblm.model.transformer import TransformerBlock

__all__ = [
    "MBLM",
    "LossSums",
    "MBLMModelConfig",
    "MBLMReturnType",
    "StageBlock",
    "TransformerBlock",
    "block_registry",
]
