"""Runs that are killed with -9 and started again end as if they had never been: the same bits, the same lines.

Instants are random times, and traps: just before a checkpoint or a best model is renamed, while old ones are removed,
in the middle of judging, scoring and writing results.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.vqa_bench.commands import KILLED, Changes, Trap, run, start, until
from tests.vqa_bench.experiments import CNN, S_T, T_T, Experiment, make_books, make_data, make_experiment
from tests.vqa_bench.run_folders import expect_same

# Everything that has a state: dropout, a moving average, micro-batches, evaluations, the best of them, checkpoints.
TRAIN = {
    "steps": 20,
    "images_per_batch": 4,
    "learning_rate": 1e-2,
    "accumulate": 2,
    "ema": 0.9,
    "dev": {"every": 4, "keep": 2},
    "checkpoint": {"steps": 3},
    "log_every": 2,
    "threads": 1,
}
BYTES = T_T | {"stages": [stage | {"dropout": 0.1} for stage in T_T["stages"]]}
MAMBA = S_T | {"stages": [stage | {"dropout": 0.1} for stage in S_T["stages"]]}
PICTURES = CNN | {"dropout": 0.1}

# In the order in which a run comes past them. `.partial` stands in the names of what is not whole yet.
TRAPS = {
    "preparing": Trap(file=r"open .*/data/shards/"),
    "before the first checkpoint": Trap(call="vqa_bench.train.loop:_Loop._update", nth=2),
    "writing a checkpoint": Trap(file=r"open .*checkpoints/.*partial/"),
    "renaming a checkpoint": Trap(file=r"rename .*checkpoints/step-\d+$", nth=2),
    "removing a checkpoint": Trap(file=r"remove .*checkpoints/step-\d+/"),
    "judging": Trap(call="vqa_bench.train.vqa:VQATask.develop"),
    "writing the best": Trap(file=r"(open|mkdir) .*best/\..*partial"),
    "renaming the best": Trap(file=r"rename .*best/step-\d+$"),
    "removing from the best": Trap(file=r"remove .*best/step-\d+/"),
    "ending training": Trap(file=r"rename .*/cell/model\.safetensors$"),
    "having ended training": Trap(file=r"rename .*/cell/trained\.json$"),
    "letting go of the state": Trap(file=r"(remove|rmdir) .*checkpoints"),
    "scoring": Trap(call="vqa_bench.scoring.answering:score", nth=2),
    "writing predictions": Trap(file=r"rename .*/cell/predictions\.jsonl$"),
    "writing the result": Trap(file=r"rename .*/cell/result\.json$"),
    "saying that it is done": Trap(file=r"(open|rename) .*/cell/DONE$"),
}
OF_TRAINING = Trap(call="vqa_bench.train.loop:_Loop._update", nth=3)


@pytest.fixture(scope="module")
def clevr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_books(tmp_path_factory.mktemp("resume") / "books")


def cell_of(folder: Path, clevr: Path, model: dict[str, Any], **train: Any) -> Experiment:
    evaluate = {"images_per_batch": 3}
    return make_experiment(folder, clevr, model, TRAIN | train, evaluate=evaluate, sequence={"answer": "text"})


def start_and_kill(command: list[object], log: Path, instants: Sequence[Trap | float]) -> None:
    """The same command again and again, killed at each instant (a trap, or after so many seconds), then to the end."""
    for instant in instants:
        if isinstance(instant, Trap):
            code = start(command, log, setup=instant).wait()
        else:
            under_way = start(command, log)
            under_way.process.join(instant)
            code = under_way.kill()
        assert code == KILLED, f"{instant}\n{log.read_text(encoding='utf-8')}"
    run(command, log)
    left = [path for folder in (log.parent / "data", log.parent / log.stem) for path in folder.rglob("*partial*")]
    assert not left


def test_a_run_killed_three_times_is_the_same_run(tmp_path: Path, clevr: Path) -> None:
    experiment = cell_of(tmp_path, clevr, BYTES)
    run(experiment.train("whole"), experiment.log("whole"))
    instants = [TRAPS["renaming a checkpoint"], TRAPS["removing from the best"], TRAPS["scoring"]]
    start_and_kill(experiment.train("killed"), experiment.log("killed"), instants)
    expect_same(experiment.run("killed"), experiment.run("whole"))


@pytest.mark.slow
def test_a_pretraining_run_killed_three_times_is_the_same_run(tmp_path: Path, clevr: Path, books: Path) -> None:
    experiment = make_experiment(tmp_path, clevr, BYTES, TRAIN | {"steps": 12}, books=books)
    run(experiment.pretrain("whole"), experiment.log("whole"))
    instants = [
        TRAPS["writing a checkpoint"],
        Trap(call="vqa_bench.train.text:TextTask.develop", nth=2),
        Trap(call="vqa_bench.train.text:evaluate_text"),
    ]
    start_and_kill(experiment.pretrain("killed"), experiment.log("killed"), instants)
    expect_same(experiment.pretraining("killed"), experiment.pretraining("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("model", [BYTES, MAMBA, PICTURES], ids=["T/T", "S/T", "CNN"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_killed_at_every_kind_of_instant(
    tmp_path: Path, clevr: Path, model: dict[str, Any], workers: int
) -> None:
    """One run, killed at each trap in turn."""
    experiment = cell_of(tmp_path, clevr, model, workers=workers)
    start_and_kill(experiment.train("killed"), experiment.log("killed"), list(TRAPS.values()))
    run(experiment.train("whole"), experiment.log("whole"))
    expect_same(experiment.run("killed"), experiment.run("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", [BYTES, PICTURES], ids=["bytes", "CNN"])
def test_a_run_killed_ten_times_at_random_changes_of_files(
    tmp_path: Path, clevr: Path, model: dict[str, Any], seed: int
) -> None:
    """Ten instants drawn evenly over all changes of files that the run makes when nobody kills it."""
    experiment = cell_of(tmp_path, clevr, model)
    changes = tmp_path / "changes"
    run(experiment.train("whole"), experiment.log("whole"), setup=Changes(changes))
    count = sum("/whole/cell/" in line for line in changes.read_text(encoding="utf-8").splitlines())
    assert count > 60
    drawn = sorted(random.Random(seed).sample(range(1, count), 10))
    distances = [after - before for before, after in zip([0, *drawn[:-1]], drawn, strict=True)]
    start_and_kill(
        experiment.train("killed"), experiment.log("killed"), [Trap(file="/killed/cell/", nth=d) for d in distances]
    )
    expect_same(experiment.run("killed"), experiment.run("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("model", [BYTES, PICTURES], ids=["bytes", "CNN"])
def test_a_run_killed_ten_times_at_random_times(tmp_path: Path, clevr: Path, model: dict[str, Any]) -> None:
    """Ten stretches of training, each ended from outside after a random time in which it got some way further."""
    experiment = cell_of(tmp_path, clevr, model, steps=120)
    generator = random.Random(1)
    command, log, folder = experiment.train("killed"), experiment.log("killed"), experiment.run("killed")
    for target in sorted(generator.sample(range(100), 10)):
        under_way = start(command, log)
        until(lambda target=target: steps_saved(folder) >= target, under_way)
        time.sleep(generator.uniform(0, 0.05))
        assert under_way.kill() == KILLED, under_way.output
    start_and_kill(command, log, [])
    run(experiment.train("whole"), experiment.log("whole"))
    expect_same(folder, experiment.run("whole"))


def steps_saved(run: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((int(path.name.removeprefix("step-")) for path in run.glob("checkpoints/step-*")), default=0)
