"""The models as plain values: the byte models and their stages, the baselines. Builds nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from vqa_bench.config.base import Strict

Positive = Annotated[int, Field(ge=1)]


class TransformerStageConfig(Strict):
    """A transformer stage: `heads` of `head_dim` channels; positions `fixed`, `rope` or none."""

    kind: Literal["transformer"] = "transformer"
    heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    rotary: bool = True
    positions: Literal["fixed", "rope"] | None = "fixed"
    ff_multiplier: int = Field(default=2, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class MambaStageConfig(Strict):
    """A Mamba-2 stage. kernel: who runs the recurrence, `auto` is mamba-ssm's kernels where they are."""

    kind: Literal["mamba"] = "mamba"
    d_state: int = Field(default=128, ge=1)
    d_conv: int = Field(default=4, ge=1)
    expand: int = Field(default=2, ge=1)
    head_dim: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    positions: Literal["fixed", "rope"] | None = None
    kernel: Literal["auto", "torch", "triton"] = "auto"


class CustomStageConfig(Strict):
    """A stage of a plugin's own: `block` is parsed by the blocks registered with `mblm.block_registry`."""

    kind: Literal["custom"] = "custom"
    block: dict[str, Any]


def _kind(stage: Any) -> Any:
    return stage.get("kind", "transformer") if isinstance(stage, dict) else getattr(stage, "kind", None)


StageConfig = Annotated[
    Annotated[TransformerStageConfig, Tag("transformer")]
    | Annotated[MambaStageConfig, Tag("mamba")]
    | Annotated[CustomStageConfig, Tag("custom")],
    Discriminator(_kind),
]
"""A stage without a `kind` is a transformer."""


class HierarchyConfig(Strict):
    """A hierarchy of stages: every list has an entry a stage, from the most global stage to the local one.

    checkpoint_chunks: for the second to the last stage, into how many chunks its flattened batch is split in training,
    each recomputed in backward. byte_init: how the vectors of the 256 bytes begin. `normal` is PyTorch's, each for
    itself; with `smooth`, half of the channels are slow waves over the byte's value, so that pixels of nearly the same
    brightness begin alike.
    """

    hidden_dims: list[int]
    seq_lens: list[int]
    num_layers: list[int]
    stages: list[StageConfig]
    checkpoint_chunks: list[int] | None = None
    byte_init: Literal["normal", "smooth"] = "normal"


class MBLMConfig(HierarchyConfig):
    """The causal byte model, which predicts the next byte."""

    kind: Literal["mblm"] = "mblm"


class MBLMEncoderConfig(HierarchyConfig):
    """The masked byte model, which predicts bytes that were hidden from it; its stages read in both directions.

    mask_rate: the share of bytes that is hidden, each by itself. reduce: when a patch counts as real.
    """

    kind: Literal["mblm_encoder"] = "mblm_encoder"
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    reduce: Literal["any", "all"] = "any"

    @model_validator(mode="after")
    def _bidirectional(self) -> MBLMEncoderConfig:
        if any(isinstance(stage, MambaStageConfig) for stage in self.stages):
            raise ValueError("expected transformer stages in a masked model, got a mamba stage, which reads one way")
        return self


class _QuestionReaderConfig(Strict):
    """An LSTM over words and an MLP: what the trained baselines have in common."""

    embedding: int = Field(default=64, ge=1)
    hidden: int = Field(default=128, ge=1)
    layers: int = Field(default=1, ge=1)
    mlp_hidden: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class CNNLSTMConfig(_QuestionReaderConfig):
    """The sighted baseline: a small CNN over the decoded picture, an LSTM over words, an MLP over both."""

    kind: Literal["cnn_lstm"] = "cnn_lstm"
    channels: list[Positive] = Field(default=[32, 64, 64])
    strides: list[Positive] = Field(default=[1, 2, 2])


class LSTMConfig(_QuestionReaderConfig):
    """The question-only baseline: an LSTM over words and an MLP."""

    kind: Literal["lstm"] = "lstm"


class MajorityConfig(Strict):
    """The commonest training answer, per question type or over all questions."""

    kind: Literal["majority"] = "majority"
    per_type: bool = True


ModelConfig = Annotated[MBLMConfig | CNNLSTMConfig | LSTMConfig | MajorityConfig, Field(discriminator="kind")]
PretrainedModelConfig = Annotated[MBLMConfig | MBLMEncoderConfig, Field(discriminator="kind")]
