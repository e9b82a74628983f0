"""How long counted work takes at the least: a machine's ceilings, and what bounds each operation under them.

Knows counts and ceilings, neither models nor what is asked of them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.counts import Counts, Work

TOP = 10
TILE = 128  # positions: queries and keys that flash attention multiplies at once where heads have 64 channels
_FLASH = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_backward")


@dataclass(frozen=True)
class Ceilings:
    """One H200. half: FLOP/s of 8,192² products of random bfloat16 numbers, copy: bytes/s of an 8.6 GB copy, read and
    written, both measured once on such a GPU. full: FLOP/s of float32 without TF32, memory: bytes, both NVIDIA's data
    sheet. launch: seconds that an operation takes at the least when it is started from Python one by one, and graphed
    when a CUDA graph starts it: assumptions.
    """

    half: float = 788e12
    full: float = 67e12
    copy: float = 4.3e12
    memory: float = 141e9
    launch: float = 5e-6
    graphed: float = 2e-6

    def seconds(self, work: Work, launch: float) -> dict[str, float]:
        """What an operation takes by each of its bounds."""
        rate = self.half if work.kind == "bfloat16" else self.full
        return {"FLOPs": work.flops / rate, "bytes": (work.read + work.written) / self.copy, "launches": launch}


H200 = Ceilings()
# Operations that no compiler takes into another one, beside all that have FLOPs.
_STANDS_ALONE = {"embedding", "embedding_dense_backward", "_embedding_bag", "_embedding_bag_backward", "_fused_adamw_"}


def seconds_of(counts: Counts, ceilings: Ceilings = H200, *, fused: bool = False) -> float:
    """Each operation at its bound, one after another.

    fused: elementwise passes cost nothing, as if each were a part of the product before or after it, and no launch
    does: what is left is the least that the same products can take.
    """
    total = 0.0
    for work, calls in counts.calls.items():
        if not fused:
            total += calls * max(ceilings.seconds(work, ceilings.launch).values())
        elif work.flops > 0 or work.name in _STANDS_ALONE:
            total += calls * max(ceilings.seconds(work, 0.0).values())
    return total


def padded(counts: Counts) -> Counts:
    """The same with causal flash attention computing whole tiles of `TILE` queries by `TILE` keys, as its kernels do.

    FlashAttention-2's forward takes such tiles for causal heads of 64 channels; its backward's differ by type of GPU.
    """
    filled = Counts()
    for work, calls in counts.calls.items():
        if work.name in _FLASH:
            positions = int(work.shape.split()[0].split("×")[2])  # of (rows, heads, positions, channels)
            tiles = -(-positions // TILE)
            growth = tiles * (tiles + 1) * TILE**2 / (positions * (positions + 1))
            work = work._replace(flops=growth * work.flops)
        filled.calls[work] += calls
    return filled


def attention_flops(counts: Counts) -> float:
    """Of flash attention, forward and backward."""
    return sum(work.flops * calls for work, calls in counts.calls.items() if work.name in _FLASH)


def limits(counts: Counts, ceilings: Ceilings = H200) -> dict[str, float]:
    """The share of the eager time in operations that each of the three bounds, the largest first."""
    shares: Counter[str] = Counter()
    for work, calls in counts.calls.items():
        bounds = ceilings.seconds(work, ceilings.launch)
        limit = max(bounds, key=lambda name: bounds[name])
        shares[limit] += calls * bounds[limit]  # type: ignore[assignment]
    return {name: share / shares.total() for name, share in shares.most_common()}


def operations(counts: Counts) -> list[dict[str, Any]]:
    """The operations that cost most, sizes of inputs apart, with what bounds each."""
    seconds: Counter[tuple[str, str, str]] = Counter()
    calls_of: Counter[tuple[str, str, str]] = Counter()
    bound: dict[tuple[str, str, str], str] = {}
    for work, calls in counts.calls.items():
        key = (work.name, work.kind, work.shape)
        bounds = H200.seconds(work, H200.launch)
        bound[key] = max(bounds, key=lambda name: bounds[name])
        seconds[key] += calls * bounds[bound[key]]  # type: ignore[assignment]
        calls_of[key] += calls
    return [
        {"operation": name, "type": kind, "shapes": shape, "calls": calls_of[name, kind, shape], "seconds": time}
        | {"bound": bound[name, kind, shape]}
        for (name, kind, shape), time in seconds.most_common(TOP)
    ]
