"""The model's configuration, as plain values: from Python, from a parsed YAML dict, or from a checkpoint's JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import Enum, StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny, field_validator, model_validator

from mblm.model.block import StageBlock, StageBlockRegistry
from mblm.model.mamba import MambaBlock
from mblm.model.transformer import TransformerBlock
from mblm.model.transformer_encoder import TransformerEncoderBlock

block_registry = StageBlockRegistry()
block_registry.register(TransformerBlock)
block_registry.register(MambaBlock)
# Last, as its keys are TransformerBlock's: in a masked model's configuration it is preferred, see there.
block_registry.register(TransformerEncoderBlock)


class MBLMReturnType(str, Enum):  # noqa: UP042  (existing users compare its members with strings)
    """What `MBLM.forward` returns."""

    LOGITS = "logits"
    LOSS = "loss"
    LOSS_LOGITS = "loss_logits"
    HIDDEN_STATE = "hidden_state"


class MBLMModelConfig(BaseModel):
    """A hierarchy of N stages; every list runs from the most global stage to the local one.

    num_tokens: vocabulary size V. pad_token_id: the id that fills up patches and never counts in the loss.
    hidden_dims, seq_lens, num_layers: width D_i, positions P_i and depth of each stage; the context is the product
    of `seq_lens`. train_checkpoint_chunks: for the second to the last stage, into how many chunks its flattened
    batch is split, each recomputed in backward. block: one block for all stages, or one for each.
    """

    model_config = ConfigDict(extra="forbid")

    num_tokens: int
    pad_token_id: int
    hidden_dims: list[int]
    seq_lens: list[int]
    num_layers: list[int]
    train_checkpoint_chunks: list[int] | None = None
    block: SerializeAsAny[StageBlock] | list[SerializeAsAny[StageBlock]]

    @field_validator("block", mode="before")
    @classmethod
    def _parse_block(cls, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [block if isinstance(block, StageBlock) else block_registry.parse(block) for block in value]
        return value if isinstance(value, StageBlock) else block_registry.parse(value)

    @model_validator(mode="after")
    def _check(self) -> MBLMModelConfig:
        stages = len(self.hidden_dims)
        lengths = {"hidden_dims": stages, "seq_lens": len(self.seq_lens), "num_layers": len(self.num_layers)}
        if isinstance(self.block, list):
            lengths["block"] = len(self.block)
        if len(set(lengths.values())) != 1 or stages == 0:
            raise ValueError(f"expected one entry a stage in every list, got {lengths}")
        for name in ("hidden_dims", "seq_lens", "num_layers"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected positive numbers, got {getattr(self, name)}")
        if not 0 <= self.pad_token_id < self.num_tokens:
            raise ValueError(f"pad_token_id: expected 0 to {self.num_tokens - 1}, got {self.pad_token_id}")
        chunks = self.train_checkpoint_chunks
        if chunks is not None and (len(chunks) != stages - 1 or min(chunks, default=1) < 1):
            raise ValueError(f"train_checkpoint_chunks: expected {stages - 1} positive numbers, got {chunks}")
        return self

    @property
    def context(self) -> int:
        """The most bytes a sequence may have: P_1·…·P_N."""
        return math.prod(self.seq_lens)

    @property
    def patch_size(self) -> int:
        """Bytes in one patch of the first stage: P_2·…·P_N (1 for a single stage)."""
        return math.prod(self.seq_lens[1:])

    def stage_blocks(self) -> list[StageBlock]:
        """One block for each stage."""
        return list(self.block) if isinstance(self.block, list) else [self.block] * len(self.hidden_dims)


class MaskReduceStrat(StrEnum):
    """When a patch counts as real: if any of its bytes is, or only if all are."""

    ANY = "any"
    ALL = "all"


class MBLMEncoderModelConfig(BaseModel):
    """The masked model: the hierarchy in `mblm_config`, with bidirectional blocks.

    mask_token_id: the id that stands for a byte to predict. mask_reduce_strat: which patches the coarser stages read,
    given the real bytes. A block without `block_type` and with TransformerEncoderBlock's keys is one.
    """

    model_config = ConfigDict(extra="forbid")

    mask_token_id: int
    mblm_config: MBLMModelConfig
    mask_reduce_strat: MaskReduceStrat = MaskReduceStrat.ANY

    @field_validator("mblm_config", mode="before")
    @classmethod
    def _name_blocks(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "block" not in value:
            return value
        block = value["block"]
        is_list = isinstance(block, Sequence) and not isinstance(block, str)
        return {**value, "block": [_bidirectional(one) for one in block] if is_list else _bidirectional(block)}

    @model_validator(mode="after")
    def _check(self) -> MBLMEncoderModelConfig:
        causal = sorted({type(block).__name__ for block in self.mblm_config.stage_blocks() if block.causal})
        if causal:
            raise ValueError(
                f"block: expected bidirectional blocks in a masked model, got {', '.join(causal)}; use "
                f"TransformerEncoderBlock (block_type: transformerEncoder) or a block of your own with causal = False"
            )
        return self


def _bidirectional(block: Any) -> Any:
    """A parsed block with TransformerEncoderBlock's keys and no type, given that type; anything else as it is."""
    if (
        isinstance(block, Mapping)
        and "block_type" not in block
        and set(block) <= set(TransformerEncoderBlock.model_fields)
    ):
        return {**block, "block_type": TransformerEncoderBlock.model_fields["block_type"].default}
    return block
