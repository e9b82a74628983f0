"""The models as plain values: the byte models and their stages, the baselines. Builds nothing."""

from __future__ import annotations

from pathlib import Path
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


class FeaturesConfig(Strict):
    """Features of the pictures, extracted beforehand by `vqa-bench features`, in place of a CNN of one's own.

    kind: the network they are of: ResNet-101 up to its third residual stage. folder: where they are.
    """

    kind: Literal["resnet101"] = "resnet101"
    folder: Path


class PooledFeaturesConfig(FeaturesConfig):
    """Features that are flattened: first a 1 x 1 convolution to `width` channels, then max-pooling `pool` x `pool`."""

    width: int = Field(default=512, ge=1)
    pool: int = Field(default=2, ge=1)


class _WordsConfig(Strict):
    """What the trained baselines have in common. embedding: of a word's vector."""

    embedding: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class _LSTMReaderConfig(_WordsConfig):
    """An LSTM over words."""

    hidden: int = Field(default=128, ge=1)
    layers: int = Field(default=1, ge=1)


class _CNNConfig(_WordsConfig):
    """A small CNN over the decoded picture, unless there are `features` of it."""

    channels: list[Positive] = Field(default=[32, 64, 64])
    strides: list[Positive] = Field(default=[1, 2, 2])
    features: FeaturesConfig | None = None

    @model_validator(mode="after")
    def _either(self) -> _CNNConfig:
        fields = type(self).model_fields
        if self.features is not None and any(
            getattr(self, name) != fields[name].default for name in ("channels", "strides")
        ):
            raise ValueError("expected no `channels` and `strides` of a CNN beside `features`, which take its place")
        return self


class CNNLSTMConfig(_CNNConfig, _LSTMReaderConfig):
    """A small CNN over the decoded picture (or features of it), an LSTM over words, an MLP over both."""

    kind: Literal["cnn_lstm"] = "cnn_lstm"
    mlp_hidden: int = Field(default=256, ge=1)
    features: PooledFeaturesConfig | None = None


class CNNBoWConfig(_CNNConfig):
    """A small CNN over the decoded picture (or features of it), the mean of word vectors, an MLP over both."""

    kind: Literal["cnn_bow"] = "cnn_bow"
    mlp_hidden: int = Field(default=256, ge=1)
    features: PooledFeaturesConfig | None = None

    @property
    def hidden(self) -> int:
        """Of a question's vector, as where an LSTM gives it: here that of its words."""
        return self.embedding


class CNNLSTMSAConfig(_CNNConfig, _LSTMReaderConfig):
    """Stacked attention: what the LSTM read looks at positions of the CNN's last map, or of the features.

    attention_width: channels in which positions are compared with the question. looks: how often, one on the other.
    mlp_hidden: of an MLP over what was seen; None for a linear layer.
    """

    kind: Literal["cnn_lstm_sa"] = "cnn_lstm_sa"
    attention_width: int = Field(default=128, ge=1)
    looks: int = Field(default=2, ge=1)
    mlp_hidden: int | None = Field(default=None, ge=1)


class LSTMConfig(_LSTMReaderConfig):
    """The question-only baseline: an LSTM over words and an MLP."""

    kind: Literal["lstm"] = "lstm"
    mlp_hidden: int = Field(default=256, ge=1)


class BoWConfig(Strict):
    """Logistic regression on the counts of a question's words, which never sees the picture. Fitted, not trained.

    inverse_penalty: scikit-learn's C; larger lets the weights grow. max_iterations: of its solver.
    """

    kind: Literal["bow"] = "bow"
    inverse_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_iterations: int = Field(default=1000, ge=1)


class MajorityConfig(Strict):
    """The commonest training answer, per question type or over all questions."""

    kind: Literal["majority"] = "majority"
    per_type: bool = True


class CustomModelConfig(Strict):
    """A model of a plugin's own: what it was registered as, and its own options; blind where the cell has no encoding.

    name: as given to `vqa_bench.models.custom.register_model`.
    """

    kind: Literal["custom"] = "custom"
    name: str
    options: dict[str, Any] = Field(default={})


BLIND = frozenset({"lstm", "bow", "majority"})
"""The kinds of models that see no image."""

EITHER = frozenset({"custom"})
"""The kinds of models that see images where their cell has an encoding."""

COUNTED = frozenset({"bow", "majority"})
"""The kinds of models that are fitted at once, not trained by steps."""

ModelConfig = Annotated[
    MBLMConfig
    | CNNLSTMConfig
    | CNNBoWConfig
    | CNNLSTMSAConfig
    | LSTMConfig
    | BoWConfig
    | MajorityConfig
    | CustomModelConfig,
    Field(discriminator="kind"),
]
PretrainedModelConfig = Annotated[MBLMConfig | MBLMEncoderConfig, Field(discriminator="kind")]
