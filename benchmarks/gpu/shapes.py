"""The paper's models as plain values, and contexts of millions of bytes: what speed, length and the counts are about.

Knows names and sizes; torch and the model only where one is built. The sizes are those of the paper (arXiv 2502.14553)
and of the reference implementation where they give them; what is ours is said at the shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from benchmarks.shapes import Widths, specification

if TYPE_CHECKING:
    import torch

    from mblm import MBLM
    from mblm.model.kernels import Kernel

PAPER = Widths(heads=16, head=64, d_state=128, ssm_head=64)
TINY = Widths(heads=2, head=8, d_state=16, ssm_head=8)
TINY_DIM = 16
TINY_LENS = {1: (64,), 2: (16, 4), 3: (16, 4, 2)}


@dataclass(frozen=True, kw_only=True)
class PaperShape:
    """A model: its stages by `family`, S for Mamba-2 and T for transformers, from the most global to the local one.

    seq_lens: positions of each stage, their product is the context. checkpoint_chunks: of the second to the last
    stage, into how many recomputed pieces its sequences are split. widths: of the layers; a transformer has a head
    for every `widths.head` channels of its stage, 16 at the paper's width of 1,024.
    """

    name: str
    family: str
    seq_lens: tuple[int, ...]
    hidden_dims: tuple[int, ...]
    num_layers: tuple[int, ...]
    checkpoint_chunks: tuple[int, ...] | None = None
    widths: Widths = PAPER

    @property
    def context(self) -> int:
        """Bytes of the longest sequence."""
        return math.prod(self.seq_lens)

    def specification(self) -> dict[str, Any]:
        """Its configuration in plain values, which the reference can be built from too, see `benchmarks.shapes`."""
        values = specification(
            self.family,
            self.widths,
            seq_lens=self.seq_lens,
            hidden_dims=self.hidden_dims,
            num_layers=self.num_layers,
            checkpoint_chunks=self.checkpoint_chunks,
        )
        for block, width in zip(values["block"], self.hidden_dims, strict=True):
            if "T" in block:
                block["T"]["attn_num_heads"] = width // self.widths.head
        return values

    def tiny(self) -> PaperShape:
        """The same stages and chunks at sizes for a dry run."""
        stages = len(self.seq_lens)
        chunks = self.checkpoint_chunks
        return replace(
            self,
            seq_lens=TINY_LENS[stages],
            hidden_dims=(TINY_DIM,) * stages,
            num_layers=(1,) * stages,
            checkpoint_chunks=None if chunks is None else tuple(min(count, 2) for count in chunks),
            widths=TINY,
        )


def _paper(
    name: str,
    family: str,
    seq_lens: Sequence[int],
    num_layers: Sequence[int],
    checkpoint_chunks: tuple[int, ...] | None = None,
) -> PaperShape:
    """A shape with the paper's width of 1,024 in every stage."""
    return PaperShape(
        name=name,
        family=family,
        seq_lens=tuple(seq_lens),
        hidden_dims=(1024,) * len(seq_lens),
        num_layers=tuple(num_layers),
        checkpoint_chunks=checkpoint_chunks,
    )


# Layers of 1D, of S/T and of S/T/T are the reference's; of the others such that a model has about 360 M parameters.
ONE_T = _paper("1D T 8K", "T", (8192,), (42,))
ONE_S = _paper("1D S 8K", "S", (8192,), (54,))
TWO_TT = _paper("2D T/T 8K", "T/T", (1024, 8), (21, 20))
TWO_ST = _paper("2D S/T 8K", "S/T", (1024, 8), (25, 21))
TWO_SS = _paper("2D S/S 8K", "S/S", (1024, 8), (26, 26))
THREE_TTT = _paper("3D T/T/T 8K", "T/T/T", (256, 8, 4), (13, 12, 12))
LONG_ST = _paper("2D S/T 98K", "S/T", (8192, 12), (25, 21), (2,))
LONG_TT = _paper("2D T/T 98K", "T/T", (8192, 12), (20, 20), (2,))
LONG_SS = _paper("2D S/S 98K", "S/S", (8192, 12), (26, 26), (2,))
MILLION = _paper("3D S/T/T 1M", "S/T/T", (8192, 16, 8), (9, 8, 8), (10, 20))
# A patch of 5,000 bytes is a vector by a matrix of 5,000·D_3·D_1 weights, and a matrix of D_1·200·D_2 conditions the
# second stage: these hold 246 M and 79 M parameters of the 376 M. At 1,024 everywhere the first would hold 5.2 billion.
FIVE_MILLION = PaperShape(
    name="3D S/T/T 5M",
    family="S/T/T",
    seq_lens=(1000, 200, 25),
    hidden_dims=(768, 512, 64),
    num_layers=(9, 8, 8),
    checkpoint_chunks=(4, 10),
)
TEN_MILLION = replace(FIVE_MILLION, name="3D S/T/T 10M", seq_lens=(2000, 200, 25), checkpoint_chunks=(8, 20))

SHAPES = {
    shape.name: shape
    for shape in (
        ONE_T,
        ONE_S,
        TWO_TT,
        TWO_ST,
        TWO_SS,
        THREE_TTT,
        LONG_ST,
        LONG_TT,
        LONG_SS,
        MILLION,
        FIVE_MILLION,
        TEN_MILLION,
    )
}


def build(shape: PaperShape, device: torch.device | str, kernel: Kernel = "auto", *, seed: int = 0) -> MBLM:
    """The model on a device, `meta` for one without memory, its weights drawn there from `seed`.

    kernel: who runs the recurrence of S stages, see `mblm.model.kernels`.
    """
    import torch

    from mblm import MBLM, MambaBlock, MBLMModelConfig, TransformerBlock
    from mblm.model.block import StageBlock

    values = shape.specification()
    blocks: list[StageBlock] = []
    for entry in values["block"]:
        ((kind, fields),) = cast("dict[str, dict[str, Any]]", entry).items()
        blocks.append(MambaBlock(**fields, kernel=kernel) if kind == "S" else TransformerBlock(**fields))
    torch.manual_seed(seed)
    with torch.device(device):
        return MBLM(MBLMModelConfig.model_validate({**values, "block": blocks}))
