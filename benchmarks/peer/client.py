"""The driver's end of a worker: starts it in its environment, asks, and waits for the answer.

Knows the wire, not the models or the measurements.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WORKER = Path(__file__).resolve().parent / "worker.py"


class WorkerError(Exception):
    """A worker refused a request or died; the message is one line."""


class WorkerMemoryError(WorkerError):
    """A request took more of the GPU's memory than there is; the worker goes on."""


class Side:
    """One worker process. Use it as a context manager: the process ends with the block.

    path: folders that its packages are taken from first. device: as torch spells it.
    """

    def __init__(
        self, name: str, python: Path, threads: int, *, path: Sequence[Path] = (), device: str = "cpu"
    ) -> None:
        if not python.exists():
            raise FileNotFoundError(f"expected the Python of {name} at {python}, got nothing; run `make bench-peer`")
        self.name = name
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[variable] = str(threads)
        if path:
            environment["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in path)
        self._process = subprocess.Popen(
            # -P: nothing of this checkout may stand in for an installed package; both sides have an `mblm`.
            [str(python), "-P", str(WORKER), "--threads", str(threads), "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait.

        Raises WorkerError where the worker answers with an error, or not at all; WorkerMemoryError where the GPU's
        memory was too small.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"command": command, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = self._process.wait()
            raise WorkerError(
                f"expected an answer to `{command}` from {self.name}, but its process ended with status {status} "
                "(-9 is the kernel's answer to too little memory)"
            )
        reply = json.loads(line)
        if "error" in reply:
            # torch.OutOfMemoryError, by its name: the wire carries text, and this end knows no torch.
            kind = WorkerMemoryError if reply["error"].startswith("OutOfMemoryError") else WorkerError
            raise kind(f"{self.name} failed at `{command}`: {reply['error']}")
        answer: dict[str, Any] = reply["ok"]
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it may have died with a request unread
            self._process.stdin.close()  # the end of its input ends the worker
        if kind is not None:
            self._process.terminate()
        self._process.wait()
        self._process.stdout.close()
