"""The way back from `hierarchy.py`: a byte model's own configuration as ours, and where the shapes of two differ.

What the weights' tensors and their meaning depend on is the shape. Dropout, kernels, recomputed chunks and how the
bytes begin are settings of a training, and not part of it. Knows configurations, no weights and no files.
"""

from __future__ import annotations

from typing import Any

from mblm import MambaBlock, MBLMModelConfig, StageBlock, TransformerBlock
from vqa_bench.config import (
    CustomStageConfig,
    HierarchyConfig,
    MambaStageConfig,
    MBLMConfig,
    MBLMEncoderConfig,
    TransformerStageConfig,
)
from vqa_bench.errors import UserError
from vqa_bench.models.hierarchy import hierarchy_config

AnyStage = TransformerStageConfig | MambaStageConfig | CustomStageConfig

SETTINGS = frozenset({"dropout", "kernel"})  # fields of our stages that are no shape


def as_config(config: MBLMModelConfig) -> MBLMConfig:
    """A causal model's configuration as one of ours; its ids are not in there, as all of ours have the same."""
    return MBLMConfig(
        hidden_dims=config.hidden_dims,
        seq_lens=config.seq_lens,
        num_layers=config.num_layers,
        stages=[_stage(block) for block in config.stage_blocks()],
        checkpoint_chunks=config.train_checkpoint_chunks,
    )


def with_shape(cell: MBLMConfig, weights: MBLMConfig) -> MBLMConfig:
    """The shape of `weights` with what `cell` says of the training: its chunks, dropout and kernels.

    A stage keeps the cell's dropout and kernel where it is of the same kind as the cell's stage; where the two have
    other numbers of stages, nothing is kept.
    """
    if len(cell.stages) != len(weights.stages):
        return weights
    stages = [_with_settings(mine, theirs) for mine, theirs in zip(cell.stages, weights.stages, strict=True)]
    return weights.model_copy(update={"stages": stages, "checkpoint_chunks": cell.checkpoint_chunks})


def check_shape(cell: HierarchyConfig, weights: HierarchyConfig, *, source: str) -> None:
    """UserError with every difference between a cell's shape and that of the weights it is to begin from.

    The first stage's length may differ: it is how much is read, and stages go on as they did.
    """
    if isinstance(weights, MBLMEncoderConfig):
        raise UserError(
            f"{source}: expected the weights of a model that predicts the next byte, got those of a masked one, which "
            "reads in both directions; begin from a model of kind mblm"
        )
    ours, theirs = (as_config(hierarchy_config(config)) for config in (cell, weights))
    faults = _differences(ours, theirs)
    if faults:
        raise UserError(
            f"{source}: expected a model of the shape of these weights, got another: {'; '.join(faults)}; change the "
            "cell's model, or let `vqa-bench finetune` take the shape from the weights"
        )


def _stage(block: StageBlock) -> AnyStage:
    """A block as a stage of ours; its dropout is the larger one where attention and feed-forward have their own."""
    if type(block) is TransformerBlock:
        return TransformerStageConfig(
            heads=block.attn_num_heads,
            head_dim=block.attn_head_dims,
            rotary=block.attn_use_rot_embs,
            positions=block.pos_emb_type,
            ff_multiplier=block.ff_multiplier,
            dropout=max(block.attn_dropout, block.ff_dropout),
        )
    if type(block) is MambaBlock:
        return MambaStageConfig(
            d_state=block.d_state,
            d_conv=block.d_conv,
            expand=block.expand,
            head_dim=block.headdim,
            dropout=block.dropout,
            positions=block.pos_emb_type,
            kernel=block.kernel,
        )
    return CustomStageConfig(block=block.model_dump(mode="json"))


def _with_settings(cell: AnyStage, weights: AnyStage) -> AnyStage:
    if cell.kind != weights.kind or isinstance(cell, CustomStageConfig):
        return weights
    return weights.model_copy(update=cell.model_dump(include=set(SETTINGS)))


def _differences(cell: MBLMConfig, weights: MBLMConfig) -> list[str]:
    if len(cell.stages) != len(weights.stages):
        return [f"model.stages: expected {len(weights.stages)}, got {len(cell.stages)}"]
    pairs = {
        "hidden_dims": (weights.hidden_dims, cell.hidden_dims),
        "seq_lens after the first": (weights.seq_lens[1:], cell.seq_lens[1:]),
        "num_layers": (weights.num_layers, cell.num_layers),
    }
    faults = [f"model.{name}: expected {want}, got {got}" for name, (want, got) in pairs.items() if want != got]
    for number, (theirs, ours) in enumerate(zip(weights.stages, cell.stages, strict=True)):
        place = f"model.stages.{number}"
        if theirs.kind != ours.kind:
            faults.append(f"{place}.kind: expected {theirs.kind}, got {ours.kind}")
            continue
        want, got = _shape(theirs), _shape(ours)
        for name in sorted(want.keys() | got.keys()):
            if want.get(name) != got.get(name):
                faults.append(f"{place}.{name}: expected {want.get(name)}, got {got.get(name)}")
    return faults


def _shape(stage: AnyStage) -> dict[str, Any]:
    if isinstance(stage, CustomStageConfig):
        return {name: value for name, value in stage.block.items() if "dropout" not in name}
    return stage.model_dump(exclude=set(SETTINGS))
