"""Weights shared out over processes (FSDP): the numbers of one process, and checkpoints that either can go on from."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.vqa_bench.cells import make_cell, make_shard
from tests.vqa_bench.commands import KILLED, Trap, finish, start_call, start_together
from tests.vqa_bench.experiments import MODELS
from tests.vqa_bench.run_folders import expect_close, losses, metrics
from vqa_bench.config import CellConfig
from vqa_bench.data.shards import Shard, open_shard
from vqa_bench.train import train

TRAIN = {
    "steps": 20,
    "images_per_batch": 5,
    "learning_rate": 1e-3,
    "accumulate": 2,
    "ema": 0.9,
    "dev": {"every": 8, "keep": 2, "use": "last"},
    "checkpoint": {"steps": 5},
    "log_every": 1,
    "threads": 1,
}
STOPPED_AT = 10  # the last checkpoint of a run that does not survive its twelfth step


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("sharded"))


def train_here(cell: CellConfig, shard: Path, run: Path, *, killed: bool) -> None:
    """Called in a process of its own."""
    run.mkdir(exist_ok=True)
    if killed:
        Trap(call="vqa_bench.train.loop:_Loop._update", nth=STOPPED_AT + 2)()
    train(cell, open_shard(shard), run)


class Runs:
    """Runs of one cell in one folder, by one process or shared out over two."""

    def __init__(self, folder: Path, model: dict[str, Any], shard: Shard) -> None:
        self.folder, self.model, self.shard = folder, model, shard

    def train(self, name: str, *, sharded: bool, killed: bool = False) -> Path:
        changes = {"parallel": "fsdp" if sharded else "ddp"}
        cell = make_cell(self.model, train=TRAIN | changes, sequence={"answer": "text"})
        call = partial(train_here, cell, self.shard.path, self.folder / name, killed=killed)
        log = self.folder / f"{name}.log"
        commands = start_together(partial(start_call, call), log, world=2) if sharded else [start_call(call, log)]
        finish(commands, code=KILLED if killed else 0)
        return self.folder / name

    def copy(self, name: str, new: str) -> None:
        shutil.copytree(self.folder / name, self.folder / new)


@pytest.mark.parametrize(
    "name", ["T/T", pytest.param("S/T", marks=pytest.mark.slow), pytest.param("CNN", marks=pytest.mark.slow)]
)
def test_shared_out_weights_train_like_whole_ones(tmp_path: Path, shard: Shard, name: str) -> None:
    runs = Runs(tmp_path, MODELS[name], shard)
    one = runs.train("one", sharded=False)
    assert len(losses(one)) == 20
    expect_close(runs.train("sharded", sharded=True), one)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_goes_on_shared_out_or_whole(tmp_path: Path, shard: Shard, name: str) -> None:
    runs = Runs(tmp_path, MODELS[name], shard)
    one = runs.train("one", sharded=False)
    sharded = runs.train("sharded", sharded=True)
    stopped = runs.train("stopped", sharded=True, killed=True)
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == [f"step-{STOPPED_AT:08d}"]
    runs.copy("stopped", "stopped-whole")
    runs.train("stopped", sharded=True)
    assert (stopped / "model.safetensors").read_bytes() == (sharded / "model.safetensors").read_bytes()
    assert metrics(stopped) == metrics(sharded)

    expect_close(runs.train("stopped-whole", sharded=False), one)  # begun by two, ended by one
    runs.train("one-stopped", sharded=False, killed=True)
    expect_close(runs.train("one-stopped", sharded=True), one)  # and the other way round
