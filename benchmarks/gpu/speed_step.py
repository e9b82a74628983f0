"""A case's training step, timed: forward under autocast, backward, clipping, fused AdamW.

Weights and moments are float32, matrix products bfloat16. Knows cases, not rows; the step itself is in training.py.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import say
from benchmarks.gpu.counts import Counts
from benchmarks.gpu.device import Device, release_memory
from benchmarks.gpu.shapes import build
from benchmarks.gpu.speed_cases import Case
from benchmarks.gpu.speed_profile import profile_work
from benchmarks.gpu.training import Training
from vqa_bench.models import compile_layers

WARMUP = 2
COMPILE_FAILED = "compile_failed"
LIMIT = "fail_on_recompile_limit_hit"  # an option since torch 2.7
Result = dict[str, Any]


def prepare(case: Case, batch: int, device: torch.device) -> tuple[Training, Callable[[], float]]:
    """The case's model in training, and its step on a batch that stays the same."""
    model = build(case.shape, device)
    training, drawn = Training(model, half=True, loss=case.loss(model)), case.draw(batch, device)
    return training, lambda: training.step(drawn)


def measure_step(device: Device, case: Case, *, backend: str | None = None) -> Result:
    """The step's seconds, peak memory (bytes, None on a CPU) and first loss, with the largest batch that fits.

    backend: of torch.compile, by which the layers are compiled first; None runs them as they are. What fails then is a
    result, {"compile_failed": the error's first line}.
    """
    if backend is None:
        return with_fitting_batch(lambda batch: _measure(device, case, batch, None), case.batch)
    import torch._dynamo  # takes seconds, and only a compiler needs it

    strict = {LIMIT: True} if hasattr(torch._dynamo.config, LIMIT) else {}
    try:
        # Past its limit of recompilations a layer would run as it is, and say so in a log only.
        with torch._dynamo.config.patch(strict):
            return with_fitting_batch(lambda batch: _measure(device, case, batch, backend), case.batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler fails in many ways; without it the step runs, which is measured too
        traceback.print_exc()
        return {COMPILE_FAILED: f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"}
    finally:
        torch.compiler.reset()
        gc.collect()  # a compiled layer and its code hold one another, and the weights


def _measure(device: Device, case: Case, batch: int, backend: str | None) -> Result:
    training, step = prepare(case, batch, device.torch_device)
    if backend is not None:
        compile_layers(training.model, backend)
    begin = time.perf_counter()
    loss = step()
    first = time.perf_counter() - begin
    seconds = device.seconds(step, repeats=case.repeats, warmup=WARMUP - 1)
    return {
        "batch": batch,
        "samples": case.samples(batch),
        "seconds": list(seconds.values),
        "first_seconds": first,
        "peak": device.peak_memory(step),
        "loss": loss,
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "kernels": training.model.kernels(),
    }


def profile_step(device: Device, case: Case) -> Result:
    """Where the step's time goes, see `profile_work`, with the largest batch that fits.

    moved: bytes that its operations read and write, each for itself, see `Counts`; kernels of Triton's are not seen.
    """

    def measure(batch: int) -> Result:
        _, step = prepare(case, batch, device.torch_device)
        for _ in range(WARMUP):
            step()
        device.synchronize()
        profile = profile_work(device, step)
        with Counts() as counts:
            step()
        return {"batch": batch, "moved": counts.moved, **profile}

    return with_fitting_batch(measure, case.batch)


def with_fitting_batch(measure: Callable[[int], Result], batch: int) -> Result:
    """What `measure` finds with `batch`, or with half as many until they fit the GPU's memory.

    `halved_from` in the result says where it began. Raises torch.OutOfMemoryError where not even one fits.
    """
    for size in halves(batch):
        try:
            result = measure(size)
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise
            say(f"a batch of {size:,} does not fit: {str(error).split('. ')[0]}")
        else:
            return result if size == batch else result | {"halved_from": batch}
        # Outside of the handler: the error holds the frames that hold the tensors.
        release_memory()
    raise AssertionError("a batch of one returns or raises")


def halves(batch: int) -> list[int]:
    """batch, half of it, … 1."""
    return [batch] if batch == 1 else [batch, *halves(batch // 2)]
