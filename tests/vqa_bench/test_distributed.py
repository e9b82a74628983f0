"""Several processes (gloo) train and answer as one does; a launch that became something else is refused."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.vqa_bench.commands import (
    KILLED,
    Setup,
    Trap,
    at_calls,
    ended,
    finish,
    free_port,
    run,
    run_together,
    start,
    start_together,
)
from tests.vqa_bench.experiments import CNN, S_T, T_T, Experiment, make_books, make_data, make_experiment
from tests.vqa_bench.run_folders import expect_close, files, losses, predictions
from vqa_bench.errors import UserError

# Sizes that two processes do not divide: 15 images to train on in batches of 5, 5 to judge on and 7 to answer in
# parts of 2. Answers are text, so that processes have unequal numbers of bytes to predict.
TRAIN = {
    "steps": 50,
    "images_per_batch": 5,
    "questions_per_image": 3,
    "learning_rate": 1e-3,
    "dev": {"every": 20, "use": "last"},
    "log_every": 1,
    "threads": 1,
}
CELL: dict[str, Any] = {"evaluate": {"images_per_batch": 2, "shuffled": False}, "sequence": {"answer": "text"}}


@pytest.fixture(scope="module")
def clevr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("distributed"))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_books(tmp_path_factory.mktemp("distributed") / "books")


def expect_same_answers(got: Path, expected: Path) -> None:
    """Every question once, answered alike."""
    ours = {record["question_index"]: record for record in predictions(got)}
    theirs = {record["question_index"]: record for record in predictions(expected)}
    assert len(ours) == len(predictions(got)) == len(predictions(expected)) == 35
    for number, record in ours.items():
        assert record["log_probs"] == pytest.approx(theirs[number]["log_probs"], abs=1e-3)
        assert record["prediction"] == theirs[number]["prediction"]
    results = [json.loads((run / "result.json").read_text(encoding="utf-8")) for run in (got, expected)]
    assert results[0]["metrics"]["overall"] == pytest.approx(results[1]["metrics"]["overall"], abs=1e-5)


def both(experiment: Experiment) -> tuple[Path, Path]:
    """The run of one process, and that of two."""
    run(experiment.train("one"), experiment.log("one"))
    run_together(experiment.train("two"), experiment.log("two"))
    return experiment.run("one"), experiment.run("two")


@pytest.mark.parametrize(
    ("model", "accumulate"),
    [
        pytest.param(T_T, 1, id="T/T"),
        pytest.param(T_T, 2, id="T/T accumulated", marks=pytest.mark.slow),
        pytest.param(S_T, 2, id="S/T accumulated", marks=pytest.mark.slow),
        pytest.param(CNN, 2, id="CNN accumulated", marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one(tmp_path: Path, clevr: Path, model: dict[str, Any], accumulate: int) -> None:
    one, two = both(make_experiment(tmp_path, clevr, model, TRAIN | {"accumulate": accumulate}, **CELL))
    assert len(losses(one)) == 50
    assert losses(one)[-1] < losses(one)[0] - 0.2
    assert files(two) == files(one)
    expect_close(two, one)
    expect_same_answers(two, one)


@pytest.mark.slow
def test_two_processes_read_text_as_one(tmp_path: Path, clevr: Path, books: Path) -> None:
    """Five windows a batch, eight to judge on, and a last one that is shorter."""
    train = TRAIN | {"accumulate": 2, "steps": 20}
    experiment = make_experiment(tmp_path, clevr, T_T, train, books=books)
    run(experiment.pretrain("one"), experiment.log("one"))
    run_together(experiment.pretrain("two"), experiment.log("two"))
    one, two = experiment.pretraining("one"), experiment.pretraining("two")
    assert files(two) == files(one)
    assert len(losses(one)) == 20
    expect_close(two, one)
    results = [json.loads((folder / "result.json").read_text(encoding="utf-8"))["metrics"] for folder in (one, two)]
    assert {split: found["bytes"] for split, found in results[0].items()} == {"validation": 700, "test": 900}
    for split, found in results[0].items():
        assert results[1][split] == pytest.approx(found, abs=1e-5)


@dataclass(frozen=True)
class NoteRows:
    """Called in a process: the questions of every batch that it trains on become a line of a file of its own."""

    folder: Path

    def __call__(self) -> None:
        def note(task: Any, batch: Any) -> None:
            with (self.folder / f"rows-{task.rank}").open("a", encoding="utf-8") as file:
                file.write(json.dumps(batch.rows[batch.present].tolist()) + "\n")

        at_calls("vqa_bench.train.vqa:VQATask.amount", note)


def test_every_question_is_trained_on_once_an_epoch(tmp_path: Path, clevr: Path) -> None:
    every = TRAIN | {"steps": 6, "questions_per_image": None, "dev": None}
    experiment = make_experiment(tmp_path, clevr, CNN, every, **CELL)
    run_together(experiment.train("two"), experiment.log("two"), setup=NoteRows(tmp_path))
    shares = [
        [json.loads(line) for line in (tmp_path / f"rows-{rank}").read_text(encoding="utf-8").splitlines()]
        for rank in range(2)
    ]
    assert [len(share[0]) for share in shares] == [15, 10]  # of five images with five questions each
    for epoch in (slice(0, 3), slice(3, 6)):
        seen = Counter(row for share in shares for batch in share[epoch] for row in batch)
        assert seen == Counter(range(75))


def test_a_loss_that_is_not_finite_names_the_images_of_all_processes(tmp_path: Path, clevr: Path) -> None:
    """The main process alone speaks, wherever the odd batch is."""
    wild = TRAIN | {"learning_rate": 1e30, "clip": None, "dev": None, "questions_per_image": None}
    experiment = make_experiment(tmp_path, clevr, T_T, wild, **CELL)
    commands = start_together(partial(start, experiment.train("wild")), experiment.log("wild"))
    finish(commands, code=1)
    found = re.findall(r"CLEVR_train_\d+\.png", commands[0].error)
    assert len(found) == len(set(found)) == 5
    assert "error:" not in commands[1].output


# -- launches that are not what was asked for -------------------------------------------------------------------------


def fails(experiment: Experiment, **environment: str) -> str:
    log = experiment.log("-".join(["refused", *environment]))
    command = start(experiment.train("refused"), log, environment=environment)
    assert command.wait() != 0
    return command.error


def test_a_launch_that_became_something_else_is_refused(tmp_path: Path, clevr: Path) -> None:
    plain = make_experiment(tmp_path / "plain", clevr, CNN, TRAIN, **CELL)
    two = make_experiment(tmp_path / "two", clevr, CNN, TRAIN | {"processes": 2}, **CELL)
    sharded = make_experiment(tmp_path / "sharded", clevr, CNN, TRAIN | {"parallel": "fsdp"}, **CELL)
    assert "expected 2 processes (train.processes), got 1" in fails(two)
    assert "expected several processes for train.parallel: fsdp, got one" in fails(sharded)
    assert "set train.parallel: fsdp" in fails(plain, ACCELERATE_USE_FSDP="true")
    assert "expected 2 processes" in fails(plain, WORLD_SIZE="2")  # nobody says which of them this is, nor where
    # what `accelerate launch --cpu --num_processes 2` sets for the one process that it starts
    alone = fails(plain, ACCELERATE_MIXED_PRECISION="no", ACCELERATE_USE_CPU="True", MASTER_ADDR="127.0.0.1")
    assert "use torchrun" in alone
    assert not list(tmp_path.glob("*/refused/cell/checkpoints"))


@pytest.mark.slow
def test_the_real_launchers(tmp_path: Path, clevr: Path) -> None:
    """torchrun makes one training of two processes; what `accelerate launch` makes of two on a CPU is refused."""
    train = TRAIN | {"steps": 4, "processes": 2}
    experiment = make_experiment(tmp_path, clevr, CNN, train, **CELL)
    alone = make_experiment(tmp_path / "alone", clevr, CNN, train | {"processes": None}, **CELL)
    run(alone.train("one"), alone.log("one"))

    def launch(module: str, options: list[str], results: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *options, "-m", "vqa_bench", *map(str, experiment.train(results))]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    meeting = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    launched = launch("torch.distributed.run", ["--nproc_per_node", "2", *meeting], "torchrun")
    assert launched.returncode == 0, launched.stderr
    expect_close(experiment.run("torchrun"), alone.run("one"))
    refused = launch("accelerate.commands.launch", ["--cpu", "--num_processes", "2"], "accelerate")
    assert refused.returncode != 0
    assert "use torchrun" in refused.stderr
    assert not (experiment.run("accelerate") / "metrics.jsonl").exists()


# -- what one of several processes finds wrong ------------------------------------------------------------------------


@dataclass(frozen=True)
class FailAlone:
    """Called in a process: when a process of that rank has its second batch, something is wrong with it."""

    rank: int

    def __call__(self) -> None:
        left = 2

        def fail(task: Any, batch: Any) -> None:
            nonlocal left
            left -= 1
            if task.rank == self.rank and left == 0:
                raise UserError("expected a good batch, got a bad one; look at it")

        at_calls("vqa_bench.train.vqa:VQATask.amount", fail)


def fail_together(experiment: Experiment, results: str, *, rank: int, setup: Setup | None = None) -> str:
    """The one error of a launch in which a process ends by itself, on which its launcher ends the others."""
    commands = start_together(partial(start, experiment.train(results), setup=setup), experiment.log(results))
    with ended(commands):
        assert commands[rank].wait(60) == 2, commands[rank].output
    said = "".join(command.output for command in commands)
    assert commands[rank].error in said
    assert sum(line.startswith("error:") for line in said.splitlines()) == 1, said
    return commands[rank].error


@pytest.mark.parametrize("rank", [0, 1])
def test_a_mistake_that_one_process_finds_ends_all(tmp_path: Path, clevr: Path, rank: int) -> None:
    experiment = make_experiment(tmp_path, clevr, CNN, TRAIN | {"steps": 4}, **CELL)
    error = fail_together(experiment, "bad", rank=rank, setup=FailAlone(rank))
    assert error == "error: cell: expected a good batch, got a bad one; look at it"
    assert not (experiment.run("bad") / "trained.json").exists()


def test_a_damaged_log_ends_all(tmp_path: Path, clevr: Path) -> None:
    """The main process reads it, while the other is on its way to the first step."""
    experiment = make_experiment(tmp_path, clevr, CNN, TRAIN | {"steps": 6, "checkpoint": {"steps": 2}}, **CELL)
    trap = Trap(call="vqa_bench.train.loop:_Loop._update", nth=5)
    assert start(experiment.train("bad"), experiment.log("first"), setup=trap).wait() == KILLED
    log = experiment.run("bad") / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines()
    log.write_text("\n".join(["no line of a log", *lines[1:], ""]), encoding="utf-8")
    error = fail_together(experiment, "bad", rank=0)
    assert "expected line 1 of " in error
