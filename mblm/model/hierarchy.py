"""What the causal and the masked model share: the stages, their embeddings and projections, and how each is fed.

Parameter names are those of the reference's checkpoints (`token_embs_rev` runs from local to global).

Shapes: B batch, L bytes, V vocabulary, N stages with P_i positions of width D_i; R_i = P_{i+1}·…·P_N bytes in one
position of stage i, R = R_1 bytes in a patch of the first stage; n sequences of a stage laid flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mblm.model.config import MBLMModelConfig
from mblm.model.embedding import ByteEmbedding, FixedPositions, PatchEmbedding, positions
from mblm.model.precision import wide


class LossSums(NamedTuple):
    """Weighted cross-entropy summed over bytes (nats), and how many bytes have a weight; the mean is taken once."""

    total: Tensor
    targets: Tensor


class Hierarchy(nn.Module):
    """N stages from the most global to the local one, each with byte tables, positions and a projection to the next."""

    def __init__(self, config: MBLMModelConfig, *, causal: bool) -> None:
        """`causal` stages begin with a start vector; ValueError for a block of the other kind."""
        super().__init__()
        dims, lens = config.hidden_dims, config.seq_lens
        blocks = config.stage_blocks()
        other = [type(block).__name__ for block in blocks if block.causal != causal]
        if other:
            expected, use = ("causal", "MBLMEncoder") if causal else ("bidirectional", "MBLM")
            raise ValueError(f"{type(self).__name__} needs {expected} stages, got {other[0]}: use that one with {use}")
        if causal:
            self.start_tokens = nn.ParameterList(nn.Parameter(torch.randn(dim)) for dim in dims)
        self.hierarchy = config
        # Set where processes must make the same calls whatever is in their batches, see `mblm.parallel`.
        self.same_calls = False
        self.num_stages = len(dims)
        self.seq_lens = list(lens)
        self.pad_token_id = config.pad_token_id
        self.patch_bytes = [math.prod(lens[i + 1 :]) for i in range(self.num_stages)]  # R_i
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
            for block, dim, depth in zip(blocks, dims, config.num_layers, strict=True)
        )
        self.to_next_stage_proj = nn.ModuleList(
            nn.Sequential(nn.Identity(), nn.Linear(dims[i], lens[i + 1] * dims[i + 1]))
            for i in range(self.num_stages - 1)
        )
        self.to_logits = nn.Linear(dims[-1], V)

    def embed(self, stage: int, ids: Int[Tensor, "*rows s r"], start: int | Tensor = 0) -> Tensor:
        """Input of a stage (0-based) for S of its positions from `start` on: (…, S, R_i) ids → (…, S, D_i)."""
        table = self.token_embs_rev[self.num_stages - 1 - stage]
        tokens = table(ids.squeeze(-1) if stage == self.num_stages - 1 else ids)
        return cast(Tensor, self.pos_embs[stage](tokens, start))

    def condition(self, stage: int, context: Float[Tensor, "*rows d"], count: int | None = None) -> Tensor:
        """What the output (…, D_{i-1}) of the stage above adds to the first `count` (all) inputs: (…, P_i, D_i)."""
        linear = cast(nn.Linear, cast(nn.Sequential, self.to_next_stage_proj[stage - 1])[1])
        dim = self.hierarchy.hidden_dims[stage]
        columns = None if count is None else count * dim
        return F.linear(context, linear.weight[:columns], linear.bias[:columns]).unflatten(-1, (-1, dim))

    def in_chunks(
        self, stage: int, rows: int, run: Callable[[int, int], Tensor], bounds: list[int] | None = None
    ) -> list[Tensor]:
        """`run(start, stop)` on the flattened batch of a later stage, in training split and recomputed as configured.

        There are as many chunks as the configuration says wherever there are as many rows; in evaluation they are run
        one after another as well, so that memory stays bounded. Without any, `bounds` (0, …, rows) say how to split.
        """
        chunks = self.hierarchy.train_checkpoint_chunks
        if not chunks:
            return [run(start, stop) for start, stop in pairwise(bounds or [0, rows])]
        count = min(chunks[stage - 1], rows)
        pieces = list(pairwise([rows * i // count for i in range(count + 1)]))
        if not (self.training and torch.is_grad_enabled()):
            return [run(start, stop) for start, stop in pieces]
        return [checkpoint(run, start, stop, use_reentrant=False) for start, stop in pieces]

    def head_losses(self, hidden: Float[Tensor, "t d"], ids: Int[Tensor, " t"]) -> Float[Tensor, " t"]:
        """Cross-entropy in nats of the ids that local outputs are to predict, in float32 at least."""
        return F.cross_entropy(wide(self.to_logits(hidden)), ids, reduction="none")

    def check_context(self, patches: int) -> None:
        """ValueError for more patches than fixed positions of the first stage hold."""
        limit = self.seq_lens[0]
        if patches > limit and isinstance(self.pos_embs[0], FixedPositions):
            R = self.patch_bytes[0]
            raise ValueError(
                f"expected at most {limit * R} bytes ({limit} patches of {R}), the first stage's fixed positions; "
                f"got {patches} patches: shorten the input or configure a longer context"
            )

    def check_nesting(self, ids: Tensor) -> None:
        """ValueError unless ids are (B, L), or nested as (B, P_1', P_2, …, P_N)."""
        nested = tuple(self.seq_lens[1:])
        if ids.ndim != 2 and (ids.ndim != self.num_stages + 1 or tuple(ids.shape[2:]) != nested):
            raise ValueError(
                f"expected ids of shape (B, L) or (B, P, {', '.join(map(str, nested))}), got {tuple(ids.shape)}"
            )

    def checked_ids(self, ids: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The ids as int64; ValueError for other types and for ids outside the vocabulary.

        The table of patch vectors would read another byte's row for those. On a GPU, where looking would wait for
        everything before it, the device stops instead.
        """
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool:
            raise ValueError(f"expected ids of an integer type, got {ids.dtype}")
        V = self.hierarchy.num_tokens
        if ids.numel() > 0 and not torch.compiler.is_compiling():
            least, most = ids.aminmax()
            if ids.device.type != "cpu":
                torch._assert_async((least >= 0) & (most < V))
            elif least < 0 or most >= V:
                raise ValueError(f"expected ids from 0 to {V - 1}, got {int(least if least < 0 else most)}")
        return ids.long()

    def to_patches(self, ids: Int[Tensor, "b l"]) -> Int[Tensor, "b p r"]:
        """Pad on the right to whole patches of the first stage."""
        ids, R = self.checked_ids(ids), self.patch_bytes[0]
        return F.pad(ids, (0, -ids.shape[1] % R), value=self.pad_token_id).unflatten(1, (-1, R))

    @property
    def device(self) -> torch.device:
        return self.to_logits.weight.device
