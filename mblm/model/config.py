"""The model's configuration, as plain values: from Python, from a parsed YAML dict, or from a checkpoint's JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializeAsAny, field_validator, model_validator

from mblm.model.block import StageBlock, StageBlockRegistry
from mblm.model.transformer import TransformerBlock

block_registry = StageBlockRegistry()
block_registry.register(TransformerBlock)


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
        if chunks and (len(chunks) != stages - 1 or min(chunks) < 1):
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
