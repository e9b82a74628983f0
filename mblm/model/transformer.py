"""The transformer stage: token shift, RMSNorm, rotary causal attention and a GELU feed-forward, as checkpoints expect.

Arithmetic of the reference implementation (PyPI `mblm`, itself after MEGABYTE-pytorch): per layer
x += Attention(shift(x)); x += FeedForward(shift(x)); a final RMSNorm.

Shapes: B rows, S positions, D width, H heads, E channels of a head, n = B·K rows after branching.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from mblm.model.attention import Segment, attend, attention_kernels, causal_attention
from mblm.model.block import StageBlock, group_rows
from mblm.model.fused import added_linear, gained_linear, shift_gained_norm, shift_norm_beside, unit_norm
from mblm.model.precision import product_type
from mblm.model.rotary import Rotary, pairs_neighbours, rotary_heads, turn_both
from mblm.model.short import is_short

# From so many positions on, gain and order of the heads go into the projection's weights.
FEW_POSITIONS = 32


class TransformerOptions(StageBlock):
    """What transformer stages of either direction are configured by.

    `use_flash_attn` is accepted for existing configurations: PyTorch picks the fastest kernel for the shapes at hand.
    """

    attn_head_dims: int = Field(ge=1)
    attn_num_heads: int = Field(ge=1)
    attn_use_rot_embs: bool
    attn_dropout: float = Field(default=0.0, ge=0, lt=1)
    ff_multiplier: int = Field(default=2, ge=1)
    ff_dropout: float = Field(default=0.0, ge=0, lt=1)
    use_flash_attn: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        expected = type(self).model_fields["block_type"].default
        if self.block_type != expected:
            raise ValueError(f"block_type: expected {expected!r}, got {self.block_type!r}")
        if self.attn_use_rot_embs and self.attn_head_dims % 2:
            raise ValueError(
                f"attn_head_dims: rotary attention turns pairs of channels and needs an even number, "
                f"got {self.attn_head_dims}"
            )
        return self


class TransformerBlock(TransformerOptions):
    """Configuration of a causal transformer stage."""

    block_type: str = "transformer"

    def to_model(self, model_dim: int, num_layers: int) -> TransformerStage:
        return TransformerStage(model_dim, num_layers, self)


def is_few(x: Float[Tensor, "*shape d"]) -> bool:
    """Whether operations cost more than their passes over the positions."""
    return x.shape[:-1].numel() < FEW_POSITIONS


class RMSNorm(nn.Module):
    """x / max(‖x‖·D^-1/2, 1e-8) · g, over the last axis."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*shape d"]) -> Float[Tensor, "*shape d"]:
        return unit_norm(x) * self.g


class Attention(nn.Module):
    """Causal multi-head attention with its own RMSNorm; q and a fused k, v without biases.

    Checkpoints pair channel j of a head with channel j + E/2. In float32 the pairs are neighbours here, in queries and
    keys alike, which changes no product of the two and lets a pair be turned as one complex number.
    """

    order: Tensor

    def __init__(self, dim: int, heads: int, head_dim: int, dropout: float, rotary: bool) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = RMSNorm(dim)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, dim, bias=False)
        self.head_dim, self.rotary = head_dim, rotary
        self.register_buffer("order", self._order(), persistent=False)

    def _order(self) -> Tensor:
        """Rows of the fused projection, those of queries and keys so that pairs are neighbours: (3·H·E,)."""
        order = torch.arange(3 * self.heads * self.head_dim).view(3, self.heads, self.head_dim)
        if self.rotary:
            order[:2] = order[:2].unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        return order.flatten()

    def _apply(self, fn: Any, recurse: bool = True) -> Attention:
        super()._apply(fn, recurse)
        if not self.order.is_meta:  # it may have been, and is in no checkpoint
            self.order = self._order().to(self.order.device)
        return self

    def project(
        self, x: Tensor, turns: Tensor | None, before: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """x (n, S, D) for what is added to it; of it, shifted and normalised, queries, keys and values with positions.

        Each of the three is (n, S, H, E).
        """
        if is_few(x):
            return x, self._few_heads(shift_gained_norm(x, before, self.norm.g), turns)
        x, normed = shift_norm_beside(x, before)
        return x, self.heads_of(normed, turns)

    def heads_of(self, x: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of what is normalised but for the norm's gain."""
        if is_few(x):
            return self._few_heads(x * self.norm.g, turns)
        # With many positions gain and order go into the weights: a pass over a matrix instead of one over them all.
        kind = product_type(x)
        weight = torch.cat((self.to_q.weight, self.to_kv.weight))
        if pairs_neighbours(kind):
            weight = weight[self.order]
        return rotary_heads(x.to(kind), (weight * self.norm.g).to(kind), turns, self.heads)

    def _few_heads(self, x: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of what is normalised: the weights are left as they are, and every operation counts."""
        q, (k, v) = self.to_q(x), self.to_kv(x).chunk(2, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        return (q, k, v) if turns is None else (*turn_both(q, k, turns), v)

    @property
    def active_dropout(self) -> float:
        return self.dropout if self.training else 0.0


class FeedForward(nn.Sequential):
    """RMSNorm, Linear, GELU, dropout, Linear; the indices are the checkpoints' names."""

    def __init__(self, dim: int, multiplier: int, dropout: float) -> None:
        hidden = multiplier * dim
        super().__init__(RMSNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim))

    def added(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """x + the whole of it on the shifted (n, S, D)."""
        norm, widen, gelu, dropout, narrow = self
        assert isinstance(norm, RMSNorm)
        assert isinstance(widen, nn.Linear)
        assert isinstance(narrow, nn.Linear)
        if is_few(x):
            hidden = cast(Tensor, widen(shift_gained_norm(x, before, norm.g)))
        else:
            x, normed = shift_norm_beside(x, before)
            hidden = gained_linear(normed, norm.g, widen.weight, widen.bias)
        return added_linear(x, dropout(gelu(hidden)), narrow)


@dataclass(frozen=True)
class LayerState:
    """One layer's memory: what was read, in segments from the most shared to the row's own, and the shift's input."""

    segments: tuple[Segment, ...]
    attention_input: Tensor  # (n, D): the last position's input to the attention's shift
    feed_forward_input: Tensor  # (n, D)


@dataclass(frozen=True)
class TransformerState:
    """What a transformer stage remembers for n rows."""

    layers: tuple[LayerState, ...]
    positions: Tensor  # (n,): how many positions each row has read

    def expand(self, branches: int) -> TransformerState:
        """Rows become neighbours; keys and values stay where they are, read by all branches."""
        layers = tuple(
            LayerState(
                layer.segments,
                layer.attention_input.repeat_interleave(branches, 0),
                layer.feed_forward_input.repeat_interleave(branches, 0),
            )
            for layer in self.layers
        )
        return TransformerState(layers, self.positions.repeat_interleave(branches, 0))

    def select(self, width: int, parents: Tensor) -> TransformerState:
        """Rows in groups of `width` continue as `parents` of their group; segments shared by a group stay shared."""
        n = self.positions.shape[0]
        groups = n // width
        rows = group_rows(n, width, parents)
        layers = tuple(
            LayerState(
                # A segment's row serves n / its rows neighbours.
                tuple(s if s.rows <= groups else s.select(rows // (n // s.rows)) for s in layer.segments),
                layer.attention_input[rows],
                layer.feed_forward_input[rows],
            )
            for layer in self.layers
        )
        return TransformerState(layers, self.positions[rows])


class TransformerLayer(nn.ModuleList):
    """Attention and feed-forward, each on the shifted input and added to it; the indices are the checkpoints' names."""

    def __init__(self, dim: int, block: TransformerBlock) -> None:
        attention = Attention(
            dim, block.attn_num_heads, block.attn_head_dims, block.attn_dropout, block.attn_use_rot_embs
        )
        super().__init__((attention, FeedForward(dim, block.ff_multiplier, block.ff_dropout)))

    def forward(
        self,
        x: Tensor,
        turns: Tensor | None,
        memory: LayerState | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, LayerState | None]:
        """(n, S, D) → (n, S, D), behind `memory` where there is one.

        Of each row only the first `lengths` (n,) positions are real, and the new memory stands behind them.
        """
        attention, feed_forward = self._parts
        if memory is None:
            x, (q, k, v) = attention.project(x, turns)
            attended = causal_attention(q, k, v, dropout=attention.active_dropout)
            x = added_linear(x, attended.flatten(-2), attention.to_out)
            return feed_forward.added(x), None
        real = None if lengths is None else torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (n, S)
        attention_input = _last(x, lengths)
        x, (q, k, v) = attention.project(x, turns, memory.attention_input)
        own = Segment(k, v, real)
        _check_type(memory.segments, k)
        segments = own.after(memory.segments)
        attended = attend(q, memory.segments, own, segments, dropout=attention.active_dropout)
        x = added_linear(x, attended.flatten(-2), attention.to_out)
        feed_forward_input = _last(x, lengths)
        x = feed_forward.added(x, memory.feed_forward_input)
        return x, LayerState(segments, attention_input, feed_forward_input)

    @property
    def _parts(self) -> tuple[Attention, FeedForward]:
        return cast(Attention, self[0]), cast(FeedForward, self[1])


class TransformerStage(nn.Module):
    """A stack of causal layers over (B, S, D), with a state to continue from."""

    def __init__(self, model_dim: int, num_layers: int, block: TransformerBlock) -> None:
        super().__init__()
        self.dropout = max(block.attn_dropout, block.ff_dropout)
        self.rotary_emb = Rotary(block.attn_head_dims) if block.attn_use_rot_embs else None
        self.layers = nn.ModuleList(TransformerLayer(model_dim, block) for _ in range(num_layers))
        self.norm = RMSNorm(model_dim)

    def forward(self, x: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        """(B, S, D) → (B, S, D); output s depends on inputs 0..s."""
        turns = self._turns(torch.arange(x.shape[1], device=x.device))
        with attention_kernels(x.device):
            for layer in self.layers:
                x, _ = layer(x, turns)
        return self.norm(x)

    def prefix(
        self, x: Float[Tensor, "b s d"], lengths: Tensor | None = None
    ) -> tuple[Float[Tensor, "b s d"], TransformerState]:
        """Read (B, S, D) from the beginning; see `IncrementalStage`."""
        B, _, D = x.shape
        nothing = x.new_zeros(B, D)
        state = TransformerState(
            tuple(LayerState((), nothing, nothing) for _ in self.layers),
            torch.zeros(B, dtype=torch.long, device=x.device),
        )
        return self._extend(x, state, lengths)

    def branch(
        self, x: Float[Tensor, "b k s d"], state: TransformerState, lengths: Tensor | None = None
    ) -> tuple[Float[Tensor, "b k s d"], TransformerState]:
        """Continue each row with K suffixes that read its keys and values in place; see `IncrementalStage`."""
        B, K, S, D = x.shape
        y, new = self._extend(
            x.reshape(B * K, S, D), state.expand(K), None if lengths is None else lengths.reshape(B * K)
        )
        return y.view(B, K, S, D), new

    def step(self, x: Float[Tensor, "n d"], state: TransformerState) -> tuple[Float[Tensor, "n d"], TransformerState]:
        """Continue every row by one position; see `IncrementalStage`."""
        y, state = self._extend(x[:, None], state, None)
        return y[:, 0], state

    def shares_start(self, x: Float[Tensor, "n s d"]) -> bool:
        """Whether n sequences that begin alike are cheaper as one beginning and n branches: on a CPU, many short ones.

        On a GPU one kernel for all positions is quicker; so it is with dropout, which needs weights of its own a row.
        """
        dropout = self.dropout if self.training else 0.0
        return x.shape[1] > 0 and is_short(x, dropout)

    def _turns(self, positions: Tensor) -> Tensor | None:
        return None if self.rotary_emb is None else self.rotary_emb(positions)

    def _extend(self, x: Tensor, state: TransformerState, lengths: Tensor | None) -> tuple[Tensor, TransformerState]:
        """Read (n, S, D) behind `state` (of n rows)."""
        S = x.shape[1]
        turns = self._turns(state.positions[:, None] + torch.arange(S, device=x.device))
        layers = []
        with attention_kernels(x.device):
            for layer, memory in zip(self.layers, state.layers, strict=True):
                x, after = layer(x, turns, memory, lengths)
                layers.append(after)
        added = torch.full_like(state.positions, S) if lengths is None else lengths
        return self.norm(x), TransformerState(tuple(layers), state.positions + added)


def _check_type(past: tuple[Segment, ...], keys: Tensor) -> None:
    """ValueError where keys of another type have another order of channels, see `pairs_neighbours`, or round others."""
    if past and past[0].keys.dtype != keys.dtype:
        raise ValueError(
            f"expected to go on in {past[0].keys.dtype}, in which the state was read, got {keys.dtype}: "
            "read and go on under the same autocast"
        )


def _last(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The last real position of every row: (n, S, D) → (n, D)."""
    if lengths is None:
        return x[:, -1]
    return x[torch.arange(x.shape[0], device=x.device), lengths - 1]
