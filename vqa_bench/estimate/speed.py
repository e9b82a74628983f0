"""How fast this machine multiplies matrices and passes over memory, and what that makes of a step.

A step's time is that of its matrix products plus that of its elementwise passes over memory: narrow layers spend more
on the second. Both rates are measured here, in a third of a second. Knows tensors' sizes, not models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

# Fitted by eye to eight small models with T and S stages, widths 64 to 512, one thread, in CPU seconds: all within a
# third (benchmarks/estimates.py holds others against them; on a GPU they are not measured). Products in a model are
# slower than the probe's, which repeats one that lies in the cache; and what a layer keeps is read and written about so
# many times, forward and backward.
PRODUCTS_SLOWER = 1.5
PASSES = 20.0
UPDATE_PASSES = 10.0  # over the weights, for clipping and AdamW

PROBE_ROWS = 1024
PROBE_NUMBERS = 2**22
PROBE_SECONDS = 0.05  # for each width, and for the memory


@dataclass(frozen=True)
class Rates:
    """products: FLOPs a second at each width. memory: bytes a second, read and written."""

    products: dict[int, float]
    memory: float

    def step_seconds(self, flops: dict[int, float], *, traffic: float, weights: float) -> float:
        """Seconds of a step: FLOPs by width, bytes that layers keep, bytes of the weights that are updated."""
        products = sum(amount / self.products[width] for width, amount in flops.items())
        return PRODUCTS_SLOWER * products + (PASSES * traffic + UPDATE_PASSES * weights) / self.memory


@lru_cache(maxsize=64)
def measured_rates(
    device: torch.device, widths: tuple[int, ...], *, threads: int | None, half: bool, matmul_precision: str
) -> Rates:
    """What a device reaches now, on so many threads (CPU), in a 16-bit type or in float32 of that precision."""
    with _set(threads, matmul_precision):
        kind = torch.bfloat16 if half else torch.float32
        products = {width: _products_rate(device, width, kind) for width in widths}
        numbers = torch.ones(PROBE_NUMBERS, device=device)
        out = torch.empty_like(numbers)
        seconds = _best(lambda: torch.mul(numbers, 1.5, out=out), device)
        return Rates(products, 2 * numbers.nbytes / seconds)


def _products_rate(device: torch.device, width: int, kind: torch.dtype) -> float:
    x = torch.ones(PROBE_ROWS, width, device=device, dtype=kind)
    weight = torch.ones(2 * width, width, device=device, dtype=kind)
    return 2 * PROBE_ROWS * width * 2 * width / _best(lambda: F.linear(x, weight), device)


def _best(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the quickest of as many turns as there is time for, after one that is not counted."""

    def turn() -> float:
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    turn()
    best, until = turn(), time.perf_counter() + PROBE_SECONDS
    while time.perf_counter() < until:
        best = min(best, turn())
    return best


@contextmanager
def _set(threads: int | None, matmul_precision: str) -> Iterator[None]:
    threads_before, precision_before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(threads_before if threads is None else threads)
    torch.set_float32_matmul_precision(matmul_precision)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.set_float32_matmul_precision(precision_before)
