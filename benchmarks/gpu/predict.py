"""What counts say of a GPU that is not at hand: `python -m benchmarks.gpu.predict [--record]`.

Every step is run once on an imagined GPU, operation by operation; an operation takes as long as the slowest of its
FLOPs, its bytes and its launch. Nothing is measured but the ceilings, and those on another day: what it says is what
would have to be so if every kernel ran at its bound. It is recorded so that a measurement can be held against it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RECORDED, Row, Samples, Target, machine_provenance, markdown, record, say, speedup
from benchmarks.gpu.counts import Counts, count_step
from benchmarks.gpu.imagined import ImaginedGPU
from benchmarks.gpu.roofline import H200, TOP, limits, operations, seconds_of
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
    build,
)
from benchmarks.gpu.speed_cases import useful_flops
from benchmarks.gpu.training import BYTE_VALUES, Training, random_batch
from mblm import MBLMReturnType
from mblm.decode import prefill
from mblm.decode import step as read_byte

MODULE = "benchmarks.gpu.predict"
GB = 1e9
ANSWER = 4  # last bytes of a sequence that an answer-only loss weighs
GENERATION = 100.0  # times the reference's speed, as the issue asks


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step to predict. answer: how many bytes of a sequence are weighted, None for all."""

    shape: PaperShape
    batch: int = 1
    half: bool = True
    answer: int | None = None
    published: float | None = None

    @property
    def name(self) -> str:
        loss = "" if self.answer is None else ", answer only"
        batch = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.shape.name}, {'bf16' if self.half else 'fp32'}{loss}{batch}"


LENGTHS = (
    Step(shape=FIVE_MILLION, half=False),
    Step(shape=TEN_MILLION, half=False),
    Step(shape=MILLION, half=False),
    Step(shape=FIVE_MILLION),
)
SPEEDS = (
    Step(shape=TWO_ST, batch=8),
    Step(shape=TWO_ST, batch=8, answer=ANSWER),
    Step(shape=TWO_TT, batch=8),
    Step(shape=ONE_T, batch=4),
    Step(shape=ONE_S, batch=4),
    Step(shape=LONG_ST),
    Step(shape=LONG_TT),
    Step(shape=MILLION),
)
# The paper's table of memory, batch 2 on an A100, as a secondary reading has it; its precision is unknown.
TABLE = (
    Step(shape=ONE_T, batch=2, published=30.5),
    Step(shape=TWO_TT, batch=2, published=19.6),
    Step(shape=THREE_TTT, batch=2, published=15.9),
)


def counted(step: Step) -> Counts:
    """The step on an imagined GPU, the recurrence in PyTorch."""
    with ImaginedGPU():
        training = Training(build(step.shape, "meta", "torch"), half=step.half)
        return count_step(training, random_batch(step.batch, step.shape.context, "cpu", answer=step.answer))


def predicted(step: Step) -> dict[str, Any]:
    """Everything that is said of a step, JSON-able."""
    counts = counted(step)
    eager, fused = seconds_of(counts), seconds_of(counts, fused=True)
    tokens = step.batch * step.shape.context
    useful = useful_flops(step.shape, step.batch) if step.answer is None else None
    found = {
        "shape": asdict(step.shape),
        "batch": step.batch,
        "half": step.half,
        "peak": counts.peak,
        "peak_by": [[name, shape, size] for (name, shape), size in _largest(counts.peak_by)],
        "flops": counts.flops,
        "useful_flops": useful,
        "moved": counts.moved,
        "launches": counts.launches,
        "seconds": eager,
        "seconds_fused": fused,
        "tokens_per_second": tokens / eager,
        "operations": operations(counts),
        "limits": limits(counts),
    }
    if useful is not None and step.half:
        found |= {"mfu": useful / eager / H200.half, "mfu_fused": useful / fused / H200.half}
    say(f"{step.name}: {counts.peak / GB:.1f} GB, {eager:.3f} s")
    return found


def _largest(by: dict[tuple[str, str], int]) -> list[tuple[tuple[str, str], int]]:
    return sorted(by.items(), key=lambda item: -item[1])[:TOP]


def generated(shape: PaperShape) -> dict[str, Any]:
    """A byte behind an almost full context, the mean over a patch, and the forward that the reference runs for it.

    Weights are float32. The reference's forward is taken to be ours, each operation at its bound, in float32 as its
    `generate` is, and under autocast to bfloat16.
    """
    patch = shape.context // shape.seq_lens[0]
    with ImaginedGPU(), torch.inference_mode():
        model = build(shape, "meta", "torch").eval()
        ids = torch.randint(BYTE_VALUES, (1, shape.context - 2 * patch))
        _, state = prefill(model, ids)
        with Counts() as counts:
            for _ in range(patch):
                _, state = read_byte(model, state, torch.zeros(1, dtype=torch.long))
        forwards = {}
        for kind, half in (("float32", False), ("bfloat16", True)):
            with Counts() as whole, torch.autocast("cuda", torch.bfloat16, enabled=half):
                model.forward(ids, return_type=MBLMReturnType.LOGITS)
            forwards[kind] = {"flops": whole.flops, "moved": whole.moved, "seconds": seconds_of(whole)}
    return {
        "shape": asdict(shape),
        "launches": counts.launches / patch,
        "moved": counts.moved / patch,
        "seconds": seconds_of(counts) / patch,
        "seconds_graphed": seconds_of(counts, replace(H200, launch=H200.graphed)) / patch,
        "forwards": forwards,
    }


def generation_rows(found: dict[str, Any]) -> list[Row]:
    """Ours one operation after another and in a graph, against the reference's forward."""
    rows = []
    for key, how in (("seconds", "each operation launched"), ("seconds_graphed", "in a CUDA graph")):
        ours = Samples((found[key],), "s")
        for kind, forward in found["forwards"].items():
            what = f"{LONG_ST.name}: a byte generated, {how}, against a {kind} forward"
            target = GENERATION if kind == "float32" else None
            rows.append(speedup(what, ours, Samples((forward["seconds"],), "s"), at_least=target))
    return rows


def rows_of(step: Step, found: dict[str, Any]) -> list[Row]:
    """Memory, time and share of the matrix rate."""
    limit = {FIVE_MILLION: 80.0, TEN_MILLION: 139.0}.get(step.shape) if not step.half else None
    published = None if step.published is None else Samples((step.published,), "GB")
    memory = Samples((found["peak"] / GB,), "GB")
    target = None if limit is None else Target("≤", limit)
    rows = [Row(f"{step.name}: peak memory", memory, published, memory.median, target, unit=" GB")]
    if step.published is not None:
        return rows
    eager, fused = Samples((found["seconds"],), "s"), Samples((found["seconds_fused"],), "s")
    rows.append(Row(f"{step.name}: a step", eager, fused, found["tokens_per_second"], None, unit=" bytes/s"))
    if "mfu" in found:
        share, most = (Samples((100 * found[key],), "%") for key in ("mfu", "mfu_fused"))
        wanted = Target("≥", 40) if step.shape == TWO_ST else None
        rows.append(Row(f"{step.name}: share of the matrix rate", share, most, share.median, wanted, unit=" %"))
    return rows


def table_of(step: Step, found: dict[str, Any]) -> str:
    """The ten operations that cost most."""
    lines = [f"### {step.name}: the {TOP} operations that cost most", ""]
    lines += ["| operation | type | of inputs | calls | ms | bound by |", "| --- | --- | --- | ---: | ---: | --- |"]
    lines += [
        f"| {one['operation']} | {one['type']} | {one['shapes']} | {one['calls']:,} | {1e3 * one['seconds']:.2f} | "
        f"{one['bound']} |"
        for one in found["operations"]
    ]
    share = ", ".join(f"{100 * value:.0f} % {name}" for name, value in found["limits"].items())
    held = ", ".join(f"{' '.join(filter(None, what))} {size / GB:.2f}" for *what, size in found["peak_by"][:6])
    return "\n".join([*lines, "", f"Time by what bounds it: {share}. At the peak, GB: {held}.", ""])


REMARKS = (
    "Predicted from counts, on no GPU: every operation at its bound (FLOPs, bytes or launch), one after another. "
    "Kernels are slower than their bounds, and caches quicker. The recurrence is ours, in PyTorch.",
    f"Ceilings of one H200: {H200.half / 1e12:.0f} TFLOP/s of bfloat16 products and {H200.copy / 1e12:.1f} TB/s of "
    f"copying (measured once), {H200.full / 1e12:.0f} TFLOP/s of float32 (data sheet, no TF32), assumed "
    f"{H200.launch * 1e6:.0f} µs a launch.",
    "Of a step's rows the second column is the same products with elementwise passes and launches free: with a "
    "compiler the truth is between the two. Of memory it is the paper's, unverified, on another GPU.",
    "Share of the matrix rate: FLOPs that a step needs, three times those of the forward's products, nothing twice.",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count every step and print the table; with --record or --out also write it."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--record", action="store_true", help="write results/recorded/gpu-predicted")
    parser.add_argument("--out", type=Path, help="write into this folder instead")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to see that it runs")
    options = parser.parse_args(given)
    if options.tiny and options.record:
        parser.error("expected --out with --tiny: toy numbers do not belong among the recorded ones")
    steps = [*SPEEDS, *LENGTHS, *TABLE]
    if options.tiny:
        steps = [Step(shape=step.shape.tiny(), half=step.half, answer=step.answer) for step in steps]
    found = {step.name: predicted(step) for step in steps}
    rows = [row for step in steps for row in rows_of(step, found[step.name])]
    generation = generated(LONG_ST.tiny() if options.tiny else LONG_ST)
    rows += generation_rows(generation)
    table = markdown("Predicted for one H200", against="bound / paper", rows=rows, remarks=REMARKS)
    tables = [table, *(table_of(step, found[step.name]) for step in steps if step.published is None)]
    text = "\n".join(tables)
    out = options.out or (RECORDED / "gpu-predicted" if options.record else None)
    if out is None:
        print(text)
        return
    about = machine_provenance(MODULE, given, torch.get_num_threads())
    record(
        out,
        "predicted",
        table=text,
        rows=rows,
        facts={"ceilings": asdict(H200), "steps": found, "generation": generation},
        about=about,
    )


if __name__ == "__main__":
    main()
