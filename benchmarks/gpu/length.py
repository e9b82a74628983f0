"""Contexts of millions of bytes in one training step: does it fit, what does it take, and was that counted right.

A step is a whole one: the loss of every byte, float32 weights, backward, clipping, AdamW with its state. Its measured
peak stands beside the one counted without running it (`benchmarks.gpu.counts`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from statistics import median
from typing import Any

from benchmarks.common import GB, RECORDED, Row, Samples, Target, amount
from benchmarks.gpu.bench import OUT_OF_MEMORY, Bench
from benchmarks.gpu.counts import count_step
from benchmarks.gpu.imagined import ImaginedGPU
from benchmarks.gpu.parts import Report
from benchmarks.gpu.shapes import FIVE_MILLION, MILLION, TEN_MILLION, PaperShape, build
from benchmarks.gpu.training import Training, random_batch

PREDICTED = RECORDED / "gpu-predicted" / "predicted.json"
LIMITS = {FIVE_MILLION.name: 80.0, TEN_MILLION.name: 139.0}  # GB, as the issue asks


@dataclass(frozen=True, kw_only=True)
class Step:
    """One sequence of the whole context. half: under autocast to bfloat16. seconds: what measuring it takes, about."""

    shape: PaperShape
    half: bool = False
    repeats: int = 2
    seconds: float = 20.0

    @property
    def name(self) -> str:
        return f"{self.shape.name}, {'bf16' if self.half else 'fp32'}"

    def tiny(self) -> Step:
        return Step(shape=self.shape.tiny(), half=self.half, repeats=1, seconds=0.0)


STEPS = (
    Step(shape=FIVE_MILLION),
    Step(shape=TEN_MILLION, repeats=1),
    Step(shape=FIVE_MILLION, half=True),
    Step(shape=MILLION, half=True),
    Step(shape=TEN_MILLION, half=True, repeats=1),
    Step(shape=MILLION, repeats=1, seconds=60.0),  # 360 M parameters 1024 wide, without TF32: 11 s a step by its FLOPs
)


@cache
def counted_peak(shape: PaperShape, *, half: bool) -> int:
    """Of the step on a GPU that is not there, the recurrence in PyTorch."""
    with ImaginedGPU():
        training = Training(build(shape, "meta", "torch"), half=half)
        return count_step(training, random_batch(1, shape.context, "cpu")).peak


def recorded_peak(step: Step, kernels: Sequence[str | None]) -> int | None:
    """The peak that `benchmarks.gpu.predict` recorded for this very shape and scan; None where it did not.

    kernels: who runs the recurrence of each stage, None for a stage without one.
    """
    if not PREDICTED.is_file():
        return None
    steps = json.loads(PREDICTED.read_text(encoding="utf-8"))["steps"].values()
    scan = next((kernel for kernel in kernels if kernel is not None), None)
    asked = {"shape": asdict(step.shape), "batch": 1, "half": step.half, "answer": None, "scan": scan}
    asked = json.loads(json.dumps(asked))
    return next((int(found["peak"]) for found in steps if asked == {key: found.get(key) for key in asked}), None)


def measure(bench: Bench, step: Step) -> dict[str, Any]:
    """Seconds, peak bytes, what they were counted as without running it, and the loss before any training.

    On a CPU, which has no such counter, the peak is that of its own tensors; on a GPU counting would take longer than
    the step, and what was counted before is read from `predicted`.
    """
    device = bench.device.torch_device
    model = build(step.shape, device)
    batch = random_batch(1, step.shape.context, device)
    training = Training(model, half=step.half)
    loss = training.step(batch)
    seconds = bench.device.seconds(lambda: training.step(batch), repeats=step.repeats, warmup=0)
    if bench.device.is_cuda:
        peak, expected = bench.device.peak_memory(lambda: training.step(batch)), recorded_peak(step, model.kernels())
    else:
        peak, expected = count_step(training, batch).peak, counted_peak(replace(step.shape, name=""), half=step.half)
    return {
        "seconds": list(seconds.values),
        "peak": peak,
        "counted": expected,
        "loss": loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "kernels": model.kernels(),
    }


def run(bench: Bench) -> Report:
    """The part: every step that time is left for."""
    rows: list[Row] = []
    remarks = [
        "A step: one sequence of random bytes, the loss of every byte, float32 weights, gradients clipped, AdamW with "
        "its state; bf16 is autocast. Counted: the same step's tensors, without the kernels' own memory and the "
        "allocator's rounding.",
    ]
    failures: list[str] = []
    for full in STEPS:
        step = full.tiny() if bench.tiny else full
        found = bench.item(full.name, asdict(step), partial(measure, bench, step), needs=step.seconds)
        if found is None:
            continue
        if OUT_OF_MEMORY in found:
            remarks.append(f"{full.name}: did not fit the GPU's memory: {found[OUT_OF_MEMORY]}.")
            if full.name.removesuffix(", fp32") in LIMITS:
                rows.append(_missed(full))
            continue
        rows += step_rows(full, found, tiny=bench.tiny)
        remarks.append(_about(full, step, found))
        if not abs(found["loss"]) < float("inf"):
            failures.append(f"{full.name}: expected a finite loss, got {found['loss']}")
    return Report("Millions of bytes in one training step", "counted", rows, remarks, failures)


def step_rows(step: Step, found: Mapping[str, Any], *, tiny: bool) -> list[Row]:
    """Memory against what was counted and against the limit, and time."""
    seconds = amount(f"{step.name}: seconds a step", Samples(tuple(found["seconds"]), "s"))
    expected = None if found["counted"] is None else Samples((found["counted"] / GB,), "GB")
    peak = Samples((found["peak"] / GB,), "GB")
    limit = None if step.half or tiny else LIMITS.get(step.shape.name)
    target = None if limit is None else Target("≤", limit)
    memory = Row(f"{step.name}: peak memory", peak, expected, peak.median, target, unit=" GB")
    return [memory, seconds]


def _missed(step: Step) -> Row:
    """A step that does not fit is no lack of a number: it misses its limit."""
    limit = LIMITS[step.shape.name]
    infinite = Samples((float("inf"),), "GB")
    return Row(f"{step.name}: peak memory", infinite, None, float("inf"), Target("≤", limit), unit=" GB")


def _about(named: Step, step: Step, found: Mapping[str, Any]) -> str:
    shape = step.shape
    kernels = ", ".join(kernel or "-" for kernel in found["kernels"])
    return (
        f"{named.name}: {shape.context:,} bytes, patches {shape.seq_lens}, widths {shape.hidden_dims}, layers "
        f"{shape.num_layers}, pieces {shape.checkpoint_chunks}, {found['parameters']:,} parameters, recurrence by "
        f"{kernels}; loss {found['loss']:.3f} nats a byte, {shape.context / median(found['seconds']):,.0f} bytes/s."
    )
