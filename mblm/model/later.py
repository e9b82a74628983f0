"""The later stages and the head: run only on the sequences that predict a byte that is asked for.

The first stage has seen everything; below it, a sequence of stage i+1 is conditioned by one output position of stage i.
Local sequences (leaves) are numbered in the order of their bytes, so the sequence of any stage above follows by a
division. With checkpoint chunks configured, embedding, stage, head and loss of a chunk are one recomputed piece: no
activation of the whole flattened batch is ever kept but what conditions the next stage.

Shapes: M patches of the first stage of R bytes, N stages with P_i positions of width D_i, n sequences of a stage,
T bytes asked for, V vocabulary.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mblm.model.hierarchy import Hierarchy
from mblm.model.targets import Chain, Targets
from mblm.model.transformer import TransformerStage

# A group of sequences run by itself costs some operations more; it pays from so many multiply-adds a weight matrix on.
# A GPU makes many times as many in the time that launching a stage's operations takes (reckoned, not measured).
GROUP_PAYS_FROM, GROUP_PAYS_ON_GPU_FROM = 2**24, 2**32


class LaterStages(Hierarchy):
    """The part of the causal model below its first stage."""

    def with_start(self, stage: int, tokens: Float[Tensor, "n s d"]) -> Float[Tensor, "n t d"]:
        """The stage's start vector before its inputs: (n, S, D) → (n, 1+S, D)."""
        start = self.start_tokens[stage].to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        return torch.cat((start, tokens), dim=1)

    def run_sequences(
        self, stage: int, contexts: Float[Tensor, "n d"], ids: Int[Tensor, "n s r"], count: int
    ) -> tuple[Float[Tensor, "m d"], Float[Tensor, "n t d"]]:
        """Outputs of a later stage: of its start, m rows (1 for all sequences, or n), and of its first `count` inputs.

        All sequences begin with the same vector, so where a stage can go on from a shared prefix it is read once.
        """
        tokens = self.embed(stage, ids[:, :count]) + self.condition(stage, contexts, count)
        model = self.stage_models[stage]
        if not self.same_calls and isinstance(model, TransformerStage) and model.shares_start(tokens):
            first, state = model.prefix(self.with_start(stage, tokens[:1, :0]))
            return first[:, 0], model.branch(tokens[None], state)[0][0]
        outputs = cast(Tensor, model(self.with_start(stage, tokens)))
        return outputs[:, 0], outputs[:, 1:]

    def leaf_contexts(
        self, contexts: Float[Tensor, "m d"], ids: Int[Tensor, "m r"], leaves: Int[Tensor, " n"] | None
    ) -> Float[Tensor, "n d"]:
        """What conditions the given local sequences (sorted; all of them for None): (n, D_{N-1})."""
        lens = self.seq_lens
        above: Tensor | None = None  # the sequences of the stage above that were run, None for all
        outputs, width = contexts[:, None], 1  # (sequences above, positions, D): each position conditions one below
        for stage in range(1, self.num_stages):
            per_sequence = math.prod(lens[stage : self.num_stages - 1])  # leaves in one sequence of this stage
            chosen = None if leaves is None else torch.unique_consecutive(leaves // per_sequence)
            flat = outputs.flatten(0, 1)
            if chosen is not None:
                parents = chosen // width
                parents = parents if above is None else torch.searchsorted(above, parents)
                flat = flat.index_select(0, parents * outputs.shape[1] + chosen % width)
            if stage == self.num_stages - 1:
                return flat
            sequences = ids.reshape(-1, lens[stage], self.patch_bytes[stage])
            sequences = sequences if chosen is None else sequences[chosen]
            outputs = self._middle_outputs(stage, flat, sequences)
            above, width = chosen, lens[stage]
        return contexts

    def _middle_outputs(self, stage: int, contexts: Tensor, ids: Tensor) -> Tensor:
        # A stage in between never reads its last position: that conditions nothing.
        def run(start: int, stop: int) -> Tensor:
            first, rest = self.run_sequences(stage, contexts[start:stop], ids[start:stop], self.seq_lens[stage] - 1)
            return torch.cat((first[:, None].expand(len(rest), 1, -1), rest), dim=1)

        return torch.cat(self.in_chunks(stage, len(ids), run))

    def local_outputs(
        self, contexts: Float[Tensor, "m d"], ids: Int[Tensor, "m r"]
    ) -> tuple[Float[Tensor, " d"], Float[Tensor, "n s d"]]:
        """Outputs of the local stage: of its start, the same in all sequences, and of every byte (n, P_N, D_N)."""
        contexts = self.leaf_contexts(contexts, ids, None)
        last, P = self.num_stages - 1, self.seq_lens[-1]
        flat = ids.reshape(-1, P, 1)

        def run(start: int, stop: int) -> Tensor:
            first, rest = self.run_sequences(last, contexts[start:stop], flat[start:stop], P)
            return torch.cat((first[:1].expand(1, 1, -1), rest.flatten(0, 1)[None]), dim=1)

        outputs = self.in_chunks(last, len(flat), run)
        return outputs[0][0, 0], torch.cat([part[0, 1:] for part in outputs]).view(len(flat), P, -1)

    def losses(self, contexts: Float[Tensor, "m d"], chain: Chain, targets: Targets) -> Float[Tensor, " t"]:
        """Cross-entropy of each target byte in nats, (T,), in the targets' order."""
        if self.num_stages == 1:  # a patch is a byte, and its context is what predicts it
            return self.head_losses(contexts.index_select(0, targets.patches), targets.ids)
        last, P = self.num_stages - 1, self.seq_lens[-1]
        sources, is_start = targets.sources(chain)  # flat byte positions, (T,) each
        slots = torch.where(is_start, 0, sources % P + 1)
        leaves, where = torch.unique(sources // P, return_inverse=True)
        # The local stage is causal: what comes after the last slot that predicts anything in a sequence need not be
        # read. So sequences are run in the order of what they need, those of about the same need together.
        need = torch.zeros_like(leaves).scatter_reduce_(0, where, slots, "amax")
        by_need = torch.argsort(need, stable=True)
        needs = need[by_need].tolist()
        place = torch.argsort(by_need)[where]  # of each target's sequence in that order
        leaf_contexts = self.leaf_contexts(contexts, chain.ids, leaves).index_select(0, by_need)
        leaf_ids = chain.ids.reshape(-1, P, 1)[leaves[by_need]]
        order = torch.argsort(place, stable=True)
        ends = torch.searchsorted(place[order], torch.arange(len(leaves) + 1, device=place.device)).tolist()

        def run(start: int, stop: int) -> Tensor:
            asked = order[ends[start] : ends[stop]]
            count = needs[stop - 1]
            first, rest = self.run_sequences(last, leaf_contexts[start:stop], leaf_ids[start:stop], count)
            row, slot = place[asked] - start, slots[asked]
            rows = torch.where(slot == 0, row % len(first), len(first) + row * count + slot - 1)
            hidden = torch.cat((first, rest.flatten(0, 1))).index_select(0, rows)
            return self.head_losses(hidden, targets.ids[asked])

        pays_from = GROUP_PAYS_FROM if contexts.device.type == "cpu" else GROUP_PAYS_ON_GPU_FROM
        least_gain = pays_from // self.hierarchy.hidden_dims[-1] ** 2
        bounds = None if self.same_calls else bounds_by_need(torch.bincount(need).tolist(), least_gain)
        losses = torch.cat(self.in_chunks(last, len(leaves), run, bounds))
        return losses.index_select(0, torch.argsort(order))


def bounds_by_need(histogram: list[int], least_gain: int) -> list[int]:
    """Where to cut rows sorted by need into groups that each read what their last row needs: 0, …, rows.

    `histogram[k]` of the rows need k positions. A cut is made where it saves the most positions, and at least
    `least_gain` of them; then again on either side.
    """
    cut, saved, below = 0, 0, 0
    longest = len(histogram) - 1
    for need, rows in enumerate(histogram[:-1]):
        below += rows
        if below * (longest - need) > saved:
            cut, saved = need + 1, below * (longest - need)
    if saved < max(least_gain, 1):
        return [0, sum(histogram)]
    left = bounds_by_need(histogram[:cut], least_gain)
    padded = [0] * cut + histogram[cut:]
    right = bounds_by_need(padded, least_gain)
    return left + [left[-1] + bound for bound in right[1:]]
