"""The masked model: the same hierarchy read in both directions, predicting bytes that were hidden in the input.

Arithmetic of the reference implementation (PyPI `mblm`, `MBLMEncoder`): no start vectors and no shift; output position
j of stage i conditions all positions of its own patch j at stage i+1; the logits at byte t predict byte t. The model
knows ids only, not how the bytes to hide are chosen.

Shapes: B batch, L bytes, V vocabulary, N stages with P_i positions of width D_i; R_i = P_{i+1}·…·P_N bytes in one
position of stage i, R = R_1 bytes in a patch of the first stage; n sequences of a stage laid flat, T bytes to predict.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mblm.model.config import MaskReduceStrat, MBLMEncoderModelConfig, MBLMReturnType
from mblm.model.hierarchy import Hierarchy, LossSums

IGNORED_LABEL = -100  # torch's own, and what data collators for masked models write


class MBLMEncoder(Hierarchy):
    """A byte-level masked language model of N bidirectional stages."""

    def __init__(self, config: MBLMEncoderModelConfig) -> None:
        super().__init__(config.mblm_config, causal=False)
        self.config = config

    # -- the stages -----------------------------------------------------------------------------------------------

    def hidden_states(self, ids: Int[Tensor, "b l"], real: Bool[Tensor, "b l"] | None = None) -> Float[Tensor, "b l d"]:
        """The local stage's outputs at every byte, (B, L, D_N); no stage attends to what `real` (B, L) denies.

        Give padding the pad id: a patch that counts as real is embedded with all of its bytes.
        """
        B, L = ids.shape
        patches = self.to_patches(ids)  # (B, P_1', R)
        self.check_context(patches.shape[1])
        if real is None and patches[0].numel() > L:
            real = torch.ones_like(ids, dtype=torch.bool)
        if real is not None:
            real = F.pad(real, (0, patches[0].numel() - L), value=False).view_as(patches)
        outputs = cast(Tensor, self.stage_models[0](self.embed(0, patches), self._reduced(real)))
        for stage in range(1, self.num_stages):
            shape = (-1, self.seq_lens[stage], self.patch_bytes[stage])  # (n, P_i, R_i)
            reals = self._reduced(None if real is None else real.view(shape))
            outputs = self._run_later(stage, outputs.flatten(0, 1), patches.view(shape), reals)
        return outputs.reshape(B, patches[0].numel(), -1)[:, :L]

    def _reduced(self, real: Bool[Tensor, "n s r"] | None) -> Bool[Tensor, "n s"] | None:
        """Which positions of a stage are real, from the bytes of each."""
        if real is None:
            return None
        return real.any(-1) if self.config.mask_reduce_strat == MaskReduceStrat.ANY else real.all(-1)

    def _run_later(
        self,
        stage: int,
        contexts: Float[Tensor, "n d"],
        ids: Int[Tensor, "n s r"],
        real: Bool[Tensor, "n s"] | None,
    ) -> Float[Tensor, "n s d"]:
        """A later stage, each of its sequences conditioned by the output of the stage above for that very patch."""

        def run(start: int, stop: int) -> Tensor:
            tokens = self.embed(stage, ids[start:stop]) + self.condition(stage, contexts[start:stop])
            return cast(Tensor, self.stage_models[stage](tokens, None if real is None else real[start:stop]))

        return torch.cat(self.in_chunks(stage, len(ids), run))

    # -- public -------------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        loss_mask: Tensor | None = None,
        return_type: MBLMReturnType = MBLMReturnType.LOSS,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run ids (B, L), or nested ids (B, P_1', P_2, …, P_N); the other tensors have the ids' shape.

        attention_mask: true (not 0) at real bytes, default all; the rest is not attended to and not in the loss.
        labels: the ids to predict, -100 where there is none. loss_mask: weights of the losses, default 1.
        HIDDEN_STATE: the local outputs (B, L, D_N). LOGITS: (B, L, V). LOSS: cross-entropy in nats a byte, times
        `loss_mask`, averaged over the labelled real bytes whose weight is not zero; 0 where there is none.
        LOSS_LOGITS: both.

        Raises ValueError for a loss without labels, for tensors of other shapes, for empty input, and for more bytes
        than fixed positions of the first stage hold.
        """
        self._check_input(input_ids, attention_mask=attention_mask, labels=labels, loss_mask=loss_mask)
        needs_labels = return_type in (MBLMReturnType.LOSS, MBLMReturnType.LOSS_LOGITS)
        if needs_labels and labels is None:
            raise ValueError(
                "expected labels for a loss, got none: pass the ids to predict (-100 where there is none), "
                "or ask for LOGITS or HIDDEN_STATE"
            )
        real = None if attention_mask is None else attention_mask.flatten(1).bool()
        hidden = self.hidden_states(input_ids.flatten(1), real)
        if return_type == MBLMReturnType.HIDDEN_STATE:
            return hidden
        if return_type == MBLMReturnType.LOGITS:
            return cast(Tensor, self.to_logits(hidden))
        assert labels is not None
        weights = None if loss_mask is None else loss_mask.flatten(1)
        sums = self._loss_sums(hidden, labels.flatten(1), real, weights)
        loss = sums.total / sums.targets.clamp(min=1)
        return loss if return_type == MBLMReturnType.LOSS else (loss, self.to_logits(hidden))

    def masked_loss_sums(
        self, ids: Int[Tensor, "b l"], masked: Bool[Tensor, "b l"], attention_mask: Tensor | None = None
    ) -> LossSums:
        """Summed cross-entropy (nats) of the bytes in `masked`, predicted from `ids` with the mask id in their place.

        Where `attention_mask` is 0 nothing is predicted. Raises ValueError like `forward`, and for a
        `mask_token_id` outside the vocabulary.
        """
        mask_id, V = self.config.mask_token_id, self.hierarchy.num_tokens
        if not 0 <= mask_id < V:
            raise ValueError(f"mask_token_id: expected 0 to {V - 1} to mask bytes with, got {mask_id}; configure one")
        self._check_input(ids, attention_mask=attention_mask, masked=masked)
        real = None if attention_mask is None else attention_mask.flatten(1).bool()
        ids, masked = ids.flatten(1), masked.flatten(1).bool()
        return self._loss_sums(
            self.hidden_states(ids.masked_fill(masked, mask_id), real),
            ids.masked_fill(~masked, IGNORED_LABEL),
            real,
            None,
        )

    def _loss_sums(
        self, hidden: Float[Tensor, "b l d"], labels: Int[Tensor, "b l"], real: Tensor | None, weights: Tensor | None
    ) -> LossSums:
        """The head runs only where a label counts."""
        counted = labels != IGNORED_LABEL
        if real is not None:
            counted = counted & real
        if weights is not None:
            counted = counted & (weights != 0)
        losses = self.head_losses(hidden[counted], labels[counted])  # (T,)
        return LossSums((losses if weights is None else losses * weights[counted]).sum(), counted.sum())

    def _check_input(self, ids: Tensor, **others: Tensor | None) -> None:
        self.check_nesting(ids)
        if ids.numel() == 0:
            raise ValueError(f"expected at least one byte to read, got ids of shape {tuple(ids.shape)}")
        for name, tensor in others.items():
            if tensor is not None and tensor.shape != ids.shape:
                raise ValueError(f"{name}: expected the ids' shape {tuple(ids.shape)}, got {tuple(tensor.shape)}")
