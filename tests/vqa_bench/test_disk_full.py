"""A disk that is full while something is written: one clear line, nothing lost, and the same run once there is room."""

import os
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.vqa_bench.commands import Setup, at_calls, run, start
from tests.vqa_bench.experiments import BYTE_MODEL, Experiment, make_data, make_experiment
from tests.vqa_bench.run_folders import expect_same

TRAIN = {
    "steps": 12,
    "images_per_batch": 4,
    "learning_rate": 1e-2,
    "ema": 0.9,
    "dev": {"every": 4, "keep": 2},
    "checkpoint": {"steps": 3},
    "log_every": 2,
    "threads": 1,
}
# What is being written when the room ends, and the checkpoint that must be there afterwards.
MOMENTS = {
    "the first checkpoint": ("vqa_bench.train.state:save", 1, None),
    "a later checkpoint": ("vqa_bench.train.state:save", 4, 6),  # those of steps 3, 4 (judged) and 6 are written
    "a best model": ("vqa_bench.train.keep:Keeper.judge", 2, 6),
    "the weights that are kept": ("vqa_bench.train.keep:Keeper.finish", 1, 12),
}
FAST = "a later checkpoint"


@dataclass(frozen=True)
class FillDisk:
    """Called in a process: at the n-th call of a function the disk is filled to its last byte."""

    disk: Path
    call: str
    nth: int

    def __call__(self) -> None:
        calls = 0

        def fill(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == self.nth:
                room = os.statvfs(self.disk)
                (self.disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize))

        at_calls(self.call, fill)


@dataclass(frozen=True)
class LimitFiles:
    """Called in a process: from the n-th call of a function on, no file becomes longer than `size` bytes."""

    size: int
    call: str
    nth: int

    def __call__(self) -> None:
        calls = 0

        def limit(*_: object) -> None:
            nonlocal calls
            calls += 1
            if calls == self.nth:
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))

        at_calls(self.call, limit)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment, and its run to the end with room for everything."""
    folder = tmp_path_factory.mktemp("disk")
    clevr = make_data(folder)
    experiment = make_experiment(folder, clevr, BYTE_MODEL, TRAIN)
    run(experiment.train("whole"), experiment.log("whole"))
    return experiment


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here; the same is shown with files of limited length")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def expect_recovery(experiment: Experiment, results: Path, log: Path, setup: Setup, step: int | None) -> None:
    """Stopped by `setup` with one line, the checkpoint of a step intact; after `make_room` the same run as `whole`."""
    command = start(experiment.train(results), log, setup=setup)
    assert command.wait() == 1, command.output  # a cell that failed
    assert "expected to write" in command.error
    assert "run the same command again" in command.error
    kept = sorted((results / "cell" / "checkpoints").glob("*"))
    assert [path.name for path in kept] == ([] if step is None else [f"step-{step:08d}"])
    for checkpoint in kept:
        assert torch.load(checkpoint / "state.pt", weights_only=True)["model"]
    ballast = results.parent / "ballast"
    ballast.unlink(missing_ok=True)
    run(experiment.train(results), log)
    expect_same(results / "cell", experiment.run("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_full_disk(whole: Experiment, small_disk: Path, moment: str) -> None:
    call, nth, step = MOMENTS[moment]
    fill = FillDisk(small_disk, call, nth)
    expect_recovery(whole, small_disk / "results", small_disk.with_name("log"), fill, step)


@pytest.mark.parametrize(
    "moment", [pytest.param(name, marks=() if name == FAST else pytest.mark.slow) for name in MOMENTS]
)
def test_files_that_cannot_grow(whole: Experiment, tmp_path: Path, moment: str) -> None:
    call, nth, step = MOMENTS[moment]
    limit = LimitFiles(20_000, call, nth)  # the weights alone are longer
    expect_recovery(whole, tmp_path / "results", tmp_path / "log", limit, step)
