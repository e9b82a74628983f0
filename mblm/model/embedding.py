"""From ids to a stage's input: bytes for the local stage, patches of bytes for the global ones, and positions.

Shapes: V vocabulary, R bytes of a patch, D_N the local stage's width (every byte table has it), D the stage's width.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mblm.model.block import PositionType

ROTARY_BASE = 10_000.0
# The table costs V·R·D_N·D multiply-adds, the plain form M·R·D_N·D for M patches; the factor covers the gather.
TABLE_PAYS_FROM = 2


class ByteEmbedding(nn.Module):
    """The local stage's input: a plain lookup, the pad row zero and never trained."""

    def __init__(self, vocabulary: int, dim: int, pad_id: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim, padding_idx=pad_id)

    def forward(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d"]:
        return self.embedding(ids)


class PatchEmbedding(nn.Module):
    """A global stage's input: embed R bytes, concatenate, LayerNorm, Linear, LayerNorm.

    LayerNorm over the concatenation needs only two sums over each byte's vector, and the Linear after it splits by
    position in the patch. So the first two steps equal a gather-and-sum from a table of (R, V, D + 2) made once a
    step: exact, differentiable, and without the (patches, R·D_N) activation. It is used where it is cheaper.
    """

    def __init__(self, vocabulary: int, byte_dim: int, patch_size: int, dim: int, pad_id: int) -> None:
        super().__init__()
        self.patch_size, self.pad_id = patch_size, pad_id
        self.embedding = nn.Embedding(vocabulary, byte_dim, padding_idx=pad_id)
        flat = patch_size * byte_dim
        # The indices are the checkpoints' names (from 0.4.1 of the reference on).
        self._post = nn.Sequential(nn.Flatten(-2), nn.LayerNorm(flat), nn.Linear(flat, dim), nn.LayerNorm(dim))

    def forward(self, ids: Int[Tensor, "*shape r"]) -> Float[Tensor, "*shape d"]:
        """(…, R) ids → (…, D)."""
        patches = ids.numel() // self.patch_size
        if patches >= TABLE_PAYS_FROM * self.embedding.num_embeddings:
            return self.by_table(ids)
        return self._post(self.embedding(ids))

    def by_table(self, ids: Int[Tensor, "*shape r"]) -> Float[Tensor, "*shape d"]:
        """The same as embedding, concatenating and projecting, through a table."""
        norm, linear = cast(nn.LayerNorm, self._post[1]), cast(nn.Linear, self._post[2])
        V, byte_dim = self.embedding.weight.shape
        R, D = self.patch_size, linear.out_features
        # Like `padding_idx`: the pad row is read but gets no gradient.
        is_pad = torch.arange(V, device=ids.device)[:, None] == self.pad_id
        bytes_ = torch.where(is_pad, self.embedding.weight.detach(), self.embedding.weight)  # (V, D_N)
        weight = (linear.weight * norm.weight).view(D, R, byte_dim)
        projected = torch.einsum("vc,drc->rvd", bytes_, weight)  # (R, V, D)
        sums = torch.stack((bytes_.sum(-1), bytes_.square().sum(-1)), dim=-1)  # (V, 2)
        table = torch.cat((projected, sums.expand(R, V, 2)), dim=-1).view(R * V, D + 2)
        rows = ids.reshape(-1, R) + V * torch.arange(R, device=ids.device)
        summed = F.embedding_bag(rows, table, mode="sum")  # (M, D + 2)
        mean, square = (summed[:, D:] / (R * byte_dim)).unbind(-1)
        scale = torch.rsqrt((square - mean.square()).clamp(min=0) + norm.eps)
        centred = summed[:, :D] - mean[:, None] * weight.sum((1, 2))
        out = centred * scale[:, None] + (linear.weight @ norm.bias + linear.bias)
        return cast(Tensor, self._post[3](out)).view(*ids.shape[:-1], D)


@torch.no_grad()
def smooth_init_(embedding: nn.Embedding) -> None:
    """Begin the first half of the channels of ids 0-255 as slow random waves over the id: neighbours begin alike.

    Bytes that are intensities then share what is learned of them from the first step on; the other half of the channels
    stays as it was and tells bytes apart. Waves have unit variance, at most about one period over the 256 values.
    """
    channels = embedding.embedding_dim // 2
    values = torch.linspace(0, 1, 256)[:, None]
    waves = torch.cos(3 * torch.randn(channels) * values + 2 * math.pi * torch.rand(channels))
    embedding.weight[:256, :channels] = math.sqrt(2) * waves


class FixedPositions(nn.Embedding):
    """A learned vector for each of P positions, added to the input."""

    def forward(self, x: Float[Tensor, "*rows s d"], start: int | Tensor = 0) -> Float[Tensor, "*rows s d"]:
        """`start`: the position of the first of the S inputs, one number or one a row."""
        return x + self.weight[_positions(x, start)]


class RopePositions(nn.Module):
    """The input turned as one head, interleaved pairs of channels, base 10,000."""

    inv_freq: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"pos_emb_type 'rope' turns pairs of channels: expected an even hidden dim, got {dim}")
        self.dim = dim
        self.register_buffer("inv_freq", rotary_frequencies(dim), persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> RopePositions:
        super()._apply(fn, recurse)
        self.inv_freq = remade_frequencies(self.dim, self.inv_freq)
        return self

    def forward(self, x: Float[Tensor, "*rows s d"], start: int | Tensor = 0) -> Float[Tensor, "*rows s d"]:
        """`start`: the position of the first of the S inputs, one number or one a row."""
        angles = rotary_angles(_positions(x, start)[..., None], self.inv_freq)  # (…, S, D/2)
        cos, sin = angles.cos(), angles.sin()
        even, odd = x[..., 0::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)


class NoPositions(nn.Module):
    """No positions: the input as it is."""

    def forward(self, x: Float[Tensor, "*rows s d"], start: int | Tensor = 0) -> Float[Tensor, "*rows s d"]:
        return x


def positions(kind: PositionType | None, length: int, dim: int) -> nn.Module:
    """The module that adds a stage's positions to its input."""
    if kind == "fixed":
        return FixedPositions(length, dim)
    return RopePositions(dim) if kind == "rope" else NoPositions()


def _positions(x: Tensor, start: int | Tensor) -> Tensor:
    steps = torch.arange(x.shape[-2], device=x.device)
    return steps + (start if isinstance(start, int) else start[..., None])


def rotary_frequencies(dim: int, device: torch.device | None = None) -> Tensor:
    """Angles a position, one for each pair of channels, base 10,000: (dim / 2,)."""
    return ROTARY_BASE ** (-torch.arange(0, dim, 2, device=device) / dim)


def remade_frequencies(dim: int, moved: Tensor) -> Tensor:
    """The frequencies anew, of the type and on the device that `moved` has come to.

    What went through a half-precision type is rounded for good, and what was made on the meta device was never there.
    """
    return moved if moved.is_meta else rotary_frequencies(dim).to(moved)


def rotary_angles(positions: Tensor, frequencies: Tensor) -> Tensor:
    """positions (…, 1) times frequencies (E/2,).

    In a half-precision model the frequencies are rounded and positions above 256 too: they are made anew in float32.
    """
    if frequencies.dtype not in (torch.float32, torch.float64):
        frequencies = rotary_frequencies(2 * len(frequencies), positions.device)  # no copy, which would wait for a GPU
    return positions.to(frequencies.dtype) * frequencies
