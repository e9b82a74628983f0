"""From measured steps to rows, remarks and failures. Knows results as they are kept, neither models nor the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.common import GB, Row, Samples, Target, amount
from benchmarks.gpu.bench import OUT_OF_MEMORY
from benchmarks.gpu.speed_cases import Case, Windows, useful_flops
from benchmarks.gpu.speed_profile import describe
from benchmarks.gpu.speed_scoring import ScoringCase
from benchmarks.gpu.speed_step import COMPILE_FAILED

Result = Mapping[str, Any]
MFU = 40.0  # percent of the matrix rate that the paper's S/T model is to reach
HOW = (
    "A step: forward under bfloat16 autocast, backward, clipping, fused AdamW, on one batch of random bytes; weights "
    "are float32. TF32 is allowed for products that stay in float32 (in training: train.matmul_precision: high). GB: "
    "the most that tensors held, optimiser included. Layers as they are (eager), or compiled one by one."
)
NOTE_MFU = (
    "Counted FLOPs of the step over the rate of 8,192³ bfloat16 products in this run. Three times the forward's matrix "
    "products are counted; nothing computed a second time is, and no elementwise work. The other column: all of it at "
    "that rate."
)


@dataclass
class Findings:
    """What the part reports, as it grows."""

    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _kernels: set[str] = field(default_factory=set)

    def add_ceilings(self, ceilings: Result) -> None:
        """What the GPU multiplies and copies at most."""
        self.rows.append(amount("bfloat16 products", Samples((ceilings["matmul"] / 1e12,), "TFLOP/s")))
        self.rows.append(amount("copy within memory, read and written", Samples((ceilings["copy"] / 1e12,), "TB/s")))

    def usable(self, name: str, result: Result | None) -> bool:
        """Whether a result has times; says why where not, and what is wrong or odd about it where it has."""
        if result is None:  # no time was left: the frame lists it
            return False
        if OUT_OF_MEMORY in result:
            self.remarks.append(f"{name}: does not fit, not even one at a time ({result[OUT_OF_MEMORY]}).")
            return False
        if COMPILE_FAILED in result:
            self.failures.append(f"{name}: the layers do not compile: {result[COMPILE_FAILED]}")
            return False
        self._kernels |= {kernel for kernel in result.get("kernels", []) if kernel is not None}
        if not math.isfinite(result.get("loss", 0.0)):
            self.failures.append(f"{name}: expected a finite loss, got {result['loss']}")
        if "halved_from" in result:
            self.remarks.append(f"{name}: {result['halved_from']} at once do not fit; measured with {result['batch']}.")
        return True

    def add_windows(
        self, case: Windows, results: Mapping[str, Result | None], rate: float, *, target: float | None = None
    ) -> None:
        """Full loss: bytes a second and their share of the matrix rate, a row a way (eager, compiled).

        rate: of matrix products, in FLOP/s. target: percent, for the best way.
        """
        found = {way: result for way, result in results.items() if self.usable(f"{case.name}, {way}", result)}
        shares = {way: 100 * matrix_share(case, result, rate) for way, result in found.items() if result}
        for way, result in found.items():
            assert result is not None
            size = result["batch"] * case.shape.context
            ceiling = size * rate / useful_flops(case.shape, result["batch"])
            asked = (
                Target("≥", target)
                if target is not None and way == max(shares, key=lambda name: shares[name])
                else None
            )
            self.rows.append(
                Row(
                    f"{case.name}, {way}, {_at_once(result)}",
                    Samples(tuple(size / seconds / 1e3 for seconds in result["seconds"]), "kB/s"),
                    Samples((ceiling / 1e3,), "kB/s"),
                    shares[way],
                    asked,
                    unit=" %",
                    notes=(NOTE_MFU,),
                )
            )
            if way != "eager":
                self.remarks.append(f"{case.name}, {way}: the first step took {result['first_seconds']:.0f} s.")

    def add_pair(self, case: Case, result: Result | None, other: Case, against: Result | None) -> None:
        """Sequences or questions a second of one kind of step against another's; nothing where one is missing."""
        fine = [self.usable(one.name, found) for one, found in ((case, result), (other, against))]
        if not all(fine) or result is None or against is None:
            return
        what = f"{case.name} against {other.name.removeprefix(other.shape.name + ', ')}, {_at_once(result)}"
        ours = (result["samples"], result["seconds"])
        self.rows.append(_faster(what, case.unit, ours, (against["samples"], against["seconds"])))

    def add_scoring(self, case: ScoringCase, result: Result | None) -> None:
        """Questions answered with shared images, against an image for each."""
        if not self.usable(case.name, result):
            return
        assert result is not None
        shared, alone = ((result["samples"], result["seconds"][way]) for way in ("shared", "alone"))
        what = f"{case.name}, images shared against one each, {_at_once(result)}"
        self.rows.append(_faster(what, "question", shared, alone))
        agreement = (
            f"log-probabilities at most {result['apart']:.2g} nats apart both ways, the answer the same for "
            f"{result['agree']:.1%} of random questions, whose log-probabilities spread by {result['spread']:.2g}"
        )
        if result["apart"] < result["spread"]:
            self.remarks.append(f"{case.name}: {agreement}.")
        else:
            self.failures.append(f"{case.name}: expected the same answers both ways up to rounding, got {agreement}")

    def add_profile(self, case: Case, profile: Result, step: Result | None, ceilings: Mapping[str, float]) -> None:
        """What limits the step that was timed, if both were measured with the same batch."""
        if not self.usable(f"{case.name}, profile", profile) or step is None or step.get("batch") != profile["batch"]:
            return
        flops = useful_flops(case.shape, profile["batch"])
        sentences = describe(profile, step=median(step["seconds"]), flops=flops, ceilings=ceilings)
        self.remarks += [f"{case.name}, eager. {sentence}" for sentence in sentences]

    def all_remarks(self) -> list[str]:
        """How it was measured, and what there was to say."""
        stages = ", ".join(sorted(self._kernels)) or "none measured"
        return [HOW, f"Recurrences of S stages by: {stages}.", *dict.fromkeys(self.remarks)]


def matrix_share(case: Windows, result: Result, rate: float) -> float:
    """The share of the matrix rate that a full-loss step reaches by its counted FLOPs."""
    return useful_flops(case.shape, result["batch"]) / rate / median(result["seconds"])


def _at_once(result: Result) -> str:
    peak = "" if result["peak"] is None else f", {result['peak'] / GB:.3g} GB"
    return f"{result['batch']} at once{peak}"


def _faster(what: str, unit: str, ours: tuple[int, list[float]], other: tuple[int, list[float]]) -> Row:
    """How many times more samples a second: (samples, seconds) of each turn, both sides in the same unit."""
    scale, prefix = (1e3, "k ") if ours[0] / median(ours[1]) >= 1e3 else (1.0, "")
    sides = [
        Samples(tuple(samples / seconds / scale for seconds in times), f"{prefix}{unit}s/s")
        for samples, times in (ours, other)
    ]
    return Row(what, sides[0], sides[1], sides[0].median / sides[1].median, None)
