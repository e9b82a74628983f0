"""The hierarchy: stages from the most global to the local one, and the loss where it is asked for.

Arithmetic of the reference implementation (arXiv 2502.14553; PyPI `mblm`): output position j of stage i conditions
patch j of stage i+1, the prediction of byte t is the local output at byte t-1, and byte 0 is predicted by the first
patch's local start output. The model knows ids only.

Shapes: B batch, L bytes, V vocabulary, N stages with P_i positions of width D_i; R_i = P_{i+1}·…·P_N bytes in one
position of stage i, R = R_1 bytes in a patch of the first stage, M patches of the first stage laid flat.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mblm.model.block import incremental
from mblm.model.config import MBLMModelConfig, MBLMReturnType
from mblm.model.embedding import ByteEmbedding, FixedPositions, PatchEmbedding, positions
from mblm.model.targets import Chain, Targets, chains, shared_chains


class LossSums(NamedTuple):
    """Weighted cross-entropy summed over bytes (nats), and how many bytes have a weight; the mean is taken once."""

    total: Tensor
    targets: Tensor


class MBLM(nn.Module):
    """A byte-level language model of N causal stages."""

    def __init__(self, config: MBLMModelConfig) -> None:
        super().__init__()
        self.config = config
        dims, lens, depths = config.hidden_dims, config.seq_lens, config.num_layers
        blocks = config.stage_blocks()
        self.num_stages = len(dims)
        self.pad_token_id = config.pad_token_id
        self.patch_bytes = [math.prod(lens[i + 1 :]) for i in range(self.num_stages)]  # R_i
        self.start_tokens = nn.ParameterList(nn.Parameter(torch.randn(dim)) for dim in dims)
        self.pos_embs = nn.ModuleList(
            positions(block.pos_emb_type, length, dim) for block, length, dim in zip(blocks, lens, dims, strict=True)
        )
        V, pad = config.num_tokens, config.pad_token_id
        local: nn.Module = ByteEmbedding(V, dims[-1], pad)
        patched = [
            PatchEmbedding(V, dims[-1], self.patch_bytes[i], dims[i], pad) for i in reversed(range(self.num_stages - 1))
        ]
        self.token_embs_rev = nn.ModuleList((local, *patched))
        self.stage_models = nn.ModuleList(
            block.to_model(model_dim=dim, num_layers=depth)
            for block, dim, depth in zip(blocks, dims, depths, strict=True)
        )
        self.to_next_stage_proj = nn.ModuleList(
            nn.Sequential(nn.Identity(), nn.Linear(dims[i], lens[i + 1] * dims[i + 1]))
            for i in range(self.num_stages - 1)
        )
        self.to_logits = nn.Linear(dims[-1], V)

    # -- one stage ------------------------------------------------------------------------------------------------

    def embed(self, stage: int, ids: Int[Tensor, "*rows s r"], start: int | Tensor = 0) -> Tensor:
        """Input of a stage (0-based) for S of its positions from `start` on: (…, S, R_i) ids → (…, S, D_i)."""
        table = self.token_embs_rev[self.num_stages - 1 - stage]
        tokens = table(ids.squeeze(-1) if stage == self.num_stages - 1 else ids)
        return self.pos_embs[stage](tokens, start)

    def condition(self, stage: int, context: Float[Tensor, "*rows d"], count: int | None = None) -> Tensor:
        """What the output (…, D_{i-1}) of the stage above adds to the first `count` (all) inputs: (…, P_i, D_i)."""
        linear, dim = (
            cast(nn.Linear, cast(nn.Sequential, self.to_next_stage_proj[stage - 1])[1]),
            self.config.hidden_dims[stage],
        )
        columns = None if count is None else count * dim
        return F.linear(context, linear.weight[:columns], linear.bias[:columns]).unflatten(-1, (-1, dim))

    def with_start(self, stage: int, tokens: Float[Tensor, "b s d"]) -> Float[Tensor, "b t d"]:
        """The stage's start vector before the inputs: (B, S, D) → (B, 1+S, D)."""
        start = self.start_tokens[stage].to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        return torch.cat((start, tokens), dim=1)

    def _run_chunked(self, stage: int, tokens: Tensor) -> Tensor:
        """A later stage on (n, S, D), its batch split into recomputed chunks in training where configured."""
        model = self.stage_models[stage]
        chunks = self.config.train_checkpoint_chunks
        if not chunks or not (self.training and torch.is_grad_enabled()):
            return cast(Tensor, model(tokens))
        parts = [cast(Tensor, checkpoint(model, part, use_reentrant=False)) for part in tokens.chunk(chunks[stage - 1])]
        return torch.cat(parts)

    # -- the first stage: what conditions every patch ---------------------------------------------------------------

    def check_context(self, patches: int) -> None:
        limit = self.config.seq_lens[0]
        if patches > limit and isinstance(self.pos_embs[0], FixedPositions):
            R = self.patch_bytes[0]
            raise ValueError(
                f"expected at most {limit * R} bytes ({limit} patches of {R}), the first stage's fixed positions; "
                f"got {patches} patches: shorten the input or configure a longer context"
            )

    def _to_patches(self, ids: Int[Tensor, "b l"]) -> Int[Tensor, "b p r"]:
        """Pad on the right to whole patches of the first stage."""
        R = self.patch_bytes[0]
        return F.pad(ids, (0, -ids.shape[1] % R), value=self.pad_token_id).unflatten(1, (-1, R))

    def contexts(self, patches: Int[Tensor, "b p r"]) -> Float[Tensor, "b p d"]:
        """The first stage's output that conditions each patch; it has seen the completed patches before only."""
        self.check_context(patches.shape[1])
        # The last patch conditions nothing, so the stage need not read it.
        tokens = self.with_start(0, self.embed(0, patches[:, :-1]))
        return cast(Tensor, self.stage_models[0](tokens))

    def shared_contexts(
        self, prefix: Int[Tensor, "b p r"], suffixes: Int[Tensor, "b k s r"]
    ) -> tuple[Float[Tensor, "b p d"], Float[Tensor, "b k s d"]]:
        """`contexts` of a prefix and of K suffixes that each continue it, the prefix read once."""
        B, K, S, _ = suffixes.shape
        done = prefix.shape[1]
        self.check_context(done + S)
        # One table of patch vectors for both.
        table, flat = self.token_embs_rev[-1], torch.cat((prefix.flatten(0, 1), suffixes[:, :, :-1].flatten(0, 2)))
        tokens = table(flat.squeeze(-1) if self.num_stages == 1 else flat)
        trunk, branches = tokens[: B * done].view(B, done, -1), tokens[B * done :].view(B, K, S - 1, -1)
        stage = incremental(self.stage_models[0])
        y, state = stage.prefix(self.with_start(0, self.pos_embs[0](trunk)))
        first = y[:, None, -1:].expand(B, K, 1, -1)  # every suffix's first patch follows the prefix's last
        if S == 1:
            return y[:, :-1], first
        later, _ = stage.branch(self.pos_embs[0](branches, done), state)
        return y[:, :-1], torch.cat((first, later), dim=2)

    # -- the later stages: only where a weighted byte is predicted ----------------------------------------------------

    def _local_outputs(
        self, contexts: Float[Tensor, "m d"], ids: Int[Tensor, "m r"], leaves: Tensor | None, count: int
    ) -> Float[Tensor, "n t d"]:
        """Outputs of the local stage at its first `count` inputs, start included: (n, 1 + count, D_N).

        `leaves` (n,): sorted indices into the M·R/P_N local sequences that are run, None for all of them.
        """
        lens, N = self.config.seq_lens, self.num_stages
        above: Tensor | None = None  # the sequences of the stage above that were run, None for all
        outputs = contexts[:, None]  # (sequences above, positions, D): each position conditions one sequence below
        width = 1
        for stage in range(1, N):
            per_sequence = math.prod(lens[stage : N - 1])  # local sequences in one sequence of this stage
            chosen = None if leaves is None else torch.unique_consecutive(leaves // per_sequence)
            flat_ids = ids.reshape(-1, lens[stage], self.patch_bytes[stage])
            if chosen is None:
                context = outputs.flatten(0, 1)
            else:
                parents = chosen // width
                if above is not None:
                    parents = torch.searchsorted(above, parents)
                context = outputs[parents, chosen % width]
                flat_ids = flat_ids[chosen]
            # A stage in between never reads its last position: that conditions nothing.
            inputs = count if stage == N - 1 else lens[stage] - 1
            tokens = self.embed(stage, flat_ids[:, :inputs]) + self.condition(stage, context, inputs)
            outputs = self._run_chunked(stage, self.with_start(stage, tokens))
            above, width = chosen, lens[stage]
        return outputs

    def _predictors(self, contexts: Tensor, chain: Chain, targets: Targets) -> Float[Tensor, "t d"]:
        """The local output that predicts each target byte: (T, D_N)."""
        if self.num_stages == 1:  # a patch is a byte, and its context is what predicts it
            return contexts[targets.patches]
        P = self.config.seq_lens[-1]
        sources, is_start = targets.sources(chain)  # flat byte positions, (T,) each
        slots = torch.where(is_start, 0, sources % P + 1)
        leaves, where = torch.unique(sources // P, return_inverse=True)
        # The local stage is causal: what comes after the last slot that predicts anything need not be read.
        outputs = self._local_outputs(contexts, chain.ids, leaves, int(slots.max()))
        return outputs[where, slots]

    def _sparse_sums(self, contexts: Tensor, chain: Chain) -> LossSums:
        targets = chain.targets(self.pad_token_id)
        count = targets.copies.sum()
        if targets.weights.numel() == 0:
            return LossSums(contexts.sum() * 0.0, count)
        logits = self.to_logits(self._predictors(contexts, chain, targets))
        losses = F.cross_entropy(logits, targets.ids, reduction="none")
        return LossSums((losses * targets.weights).sum(), count)

    # -- public -------------------------------------------------------------------------------------------------------

    def loss_sums(self, ids: Int[Tensor, "b l"], weights: Float[Tensor, "b l"]) -> LossSums:
        """Summed cross-entropy of the weighted bytes, later stages run only where one is predicted."""
        patches = self._to_patches(ids)
        padded = F.pad(weights, (0, patches[0].numel() - ids.shape[1])).view_as(patches)
        return self._sparse_sums(self.contexts(patches).flatten(0, 1), chains(patches, padded))

    def shared_loss_sums(
        self,
        prefix: Int[Tensor, "b l"],
        suffixes: Int[Tensor, "b k m"],
        weights: Float[Tensor, "b k m"],
        prefix_weights: Float[Tensor, "b k l"] | None = None,
    ) -> LossSums:
        """`loss_sums` of the B·K sequences prefix + suffix, each prefix read once for its K suffixes.

        The prefix must end on a border of the first stage's patches. A row of `weights` that is zero takes no part.
        """
        R = self.patch_bytes[0]
        if prefix.shape[1] == 0 or prefix.shape[1] % R:
            raise ValueError(
                f"a shared prefix must end on a patch border: expected a positive multiple of {R} bytes, "
                f"got {prefix.shape[1]}; pad it with id {self.pad_token_id}"
            )
        patches = prefix.unflatten(1, (-1, R))
        more = -suffixes.shape[2] % R
        branches = F.pad(suffixes, (0, more), value=self.pad_token_id).unflatten(2, (-1, R))
        branch_weights = F.pad(weights, (0, more)).view_as(branches)
        # A prefix byte counts once for every sequence it belongs to; its loss is the same in each.
        trunk_weights = None if prefix_weights is None else prefix_weights.unflatten(2, (-1, R))
        trunk, tips = self.shared_contexts(patches, branches)
        contexts = torch.cat((trunk.flatten(0, 1), tips.flatten(0, 2)))
        return self._sparse_sums(contexts, shared_chains(patches, branches, branch_weights, trunk_weights))

    def forward(
        self,
        input_ids: Tensor,
        return_type: MBLMReturnType = MBLMReturnType.LOSS,
        loss_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run ids (B, L), or nested ids (B, P_1', P_2, …, P_N).

        LOGITS: (B, L, V), where `logits[:, t-1]` predicts byte t. HIDDEN_STATE: the local outputs (B, L, D_N). LOSS:
        cross-entropy in nats a byte, pad ids ignored, times `loss_mask` (shape of the ids), averaged over the entries
        that are not zero. LOSS_LOGITS: both. Empty input gives (B, 1, V), whatever the return type.

        Raises ValueError for ids of another shape, and for more bytes than fixed positions of the first stage hold.
        """
        ids, mask = self._flat(input_ids, loss_mask)
        if ids.numel() == 0:
            return self.forward_empty(input_ids.shape[0])
        if return_type == MBLMReturnType.LOSS and mask is not None:
            sums = self.loss_sums(ids, mask)
            return sums.total / sums.targets.clamp(min=1)
        patches = self._to_patches(ids)
        hidden, first = self._dense(patches)
        if return_type == MBLMReturnType.HIDDEN_STATE:
            return hidden[:, : ids.shape[1]]
        logits = self.to_logits(hidden[:, : ids.shape[1]])
        if return_type == MBLMReturnType.LOGITS:
            return logits
        predictions = torch.cat((self.to_logits(first)[:, None], logits[:, :-1]), dim=1)
        losses = F.cross_entropy(
            predictions.flatten(0, 1), ids.flatten(), ignore_index=self.pad_token_id, reduction="none"
        )
        losses = losses if mask is None else losses * mask.flatten()
        loss = losses.sum() / losses.count_nonzero().clamp(min=1)
        return loss if return_type == MBLMReturnType.LOSS else (loss, logits)

    def forward_empty(self, batch_size: int) -> Float[Tensor, "b 1 v"]:
        """Logits of the first byte from nothing: a position a stage, start vector plus the stage above's projection."""
        outputs: Tensor | None = None
        for stage, model in enumerate(self.stage_models):
            tokens = self.start_tokens[stage].expand(batch_size, 1, -1)
            if outputs is not None:
                tokens = tokens + self.condition(stage, outputs[:, 0])[:, :1]
            outputs = model(tokens)
        return cast(Tensor, self.to_logits(outputs))

    def _flat(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        nested = (*self.config.seq_lens[1:],)
        if ids.ndim != 2 and (ids.ndim != self.num_stages + 1 or tuple(ids.shape[2:]) != nested):
            raise ValueError(
                f"expected ids of shape (B, L) or (B, P, {', '.join(map(str, nested))}), got {tuple(ids.shape)}"
            )
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"expected a loss mask of the ids' shape {tuple(ids.shape)}, got {tuple(mask.shape)}")
        return ids.flatten(1), None if mask is None else mask.flatten(1)

    def _dense(self, patches: Int[Tensor, "b p r"]) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b d"]]:
        """Local outputs at every byte, (B, P·R, D_N), and the first patch's start output, (B, D_N)."""
        B, count, R = patches.shape
        if self.num_stages == 1:
            self.check_context(count)
            outputs = cast(Tensor, self.stage_models[0](self.with_start(0, self.embed(0, patches))))
            return outputs[:, 1:], outputs[:, 0]
        contexts = self.contexts(patches).flatten(0, 1)
        outputs = self._local_outputs(contexts, patches.reshape(B * count, R), None, self.config.seq_lens[-1])
        outputs = outputs.unflatten(0, (B, -1))  # (B, local sequences, 1+P_N, D_N)
        return outputs[:, :, 1:].flatten(1, 2), outputs[:, 0, 0]

    @property
    def device(self) -> torch.device:
        return self.to_logits.weight.device
