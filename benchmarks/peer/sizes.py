"""What the comparison measures and what it has to reach: numbers only."""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.shapes import TOY, Shape

WEIGHTED = 4  # last bytes of a sequence that the answer-only loss weighs


@dataclass(frozen=True, kw_only=True)
class Sizes(Shape):
    """Shapes of the models, and lengths in bytes."""

    batch: int = 2
    prompt: int = 4096
    generated: int = 256
    prefill: int = 8184
    scored_after: int = 8160
    contexts: tuple[int, ...] = (1024, 2048, 4096, 6144, 7900)
    window: int = 64  # bytes decoded at each of `contexts`

    @property
    def length(self) -> int:
        """Bytes in the whole context, the length of a training sequence."""
        return math.prod(self.seq_lens)


QUICK = Sizes(
    widths=TOY,
    seq_lens=(32, 8),
    hidden_dims=(16, 16),
    num_layers=(2, 1),
    prompt=64,
    generated=16,
    prefill=248,
    scored_after=216,
    contexts=(32, 100, 196),
    window=16,
)


@dataclass(frozen=True)
class Targets:
    """Ratios of medians to reach: the reference over ours, but `scoring` (over the prefill) and `flat` (≤)."""

    answer_only: float
    full: float
    generation: float
    prefill: float = 3.0
    scoring: float = 1.25
    flat: float | None = None


TARGETS = {
    "T/T": Targets(answer_only=5, full=1.2, generation=30),
    "S/T": Targets(answer_only=20, full=8, generation=100, flat=1.3),
}
