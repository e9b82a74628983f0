"""Serialising that is killed: no half shard and no workers are left, and the next run cleans up and finishes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import open_shard


def test_killed_it_leaves_no_shard_and_no_workers_and_the_next_run_cleans_up(tmp_path: Path):
    folder = make_clevr_folder(tmp_path / "clevr", {"val": 150})
    script, out = tmp_path / "script.py", tmp_path / "shard"
    script.write_text(
        """
import sys, time
from pathlib import Path
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.serialize import serialize

def tell(done, total):
    print(done, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    serialize(Path(sys.argv[1]), parse_spec("pixels:8x6"), Path(sys.argv[2]), workers=2, progress=tell)
""",
        encoding="utf-8",
    )
    command = [sys.executable, str(script), str(folder), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.getcwd()})
    assert process.stdout is not None
    process.stdout.readline()  # it has written its first image, and waits
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not out.exists()
    assert len(list(tmp_path.glob(".shard.partial-*"))) == 1
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "the workers outlive their parent"
        time.sleep(0.02)
    serialize(folder, parse_spec("pixels:8x6"), out, workers=1)
    assert open_shard(out).manifest.splits["test"].images == 150
    assert list(tmp_path.glob(".shard.partial-*")) == []


def children_of(process: int) -> list[int]:
    """The processes that it started; none where the system does not tell."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in path.read_text(encoding="ascii").split()] if path.exists() else []


def is_running(process: int) -> bool:
    """Whether it is there and is not a dead one whose new parent has not looked yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
