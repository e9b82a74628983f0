"""From a configuration to the byte model's own: which blocks its stages are, which ids it has, how its bytes begin."""

from __future__ import annotations

from typing import cast

from torch import nn

from mblm import (
    MBLM,
    MambaBlock,
    MaskReduceStrat,
    MBLMEncoder,
    MBLMEncoderModelConfig,
    MBLMModelConfig,
    StageBlock,
    TransformerBlock,
    TransformerEncoderBlock,
    block_registry,
)
from mblm.model.embedding import smooth_init_
from vqa_bench.config import (
    CustomStageConfig,
    HierarchyConfig,
    MambaStageConfig,
    MBLMEncoderConfig,
    TransformerStageConfig,
    parse,
)
from vqa_bench.data.vocab import PAD, VOCAB_SIZE
from vqa_bench.errors import UserError

MASK = VOCAB_SIZE - 1  # the id that stands for a hidden byte: one of those that no sequence has


def hierarchy_config(config: HierarchyConfig) -> MBLMModelConfig:
    """The model's own configuration; UserError where lists differ in length or a custom block is not registered."""
    masked = isinstance(config, MBLMEncoderConfig)
    values = {
        "num_tokens": VOCAB_SIZE,
        "pad_token_id": PAD,
        "hidden_dims": config.hidden_dims,
        "seq_lens": config.seq_lens,
        "num_layers": config.num_layers,
        "train_checkpoint_chunks": config.checkpoint_chunks,
        "block": [_block(stage, masked=masked) for stage in config.stages],
    }
    return parse(MBLMModelConfig, values, "model")


def encoder_config(config: MBLMEncoderConfig) -> MBLMEncoderModelConfig:
    """The masked model's own configuration; errors as `hierarchy_config`."""
    return MBLMEncoderModelConfig(
        mask_token_id=MASK, mblm_config=hierarchy_config(config), mask_reduce_strat=MaskReduceStrat(config.reduce)
    )


def begin_bytes(model: MBLM | MBLMEncoder, config: HierarchyConfig) -> None:
    """Give the byte vectors the beginning that the configuration asks for."""
    if config.byte_init == "smooth":
        for table in model.token_embs_rev:
            smooth_init_(cast(nn.Embedding, table.embedding))


def _block(stage: TransformerStageConfig | MambaStageConfig | CustomStageConfig, *, masked: bool) -> StageBlock:
    if isinstance(stage, CustomStageConfig):
        try:
            return block_registry.parse(stage.block)
        except ValueError as error:
            raise UserError(f"expected a registered stage block, got: {error}; give its file as --plugin") from error
    if isinstance(stage, MambaStageConfig):
        return MambaBlock(
            d_state=stage.d_state,
            d_conv=stage.d_conv,
            expand=stage.expand,
            headdim=stage.head_dim,
            dropout=stage.dropout,
            pos_emb_type=stage.positions,
            kernel=stage.kernel,
        )
    kind = TransformerEncoderBlock if masked else TransformerBlock
    return kind(
        attn_head_dims=stage.head_dim,
        attn_num_heads=stage.heads,
        attn_use_rot_embs=stage.rotary,
        attn_dropout=stage.dropout,
        ff_multiplier=stage.ff_multiplier,
        ff_dropout=stage.dropout,
        pos_emb_type=stage.positions,
    )
