"""Runs one measurement of a benchmark script in a process of its own, where nothing else has touched the memory.

The child is the same script with a hidden option; its last line of output is JSON. Knows processes, not models.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.common import ROOT


class ChildError(Exception):
    """A measuring process failed; the message is one line."""


def measure_apart(module: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """Run `python -m module arguments` with so many threads, and read the JSON of its last line.

    Raises ChildError where the process ends with another status than 0.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    if done.returncode != 0:
        raise ChildError(
            f"expected a measurement from `{module} {' '.join(arguments)}`, got status {done.returncode} "
            "(-9 is the kernel's answer to too little memory); its messages are above"
        )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured
