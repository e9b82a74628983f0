"""Where the time of a piece of work goes: by operation, by kind of operation, and to launches; PyTorch's profiler.

On a GPU an operation's time is that of the kernels it launched, on a CPU its own. Knows operations' names, not models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.device import Device

PRODUCTS, ATTENTION, SCAN = "matrix products", "attention", "mamba-ssm's scan"
UPDATE, COPIES, PASSES = "optimiser", "copies and casts", "elementwise passes and sums"
LAUNCHES, UNNAMED = "waiting for launches", "kernels of no operation"
# The first kind whose pattern is found in an operation's name; all others are elementwise.
KINDS = {
    ATTENTION: re.compile(r"attention|fmha", re.IGNORECASE),
    SCAN: re.compile(r"MambaChunkScan|ChunkScanCombined"),
    PRODUCTS: re.compile(r"^aten::(mm|bmm|addmm|baddbmm|_addmm_activation|dot|mv|addmv)$"),
    UPDATE: re.compile(r"adam|_foreach_|Optimizer", re.IGNORECASE),
    COPIES: re.compile(r"^aten::(copy_|_to_copy|cat|clone|contiguous)$|Memcpy"),
}
# What to try where it takes the most time beside the products.
NEXT = {
    UPDATE: "larger batches, which share the update among more bytes",
    COPIES: "casting what several products read once, and products that read slices in place",
    PASSES: "compiled layers, which run chains of elementwise operations as one kernel",
    LAUNCHES: "larger batches, compiled layers or a CUDA graph, which launch fewer kernels",
}
SDPA = re.compile(r"^aten::_scaled_dot_product_(?!.*backward)(\w+)$")
SHOWN = 12
SMALLEST = 0.005  # share of a kind that is listed


def kind_of(operation: str) -> str:
    """Which kind of work an operation is, by its name in the profiler."""
    return next((kind for kind, pattern in KINDS.items() if pattern.search(operation)), PASSES)


def profile_work(device: Device, work: Callable[[], object]) -> dict[str, Any]:
    """What ran in one turn of `work`, which should have run before; JSON-able, times in seconds.

    seconds: of all kernels (on a CPU of all operations), launches: how many. kinds: seconds by kind of operation.
    operations, kernels: [name, seconds, calls] of those that took longest. attention: the backends that ran.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.is_cuda else [])]
    with profile(activities=activities) as profiler:
        work()
        device.synchronize()
    # Annotations, such as the optimiser's, span kernels that are counted by themselves.
    averages = [event for event in profiler.key_averages() if not event.is_user_annotation]
    operations = _times((event for event in averages if event.device_type == DeviceType.CPU), on_gpu=device.is_cuda)
    kernels = operations
    if device.is_cuda:
        kernels = _times((event for event in averages if event.device_type == DeviceType.CUDA), on_gpu=True)
    kinds: dict[str, float] = {}
    for name, seconds, _ in operations:
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + seconds
    return {
        "seconds": sum(seconds for _, seconds, _ in kernels),
        "launches": sum(calls for _, _, calls in kernels),
        "kinds": kinds,
        "operations": operations[:SHOWN],
        "kernels": kernels[:SHOWN] if device.is_cuda else [],
        "attention": sorted({found[1] for event in averages if (found := SDPA.match(event.key))}),
    }


def _times(events: Iterable[Any], *, on_gpu: bool) -> list[tuple[str, float, int]]:
    """(name, own seconds, calls) of what took any time, the longest first; the profiler counts microseconds."""
    times = [
        (event.key, (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6, event.count)
        for event in events
    ]
    return sorted((entry for entry in times if entry[1] > 0), key=lambda entry: -entry[1])


def describe(found: Mapping[str, Any], *, step: float, flops: float, ceilings: Mapping[str, float]) -> list[str]:
    """What limits a step, in sentences, from `profile_work` with the bytes that are `moved`.

    step: its seconds without a profiler. flops: counted, of all its products. ceilings: what the GPU does at most,
    `matmul` in FLOP/s and `copy` in bytes/s.
    """
    total, kinds = found["seconds"], found["kinds"]
    if not total:
        return ["The profiler recorded no kernel: what limits the step is not known."]
    busy = min(total / step, 1.0)
    shares = {kind: seconds / total for kind, seconds in sorted(kinds.items(), key=lambda item: -item[1])}
    shares[UNNAMED] = 1 - sum(shares.values())
    listed = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items() if share >= SMALLEST)
    sentences = [
        f"Kernels run for {busy:.0%} of the step's {step * 1e3:,.0f} ms, {found['launches']:,} launches of "
        f"{total / found['launches'] * 1e6:,.1f} µs on average; of their time: {listed}."
    ]
    multiplied = busy * sum(shares.get(kind, 0.0) for kind in (PRODUCTS, ATTENTION, SCAN))  # of the step
    if multiplied:
        reached = flops / (multiplied * step) / ceilings["matmul"]
        sentences.append(
            f"Matrix products, attention and scan reach {reached:.0%} of the matrix rate; with nothing else the step "
            f"would take {multiplied:.0%} of its time."
        )
    sentences.append(
        f"Its operations move {found['moved'] / 1e9:,.3g} GB, each read and written for itself: at the rate of a copy "
        f"{found['moved'] / ceilings['copy'] / step:.0%} of the step."
    )
    sentences.append(f"Attention by: {', '.join(found['attention']) or 'none'}.")
    sentences.append(f"Longest: {_longest(found['operations'], total)}.")
    if found["kernels"]:
        sentences.append(f"Longest kernels: {_longest(found['kernels'], total)}.")
    limits = {kind: busy * shares.get(kind, 0.0) for kind in NEXT} | {LAUNCHES: 1 - busy}
    worst = max(limits, key=lambda kind: limits[kind])
    sentences.append(f"Most beside the products goes to {worst} ({limits[worst]:.0%} of the step); try {NEXT[worst]}.")
    return sentences


def _longest(entries: Sequence[Sequence[Any]], total: float, count: int = 6, width: int = 60) -> str:
    return ", ".join(f"{name[:width]} {seconds / total:.0%} ({calls:,}×)" for name, seconds, calls in entries[:count])
