"""Generation behind long prompts: a byte's time byte by byte and by CUDA graphs, and of the whole forward for each.

Both ways go on from the same read prompt with the same random numbers, so they must write the same bytes, on the device
too. What a call launches and moves is counted, and held against its time. Rows for the speed part; knows nothing of
training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Row, Samples, growth, speedup
from benchmarks.gpu import shapes
from benchmarks.gpu.bench import OUT_OF_MEMORY, Bench
from benchmarks.gpu.counts import Counts
from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import PaperShape, build
from mblm import MBLM, MBLMReturnType
from mblm.decode import DecodeState
from mblm.generate import ByteWriter, read_prompts
from mblm.graphs import PatchWriter, Plan, find_plan
from mblm.sampling import Draws, Sampler

Result = dict[str, Any]
SEED = 0
TIMES_THE_FORWARD = 100.0  # a byte against the reference's whole forward, at the least
FLAT = 1.1  # a byte behind a long prompt against one behind a short one: the state has one size, the rest is noise
# On random weights the likeliest byte soon repeats itself; drawn ones keep differing, and show two ways that differ.
SAMPLER = Sampler()
HOW = (
    "Generation: a byte of every row, its choice and the host's look at it included, the prompt's reading and the "
    "capture of graphs not; bfloat16 and float32 are the weights' type."
)
NOTE_FORWARD = (
    "The whole forward for every byte is what the reference does, here by our own model; part peer has the reference's."
)
NOTE_FLAT = "Against the same model behind the short prompt."


@dataclass(frozen=True, kw_only=True)
class GenerationCase:
    """A model, prompts of `prompt` bytes for `rows` rows, and whether the whole forward is timed too.

    half: bfloat16 weights. seconds: about how long it takes, kernels that are compiled at first use included.
    """

    shape: PaperShape
    prompt: int
    rows: int = 1
    half: bool = True
    forward: bool = False
    seconds: float = 6.0

    @property
    def name(self) -> str:
        kind, rows = "bfloat16" if self.half else "float32", "1 row" if self.rows == 1 else f"{self.rows} rows"
        return f"{self.shape.name}, {rows} behind {self.prompt:,} bytes, {kind}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """cases: by importance. flat: a long prompt and the short one it is held against. calls: that are timed, of each
    way; of both the first are left out."""

    cases: tuple[GenerationCase, ...]
    flat: tuple[GenerationCase, GenerationCase]
    byte_calls: int
    graph_calls: int


def _full() -> Sizes:
    room = 32  # patches behind a prompt
    long = (8192 - room) * 12
    main = GenerationCase(shape=shapes.LONG_ST, prompt=long, forward=True, seconds=25)
    short = replace(main, prompt=8184, forward=False, seconds=5)
    return Sizes(
        cases=(
            main,
            short,
            replace(main, rows=16, forward=False, seconds=8),
            replace(main, half=False, seconds=8),
            GenerationCase(shape=shapes.LONG_TT, prompt=long),
            GenerationCase(shape=shapes.MILLION, prompt=(8192 - room) * 128, seconds=12),
        ),
        flat=(main, short),
        byte_calls=3,
        graph_calls=16,
    )


def _tiny() -> Sizes:
    main = GenerationCase(shape=shapes.LONG_ST.tiny(), prompt=32, forward=True)
    short = replace(main, prompt=8, forward=False)
    cases = (main, short, replace(main, rows=3, half=False, forward=False))
    deep = GenerationCase(shape=shapes.MILLION.tiny(), prompt=48)
    return Sizes(cases=(*cases, deep), flat=(main, short), byte_calls=3, graph_calls=4)


FULL, TINY = _full(), _tiny()


def generation_rows(bench: Bench) -> tuple[list[Row], list[str], list[str]]:
    """Rows, remarks and failures; bytes that the two ways write differently are a failure."""
    sizes = TINY if bench.tiny else FULL
    settings = {"calls": [sizes.byte_calls, sizes.graph_calls], "tf32": torch.backends.cuda.matmul.allow_tf32}
    results = {
        case: bench.item(
            f"generation, {case.name}",
            asdict(case) | settings,
            lambda case=case: measure_generation(bench.device, case, sizes),  # type: ignore[misc]
            needs=case.seconds,
        )
        for case in sizes.cases
    }
    fit = {case: result for case, result in results.items() if result is not None and OUT_OF_MEMORY not in result}
    rows = [row for case, result in fit.items() for row in _rows(case, result, tiny=bench.tiny)]
    long, short = sizes.flat
    if long in fit and short in fit:
        samples = (Samples(tuple(fit[case]["graph"]), "s/byte") for case in sizes.flat)
        at_most = None if bench.tiny else FLAT
        rows.append(growth(f"{long.name}: a byte", *samples, at_most=at_most, notes=(NOTE_FLAT,)))
    remarks = [HOW] if fit else []
    remarks += [_remark(case, result, bench.device.copy_rate) for case, result in fit.items()]
    remarks += [
        f"Generation, {case.name}: does not fit ({result[OUT_OF_MEMORY]})."
        for case, result in results.items()
        if result is not None and OUT_OF_MEMORY in result
    ]
    failures = [
        f"generation, {case.name}: expected the same bytes by graphs as byte by byte, "
        f"got the first other one at {result['first_other']} of {result['compared']}"
        for case, result in fit.items()
        if result["first_other"] is not None
    ]
    return rows, remarks, failures


def measure_generation(device: Device, case: GenerationCase, sizes: Sizes) -> Result:
    """Seconds: of reading the prompts; of a byte of every row each way, call by call; of the capture; of a forward.

    call_bytes, captured: of the plan. launches, moved: operations and bytes of memory, counted, a byte of every row.
    first_other: the first of the `compared` bytes that the two ways do not agree on, None where they agree on all.
    """
    torch.manual_seed(SEED)
    model = build(case.shape, device.torch_device).eval()
    model = model.bfloat16() if case.half else model
    prompts = torch.randint(0, 256, (case.rows, case.prompt), device=device.torch_device)
    plan = find_plan(model, 1, True)
    assert plan is not None
    with torch.inference_mode():
        for _ in range(2):  # the first time kernels are loaded or compiled
            device.synchronize()
            begin = time.perf_counter()
            logits, state, _ = read_prompts(model, list(prompts))
            device.synchronize()
            read = time.perf_counter() - begin
        byte_times, by_byte = _byte_by_byte(model, plan, logits, state, sizes.byte_calls)
        begin = time.perf_counter()
        writer = PatchWriter(model, plan, SAMPLER, logits=logits, state=state)
        device.synchronize()
        capture = time.perf_counter() - begin
        call_times, by_call = _call_by_call(writer, plan, logits, sizes.graph_calls)
        counts = _count(model, replace(plan, graph=False), logits, state)
        del writer, state
        result = {"read": read, "eager": byte_times, "graph": call_times, "capture": capture}
        if case.forward:
            work = lambda: model(prompts, MBLMReturnType.LOGITS)[:, -1]  # noqa: E731
            result["forward"] = list(device.seconds(work, repeats=2, warmup=1).values)
    pairs = [a == b for eager, graph in zip(by_byte, by_call, strict=True) for a, b in zip(eager, graph, strict=False)]
    return result | {
        "call_bytes": plan.call_bytes,
        "captured": plan.graph,
        "launches": counts.launches / plan.call_bytes,
        "moved": counts.moved / plan.call_bytes,
        "compared": len(pairs),
        "first_other": None if all(pairs) else pairs.index(False),
    }


def _draws(logits: Tensor) -> Draws:
    generator = torch.Generator(logits.device).manual_seed(SEED)
    return Draws(SAMPLER, generator, (len(logits), logits.shape[1]), logits.device)


def _byte_by_byte(
    model: MBLM, plan: Plan, logits: Tensor, state: DecodeState, calls: int
) -> tuple[list[float], list[list[int]]]:
    """Seconds a byte in each call's worth of bytes but the first, and every row's bytes."""
    writer, draws = ByteWriter(model, SAMPLER, logits=logits, state=state), _draws(logits)

    def call() -> list[list[int]]:
        single = [writer.write(draws.numbers(1)).tolist() for _ in range(plan.call_bytes)]
        return [[ids[row][0] for ids in single] for row in range(len(logits))]

    return _timed(call, calls, plan.call_bytes)


def _call_by_call(writer: PatchWriter, plan: Plan, logits: Tensor, calls: int) -> tuple[list[float], list[list[int]]]:
    """As `_byte_by_byte`, by a plan's calls."""
    draws = _draws(logits)
    return _timed(lambda: writer.write(draws.numbers(plan.call_bytes)).tolist(), calls, plan.call_bytes)


def _timed(call: Callable[[], list[list[int]]], calls: int, call_bytes: int) -> tuple[list[float], list[list[int]]]:
    """The host has every call's bytes at its end, so nothing has to be waited for."""
    seconds: list[float] = []
    made: list[list[int]] = []
    for _ in range(calls):
        begin = time.perf_counter()
        written = call()
        seconds.append((time.perf_counter() - begin) / call_bytes)
        made = [before + ids for before, ids in zip(made or [[] for _ in written], written, strict=True)]
    return seconds[1:], made


def _count(model: MBLM, plan: Plan, logits: Tensor, state: DecodeState) -> Counts:
    """What a call launches and moves that also has the first stage read the patch before."""
    writer, draws = PatchWriter(model, plan, SAMPLER, logits=logits, state=state), _draws(logits)
    with Counts() as counts:
        writer.write(draws.numbers(plan.call_bytes))
    return counts


def _rows(case: GenerationCase, result: Mapping[str, Any], *, tiny: bool) -> Iterator[Row]:
    graph, eager = (Samples(tuple(result[way]), "s/byte") for way in ("graph", "eager"))
    yield speedup(f"{case.name}: a byte by graphs against byte by byte", graph, eager)
    if "forward" in result:
        forward = Samples(tuple(result["forward"]), "s/byte")
        at_least = None if tiny else TIMES_THE_FORWARD
        what = f"{case.name}: a byte by graphs against the whole forward"
        yield speedup(what, graph, forward, at_least=at_least, notes=(NOTE_FORWARD,))


def _remark(case: GenerationCase, result: Mapping[str, Any], copy_rate: float) -> str:
    """What limits a byte, from counts."""
    seconds, moving = median(result["graph"]), result["moved"] / copy_rate
    calls = f"graphs of {result['call_bytes']} bytes a call, made in {result['capture']:.2g} s"
    calls = calls if result["captured"] else f"calls of {result['call_bytes']} bytes, not captured"
    return (
        f"Generation, {case.name}: {calls}; the prompt was read in {result['read']:.2g} s. A byte has "
        f"{result['launches']:,.0f} operations, {seconds / result['launches'] * 1e6:.2g} µs each, and moves "
        f"{result['moved'] / 1e6:,.0f} MB, which takes {moving / seconds:.0%} of its time at the rate of a copy. "
        f"{result['compared']} bytes were compared."
    )
