"""Where the reference implementation is to be had on this machine, and how its worker and ours are started.

Its package has the name of ours: either it has an environment of its own, or its wheels are seen by its process alone.
Knows places and paths, neither models nor measurements.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.gpu import wheels
from benchmarks.peer.client import Side

VARIABLE = "VQA_REFERENCE_PYTHON"
STAND_INS = Path(__file__).resolve().parent / "stand_ins"
HOW_TO = (
    f"`make bench-peer` makes an environment for it, {VARIABLE} names the Python of another, and wheels in the folder "
    f"`{wheels.PEER}` of {wheels.VARIABLE} are taken where there is no network"
)


@dataclass(frozen=True)
class Reference:
    """A Python that imports the reference's `mblm`, packages first from the folders of `path`; origin: in words."""

    python: Path
    path: tuple[Path, ...]
    origin: str

    def start(self, threads: int, device: str) -> Side:
        """Its worker."""
        return Side("the reference", self.python, threads, path=self.path, device=device)


def find_reference(environment: Mapping[str, str]) -> Reference | None:
    """The Python that a variable names, else wheels, else the environment of `make bench-peer`; None without any.

    Raises FileNotFoundError where the named Python is not there, wheels.WheelError for wheels that cannot be used.
    """
    named = environment.get(VARIABLE)
    if named:
        if not Path(named).exists():
            raise FileNotFoundError(f"expected a Python at {VARIABLE}={named}, got nothing; name another or unset it")
        return Reference(Path(named), (), f"the Python of {VARIABLE}")
    given = Path(environment[wheels.VARIABLE]) if environment.get(wheels.VARIABLE) else None
    if given is not None and (given / wheels.PEER).is_dir():
        shared = (wheels.unpack(given),) if any(given.glob("*.whl")) else ()
        files = sorted(wheel.name for folder in (given, given / wheels.PEER) for wheel in folder.glob("*.whl"))
        chosen = [name for name in files if name.startswith(("mblm-", "mamba_ssm-", "causal_conv1d-"))]
        path = (wheels.unpack(given / wheels.PEER), *shared, STAND_INS)
        return Reference(Path(sys.executable), path, f"wheels: {', '.join(chosen)}")
    own = ROOT / ".venv-peer" / "bin" / "python"
    return Reference(own, (), "the environment of `make bench-peer`") if own.exists() else None


def start_ours(threads: int, device: str, environment: Mapping[str, str]) -> Side:
    """Our worker: this checkout, which need not be installed, and what this process imports from."""
    inherited = [Path(entry) for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return Side("ours", Path(sys.executable), threads, path=(ROOT, *inherited), device=device)
