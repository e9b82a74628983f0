"""One training step as the harness takes it, timed: forward and backward under autocast, clipping, fused AdamW.

Weights and moments are float32, matrix products bfloat16. Knows cases, not rows.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import say
from benchmarks.gpu.counts import Counts
from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import build
from benchmarks.gpu.speed_cases import Case
from benchmarks.gpu.speed_profile import profile_work
from mblm import MBLM
from vqa_bench.models import compile_layers
from vqa_bench.train.optimisation import parameter_groups, scale_and_clip

HALF = torch.bfloat16
WARMUP = 2
LEARNING_RATE = 1e-4  # at which a few steps on random bytes do no harm
BETAS, CLIP = (0.9, 0.95), 1.0  # the paper's
COMPILE_FAILED = "compile_failed"
LIMIT = "fail_on_recompile_limit_hit"  # an option since torch 2.7
Result = dict[str, Any]


class Trainee:
    """A model with its optimiser and one batch; `step` is one optimiser step."""

    def __init__(self, case: Case, batch: int, device: torch.device) -> None:
        self.model: MBLM = build(case.shape, device).train()
        self._optimizer = torch.optim.AdamW(
            parameter_groups(self.model, 0.0), lr=LEARNING_RATE, betas=BETAS, fused=True
        )
        self._loss, self._device = case.loss(batch, device), device

    def step(self) -> Tensor:
        """The mean loss in nats before the step, still on the device."""
        self._optimizer.zero_grad()
        with torch.autocast(self._device.type, dtype=HALF):
            total, targets = self._loss(self.model)
        loss = total / targets
        loss.backward()
        scale_and_clip(self.model, 1.0, CLIP)
        self._optimizer.step()
        return loss.detach()


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
    trainee = Trainee(case, batch, device.torch_device)
    if backend is not None:
        compile_layers(trainee.model, backend)
    begin = time.perf_counter()
    loss = float(trainee.step())
    first = time.perf_counter() - begin
    seconds = device.seconds(trainee.step, repeats=case.repeats, warmup=WARMUP - 1)
    return {
        "batch": batch,
        "samples": case.samples(batch),
        "seconds": list(seconds.values),
        "first_seconds": first,
        "peak": device.peak_memory(trainee.step),
        "loss": loss,
        "parameters": sum(parameter.numel() for parameter in trainee.model.parameters()),
        "kernels": trainee.model.kernels(),
    }


def profile_step(device: Device, case: Case) -> Result:
    """Where the step's time goes, see `profile_work`, with the largest batch that fits.

    moved: bytes that its operations read and write, each for itself, see `Counts`; kernels of Triton's are not seen.
    """

    def measure(batch: int) -> Result:
        trainee = Trainee(case, batch, device.torch_device)
        for _ in range(WARMUP):
            trainee.step()
        device.synchronize()
        profile = profile_work(device, trainee.step)
        with Counts() as counts:
            trainee.step()
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
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise AssertionError("a batch of one returns or raises")


def halves(batch: int) -> list[int]:
    """batch, half of it, … 1."""
    return [batch] if batch == 1 else [batch, *halves(batch // 2)]
