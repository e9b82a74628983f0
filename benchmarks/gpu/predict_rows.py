"""What is said of counted steps: rows, what limits each and what to try next, the operations that cost most.

Knows what `benchmarks.gpu.predict` found, not how.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.common import GB, Row, Samples, Target, speedup
from benchmarks.gpu.predict_steps import MAIN, SCANS, Step
from benchmarks.gpu.roofline import H200, TILE, TOP
from benchmarks.gpu.shapes import FIVE_MILLION, LONG_ST, TEN_MILLION
from mblm.model.kernels import CHUNK

LIMITS = {FIVE_MILLION: 80.0, TEN_MILLION: 139.0}  # GB in float32, as the issue asks
MFU = 40.0  # percent of the matrix rate, as the issue asks of the main step
GENERATION = 100.0  # times the reference's speed, as the issue asks
TELLING = 1.05  # growth of the time by padded attention that is worth a row
WORTH = 0.95  # share of a time that is worth another scan
Found = Mapping[str, Any]

REMARKS = (
    "Predicted from counts, on no GPU: every operation at its bound (FLOPs, bytes or launch), one after another. "
    "Kernels are slower than their bounds, and caches quicker.",
    f"{SCANS['triton']}: a GPU with `vqa-bench[cuda]`, the fused kernels counted as three operations by what they "
    f"read, write and multiply in chunks of {CHUNK}; they are taken to reach the matrix rate, and float32 to have no "
    f"TF32. {SCANS['torch']}: without it, ours.",
    f"Ceilings of one H200: {H200.half / 1e12:.0f} TFLOP/s of bfloat16 products and {H200.copy / 1e12:.1f} TB/s of "
    f"copying (measured once), {H200.full / 1e12:.0f} TFLOP/s of float32 (data sheet, no TF32), assumed "
    f"{H200.launch * 1e6:.0f} µs a launch.",
    "Of a step's rows the second column is the same products with elementwise passes and launches free: with a "
    "compiler the truth is between the two. Of memory it is the paper's, unverified, on another GPU.",
    "Share of the matrix rate: FLOPs that a step needs, three times those of the forward's products, nothing twice; "
    "the same number with either scan.",
    f"Flash attention works on tiles of {TILE} queries by {TILE} keys, and a sequence of a few positions has one of "
    "its own. Where that takes longer, a row with tiles says so: the one to expect until short sequences share tiles.",
)


def generation_rows(found: Found) -> list[Row]:
    """Ours one operation after another and in a graph, against the reference's forward."""
    rows = []
    for key, how in (("seconds", "each operation launched"), ("seconds_graphed", "in a CUDA graph")):
        ours = Samples((found[key],), "s")
        for kind, forward in found["forwards"].items():
            what = f"{LONG_ST.name}: a byte generated, {how}, against a {kind} forward"
            target = GENERATION if kind == "float32" else None
            rows.append(speedup(what, ours, Samples((forward["seconds"],), "s"), at_least=target))
    return rows


def rows_of(step: Step, found: Found) -> list[Row]:
    """Memory, time and share of the matrix rate."""
    limit = None if step.half else LIMITS.get(step.shape)
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
        wanted = Target("≥", MFU) if step == MAIN else None
        rows.append(Row(f"{step.name}: share of the matrix rate", share, most, share.median, wanted, unit=" %"))
        if _pads(found):
            share, most = (Samples((100 * found[key],), "%") for key in ("mfu_padded", "mfu_fused_padded"))
            what = f"{step.name}: share of the matrix rate, attention in tiles of {TILE}"
            rows.append(Row(what, share, most, share.median, wanted, unit=" %"))
    return rows


def _pads(found: Found) -> bool:
    return bool(found["seconds_padded"] > TELLING * found["seconds"])


def limit_of(step: Step, found: Found, other: Found) -> str:
    """What limits a step, and the next thing to try. other: what was found of it with mamba-ssm's scan."""
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found["limits"].items())
    costliest = found["operations"][0]
    said = [
        f"{step.name}: time by what bounds it: {shares}; most in one operation: {costliest['operation']} of "
        f"{costliest['shapes']}, {costliest['seconds'] / found['seconds']:.0%}."
    ]
    if _pads(found):
        said.append(
            f"In whole tiles its attention multiplies {found['padding']:.0f} times what it needs, and the step takes "
            f"{found['seconds_padded']:.3g} s instead of {found['seconds']:.3g} s: several sequences in a tile, behind "
            "a mask, would spare that."
        )
    return " ".join([*said, f"Next: {_next(step, found, other)}."])


def _next(step: Step, found: Found, other: Found) -> str:
    if other["seconds"] < WORTH * found["seconds"]:
        return f"{SCANS['triton']}, {other['seconds']:.3g} s a step instead of {found['seconds']:.3g} s"
    first = next(iter(found["limits"]))
    spared = 1 - found["seconds_fused"] / found["seconds"]
    if first == "launches":
        return f"a larger batch, or layers in a CUDA graph; without launches and passes it takes {spared:.0%} less"
    if first == "FLOPs" and not step.half:
        return "TF32 (`train.matmul_precision: high`), whose products are several times as fast, or bfloat16"
    return f"compiled layers (`train.compile: true`), which join passes and spare at most {spared:.0%} of it"


def generation_limit(found: Found) -> str:
    """What limits a generated byte, launched and in a graph, and the next thing to try."""
    launched, graphed = (
        ", ".join(f"{name} {share:.0%}" for name, share in found[key].items()) for key in ("limits", "limits_graphed")
    )
    return (
        f"{LONG_ST.name}: a generated byte: {found['launches']:.0f} launches and {found['moved'] / GB:.2f} GB; time by "
        f"what bounds it: {launched}, in a graph {graphed}. Next: compiled layers, which are fewer "
        "operations, or more rows at once, which share them."
    )


def table_of(step: Step, found: Found) -> str:
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
