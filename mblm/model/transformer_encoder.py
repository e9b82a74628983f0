"""The bidirectional transformer stage of the masked model: every position reads every real position of its sequence.

Arithmetic of the reference implementation (PyPI `mblm`): per layer x += Attention(x); x += FeedForward(x); a final
RMSNorm. No token shift: nothing has to be kept from seeing what comes after. It knows neither ids nor the hierarchy.

Shapes: n sequences, S positions, D width, H heads, E channels of a head.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mblm.model.attention import SHORT, attention_kernels, fused_attention
from mblm.model.fused import unit_norm
from mblm.model.rotary import Rotary
from mblm.model.segments import attend_segments, attend_with_dropout
from mblm.model.transformer import Attention, FeedForward, RMSNorm, TransformerOptions


class TransformerEncoderBlock(TransformerOptions):
    """Configuration of a bidirectional transformer stage: the options of the causal one."""

    causal: ClassVar[bool] = False

    block_type: str = "transformerEncoder"

    def to_model(self, model_dim: int, num_layers: int) -> TransformerEncoderStage:
        return TransformerEncoderStage(model_dim, num_layers, self)


class EncoderAttention(Attention):
    """The causal attention's parameters, read without shift and in both directions."""

    def forward(self, x: Tensor, turns: Tensor | None, real: Tensor | None) -> Tensor:
        """(n, S, D) → (n, S, D); no position reads one that `real` (n, S) denies."""
        q, k, v = self.heads_of(unit_norm(x), turns)
        attended = bidirectional_attention(q, k, v, real, dropout=self.active_dropout)
        return cast(Tensor, self.to_out(attended.flatten(-2)))


class TransformerEncoderStage(nn.Module):
    """A stack of bidirectional layers over (n, S, D); parameters are named as those of `TransformerStage`."""

    def __init__(self, model_dim: int, num_layers: int, block: TransformerEncoderBlock) -> None:
        super().__init__()
        self.rotary_emb = Rotary(block.attn_head_dims) if block.attn_use_rot_embs else None
        attention = (block.attn_num_heads, block.attn_head_dims, block.attn_dropout, block.attn_use_rot_embs)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    EncoderAttention(model_dim, *attention),
                    FeedForward(model_dim, block.ff_multiplier, block.ff_dropout),
                )
            )
            for _ in range(num_layers)
        )
        self.norm = RMSNorm(model_dim)

    def forward(self, x: Float[Tensor, "n s d"], real: Bool[Tensor, "n s"] | None = None) -> Float[Tensor, "n s d"]:
        """(n, S, D) → (n, S, D); output s depends on itself and on the positions marked in `real` (n, S), or on all."""
        turns = None if self.rotary_emb is None else self.rotary_emb(torch.arange(x.shape[1], device=x.device))
        with attention_kernels(x.device):
            for layer in self.layers:
                attention, feed_forward = cast(tuple[EncoderAttention, FeedForward], layer)
                x = x + attention(x, turns, real)
                x = x + feed_forward(x)
        return cast(Tensor, self.norm(x))


def bidirectional_attention(
    q: Float[Tensor, "n s h e"],
    k: Float[Tensor, "n s h e"],
    v: Float[Tensor, "n s h e"],
    real: Bool[Tensor, "n s"] | None = None,
    *,
    dropout: float = 0.0,
) -> Float[Tensor, "n s h e"]:
    """Attention of all positions to the real ones, at scale E^-1/2; zeros in a sequence that has none."""
    if real is None:
        return _attention(q, k, v, None, dropout)
    empty = ~real.any(-1, keepdim=True)  # (n, 1)
    # A softmax over nothing is NaN, and so is its gradient: such a sequence reads its padding and is then zeroed.
    attended = _attention(q, k, v, ~(real | empty)[:, None, None], dropout)
    return attended.masked_fill(empty[:, :, None, None], 0)


def _attention(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, dropout: float) -> Tensor:
    """`hidden` (n, 1, 1, S): true at keys not to read."""
    if q.shape[1] <= SHORT and q.device.type == "cpu":
        segments = [(k, v, hidden)]
        return attend_with_dropout(q, segments, dropout) if dropout > 0 else attend_segments(q, segments)
    return fused_attention(q, k, v, None if hidden is None else ~hidden, dropout=dropout)
