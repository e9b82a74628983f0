"""What the loop does with its settings: seeds of steps, precision, judging, and the instants at which it saves."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from tests.vqa_bench.cells import make_cell, make_shard
from tests.vqa_bench.experiments import CNN, T_T
from tests.vqa_bench.run_folders import expect_same, metrics
from tests.vqa_bench.test_loop import cell_of, train_in, trained
from vqa_bench.config import CellConfig, LoopConfig
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.shards import Shard
from vqa_bench.errors import StoppedError, UserError
from vqa_bench.models import ByteModel
from vqa_bench.train import loop, state, train
from vqa_bench.train.cell import new_model
from vqa_bench.train.vqa import VQATask

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("settings"), train=24)


def before_updates(monkeypatch: pytest.MonkeyPatch, act: Callable[[loop._Loop], None]) -> None:
    """Call `act` in every optimiser step, when its batches are there."""
    update = loop._Loop._update

    def wrapper(self: loop._Loop, *args: Any) -> Any:
        act(self)
        return update(self, *args)

    monkeypatch.setattr(loop._Loop, "_update", wrapper)


def saved_steps(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None] = lambda step: None) -> list[int]:
    """The steps after which checkpoints are written, as they are; `act` is called behind each."""
    steps: list[int] = []
    save = state.save

    def wrapper(run: Path, trainee: state.Trainee, loop_state: state.LoopState) -> None:
        save(run, trainee, loop_state)
        steps.append(loop_state.step)
        act(loop_state.step)

    monkeypatch.setattr(state, "save", wrapper)
    return steps


# -- chance ---------------------------------------------------------------------------------------------------------


def test_every_step_seed_and_process_has_its_own_chance(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What dropout would draw on a CPU, whose generator takes no more than 32 bits of a seed."""
    drawn: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    ranks = iter([0, 1, 0, 1])

    def draw(self: loop._Loop) -> None:
        seeds.append(torch.initial_seed())
        drawn.setdefault((self.seed, self.rank), []).append(tuple(torch.randint(2**31, (4,)).tolist()))

    def pretend(self: loop._Loop, *args: Any) -> None:
        begin(self, *args)
        self.rank = next(ranks)

    begin = loop._Loop.__init__
    monkeypatch.setattr(loop._Loop, "__init__", pretend)
    before_updates(monkeypatch, draw)
    seeds: list[int] = []
    for seed, time in itertools.product((0, 1), (0, 1)):
        cell = cell_of(CNN, steps=3).model_copy(update={"seed": seed})
        train_in(tmp_path / f"{seed}-{time}", cell, shard)
    assert sorted(drawn) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(set(seeds)) == len({seed % 2**32 for seed in seeds}) == 12
    assert len({numbers for share in drawn.values() for numbers in share}) == 12


def test_dropout_is_a_function_of_seed_step_and_process(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch, one model: the same loss again, whatever was drawn before, and another one in another process."""
    cell = cell_of(CNN | {"dropout": 0.5}, steps=1)
    begin, losses = loop._Loop.__init__, []
    for place, rank in enumerate((0, 0, 1)):

        def pretend(self: loop._Loop, *args: Any, rank: int = rank) -> None:
            begin(self, *args)
            self.rank = rank
            torch.rand(7)

        monkeypatch.setattr(loop._Loop, "__init__", pretend)
        train_in(tmp_path / f"{place}", cell, shard)
        losses.append(metrics(tmp_path / f"{place}")[0]["loss"])
    assert losses[0] == losses[1] != losses[2]


# -- precision ------------------------------------------------------------------------------------------------------


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool, str]]:
    """Of every forward of a byte model: whether it is of a training step, autocast, and how float32 is multiplied."""
    seen: list[tuple[bool, bool, str]] = []
    forward = ByteModel.forward

    def wrapper(self: ByteModel, batch: Any) -> Any:
        low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        seen.append((self.training, low, torch.get_float32_matmul_precision()))
        return forward(self, batch)

    monkeypatch.setattr(ByteModel, "forward", wrapper)
    return seen


def test_steps_have_the_precision_that_was_asked_for_and_judging_has_all_of_it(
    shard: Shard, tmp_path: Path, forwards: list[tuple[bool, bool, str]]
) -> None:
    before = torch.get_float32_matmul_precision()
    dev = {"every": 2, "use": "last"}
    for precision, matmul, low in (("bf16", "highest", True), ("no", "high", False), ("no", "highest", False)):
        run = tmp_path / f"{precision}-{matmul}"
        train_in(run, cell_of(T_T, steps=2, precision=precision, matmul_precision=matmul, dev=dev), shard)
        assert [seen for seen in forwards if seen[0]] == [(True, low, matmul)] * 2
        judged = [autocast for training, autocast, _ in forwards if not training]
        assert judged
        assert not any(judged)
        assert torch.get_float32_matmul_precision() == before
        assert not torch.is_autocast_enabled("cpu")
        forwards.clear()


def test_matmul_precision_is_as_before_after_an_error(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()

    def fail(self: loop._Loop) -> None:
        raise ZeroDivisionError

    before_updates(monkeypatch, fail)
    with pytest.raises(ZeroDivisionError):
        train_in(tmp_path / "run", cell_of(CNN, matmul_precision="medium", threads=before[1] + 1), shard)
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before


@pytest.mark.parametrize("model", [T_T, CNN], ids=["T/T", "CNN"])
def test_a_model_in_low_precision_is_judged_as_its_weights_will_be(
    shard: Shard, tmp_path: Path, model: dict[str, Any]
) -> None:
    """To the last bit: what is kept answers as it did when it was chosen."""
    cell = cell_of(model, precision="bf16", threads=None, dev={"every": 6, "use": "last"})
    loaded = train_in(tmp_path / "run", cell, shard)
    (line,) = [line for line in metrics(tmp_path / "run") if line["kind"] == "dev"]
    found = VQATask(loaded, shard).develop(loaded, CPU)
    for name, (total, count) in found.items():
        assert line[name] == total / count


# -- judging --------------------------------------------------------------------------------------------------------


def task_of(shard: Shard, **dev: Any) -> VQATask:
    cell = cell_of(CNN, dev={"every": 1} | dev)
    return VQATask(new_model(cell, shard).eval(), shard)


def test_the_dev_split_is_judged_up_to_a_number_of_images(tmp_path: Path) -> None:
    shard = make_shard(tmp_path, train=40)
    images = len(evaluation_groups(shard.split("dev")))
    assert images > 2
    for samples, judged in ((1, 1), (2, 2), (None, images), (images + 5, images)):
        task = task_of(shard, samples=samples)
        found = task.develop(task.model, CPU)
        assert found["accuracy"][1] == 5 * judged
    task = task_of(shard, samples=1)
    (group,) = task._dev_groups
    assert group.image == evaluation_groups(shard.split("dev"))[0].image


def test_places_without_a_question_are_not_right(shard: Shard, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Images of one batch have five questions and one; every place is given the answer that its target says."""
    task = task_of(shard)
    first, second = evaluation_groups(shard.split("dev"))[:2]
    vars(task)["_dev_groups"] = [first, second._replace(questions=second.questions[:1])]

    def know_all(model: nn.Module, batch: Any) -> SimpleNamespace:
        assert batch.present.numel() == 10
        log_probs: Tensor = one_hot(batch.targets.flatten()).float().log()
        return SimpleNamespace(log_probs=log_probs)

    monkeypatch.setattr("vqa_bench.train.vqa.score", know_all)
    assert task.develop(task.model, CPU)["accuracy"] == (6, 6)


def test_a_dev_loss_that_is_not_finite_is_an_error(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"loss": (float("nan"), 5.0), "accuracy": (1.0, 5.0)}
    monkeypatch.setattr(VQATask, "develop", lambda *_: found)
    cell = cell_of(CNN, dev={"every": 2})
    with pytest.raises(UserError, match=r"expected a finite loss on the dev split, got nan after step 2; .*learning"):
        train_in(tmp_path / "run", cell, shard)
    assert not list((tmp_path / "run").glob("best/*"))


@pytest.mark.parametrize(
    ("device", "workers", "expected"), [("cpu", None, 0), ("cuda", None, 4), ("cpu", 2, 2), ("cuda", 0, 0)]
)
def test_who_prepares_which_batches(device: str, workers: int | None, expected: int) -> None:
    asked: list[tuple[range, int, bool]] = []

    def batches(numbers: range, *, workers: int, pin: bool) -> Iterator[None]:
        asked.append((numbers, workers, pin))
        return iter(())

    config = LoopConfig(steps=5, learning_rate=1.0, accumulate=3, workers=workers)
    accelerator = SimpleNamespace(device=torch.device(device))
    at: Any = SimpleNamespace(
        config=config, accelerator=accelerator, task=SimpleNamespace(batches=batches), state=state.LoopState(step=2)
    )
    assert list(loop._Loop._micro_batches(at)) == []
    assert asked == [(range(6, 15), expected, device == "cuda")]


# -- when it saves and stops ----------------------------------------------------------------------------------------


def with_slow_steps(monkeypatch: pytest.MonkeyPatch, seconds: float = 10.0) -> None:
    """Every step takes so long, by a clock that stands still otherwise."""
    now = 0.0

    def wait(self: loop._Loop) -> None:
        nonlocal now
        now += seconds

    def clock(before: float) -> Callable[[], float]:
        began = now
        return lambda: before + now - began

    before_updates(monkeypatch, wait)
    monkeypatch.setattr(loop, "_clock", clock)


@pytest.mark.parametrize(
    ("changes", "steps", "stopped"),
    [
        ({"checkpoint": {"time": 25}}, [4, 8, 10], "steps"),  # at the beginning of a step: after 30 s, not after 20
        ({"checkpoint": {"time": 30}}, [4, 8, 10], "steps"),
        ({"checkpoint": {"time": 31}}, [5, 10], "steps"),
        ({"checkpoint": {"time": None, "steps": 3}}, [3, 6, 9, 10], "steps"),
        ({"checkpoint": {"time": 25, "steps": 3}}, [3, 6, 9, 10], "steps"),  # the time counts from whichever was last
        ({"checkpoint": {"time": 25}, "dev": {"every": 3}}, [3, 6, 9, 10], "steps"),
        ({"checkpoint": {"time": None}}, [10], "steps"),
        ({"checkpoint": {"time": None}, "max_time": 50}, [6], "max_time"),
        ({"checkpoint": {"time": 25}, "max_time": 51}, [4, 7], "max_time"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_it_is_saved_when_it_is_time(
    shard: Shard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    steps: list[int],
    stopped: str,
) -> None:
    with_slow_steps(monkeypatch)
    saved = saved_steps(monkeypatch)
    train_in(tmp_path / "run", cell_of(CNN, steps=10, **changes), shard)
    assert saved == steps
    facts = trained(tmp_path / "run")
    assert (facts["stopped"], facts["steps"], facts["seconds"]) == (stopped, steps[-1], 10.0 * steps[-1])


def dropping(**changes: Any) -> CellConfig:
    """A cell that a step taken twice, or with other chance, would show in."""
    return make_cell(CNN | {"dropout": 0.2}, train={"images_per_batch": 4, "learning_rate": 1e-2, **changes})


def test_a_request_to_stop_is_heard_after_the_step_and_goes_on_from_there(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM comes in the middle of the third step: processes agree on it with the numbers of the next one."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    cell = dropping(steps=6, threads=1, log_every=1)
    train_in(tmp_path / "whole", cell, shard)
    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        saved = saved_steps(patch)
        before_updates(patch, lambda self: os.kill(os.getpid(), signal.SIGTERM) if self.state.step == 2 else None)
        with pytest.raises(StoppedError, match="stopped after step 4 of 6: the same command goes on from there"):
            train_in(run, cell, shard)
    assert saved == [4]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    assert not (run / "trained.json").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train(cell, shard, run)
    expect_same(run, tmp_path / "whole")


def test_patience_counts_on_over_a_start(shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    cell = cell_of(T_T, steps=100, learning_rate=1e-30, dev={"every": 2, "patience": 3})  # nothing ever gets better

    def stop(step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        saved_steps(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            train_in(run, cell, shard)
    train(cell, shard, run)
    facts = trained(run)
    assert (facts["stopped"], facts["steps"], facts["used_step"]) == ("patience", 8, 2)
