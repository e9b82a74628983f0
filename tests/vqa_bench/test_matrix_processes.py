"""The matrix in many processes: commands side by side, killed ones, workers of one command, jobs of submitit."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.vqa_bench.cells import BYTE_MODEL, PIXELS
from tests.vqa_bench.commands import KILLED, ended, run, run_together, start, until
from tests.vqa_bench.experiments import CNN, make_books, make_data
from vqa_bench.runs import read_json

TRAIN = {"steps": 6, "images_per_batch": 4, "learning_rate": 1e-3, "threads": 1, "checkpoint": {"steps": 2}}
LONG = TRAIN | {"steps": 200, "checkpoint": {"steps": 10}}
CELLS: list[dict[str, Any]] = [
    {"name": "bytes", "encoding": PIXELS, "model": BYTE_MODEL, "train": TRAIN},
    {"name": "tuned", "encoding": PIXELS, "model": BYTE_MODEL, "train": TRAIN}
    | {"init": "pretrained", "pretrained": {"run": "text"}},
    {"name": "cnn", "encoding": PIXELS, "model": CNN, "train": TRAIN},
    {"name": "majority", "model": {"kind": "majority"}},
]
NAMES = {"bytes", "tuned", "cnn", "majority", "pretrain/text"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    make_data(folder)
    make_books(folder / "books")
    return folder


def command(data: Path, out: Path, *cells: dict[str, Any], **options: object) -> list[object]:
    """`matrix` on these cells (all of them if none is given), and the run they need, with options such as jobs=2."""
    text = {"steps": 6, "windows_per_batch": 2, "learning_rate": 1e-3, "threads": 1}
    pretrain = {"name": "text", "data": {"folder": str(data / "books")}, "model": BYTE_MODEL, "train": text}
    content = {
        "name": "test",
        "data": {"folder": str(data / "clevr"), "dev_fraction": 0.25},
        "cells": [{"title": cell["name"], **cell} for cell in cells or CELLS],
    }
    if any("pretrained" in cell for cell in cells or CELLS):
        content["pretrain"] = [pretrain | {"title": "Text", "context": 96}]
    out.mkdir(parents=True, exist_ok=True)
    config = out.with_suffix(".yaml")
    config.write_text(json.dumps(content), encoding="utf-8")
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    return ["matrix", config, "--out", out, "--data", data / "data", "--workers", "1", *given]


def starts(out: Path) -> dict[str, int]:
    """How often each run was started."""
    return {
        str(path.parent.relative_to(out)): len(read_json(path)["starts"])
        for path in sorted(out.glob("**/provenance.json"))
    }


def weights(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.glob("**/model.safetensors"))}


@pytest.fixture(scope="module")
def direct(data: Path) -> Path:
    """The results of one process."""
    out = data / "direct"
    run(command(data, out), data / "direct.log")
    return out


def same_results(out: Path, direct: Path) -> None:
    assert (out / "table.csv").read_bytes() == (direct / "table.csv").read_bytes()
    assert weights(out) == weights(direct)
    assert not list(out.glob("**/*.partial*"))


@pytest.mark.slow
def test_two_commands_on_one_folder_train_every_run_once(data: Path, direct: Path, tmp_path: Path) -> None:
    # Data of their own: both commands need the shard, one makes it.
    folder = tmp_path / "data"
    words = command(data, tmp_path / "out")
    words[words.index("--data") + 1] = folder
    both = [start(words, tmp_path / f"{number}.log") for number in range(2)]
    with ended(both):
        assert [one.wait() for one in both] == [0, 0], "\n".join(one.output for one in both)
    assert starts(tmp_path / "out") == dict.fromkeys(NAMES, 1)
    same_results(tmp_path / "out", direct)
    assert sum("serialize clevr" in one.output for one in both) == 1


@pytest.mark.slow
def test_a_killed_command_is_taken_over(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = command(data, out, CELLS[0] | {"train": LONG}, CELLS[3])
    first = start(words, tmp_path / "first.log")
    with ended([first]):
        until(lambda: any((out / "bytes" / "checkpoints").glob("step-*")), first)
        second = start(words, tmp_path / "second.log")
        with ended([second]):
            until(lambda: second.log.exists() and "waiting for" in second.output, second)
            assert first.kill() == KILLED
            assert second.wait() == 0, second.output
    assert starts(out) == {"bytes": 2, "majority": 1}
    assert read_json(out / "bytes" / "provenance.json")["starts"][1]["from_step"] > 0
    reference = tmp_path / "reference"
    run(command(data, reference, CELLS[0] | {"train": LONG}, CELLS[3]), tmp_path / "reference.log")
    same_results(out, reference)


@pytest.mark.slow
def test_a_failing_cell_ends_in_exit_code_1_and_the_table_of_the_others(data: Path, tmp_path: Path) -> None:
    wild = {"name": "wild", "encoding": PIXELS, "model": CNN, "train": TRAIN | {"learning_rate": 1e30, "clip": None}}
    for jobs in (1, 2):
        out = tmp_path / str(jobs)
        failing = start(command(data, out, wild, CELLS[3], jobs=jobs), tmp_path / f"{jobs}.log")
        assert failing.wait() == 1, failing.output
        assert "error: wild: expected a finite loss" in failing.error
        assert "majority" in (out / "table.csv").read_text()


@pytest.mark.slow
def test_workers_of_one_command_give_the_same_table(data: Path, direct: Path, tmp_path: Path) -> None:
    run(command(data, tmp_path / "out", jobs=2), tmp_path / "log")
    assert starts(tmp_path / "out") == dict.fromkeys(NAMES, 1)
    same_results(tmp_path / "out", direct)


@pytest.mark.slow
def test_processes_of_a_launcher_train_every_run_together(data: Path, direct: Path, tmp_path: Path) -> None:
    run_together(command(data, tmp_path / "out"), tmp_path / "log")
    assert starts(tmp_path / "out") == dict.fromkeys(NAMES, 1)
    assert read_json(tmp_path / "out" / "bytes" / "trained.json")["processes"] == 2
    assert (tmp_path / "log.1").read_text() == ""  # one of them speaks
    rows = [(tmp_path / "out" / "table.csv").read_text().splitlines(), (direct / "table.csv").read_text().splitlines()]
    assert len(rows[0]) == len(rows[1])


@pytest.mark.slow
def test_jobs_of_submitit_give_the_same_table_though_one_is_preempted(data: Path, direct: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cells = [CELLS[0] | {"train": LONG}, *CELLS[1:]]
    reference = tmp_path / "reference"
    run(command(data, reference, *cells), tmp_path / "reference.log")
    matrix = start(command(data, out, *cells, jobs=3, executor="local"), tmp_path / "log")
    with ended([matrix]):
        until(lambda: any((out / "bytes" / "checkpoints").glob("step-*")), matrix)
        os.kill(_task_of("bytes", out), signal.SIGUSR2)
        assert matrix.wait() == 0, matrix.output
    got = starts(out)
    assert got.pop("bytes") == 2
    assert got == dict.fromkeys(NAMES - {"bytes"}, 1)
    same_results(out, reference)


@pytest.mark.slow
def test_tasks_of_a_job_train_together_and_a_killed_job_is_reported(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(command(data, out, CELLS[0], executor="local", slurm_tasks=2), tmp_path / "log")
    assert read_json(out / "bytes" / "trained.json")["processes"] == 2

    lonely = tmp_path / "lonely"
    matrix = start(command(data, lonely, CELLS[0] | {"train": LONG}, executor="local"), tmp_path / "lonely.log")
    with ended([matrix]):
        until(lambda: any((lonely / "bytes" / "checkpoints").glob("step-*")), matrix)
        os.kill(_task_of("bytes", lonely), signal.SIGKILL)
        assert matrix.wait() == 1, matrix.output
    assert "ended early" in matrix.output
    assert "error: bytes: expected its worker to finish it" in matrix.output


def _task_of(cell: str, out: Path) -> int:
    """The process of submitit's that trains a cell: the one that holds its lock (/proc/locks: its number and inode)."""
    inode = (out / ".locks" / f"{cell}.lock").stat().st_ino
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for line in Path("/proc/locks").read_text().splitlines():
            _, kind, _, _, process, place, *_ = line.split()
            if kind == "FLOCK" and place.endswith(f":{inode}"):
                return int(process)
        time.sleep(0.05)
    raise AssertionError(f"expected somebody to hold the lock of {cell}, got nobody")
