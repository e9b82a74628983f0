"""What counts say of a GPU that is not at hand: `python -m benchmarks.gpu.predict [--record]`.

Every step is run once on an imagined GPU, operation by operation; an operation takes as long as the slowest of its
FLOPs, its bytes and its launch. Nothing is measured but the ceilings, and those on another day: what it says is what
would have to be so if every kernel ran at its bound. It is recorded so that a measurement can be held against it.

predict_steps.py  which steps
predict_rows.py   what is said of them: rows, what limits each, what to try next
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import GB, RECORDED, machine_provenance, markdown, record, say
from benchmarks.gpu.counts import Counts, count_step
from benchmarks.gpu.imagined import ImaginedGPU
from benchmarks.gpu.imagined_scan import fused_scan
from benchmarks.gpu.predict_rows import REMARKS, generation_limit, generation_rows, limit_of, rows_of, table_of
from benchmarks.gpu.predict_steps import LENGTHS, SPEEDS, TABLE, Step
from benchmarks.gpu.roofline import H200, TOP, attention_flops, limits, operations, padded, seconds_of
from benchmarks.gpu.shapes import LONG_ST, PaperShape, build
from benchmarks.gpu.speed_cases import useful_flops
from benchmarks.gpu.training import BYTE_VALUES, Training, random_batch
from mblm import MBLMReturnType
from mblm.decode import prefill
from mblm.decode import step as read_byte

MODULE = "benchmarks.gpu.predict"


def counted(step: Step) -> Counts:
    """The step on an imagined GPU."""
    with ImaginedGPU(), fused_scan():
        training = Training(build(step.shape, "meta", step.scan), half=step.half)
        return count_step(training, random_batch(step.batch, step.shape.context, "cpu", answer=step.answer))


def predicted(step: Step) -> dict[str, Any]:
    """Everything that is said of a step, JSON-able."""
    counts = counted(step)
    tiled = padded(counts)
    seconds = {
        "seconds": seconds_of(counts),
        "seconds_fused": seconds_of(counts, fused=True),
        "seconds_padded": seconds_of(tiled),
        "seconds_fused_padded": seconds_of(tiled, fused=True),
    }
    useful = useful_flops(step.shape, step.batch) if step.answer is None else None
    found = {
        "shape": asdict(step.shape),
        "batch": step.batch,
        "half": step.half,
        "answer": step.answer,
        "scan": step.scan if step.recurs else None,
        "peak": counts.peak,
        "peak_by": [[name, shape, size] for (name, shape), size in _largest(counts.peak_by)],
        "flops": counts.flops,
        "useful_flops": useful,
        "moved": counts.moved,
        "launches": counts.launches,
        "tokens_per_second": step.batch * step.shape.context / seconds["seconds"],
        "padding": attention_flops(tiled) / max(attention_flops(counts), 1.0),
        "operations": operations(counts),
        "limits": limits(counts),
        **seconds,
    }
    if useful is not None and step.half:
        found |= {key.replace("seconds", "mfu"): useful / value / H200.half for key, value in seconds.items()}
    say(f"{step.name}: {counts.peak / GB:.1f} GB, {seconds['seconds']:.3f} s")
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
    graphed = replace(H200, launch=H200.graphed)
    return {
        "shape": asdict(shape),
        "launches": counts.launches / patch,
        "moved": counts.moved / patch,
        "seconds": seconds_of(counts) / patch,
        "seconds_graphed": seconds_of(counts, graphed) / patch,
        "limits": limits(counts),
        "limits_graphed": limits(counts, graphed),
        "forwards": forwards,
    }


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
        steps = [step.tiny() for step in steps]
    found = {step.name: predicted(step) for step in steps}
    generation = generated(LONG_ST.tiny() if options.tiny else LONG_ST)
    rows = [row for step in steps for row in rows_of(step, found[step.name])] + generation_rows(generation)
    told = [step for step in steps if step.published is None]
    said = [limit_of(step, found[step.name], found[replace(step, scan="triton").name]) for step in told]
    remarks = [*REMARKS, *said, generation_limit(generation)]
    table = markdown("Predicted for one H200", against="bound / paper", rows=rows, remarks=remarks)
    text = "\n".join([table, *(table_of(step, found[step.name]) for step in told)])
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
