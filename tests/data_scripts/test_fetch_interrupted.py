"""Fetching on a machine that gets in the way: full disks and kills. The same call continues and ends whole."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_scripts import disk
from data_scripts.part import part_path
from tests.data_scripts import fault_server
from tests.data_scripts.fault_server import FaultServer, cut, status
from tests.data_scripts.test_fetch import CONTENT, get, names, refused


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(CONTENT) as running:
        yield running


def test_too_little_space_is_said_first(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.faults.extend([cut(100_000), status(404)])
    refused(server, tmp_path / "file")
    free = deque([199_999, 200_000, 200_000])
    usage = type("Usage", (), {"free": property(lambda self: free.popleft())})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage())
    before = len(server.requests)
    message = refused(server, tmp_path / "file", size=len(CONTENT))
    assert "200,000 bytes free" in message  # what is there already is counted
    assert "199,999" in message
    assert len(server.requests) == before
    get(server, tmp_path / "file", size=len(CONTENT))


@contextmanager
def file_size_limit(most: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow past so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_no_longer_fits_is_one_line_and_continues(server: FaultServer, tmp_path: Path) -> None:
    with file_size_limit(123_456):
        message = refused(server, tmp_path / "file")
    assert "expected room to write" in message
    assert os.strerror(errno.EFBIG) in message
    assert (tmp_path / "file.part").stat().st_size == 123_456
    get(server, tmp_path / "file")
    assert server.ranges() == [None, "bytes=123456-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root; the test above takes the same way")
def test_a_full_disk_is_one_line_and_continues(server: FaultServer, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(small)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here; the test above takes the same way")
    try:
        server.faults.append(fault_server.chunked)  # no length, so no warning beforehand
        assert os.strerror(errno.ENOSPC) in refused(server, small / "file")
        kept = (small / "file.part").stat().st_size
        assert 0 < kept <= 128 << 10
        assert "bytes free" in refused(server, small / "file", size=len(CONTENT))
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        get(server, small / "file")
        assert server.ranges()[-1] == f"bytes={kept}-"
        assert (small / "file").read_bytes() == CONTENT
    finally:
        subprocess.run(["umount", str(small)], check=True)


PROGRAM = """
import sys
from pathlib import Path
import httpx2
from data_scripts.fetch import fetch
print("ready", flush=True)
fetch(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3])
"""


def kill_once(server: FaultServer, target: Path, at: int) -> None:
    """Start a fetch in a process of its own and kill it when so many bytes are there."""
    command = [sys.executable, "-c", PROGRAM, server.url, str(target), server.sha256]
    part = part_path(target)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None and not (part.exists() and part.stat().st_size >= at):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_instants(server: FaultServer, tmp_path: Path, kills: int) -> None:
    server.content = random.Random(4).randbytes(1_000_000)
    server.pace = 0.002
    rng = random.Random(kills)
    for at in sorted(rng.choices(range(len(server.content)), k=kills)):
        kill_once(server, tmp_path / "file", at)
    server.pace = 0.0
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.content
    assert names(tmp_path) == ["file"]
    assert any(asked is not None for asked in server.ranges())
