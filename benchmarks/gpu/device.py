"""The machine that is measured: what it is, what time and memory a piece of work takes, and its two ceilings.

The ceilings are measured in the same run as everything that is held against them: products of bfloat16 matrices, and
a copy within its memory. On a CPU, for the dry run, the same calls measure the CPU.
"""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import torch

from benchmarks.common import Samples, processor

PACKAGES = ("torch", "triton", "mamba-ssm", "causal-conv1d", "numpy", "accelerate", "datasets")
QUERY = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")


class Device:
    """A CUDA device, or the CPU in its place. `tiny`: probe the ceilings at a size that takes no time."""

    def __init__(self, torch_device: torch.device, *, tiny: bool = False) -> None:
        self.torch_device, self.tiny = torch_device, tiny

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    @property
    def total_memory(self) -> int | None:
        """Bytes of the GPU's memory; None for a CPU, whose memory others use too."""
        return torch.cuda.get_device_properties(self.torch_device).total_memory if self.is_cuda else None

    def facts(self) -> dict[str, Any]:
        """Name, clocks and driver as nvidia-smi reads them now, and the versions of what runs: JSON-able."""
        facts: dict[str, Any] = {
            "device": str(self.torch_device),
            "name": torch.cuda.get_device_name(self.torch_device) if self.is_cuda else processor(),
            "python": sys.version.split()[0],
            "cuda": torch.version.cuda,
            "versions": {package: _version(package) for package in PACKAGES},
        }
        if self.is_cuda:
            properties = torch.cuda.get_device_properties(self.torch_device)
            facts |= {
                "total_memory": properties.total_memory,
                "multiprocessors": properties.multi_processor_count,
                "capability": list(torch.cuda.get_device_capability(self.torch_device)),
                "cudnn": torch.backends.cudnn.version(),
                "nvidia_smi": _nvidia_smi(str(properties.uuid)),
            }
        return facts

    def synchronize(self) -> None:
        """Wait for everything that was started."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch_device)

    def seconds(self, work: Callable[[], object], *, repeats: int, warmup: int = 2) -> Samples:
        """Times of one piece of work, each waited for; kernels are compiled and caches filled in the warm-up."""
        for _ in range(warmup):
            work()
        self.synchronize()
        found = []
        for _ in range(repeats):
            begin = time.perf_counter()
            work()
            self.synchronize()
            found.append(time.perf_counter() - begin)
        return Samples(tuple(found), "s")

    def peak_memory(self, work: Callable[[], object]) -> int | None:
        """Most bytes that tensors held while `work` ran, those from before included; None on a CPU."""
        if not self.is_cuda:
            work()
            return None
        self.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.torch_device)

    @cached_property
    def matmul_rate(self) -> float:
        """FLOP/s of products of bfloat16 matrices of random numbers (zeros would run faster), 8,192 a side."""
        side = 256 if self.tiny else 8192
        a, b = (torch.randn(side, side, device=self.torch_device, dtype=torch.bfloat16) for _ in range(2))
        return 2 * side**3 / median(self.seconds(lambda: a @ b, repeats=10, warmup=3).values)

    @cached_property
    def copy_rate(self) -> float:
        """Bytes a second of a copy within the device's memory, read and written ones counted."""
        source = torch.empty(2**18 if self.tiny else 2**32, dtype=torch.uint8, device=self.torch_device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / median(self.seconds(lambda: target.copy_(source), repeats=10, warmup=3).values)


def release_memory() -> None:
    """Give back what nobody holds any more of a GPU's memory.

    Where a recomputed piece ran out of memory in a backward pass, PyTorch holds its model until the next pass.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.ones(1, device="cuda", requires_grad=True).sum().backward()
        torch.cuda.empty_cache()


def find_device(name: str | None, *, dry_run: bool) -> Device:
    """`name` as torch spells it, or the first GPU; the CPU, at tiny sizes, in a dry run and where there is no GPU.

    Raises ValueError where a GPU is asked for that torch cannot use.
    """
    if dry_run or name == "cpu" or (name is None and not torch.cuda.is_available()):
        return Device(torch.device("cpu"), tiny=True)
    try:
        device = torch.device("cuda" if name is None else name)
    except RuntimeError:  # a name that torch does not know
        device = None
    if device is None or device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"expected a GPU that torch {torch.__version__} can use, such as cuda, got {name}; leave --device out for "
            "the first one, or give --dry-run to go through every part on the CPU at tiny sizes"
        )
    return Device(device)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia_smi(uuid: str) -> dict[str, str] | None:
    """What nvidia-smi reads of a GPU; None where there is no such program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--id=GPU-{uuid}", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        return {"error": done.stderr.strip() or done.stdout.strip()}
    return dict(zip(QUERY, (value.strip() for value in done.stdout.splitlines()[0].split(",")), strict=True))
