"""The causal model: every byte predicted from the bytes before it, and the loss where it is asked for.

Arithmetic of the reference implementation (arXiv 2502.14553; PyPI `mblm`): output position j of stage i conditions
patch j of stage i+1, the prediction of byte t is the local output at byte t-1, and byte 0 is predicted by the first
patch's local start output. The model knows ids only.

Shapes: B batch, L bytes, V vocabulary, N stages with P_i positions of width D_i; R_i = P_{i+1}·…·P_N bytes in one
position of stage i, R = R_1 bytes in a patch of the first stage, M patches of the first stage laid flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mblm.model.block import incremental
from mblm.model.config import MBLMModelConfig, MBLMReturnType
from mblm.model.hierarchy import LossSums
from mblm.model.later import LaterStages
from mblm.model.mamba import MambaStage
from mblm.model.targets import Chain, Targets, chains, shared_chains

if TYPE_CHECKING:
    from mblm.utils.stream import ByteStreamer


class MBLM(LaterStages):
    """A byte-level language model of N causal stages."""

    def __init__(self, cfg: MBLMModelConfig) -> None:
        super().__init__(cfg, causal=True)
        self.config = cfg

    # -- the first stage: what conditions every patch ---------------------------------------------------------------

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
        dim = tokens.shape[-1]
        trunk, branches = tokens[: B * done].view(B, done, dim), tokens[B * done :].view(B, K, S - 1, dim)
        stage = incremental(self.stage_models[0])
        y, state = stage.prefix(self.with_start(0, self.pos_embs[0](trunk)))
        first = y[:, None, -1:].expand(B, K, 1, -1)  # every suffix's first patch follows the prefix's last
        if S == 1:
            return y[:, :-1], first
        later, _ = stage.branch(self.pos_embs[0](branches, done), state)
        return y[:, :-1], torch.cat((first, later), dim=2)

    # -- public -------------------------------------------------------------------------------------------------------

    def _sums(self, contexts: Tensor, chain: Chain) -> LossSums:
        targets = chain.targets(self.pad_token_id)
        count = targets.copies.sum()
        if targets.ids.numel() == 0:
            # Every stage runs all the same, on one byte of no weight: a process without work in this batch then makes
            # the same collective calls as the others, and every parameter has a gradient.
            targets = Targets.nothing(chain)
        return LossSums((self.losses(contexts, chain, targets) * targets.weights).sum(), count)

    def loss_sums(self, ids: Int[Tensor, "b l"], weights: Float[Tensor, "b l"]) -> LossSums:
        """Summed cross-entropy of the weighted bytes, later stages run only where one is predicted."""
        if weights.shape != ids.shape:
            raise ValueError(f"expected weights of the ids' shape {tuple(ids.shape)}, got {tuple(weights.shape)}")
        patches = self.to_patches(ids)
        padded = F.pad(weights, (0, patches[0].numel() - ids.shape[1])).view_as(patches)
        return self._sums(self.contexts(patches).flatten(0, 1), chains(patches, padded))

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
        expected = (len(prefix), *suffixes.shape[1:])
        if suffixes.ndim != 3 or 0 in suffixes.shape or suffixes.shape != expected or weights.shape != expected:
            raise ValueError(
                f"expected suffixes and their weights of one shape (B, K, M), B = {len(prefix)}, K and M at least 1, "
                f"got {tuple(suffixes.shape)} and {tuple(weights.shape)}"
            )
        prefix, suffixes = self.checked_ids(prefix), self.checked_ids(suffixes)
        patches = prefix.unflatten(1, (-1, R))
        more = -suffixes.shape[2] % R
        branches = F.pad(suffixes, (0, more), value=self.pad_token_id).unflatten(2, (-1, R))
        branch_weights = F.pad(weights, (0, more)).view_as(branches)
        # A prefix byte counts once for every sequence it belongs to; its loss is the same in each.
        trunk_weights = None if prefix_weights is None else prefix_weights.unflatten(2, (-1, R))
        trunk, tips = self.shared_contexts(patches, branches)
        contexts = torch.cat((trunk.flatten(0, 1), tips.flatten(0, 2)))
        return self._sums(contexts, shared_chains(patches, branches, branch_weights, trunk_weights))

    def forward(
        self,
        input_ids: Tensor,
        return_type: MBLMReturnType = MBLMReturnType.LOSS,
        loss_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run ids (B, L), or nested ids (B, P_1', P_2, …, P_N).

        LOGITS: (B, L, V), where `logits[:, t-1]` predicts byte t. HIDDEN_STATE: the local outputs (B, L, D_N). LOSS:
        cross-entropy in nats a byte, times `loss_mask` (shape of the ids, any type), averaged over the bytes that have
        a weight and are not the pad id. LOSS_LOGITS: both. Empty input gives (B, 1, V), whatever the return type.

        Raises ValueError for ids of another shape, and for more bytes than fixed positions of the first stage hold.
        """
        return_type = MBLMReturnType(return_type)
        ids, mask = self._flat(input_ids, loss_mask)
        if ids.numel() == 0:
            return self.forward_empty(input_ids.shape[0])
        if return_type == MBLMReturnType.LOSS:
            sums = self.loss_sums(ids, torch.ones_like(ids, dtype=torch.float32) if mask is None else mask)
            return sums.total / sums.targets.clamp(min=1)
        patches = self.to_patches(ids)
        hidden, first = self._dense(patches)
        if return_type == MBLMReturnType.HIDDEN_STATE:
            return hidden[:, : ids.shape[1]]
        logits = self.to_logits(hidden[:, : ids.shape[1]])
        if return_type == MBLMReturnType.LOGITS:
            return logits
        hidden = torch.cat((first[:, None], hidden[:, : ids.shape[1] - 1]), dim=1)
        weights = (ids != self.pad_token_id).float() if mask is None else mask * (ids != self.pad_token_id)
        losses = self.head_losses(hidden.flatten(0, 1), ids.flatten()) * weights.flatten()
        return losses.sum() / weights.count_nonzero().clamp(min=1), logits

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
        self.check_nesting(ids)
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
        first, outputs = self.local_outputs(contexts, patches.reshape(B * count, R))
        return outputs.view(B, count * R, -1), first.expand(B, -1)

    # -- generation, checkpoints, kernels ---------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(
        self,
        prime: Tensor | Sequence[Tensor] | None = None,
        stream: ByteStreamer | None = None,
        num_tokens_to_generate: int | None = None,
        end_of_gen_token_id: int = -1,
        temperature: float = 1.0,
        filter_thres: float | None = None,
        enable_progress: bool = True,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        graphs: bool | None = None,
    ) -> Any:
        """The prompt and the bytes generated behind it: (L,) → (L + count,), on the prompt's device.

        `prime` may also be a list of prompts of any lengths (or (n, L)): a list of as many results comes back. Without
        a count the context is filled; with one it may be left where the first stage has no fixed positions. A row
        ends after `end_of_gen_token_id`, which is included. Greedy unless `filter_thres` (the fraction of the ids
        thrown away, 1.0 keeps one), `top_k` or `top_p` say otherwise; then drawn at `temperature`, repeatably with a
        `seed`. `stream` takes the bytes of a single prompt as they come. `graphs`: whether whole patches are written
        at once, on CUDA by CUDA graphs; None where that is quicker, and `mblm.graphs.find_plan` says what it comes to.
        """
        from mblm.generate import generate
        from mblm.sampling import choose_sampler

        given = prime if isinstance(prime, (list, tuple)) else [prime]
        if not all(prompt is None or isinstance(prompt, Tensor) for prompt in given):
            kinds = ", ".join(sorted({type(prompt).__name__ for prompt in given}))
            raise ValueError(f"prime: expected a tensor of ids (L,) or (n, L), or a list of tensors (L,), got {kinds}")
        alone = prime is None or (isinstance(prime, Tensor) and prime.ndim <= 1)
        if prime is None:
            prime = torch.empty(0, dtype=torch.long, device=self.device)
        prompts = [cast(Tensor, prime)] if alone else list(prime)
        prompts = [prompt.long() if prompt.numel() == 0 else prompt for prompt in prompts]
        if any(prompt.ndim != 1 for prompt in prompts):
            raise ValueError(f"expected prompts of shape (L,), got {[tuple(prompt.shape) for prompt in prompts]}")
        sampler = choose_sampler(
            self.config.num_tokens, temperature=temperature, filter_thres=filter_thres, top_k=top_k, top_p=top_p
        )
        training = self.training
        self.eval()  # nothing is dropped out of what is read
        try:
            out = generate(
                self,
                prompts,
                count=num_tokens_to_generate,
                sampler=sampler,
                stop_id=end_of_gen_token_id,
                seed=seed,
                stream=stream,
                progress=enable_progress,
                graphs=graphs,
            )
        finally:
            self.train(training)
        return out[0] if alone else out

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> MBLM:
        """See `mblm.checkpoint.from_pretrained`."""
        from mblm.checkpoint import from_pretrained

        return from_pretrained(source, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """See `mblm.checkpoint.save_pretrained`."""
        from mblm.checkpoint import save_pretrained

        save_pretrained(self, folder)

    def kernels(self) -> list[Literal["torch", "triton"] | None]:
        """Who runs each stage's recurrence on this model's device, None for a stage without one: to be recorded."""
        return [
            stage.kernel_on(self.device) if isinstance(stage, MambaStage) else None
            for stage in (getattr(stage, "_orig_mod", stage) for stage in self.stage_models)
        ]
