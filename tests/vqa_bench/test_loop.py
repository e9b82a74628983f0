"""The loop against a slow, obvious one: what it minimises, how it steps, what it keeps, and when it stops."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.vqa_bench.cells import make_cell, make_shard
from tests.vqa_bench.experiments import CNN, MODELS, T_T
from tests.vqa_bench.reference_loop import expect_weights, reference_training
from tests.vqa_bench.run_folders import files, losses, metrics
from vqa_bench.config import CellConfig
from vqa_bench.data.loading import TrainPlan
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.models import VQAModel
from vqa_bench.train import state, train

BASE = {"steps": 6, "images_per_batch": 4, "learning_rate": 1e-2, "threads": 1, "log_every": 1}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("loop"), train=24)


def cell_of(model: dict[str, Any], **changes: Any) -> CellConfig:
    """A cell whose answers are text, so that they differ in length and a mean of means would show."""
    return make_cell(model, sequence={"answer": "text"}, train=BASE | changes)


def train_in(run: Path, cell: CellConfig, shard: Shard) -> VQAModel:
    run.mkdir()
    return train(cell, shard, run)


def trained(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "trained.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulate": 3, "images_per_batch": 2, "questions_per_image": 3},
        {"weight_decay": 0.5, "clip": 0.05, "betas": (0.8, 0.99), "warmup": 0.5},
        {"clip": None, "ema": 0.6},
    ],
    ids=["plain", "accumulated", "decayed and clipped", "averaged"],
)
def test_steps_are_those_of_the_obvious_loop(shard: Shard, tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    cell = cell_of(MODELS[name], **changes)
    expected = reference_training(cell, shard)
    train_in(tmp_path / "run", cell, shard)
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in lines] == pytest.approx(expected.losses, abs=1e-5)
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected.rates, rel=1e-9)
    assert [line["grad_norm"] for line in lines] == pytest.approx(expected.norms, rel=1e-3)
    kept = dict(expected.model.named_parameters()) if "ema" not in changes else expected.average
    # Where a gradient is nearly zero, Adam's first steps are the learning rate in a direction that rounding decides.
    expect_weights(tmp_path / "run", kept, atol=2e-4)


def test_clipping_and_averaging_are_felt(shard: Shard, tmp_path: Path) -> None:
    """What the comparison above would not notice: that its settings do something."""
    runs = {"plain": {}, "clipped": {"clip": 1e-6}, "averaged": {"ema": 0.6}}
    found = {}
    for name, changes in runs.items():
        train_in(tmp_path / name, cell_of(T_T, learning_rate=1e-1, warmup=0.0, **changes), shard)
        found[name] = load_file(tmp_path / name / "model.safetensors")
    assert losses(tmp_path / "plain")[:2] != pytest.approx(losses(tmp_path / "clipped")[:2], abs=1e-4)
    assert losses(tmp_path / "plain") == losses(tmp_path / "averaged")
    assert any(not torch.equal(found["plain"][name], found["averaged"][name]) for name in found["plain"])


def test_lines_are_means_over_the_steps_since_the_last(shard: Shard, tmp_path: Path) -> None:
    train_in(tmp_path / "each", cell_of(CNN), shard)
    train_in(tmp_path / "some", cell_of(CNN, log_every=4), shard)
    each = losses(tmp_path / "each")
    lines = metrics(tmp_path / "some")
    assert [line["step"] for line in lines] == [4, 6]
    assert [line["loss"] for line in lines] == pytest.approx([sum(each[:4]) / 4, sum(each[4:]) / 2], abs=1e-9)


# -- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("use", ["best", "last"])
def test_the_best_are_kept_and_used(shard: Shard, tmp_path: Path, metric: str, use: str) -> None:
    """A learning rate at which the loss goes up and down, so that the best is not simply the last."""
    dev = {"every": 2, "metric": metric, "keep": 2, "use": use}
    run = tmp_path / "run"
    model = train_in(run, cell_of(CNN, steps=13, learning_rate=0.2, dev=dev), shard)
    lines = [line for line in metrics(run) if line["kind"] == "dev"]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12, 13]
    sign = 1 if metric == "loss" else -1
    ranked = sorted(lines, key=lambda line: (sign * line[metric], line["step"]))
    kept = [f"step-{line['step']:08d}" for line in ranked[:2]]
    assert sorted(path.name for path in (run / "best").iterdir()) == sorted(kept)
    assert trained(run)["used_step"] == (ranked[0]["step"] if use == "best" else 13)
    assert trained(run)["stopped"] == "steps"
    answered = load_file(run / "model.safetensors")
    assert all(torch.equal(tensor, answered[name]) for name, tensor in model.state_dict().items())
    if use == "best":
        assert (run / "model.safetensors").read_bytes() == (run / "best" / kept[0] / "model.safetensors").read_bytes()
    else:
        without = tmp_path / "without"
        train_in(without, cell_of(CNN, steps=13, learning_rate=0.2), shard)
        assert (run / "model.safetensors").read_bytes() == (without / "model.safetensors").read_bytes()


def test_the_dev_split_is_judged_as_a_whole(shard: Shard, tmp_path: Path) -> None:
    """Its loss is the mean over its targets, with averaged weights; evaluating changes no step."""
    dev = {"every": 3, "use": "last"}
    run = tmp_path / "run"
    model = train_in(run, cell_of(T_T, ema=0.6, dev=dev), shard)
    split = shard.split("dev")
    plan = TrainPlan(split, 0, len(split))
    sums = model(model.collate(split, plan.groups(0)).to(torch.device("cpu")))
    last = [line for line in metrics(run) if line["kind"] == "dev"][-1]
    assert last["loss"] == pytest.approx((sums.total / sums.targets).item(), abs=1e-5)
    assert 0 <= last["accuracy"] <= 1
    train_in(tmp_path / "without", cell_of(T_T, ema=0.6), shard)
    assert losses(run) == losses(tmp_path / "without")


# -- when it stops --------------------------------------------------------------------------------------------------


def test_patience_ends_a_run(shard: Shard, tmp_path: Path) -> None:
    run = tmp_path / "run"
    dev = {"every": 2, "patience": 2}
    train_in(run, cell_of(T_T, steps=100, learning_rate=1e-30, dev=dev), shard)  # nothing ever gets better
    facts = trained(run)
    assert (facts["stopped"], facts["steps"], facts["used_step"]) == ("patience", 6, 2)
    assert [line["step"] for line in metrics(run) if line["kind"] == "dev"] == [2, 4, 6]


def test_max_time_ends_a_run(shard: Shard, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_in(run, cell_of(T_T, steps=100_000, max_time=0.2), shard)
    facts = trained(run)
    assert facts["stopped"] == "max_time"
    assert 0 < facts["steps"] == metrics(run)[-1]["step"] < 100_000
    assert "checkpoints" not in {name.split("/")[0] for name in files(run)}
    before = (run / "model.safetensors").stat().st_mtime_ns
    train(cell_of(T_T, steps=100_000, max_time=0.2), shard, run)  # over is over
    assert (run / "model.safetensors").stat().st_mtime_ns == before


def test_time_is_counted_over_all_starts(shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped after its time had nearly passed does not get all of it again."""
    run = tmp_path / "run"
    cell = cell_of(CNN, steps=100_000, max_time=3600, checkpoint={"steps": 3})
    save = state.save

    def save_and_stop(folder: Path, trainee: state.Trainee, loop: state.LoopState) -> None:
        loop.seconds = 3599.999  # as if they had been long steps
        save(folder, trainee, loop)
        monkeypatch.setattr(state, "save", save)
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_in(run, cell, shard)
    train(cell, shard, run)
    facts = trained(run)
    assert facts["stopped"] == "max_time"
    assert 3 < facts["steps"] < 1000
    assert facts["seconds"] > 3600


def test_a_loss_that_is_not_finite_names_its_images(shard: Shard, tmp_path: Path) -> None:
    cell = cell_of(T_T, steps=30, learning_rate=1e30, clip=None)
    with pytest.raises(UserError, match=r"expected a finite loss, got (nan|inf) at step \d+") as stopped:
        train_in(tmp_path / "run", cell, shard)
    message = str(stopped.value)
    assert "\n" not in message
    step = int(message.split("at step ")[1].split(":")[0])
    split = shard.split("train")
    names = split.images.column("image_filename").to_pylist()
    for group in TrainPlan(split, 0, 4).groups(step - 1):
        assert names[group.image] in message
