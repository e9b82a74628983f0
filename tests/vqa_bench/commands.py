"""Starts `vqa-bench` commands in processes of their own, quickly, and kills them at a chosen instant.

Processes are forked by a server that has imported what commands need, so that a start takes a fraction of a second.
SIGKILL is sent from outside after some time, or by the process to itself at a *trap*: the n-th time that it is about
to change a file whose path matches, or to call a function. Must not know what training does.
"""

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

KILLED = -signal.SIGKILL
SECONDS = 240.0  # after which a command that hangs has failed

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.vqa_bench.preloaded"])


Setup = Callable[[], None]
"""What a process does to itself before the command."""


@dataclass(frozen=True)
class Trap:
    """Called in a process: where it kills itself, the n-th matching change of a file or the n-th call of a function.

    file: a regular expression that is searched in "<change> <path>", change one of open (to write), mkdir, rename (the
    new name), remove, rmdir, truncate; the process dies *before* the change. call: as "package.module:Class.function".
    """

    file: str | None = None
    call: str | None = None
    nth: int = 1

    def __call__(self) -> None:
        left = self.nth

        def reached() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        if self.file is not None:
            pattern = re.compile(self.file)
            _at_changes(lambda change: reached() if pattern.search(change) else None)
        if self.call is not None:
            at_calls(self.call, lambda *_: reached())


@dataclass(frozen=True)
class Changes:
    """Called in a process: every change of a file, as in `Trap.file`, becomes a line of the file `path`."""

    path: Path

    def __call__(self) -> None:
        # Written through a descriptor, which no audit event reports.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _at_changes(lambda change: os.write(descriptor, f"{change}\n".encode()))


@dataclass
class Command:
    """A command under way; its output is in `log`."""

    process: ForkServerProcess
    log: Path

    def wait(self, seconds: float = SECONDS) -> int:
        """The exit code, negative for a signal; one that is not over by then is killed and fails the test."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"expected an end within {seconds} s, got none:\n{self.output}")
        return self.process.exitcode

    def kill(self) -> int:
        """SIGKILL, if it is still there."""
        self.process.kill()
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def error(self) -> str:
        """Its one line that begins with `error:`."""
        lines = [line for line in self.output.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.output
        assert "Traceback" not in self.output, self.output
        return lines[0]


def start(
    arguments: Sequence[object], log: Path, environment: Mapping[str, str] | None = None, *, setup: Setup | None = None
) -> Command:
    """Start `vqa-bench ARGUMENTS`."""
    return start_call(partial(_command_line, [str(argument) for argument in arguments], setup), log, environment)


def start_call(call: Callable[[], int | None], log: Path, environment: Mapping[str, str] | None = None) -> Command:
    """Start a picklable function; what it returns is the exit code."""
    process = _SERVER.Process(target=_process, args=(call, log, dict(environment or {})))
    process.start()
    return Command(process, log)


def run(arguments: Sequence[object], log: Path, **options: Any) -> Command:
    """`start`, and wait for success."""
    command = start(arguments, log, **options)
    code = command.wait()
    assert code == 0, command.output
    return command


def start_together(starts: Callable[[Path, Mapping[str, str]], Command], log: Path, world: int = 2) -> list[Command]:
    """Call `starts(log, environment)` for each of `world` processes, with the environment that torchrun gives it."""
    port = str(free_port())
    return [starts(log.with_suffix(f".{rank}{log.suffix}"), launched(rank, world, port)) for rank in range(world)]


def run_together(arguments: Sequence[object], log: Path, *, world: int = 2, setup: Setup | None = None) -> None:
    """One command in several processes; wait for success of all."""
    finish(start_together(partial(start, arguments, setup=setup), log, world))


def finish(commands: Sequence[Command], *, code: int = 0) -> None:
    """Wait for commands that need each other, and expect the same end of all."""
    with ended(commands):
        codes = [command.wait() for command in commands]
        assert set(codes) == {code}, "\n".join(command.output for command in commands)


@contextmanager
def ended(commands: Sequence[Command]) -> Iterator[None]:
    """No process outlives the block."""
    try:
        yield
    finally:
        for command in commands:
            command.kill()


def launched(rank: int, world: int, port: str) -> dict[str, str]:
    """What torchrun tells a process of one node."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(happened: Callable[[], bool], command: Command, seconds: float = SECONDS) -> None:
    """Wait for something that a running command brings about."""
    end = time.monotonic() + seconds
    while not happened():
        assert command.process.is_alive(), f"expected it before the command's end:\n{command.output}"
        assert time.monotonic() < end, command.output
        time.sleep(0.002)


# -- in the other process -------------------------------------------------------------------------------------------


def at_calls(name: str, act: Callable[..., object]) -> None:
    """Replace a function ("module:function"), or a method in its class, by itself with `act(*its arguments)` before."""
    owner, _, attribute = name.replace(":", ".").rpartition(".")
    holder = resolve_name(owner)
    function = getattr(holder, attribute)

    @wraps(function)
    def wrapper(*args: Any, **options: Any) -> Any:
        act(*args)
        return function(*args, **options)

    setattr(holder, attribute, wrapper)


def _command_line(arguments: list[str], setup: Setup | None) -> int:
    from vqa_bench.cli import main

    if setup is not None:
        setup()
    return main(arguments)


def _process(call: Callable[[], int | None], log: Path, environment: dict[str, str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the platform's own, as for a command that a user starts
    try:
        sys.exit(call())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _at_changes(act: Callable[[str], object]) -> None:
    """Call `act("<change> <path>")` before every change of a file by Python code (sys.addaudithook)."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and not isinstance(args[0], int) and args[2] & writing:
            act(f"open {os.fsdecode(args[0])}")
        elif event == "os.rename":
            act(f"rename {_path(args[1], args[3])}")
        elif event in ("os.remove", "os.rmdir"):
            act(f"{event[3:]} {_path(args[0], args[1])}")
        elif event == "os.mkdir":
            act(f"mkdir {_path(args[0], args[2])}")
        elif event == "os.truncate":
            act(f"truncate {args[0]}")

    sys.addaudithook(hook)


def _path(path: Any, folder: int) -> str:
    """A path, in the folder of a descriptor unless that is -1 (as in audit events)."""
    name = os.fsdecode(path)
    return name if folder < 0 or name.startswith("/") else os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
