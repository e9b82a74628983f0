"""The models that are timed, as plain JSON values that any side of a comparison can build its own model from.

Knows names and sizes, neither torch nor a model library: the values travel to other environments as text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NUM_TOKENS, PAD = 264, 256  # the bytes, and room for special ids above them


@dataclass(frozen=True)
class Widths:
    """Sizes of the layers, the same in every stage. S: `d_state`, `ssm_head` and expansion 2, convolution 4."""

    heads: int
    head: int
    d_state: int
    ssm_head: int


PEER = Widths(heads=4, head=64, d_state=128, ssm_head=64)
TOY = Widths(heads=2, head=8, d_state=16, ssm_head=8)


def specification(
    family: str,
    widths: Widths,
    *,
    seq_lens: Sequence[int],
    hidden_dims: Sequence[int],
    num_layers: Sequence[int],
    checkpoint_chunks: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A model's configuration, its stages named by `family`, such as "S/T": S for Mamba-2, T for transformers.

    Blocks are written {kind: fields}, because a bare dict of fields does not say which class it is meant for.
    """
    kinds = family.split("/")
    if len(kinds) != len(seq_lens) or not set(kinds) <= {"S", "T"}:
        raise ValueError(f"expected S or T for each of {len(seq_lens)} stages, such as 'S/T', got {family!r}")
    return {
        "num_tokens": NUM_TOKENS,
        "pad_token_id": PAD,
        "hidden_dims": list(hidden_dims),
        "seq_lens": list(seq_lens),
        "num_layers": list(num_layers),
        "train_checkpoint_chunks": None if checkpoint_chunks is None else list(checkpoint_chunks),
        "block": [{kind: _block(kind, widths)} for kind in kinds],
    }


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A two-stage model that is timed: the comparison's own by default."""

    widths: Widths = PEER
    seq_lens: tuple[int, int] = (1024, 8)
    hidden_dims: tuple[int, int] = (256, 256)
    num_layers: tuple[int, int] = (5, 4)

    def specification(self, family: str) -> dict[str, Any]:
        """Its configuration with the stages of `family`."""
        return specification(
            family,
            self.widths,
            seq_lens=self.seq_lens,
            hidden_dims=self.hidden_dims,
            num_layers=self.num_layers,
        )


def _block(kind: str, widths: Widths) -> dict[str, Any]:
    if kind == "S":
        return {
            "d_state": widths.d_state,
            "d_conv": 4,
            "expand": 2,
            "headdim": widths.ssm_head,
            "dropout": 0.0,
            "pos_emb_type": None,
        }
    return {
        "attn_head_dims": widths.head,
        "attn_num_heads": widths.heads,
        "attn_use_rot_embs": True,
        "attn_dropout": 0.0,
        "ff_multiplier": 2,
        "ff_dropout": 0.0,
        # The reference's other attention is slower (full-loss step here: 3.9 s against 3.3 s); ours has no choice.
        "use_flash_attn": True,
        "pos_emb_type": "fixed",
    }
