"""Which bytes are predicted, and from where: patches laid flat, each knowing the patch before it.

Separate sequences are chains; a prefix with several suffixes is a tree whose branches all follow the prefix's last
patch. The loss needs only two facts of a weighted byte: its id, and the byte position whose output predicts it.

Shapes: M patches of R bytes, T target bytes, B rows, K suffixes of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mblm.model.precision import wide


@dataclass(frozen=True)
class Targets:
    """The weighted bytes: patch and slot (T,), the id to predict (T,), its weight (T,), in how many sequences (T,)."""

    patches: Tensor
    slots: Tensor
    ids: Tensor
    weights: Tensor
    copies: Tensor

    @staticmethod
    def nothing(chain: Chain) -> Targets:
        """One byte of no weight."""
        first = torch.zeros(1, dtype=torch.long, device=chain.ids.device)
        zero = torch.zeros(1, dtype=chain.weights.dtype, device=chain.ids.device)
        return Targets(first, first, chain.ids[first, first], zero, first)

    def sources(self, chain: Chain) -> tuple[Tensor, Tensor]:
        """Flat position (patch·R + slot) of the byte whose output predicts each target, and whether there is none.

        Where there is none (the first byte of a sequence), the position is the byte's own and its local sequence's
        start output predicts it.
        """
        R = chain.ids.shape[1]
        before = chain.previous[self.patches]
        is_start = (self.slots == 0) & (before < 0)
        within = self.patches * R + self.slots - 1
        sources = torch.where(self.slots > 0, within, before * R + R - 1)
        return torch.where(is_start, self.patches * R, sources), is_start


@dataclass(frozen=True)
class Chain:
    """M patches: ids (M, R), loss weights (M, R) and the patch before each, -1 at the start of a sequence (M,).

    copies (M, R): in how many of the separate sequences that a tree stands for a byte has a weight, as integers.
    Weights are in float32 at least: a mask of any type may be given, and its values count as they are.
    """

    ids: Tensor
    weights: Tensor
    previous: Tensor
    copies: Tensor

    def targets(self, pad_id: int | None) -> Targets:
        """The bytes that have a weight; the pad id never counts."""
        weighted = self.copies != 0
        if pad_id is not None:
            weighted &= self.ids != pad_id
        patches, slots = torch.nonzero(weighted, as_tuple=True)
        at = (patches, slots)
        return Targets(patches, slots, self.ids[at], self.weights[at], self.copies[at])


def chains(ids: Tensor, weights: Tensor) -> Chain:
    """B separate sequences of P patches, (B, P, R) each."""
    B, P, R = ids.shape
    previous = torch.arange(B * P, device=ids.device).view(B, P) - 1
    previous[:, 0] = -1
    flat = wide(weights).reshape(-1, R)
    return Chain(ids.reshape(-1, R), flat, previous.flatten(), (flat != 0).long())


def shared_chains(prefix: Tensor, suffixes: Tensor, weights: Tensor, prefix_weights: Tensor | None) -> Chain:
    """B prefixes (B, P, R) with K suffixes each (B, K, S, R), the prefixes' patches first.

    `prefix_weights` (B, K, P, R) are those of the K separate sequences; a prefix byte's loss is the same in each, so
    their sum weighs it.
    """
    B, P, R = prefix.shape
    K, S = suffixes.shape[1:3]
    trunk = torch.arange(B * P, device=prefix.device).view(B, P) - 1
    last = trunk[:, -1:] + 1
    trunk[:, 0] = -1
    tips = B * P + torch.arange(B * K * S, device=prefix.device).view(B, K, S) - 1
    tips[:, :, 0] = last
    if prefix_weights is None:
        trunk_weights = wide(weights).new_zeros(B * P, R)
        trunk_copies = torch.zeros_like(trunk_weights, dtype=torch.long)
    else:
        trunk_weights = wide(prefix_weights).sum(1).reshape(B * P, R)
        trunk_copies = (prefix_weights != 0).sum(1).reshape(B * P, R)
    tip_weights = wide(weights).reshape(-1, R)
    return Chain(
        torch.cat((prefix.reshape(-1, R), suffixes.reshape(-1, R))),
        torch.cat((trunk_weights, tip_weights)),
        torch.cat((trunk.flatten(), tips.flatten())),
        torch.cat((trunk_copies, (tip_weights != 0).long())),
    )
