"""The training steps that are predicted for a GPU which is not at hand, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.gpu.shapes import (
    FIVE_MILLION,
    LONG_ST,
    LONG_TT,
    MILLION,
    ONE_S,
    ONE_T,
    TEN_MILLION,
    THREE_TTT,
    TWO_ST,
    TWO_TT,
    PaperShape,
)
from benchmarks.peer.sizes import WEIGHTED

Scan = Literal["torch", "triton"]
SCANS: dict[Scan, str] = {"triton": "mamba-ssm's scan", "torch": "PyTorch's scan"}


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step. answer: how many bytes of a sequence are weighted, None for all. scan: who runs the recurrence.

    published: GB of memory in the paper's table, None where it has none.
    """

    shape: PaperShape
    batch: int = 1
    half: bool = True
    answer: int | None = None
    scan: Scan = "triton"
    published: float | None = None

    @property
    def recurs(self) -> bool:
        """Whether there is a recurrence."""
        return "S" in self.shape.family

    @property
    def name(self) -> str:
        loss = "" if self.answer is None else ", answer only"
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        scan = f", {SCANS[self.scan]}" if self.recurs else ""
        return f"{self.shape.name}, {'bf16' if self.half else 'fp32'}{loss}{batch}{scan}"

    def tiny(self) -> Step:
        return replace(self, shape=self.shape.tiny(), batch=1, published=None)


def _both_ways(*steps: Step) -> tuple[Step, ...]:
    """Those with a recurrence with either scan."""
    return tuple(replace(step, scan=scan) for step in steps for scan in (SCANS if step.recurs else (step.scan,)))


MAIN = Step(shape=TWO_ST, batch=8)  # with mamba-ssm's scan, as it runs on a GPU with the extra `cuda`
SPEEDS = _both_ways(
    MAIN,
    Step(shape=TWO_ST, batch=8, answer=WEIGHTED),
    Step(shape=TWO_TT, batch=8),
    Step(shape=ONE_T, batch=4),
    Step(shape=ONE_S, batch=4),
    Step(shape=LONG_ST),
    Step(shape=LONG_TT),
    Step(shape=MILLION),
)
LENGTHS = _both_ways(
    Step(shape=FIVE_MILLION, half=False),
    Step(shape=TEN_MILLION, half=False),
    Step(shape=MILLION, half=False),
    Step(shape=FIVE_MILLION),
)
# The paper's table of memory, batch 2 on an A100, as a secondary reading has it; its precision is unknown.
TABLE = (
    Step(shape=ONE_T, batch=2, published=30.5),
    Step(shape=TWO_TT, batch=2, published=19.6),
    Step(shape=THREE_TTT, batch=2, published=15.9),
)
