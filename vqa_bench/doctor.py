"""What this machine is and whether it computes what it should: for `vqa-bench doctor`.

`examine` gathers facts, `report_text` shows them. A *problem* would make results wrong or a command fail; a *note* is
good to know. Nothing here changes anything, and what cannot be imported is a finding, not an error.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from vqa_bench.data.host_check import EncodingCheck

MODULES = ("torch", "torchvision", "accelerate", "datasets")  # compiled: installed may not mean usable
KERNELS = {  # package → the module of it that is used
    "mamba-ssm": "mamba_ssm.ops.triton.ssd_combined",
    "causal-conv1d": "causal_conv1d",
    "triton": "triton",
}
VARIABLES = (
    *("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HOME", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("PYTORCH_ALLOC_CONF", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION", "SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID"),
)
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED_MEMORY = 1 << 30  # batches of loader processes travel through it
GIB = 1 << 30


@dataclass(frozen=True)
class Kernel:
    """A package of GPU kernels: its version, and why its module cannot be imported (None where it can)."""

    version: str | None
    missing: str | None


@dataclass(frozen=True)
class Disk:
    """The file system that a folder is, or would be, on; bytes."""

    path: str
    total: int
    free: int


@dataclass(frozen=True)
class Report:
    """All findings; the values are plain, so that `asdict` of it is JSON."""

    host: dict[str, Any]
    packages: dict[str, str | None]
    devices: dict[str, Any]
    kernels: dict[str, Kernel]
    disks: dict[str, Disk]
    environment: dict[str, str]
    codecs: dict[str, dict[str, str | None]]
    encodings: dict[str, EncodingCheck]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """1 where there is a problem."""
        return 1 if self.problems else 0

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)


def examine(folders: Mapping[str, Path] | None = None) -> Report:
    """Everything about this machine; `folders` (name → path, need not exist) are those whose disks matter."""
    from vqa_bench.data.host_check import check_encodings, find_codecs

    faults = {name: fault for name in MODULES if (fault := import_fault(name)) is not None}
    packages = {name: installed(name) for name in required()}
    report = Report(
        host=find_host(),
        packages=packages,
        devices=find_devices() if "torch" not in faults else {},
        kernels={name: Kernel(installed(name), import_fault(module)) for name, module in KERNELS.items()},
        disks=find_disks(folders or {}),
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        codecs=find_codecs(),
        encodings=check_encodings(),
    )
    report.problems.extend(f"{name} cannot be imported: {fault}; install it again" for name, fault in faults.items())
    report.problems.extend(f"{name} is not installed" for name, found in packages.items() if found is None)
    report.problems.extend(_encoding_problems(report.encodings))
    report.notes.extend(_notes(report))
    return report


def required() -> list[str]:
    """This package and what it declares to need, extras aside; only itself where it is not installed."""
    try:
        needed = requires("vqa-bench") or []
    except PackageNotFoundError:
        needed = []
    names = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in needed if "extra ==" not in line]
    return ["vqa-bench", *sorted(names)]


def installed(package: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def import_fault(module: str) -> str | None:
    """Why a module cannot be imported, one line, or None where it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # compiled packages fail in many ways, and each is what we look for
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


def find_host() -> dict[str, Any]:
    """Python, the system, and the commit of the code (None outside a checkout)."""
    from vqa_bench.runs import provenance

    try:
        code = provenance()
    except PackageNotFoundError:
        code = {}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "commit": code.get("commit"),
        "dirty": code.get("dirty"),
    }


def find_devices() -> dict[str, Any]:
    """Cores, threads and memory of the CPU, and the accelerators that torch sees."""
    import torch

    from mblm.model.kernels import resolve_kernel

    cuda = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found: dict[str, Any] = {
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "memory": _system_memory("SC_PHYS_PAGES"),
        "memory_free": _system_memory("SC_AVPHYS_PAGES"),
        "torch_cuda": torch.version.cuda,
        "cuda": [
            {"name": device.name, "memory": device.total_memory, "capability": f"{device.major}.{device.minor}"}
            for device in cuda
        ],
        "mps": torch.backends.mps.is_available(),
        "mamba_kernel": resolve_kernel("auto", torch.device("cuda" if cuda else "cpu")),
    }
    if cuda:
        found["attention"] = {
            "flash": torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.is_flash_attention_available(),
            "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
            "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        }
    return found


def _system_memory(pages: str) -> int | None:
    """Bytes, or None where the system does not tell (macOS knows no free pages)."""
    try:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def find_disks(folders: Mapping[str, Path]) -> dict[str, Disk]:
    """Space where the folders are or would be, where the command runs, and in shared memory."""
    wanted = {**folders, "current folder": Path.cwd()}
    if SHARED_MEMORY.is_dir():
        wanted["shared memory"] = SHARED_MEMORY
    disks = {}
    for name, path in wanted.items():
        there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
        usage = shutil.disk_usage(there)
        disks[name] = Disk(str(path), usage.total, usage.free)
    return disks


def _encoding_problems(encodings: Mapping[str, EncodingCheck]) -> list[str]:
    failed = [f"encoding {spec} fails: {found.fault}" for spec, found in encodings.items() if found.fault is not None]
    return failed + [
        f"encoding {spec} is lossless, but its bytes do not give the picture back: do not trust shards made here"
        for spec, found in encodings.items()
        if found.round_trip is False
    ]


def _notes(report: Report) -> list[str]:
    notes = []
    other = [spec for spec, found in report.encodings.items() if not found.same_bytes and found.fault is None]
    if other:
        kinds = ", ".join(dict.fromkeys(spec.partition(":")[0] for spec in other))
        notes.append(
            f"{kinds}: other bytes than on the reference host ({len(other)} of {len(report.encodings)} encodings); "
            "make a shard once and copy it, instead of making it again on another machine"
        )
    devices = report.devices
    if devices.get("cuda") and devices["mamba_kernel"] != "triton":
        notes.append("there is a GPU but no mamba-ssm: Mamba-2 stages run in PyTorch; pip install 'vqa-bench[cuda]'")
    if (devices.get("threads") or 0) > (devices.get("cores_allowed") or os.cpu_count() or 1):
        notes.append("torch has more threads than this process may use cores; set OMP_NUM_THREADS")
    if "WORLD_SIZE" in report.environment and "OMP_NUM_THREADS" not in report.environment:
        notes.append(
            "several processes share this machine's cores without OMP_NUM_THREADS; set it to cores / processes"
        )
    shared = report.disks.get("shared memory")
    if shared is not None and shared.free < LEAST_SHARED_MEMORY:
        notes.append(f"{SHARED_MEMORY} has {shared.free / GIB:.2f} GiB free: loader processes may fail; give it more")
    if report.environment.get("HF_HUB_OFFLINE", "0") not in ("0", ""):
        notes.append("HF_HUB_OFFLINE is set: nothing is fetched from the Hugging Face hub")
    return notes


def report_text(report: Report) -> Text:
    """The report for people, complete without colour."""
    from rich.text import Text

    text = Text()
    _section(text, "Host", {name: _plain(value) for name, value in report.host.items()})
    _section(text, "Packages", {name: found or "not installed" for name, found in report.packages.items()})
    _section(text, "Devices", _device_lines(report.devices))
    _section(text, "GPU kernels", {name: _kernel_line(kernel) for name, kernel in report.kernels.items()})
    disks = {
        name: f"{d.free / GIB:,.1f} of {d.total / GIB:,.1f} GiB free, {d.path}" for name, d in report.disks.items()
    }
    _section(text, "Disks", disks)
    _section(text, "Environment", report.environment or {"": "none of the variables that matter is set"})
    codecs = {name: f"{_plain(v['here'])} (reference {_plain(v['reference'])})" for name, v in report.codecs.items()}
    _section(text, "Image libraries", codecs)
    _section(text, "Encodings", {spec: _encoding_line(found) for spec, found in report.encodings.items()})
    for problem in report.problems:
        text.append(f"problem: {problem}\n", "bold red")
    for note in report.notes:
        text.append(f"note: {note}\n", "yellow")
    text.append("no problem found\n" if not report.problems else "", "green")
    return text


def _section(text: Text, title: str, lines: Mapping[str, str]) -> None:
    text.append(f"{title}\n", "bold")
    wide = max((len(name) for name in lines), default=0)
    for name, value in lines.items():
        text.append(f"  {name:<{wide}}  ", "dim")
        text.append(f"{value}\n")
    text.append("\n")


def _device_lines(devices: Mapping[str, Any]) -> dict[str, str]:
    if not devices:
        return {"": "not known: torch cannot be imported"}
    memory = [None if devices[key] is None else f"{devices[key] / GIB:,.1f} GiB" for key in ("memory", "memory_free")]
    lines = {
        "CPU": f"{devices['cores']} cores ({_plain(devices['cores_allowed'])} allowed), {devices['threads']} threads",
        "memory": f"{_plain(memory[0])}, free {_plain(memory[1])}",
        "CUDA": f"{len(devices['cuda'])} devices, torch built for CUDA {devices['torch_cuda'] or 'none'}",
    }
    for index, device in enumerate(devices["cuda"]):
        memory_text = f"{device['memory'] / GIB:,.1f} GiB"
        lines[f"CUDA {index}"] = f"{device['name']}, {memory_text}, capability {device['capability']}"
    if "attention" in devices:
        lines["attention"] = ", ".join(f"{name} {_plain(has)}" for name, has in devices["attention"].items())
    return lines | {"MPS": _plain(devices["mps"]), "Mamba-2 runs in": devices["mamba_kernel"]}


def _kernel_line(kernel: Kernel) -> str:
    if kernel.missing is None:
        return f"{kernel.version}, usable"
    return f"{kernel.version or 'not installed'}; {kernel.missing}"


def _encoding_line(found: EncodingCheck) -> str:
    if found.fault is not None:
        return f"fails: {found.fault}"
    picture = {True: "the same picture", False: "another picture", None: "perhaps another picture"}[found.same_picture]
    state = "same bytes" if found.same_bytes else f"OTHER bytes, {picture}"
    trip = {True: "; comes back exactly", False: "; DOES NOT COME BACK", None: ""}[found.round_trip]
    depends = "depends on" if found.host_dependent else "the same on every host but for"
    return f"{state}{trip}; {depends} {found.reason}"


def _plain(value: Any) -> str:
    if value is None:
        return "not known"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
