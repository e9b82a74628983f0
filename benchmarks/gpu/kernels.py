"""Our PyTorch code and mamba-ssm's kernels on the device against float64, which attention runs, and the scan's speed.

A quantity that is further from float64 than its limit is a failure: the command ends with status 1. Knows what is tried
and the limits; `parity` and `attention` do the work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Row, Samples, amount, speedup
from benchmarks.gpu import attention, parity
from benchmarks.gpu.bench import OUT_OF_MEMORY, Bench
from benchmarks.gpu.parity import ScanSizes, StageSizes
from benchmarks.gpu.parts import Report
from benchmarks.gpu.shapes import MILLION, ONE_T, THREE_TTT, TWO_TT, PaperShape
from benchmarks.shapes import PEER
from mblm import MambaBlock
from mblm.model.kernels import Kernel, fused_ssd, resolve_kernel
from mblm.model.ssd import ssd

# Limits of ‖found - exact‖ / ‖exact‖. Rounding is 6e-8 in float32, 5e-4 in TF32 and 4e-3 in bfloat16; sums of many
# roundings of random sign come out at about as much, and the sizes here give less than 1e-5 and 8e-3 on a CPU.
FLOAT32, TF32, BFLOAT16 = 1e-4, 5e-3, 2e-2
# A single parameter's gradient may be a few numbers (a head's step or decay), each a sum of terms that mostly cancel.
SINGLE_GRADIENT = 10
NORM = "of the norm"  # the unit of an error
RAISED = "raised"

# Seconds: a check in PyTorch, or by kernels that are compiled already; kernels that Triton has to compile and try out,
# once for each type of number. The second type is left for a longer run.
NEEDS, NEEDS_FIRST_KERNELS, NEEDS_MORE_KERNELS = 3.0, 40.0, 60.0


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Everything that is tried. batches: contexts at once, for the shapes whose attention is looked at."""

    scan: ScanSizes
    stage: StageSizes
    models: tuple[PaperShape, ...]
    embedding: tuple[int, int, int]  # patches, bytes of a patch, width
    attention: tuple[tuple[PaperShape, int], ...]
    timed_scan: ScanSizes
    repeats: int


def _model(family: str, *seq_lens: int) -> PaperShape:
    many = len(seq_lens)
    name = f"{family} of {'·'.join(map(str, seq_lens))} bytes"
    return PaperShape(
        name=name, family=family, seq_lens=seq_lens, hidden_dims=(256,) * many, num_layers=(2,) * many, widths=PEER
    )


MODELS = (_model("T/T", 64, 8), _model("S/T", 64, 8), _model("S/T/T", 32, 4, 4))
FULL = Sizes(
    scan=ScanSizes(rows=2, heads=4, head=64, state=128, lengths=(9, 512, 600)),
    stage=StageSizes(
        block=MambaBlock(d_state=128, d_conv=4, expand=2, headdim=64), width=256, layers=2, rows=4, length=600
    ),
    models=MODELS,
    embedding=(8192, 8, 1024),
    # 8,192 rows in the local stages: flash attention counts 9 positions as 128, and 16 heads of 64 channels of more
    # than 16,384 such rows are beyond the 32 bits of its backward pass.
    attention=((TWO_TT, 8), (THREE_TTT, 4), (ONE_T, 1), (MILLION, 1)),
    timed_scan=ScanSizes(rows=8, heads=32, head=64, state=128, lengths=(1024,)),  # the paper's first stage at 8K
    repeats=10,
)
TINY = Sizes(
    scan=ScanSizes(rows=1, heads=2, head=8, state=16, lengths=(9, 64, 70)),
    stage=StageSizes(
        block=MambaBlock(d_state=16, d_conv=4, expand=2, headdim=8), width=16, layers=2, rows=2, length=70
    ),
    models=tuple(model.tiny() for model in MODELS),
    embedding=(32, 4, 16),
    attention=((TWO_TT.tiny(), 1), (MILLION.tiny(), 1)),
    timed_scan=ScanSizes(rows=1, heads=2, head=8, state=16, lengths=(128,)),
    repeats=2,
)


@dataclass(frozen=True)
class Check:
    """One comparison with float64, the limit of its errors, and about how many seconds it takes."""

    name: str
    limit: float
    measure: Callable[[], dict[str, Any]]
    needs: float = NEEDS


@dataclass
class Findings:
    """What is measured, item by item, and what there is to say of it."""

    bench: Bench
    sizes: Sizes
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def measure(self, name: str, work: Callable[[], dict[str, Any]], needs: float = NEEDS) -> dict[str, Any] | None:
        """The item's result, or None where there is none. What a kernel raises is a failure; the rest still runs."""
        result = self.bench.item(name, {"sizes": str(self.sizes)}, partial(_guarded, work), needs=needs)
        if result is not None and OUT_OF_MEMORY in result:
            self.remarks.append(f"{name}: out of memory: {result[OUT_OF_MEMORY]}")
            return None
        if result is not None and RAISED in result:
            self.failures.append(f"{name}: raised {result[RAISED]}")
            return None
        return result


def run(bench: Bench) -> Report:
    """Everything there is to compare on this device, the kernels of mamba-ssm last as compiling them takes longest."""
    sizes, device = TINY if bench.tiny else FULL, bench.device.torch_device
    torch.set_float32_matmul_precision("highest")  # float32 products in float32, not TF32
    findings = Findings(bench, sizes)
    missing = why_not_fused(device)
    if missing:
        findings.remarks.append(f"mamba-ssm's kernels did not run: {missing}")
    for check in _checks(sizes, device):
        _compare(findings, check)
    _look_at_attention(findings)
    times = {"torch": _time_scan(findings, "torch")}
    if missing is None:
        for check in _fused_checks(sizes, device):
            _compare(findings, check)
        times["triton"] = _time_scan(findings, "triton")
    _compare_times(findings, times)
    title = "Kernels: distance from float64, as a part of the norm; attention and scan: seconds, forward and backward"
    return Report(title, "the other kernel", findings.rows, findings.remarks, findings.failures)


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers of kernels raise errors of their own
        return {RAISED: " ".join(f"{type(error).__name__}: {error}".split())}


def why_not_fused(device: torch.device) -> str | None:
    """Why mamba-ssm's scan cannot run on a device; None where it can."""
    try:
        resolve_kernel("triton", device)
    except RuntimeError as error:
        return str(error)
    return None


# -- comparisons with float64 -----------------------------------------------------------------------------------------


def _checks(sizes: Sizes, device: torch.device) -> Iterator[Check]:
    """Our own code."""
    for kind, name, limit in ((torch.float32, "float32", FLOAT32), (torch.bfloat16, "bfloat16", BFLOAT16)):
        yield Check(f"scan, {name}", limit, partial(parity.scan_errors, "torch", kind, sizes.scan, device))
        yield Check(f"Mamba-2 stage, {name}", limit, partial(parity.stage_errors, "torch", kind, sizes.stage, device))
        for shape in sizes.models:
            of = (kind, shape, device)
            yield Check(f"sparse loss, {shape.name}, {name}", limit, partial(parity.loss_errors, "torch", *of))
            yield Check(f"shared prefix, {shape.name}, {name}", limit, partial(parity.shared_errors, "torch", *of))
    for shape in sizes.models:
        yield Check(f"decoding, {shape.name}, float32", FLOAT32, partial(parity.decode_errors, "torch", shape, device))
    yield Check("embedding by table, float32", FLOAT32, partial(parity.embedding_errors, *sizes.embedding, device))


def _fused_checks(sizes: Sizes, device: torch.device) -> Iterator[Check]:
    """The same by mamba-ssm's kernels, whose float32 products are rounded to TF32."""
    types = (
        (torch.bfloat16, "bfloat16", BFLOAT16, NEEDS_FIRST_KERNELS),
        (torch.float32, "float32 as TF32", TF32, NEEDS_MORE_KERNELS),
    )
    mamba = [shape for shape in sizes.models if "S" in shape.family]
    for kind, name, limit, needs in types:
        by = f"{name}, mamba-ssm"
        yield Check(f"scan, {by}", limit, partial(parity.scan_errors, "triton", kind, sizes.scan, device), needs)
        stage = partial(parity.stage_errors, "triton", kind, sizes.stage, device)
        yield Check(f"Mamba-2 stage, {by}", limit, stage)
        for shape in mamba:
            of = (kind, shape, device)
            yield Check(f"sparse loss, {shape.name}, {by}", limit, partial(parity.loss_errors, "triton", *of))
            yield Check(f"shared prefix, {shape.name}, {by}", limit, partial(parity.shared_errors, "triton", *of))
            if kind == torch.float32:
                decode = partial(parity.decode_errors, "triton", shape, device)
                yield Check(f"decoding, {shape.name}, {by}", limit, decode)


def _compare(findings: Findings, check: Check) -> None:
    """A row of the worst output, and a failure for everything beyond its limit."""
    result = findings.measure(check.name, check.measure, check.needs)
    if result is None:
        return
    # What is not a number is beyond every limit, and is put where it shows.
    outputs = {name: math.inf if math.isnan(error) else error for name, error in result["outputs"].items()}
    worst = max(outputs, key=lambda name: outputs[name])
    sample = Samples((outputs[worst],), NORM)
    findings.rows.append(amount(f"{check.name}; most: {worst}", sample, at_most=check.limit))
    gradients = {f"gradient of {name}": error for name, error in result["gradients"].items()}
    for errors, limit in ((outputs, check.limit), (gradients, SINGLE_GRADIENT * check.limit)):
        findings.failures += [
            f"{check.name}: {name}: expected at most {limit:g} {NORM} from float64, got {error:.2g}"
            for name, error in errors.items()
            if not error <= limit
        ]


# -- attention and the scan's speed -----------------------------------------------------------------------------------


def _look_at_attention(findings: Findings) -> None:
    """Who runs for each transformer stage, in both types of training; its time against the quickest of the others."""
    device, repeats = findings.bench.device, findings.sizes.repeats
    said: dict[str, list[str]] = {}
    for shape, batch in findings.sizes.attention:
        for sequences in attention.stage_sequences(shape, batch):
            for kind, name in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32")):
                what = f"{sequences.stage}, {sequences.rows}×{sequences.positions}, {name}"
                work = partial(attention.measure_backends, sequences, kind, device, repeats=repeats)
                found = findings.measure(f"attention, {what}", work)
                if found is None:
                    continue
                refused = (f"; {backend} does not: {reason}" for backend, reason in found["refused"].items())
                said.setdefault("".join((f"attention: {found['picked']} runs", *refused)), []).append(what)
                reason = found["refused"].get(found["picked"])
                if reason not in (None, attention.OUT_OF_MEMORY):
                    findings.failures.append(f"attention, {what}: {found['picked']} is picked and fails: {reason}")
                _compare_backends(findings, f"attention, {what}", found)
    findings.remarks += [f"{text} ({'; '.join(names)})" for text, names in said.items()]


def _compare_backends(findings: Findings, name: str, found: dict[str, Any]) -> None:
    seconds = {backend: Samples(tuple(values), "s") for backend, values in found["seconds"].items()}
    picked = seconds.pop(found["picked"], None)
    if picked is not None and seconds:
        best = min(seconds, key=lambda backend: seconds[backend].median)
        findings.rows.append(speedup(f"{name}: {found['picked']}, against {best}", picked, seconds[best]))


def _time_scan(findings: Findings, kernel: Kernel) -> Samples | None:
    """Forward and backward of the recurrence in bfloat16."""
    device, sizes, repeats = findings.bench.device, findings.sizes.timed_scan, findings.sizes.repeats

    def measure() -> dict[str, Any]:
        scan: Callable[..., tuple[Tensor, Tensor]] = fused_ssd if kernel == "triton" else ssd
        inputs = parity.scan_inputs(torch.bfloat16, sizes, sizes.lengths[0], device.torch_device)[:-1]
        leaves = [tensor.requires_grad_() for tensor in inputs]
        weight = torch.randn_like(leaves[0])

        def work() -> None:
            torch.autograd.grad(scan(*leaves, None)[0], leaves, weight)

        return {"seconds": list(device.seconds(work, repeats=repeats).values)}

    needs = NEEDS if kernel == "torch" else NEEDS_FIRST_KERNELS
    found = findings.measure(f"speed of the scan, {kernel}", measure, needs)
    return None if found is None else Samples(tuple(found["seconds"]), "s")


def _compare_times(findings: Findings, times: Mapping[str, Samples | None]) -> None:
    sizes, ours, fused = findings.sizes.timed_scan, times["torch"], times.get("triton")
    what = f"scan of {sizes.rows}×{sizes.lengths[0]} positions, {sizes.heads}·{sizes.head} channels, PyTorch"
    if ours is not None:
        against = f"{what}, against mamba-ssm"
        findings.rows.append(amount(what, ours) if fused is None else speedup(against, ours, fused))
