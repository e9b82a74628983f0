"""The byte models on text alone: the next byte of a window, or the bytes that were hidden in it.

Every byte of a window is an id of its own; nothing is put before, between or behind them. Knows batches of windows, not
where windows come from.

Shapes: B windows, L ids of a window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from mblm import MBLM, LossSums, MBLMEncoder
from mblm.checkpoint import from_pretrained, save_pretrained
from vqa_bench.config import MBLMConfig, MBLMEncoderConfig, PretrainConfig
from vqa_bench.data.vocab import PAD
from vqa_bench.data.windows import WindowBatch
from vqa_bench.errors import UserError
from vqa_bench.models.hierarchy import begin_bytes, encoder_config, hierarchy_config


class TextModel(nn.Module, ABC):
    """What a pretraining run trains: `mblm` and its summed loss of a batch of windows.

    Attributes:
        objective: what is predicted.
        mask_rate: the share of bytes that batches must hide; None for none.

    Raises UserError where the window is longer than the model's fixed positions, ValueError where its configuration
    makes no model.
    """

    objective: ClassVar[Literal["next_byte", "masked"]]
    mask_rate: float | None = None
    mblm: MBLM | MBLMEncoder

    def __init__(self, config: PretrainConfig, mblm: MBLM | MBLMEncoder) -> None:
        super().__init__()
        held = mblm.hierarchy.context
        if config.window > held and mblm.hierarchy.stage_blocks()[0].pos_emb_type == "fixed":
            raise UserError(
                f"{config.name}: expected a context of at most {held:,} bytes, the fixed positions of the first stage, "
                f"got {config.window:,}; make it shorter, or seq_lens longer"
            )
        self.config, self.mblm = config, mblm
        begin_bytes(mblm, config.model)

    @abstractmethod
    def forward(self, batch: WindowBatch) -> LossSums:
        """Loss (nats) summed over the bytes that are predicted, and their count."""

    def save(self, folder: Path) -> None:
        """Write `mblm` alone, as `model.safetensors` and `config.json`: a folder that `from_pretrained` reads."""
        save_pretrained(self.mblm, folder)

    def stored(self, folder: Path) -> dict[str, Tensor]:
        """The state dict that `save` has written into a folder; UserError where it is not one of such a model."""
        try:
            mblm: nn.Module = from_pretrained(folder, architecture=type(self.mblm))
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"expected the weights of {self.config.name} in {folder}, got: {error}") from error
        return {f"mblm.{name}": tensor for name, tensor in mblm.state_dict().items()}

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class LanguageModel(TextModel):
    """Every byte of a window is predicted from those before it, the first one from nothing."""

    objective = "next_byte"

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config, MBLM(hierarchy_config(cast(MBLMConfig, config.model))))

    def forward(self, batch: WindowBatch) -> LossSums:
        weights = torch.ones_like(batch.ids, dtype=torch.float32)  # padding never counts
        return cast(MBLM, self.mblm).loss_sums(batch.ids, weights)


class MaskedModel(TextModel):
    """The hidden bytes of a window are predicted from all others."""

    objective = "masked"

    def __init__(self, config: PretrainConfig) -> None:
        model = cast(MBLMEncoderConfig, config.model)
        super().__init__(config, MBLMEncoder(encoder_config(model)))
        self.mask_rate = model.mask_rate

    def forward(self, batch: WindowBatch) -> LossSums:
        assert batch.hidden is not None, "whoever made the batch knew that the model hides bytes"
        real = batch.ids != PAD if batch.padded else None
        return cast(MBLMEncoder, self.mblm).masked_loss_sums(batch.ids, batch.hidden, real)


def build_text(config: PretrainConfig) -> TextModel:
    """A fresh model of a pretraining run."""
    return MaskedModel(config) if isinstance(config.model, MBLMEncoderConfig) else LanguageModel(config)
