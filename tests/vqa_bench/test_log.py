"""The log of a run: what its lines say, and that they are the same however often the training was killed between."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vqa_bench.run_folders import metrics, table
from vqa_bench import launch
from vqa_bench.config import TrainConfig
from vqa_bench.errors import UserError
from vqa_bench.train import trackers
from vqa_bench.train.log import RunLog

STEPS, DEV_EVERY = 23, 4


class Training:
    """A training that only logs: step k has a loss, a norm and amounts that follow from k."""

    def __init__(self, run: Path, *, every: int = 5, names: tuple[str, ...] = (), steps: int = STEPS) -> None:
        self.run = run
        self.config = TrainConfig(steps=steps, images_per_batch=1, learning_rate=1.0, log_every=every, trackers=names)
        self.checkpoint: tuple[int, dict[str, Any]] = (0, {})
        self.notes: list[tuple[int, int, str]] = []

    def start(self, until: int | None = None, *, save: frozenset[int] = frozenset(), finish: bool = True) -> None:
        """Go on from the last checkpoint to step `until`, with checkpoints after the steps in `save`."""
        step, state = self.checkpoint
        log = RunLog.open(
            self.run,
            self.config,
            name="cell",
            settings={"steps": STEPS, "dev": {"every": DEV_EVERY}, "betas": [0.9, 0.95], "clip": None},
            from_step=step,
            unit="questions",
            clock=lambda: 10.0 * step,
            report=lambda done, total, note="": self.notes.append((done, total, note)),
            state=state,
        )
        while step < (self.config.steps if until is None else until):
            step += 1
            log.step(
                step,
                loss=1 / step,
                grad_norm=0.1 * step,
                learning_rate=step / 100,
                epoch=step / 7,
                samples=step,
                bytes=1000 * step,
                waited=0.25,
                took=0.5,
            )
            if step % DEV_EVERY == 0:
                log.dev(step, {"loss": 2 / step, "accuracy": step / 100}, best=step < 10)
            if step in save:
                self.checkpoint = (step, json.loads(json.dumps(log.state())))
        if finish:
            log.finish()


def test_a_line_holds_means_rates_and_the_newest_values(tmp_path: Path) -> None:
    Training(tmp_path, every=10).start()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        *[("dev", 4), ("dev", 8), ("train", 10), ("dev", 12), ("dev", 16)],
        *[("train", 20), ("dev", 20), ("train", 23)],
    ]
    second = lines[5]
    assert second.pop("memory_bytes") > 1 << 20
    assert second == {
        "kind": "train",
        "step": 20,
        "loss": pytest.approx(sum(1 / k for k in range(11, 21)) / 10),
        "grad_norm": pytest.approx(1.55),
        "learning_rate": 0.2,
        "epoch": 20 / 7,
        "samples_per_second": sum(range(11, 21)) / 5,
        "bytes_per_second": 1000 * sum(range(11, 21)) / 5,
        "data_wait": 0.5,
        "seconds": 200.0,
    }
    assert lines[0] == {"kind": "dev", "step": 4, "loss": 0.5, "accuracy": 0.04, "best": True, "seconds": 40.0}
    rows = table(tmp_path)
    assert [(row["kind"], int(row["step"])) for row in rows] == [(line["kind"], line["step"]) for line in lines]
    assert list(rows[0]) == [name for name in trackers.COLUMNS if name in rows[0]]
    assert (rows[0]["accuracy"], rows[0]["grad_norm"], rows[5]["learning_rate"]) == ("0.04", "", "0.2")


@settings(max_examples=40, deadline=None)
@given(
    every=st.integers(1, 8),
    starts=st.lists(st.tuples(st.integers(0, STEPS), st.frozensets(st.integers(1, STEPS), max_size=4)), max_size=5),
    torn=st.integers(0, 40),
    stop=st.integers(1, STEPS),
)
def test_kills_leave_no_gaps_and_no_doubles(
    every: int, starts: list[tuple[int, frozenset[int]]], torn: int, stop: int
) -> None:
    """Killed after any step, with checkpoints anywhere and half a line at the end; ended early or at the last step."""
    with TemporaryDirectory() as folder:
        straight = Training(Path(folder) / "straight", every=every)
        killed = Training(Path(folder) / "killed", every=every)
        for training in (straight, killed):
            training.run.mkdir()
        straight.start(stop)
        for until, save in starts:
            killed.start(min(until, stop), save=save, finish=False)
            for name in ("metrics.jsonl", "metrics.csv"):
                with (killed.run / name).open("a", encoding="utf-8") as file:
                    file.write('{"kind": "train", "step": 3, "loss": 0.1'[:torn])
        killed.start(stop)
        assert metrics(killed.run) == metrics(straight.run)
        assert table(killed.run) == table(straight.run)
        assert {path.name for path in killed.run.iterdir()} == {"metrics.jsonl", "metrics.csv"}


def test_killed_after_the_last_line_and_before_the_last_checkpoint(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.start(7, save=frozenset({7}))  # the checkpoint of step 7, then the line that ends training early
    training.start(7)
    assert [line["step"] for line in metrics(tmp_path) if line["kind"] == "train"] == [5, 7]


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    config = TrainConfig(steps=4, images_per_batch=1, learning_rate=1.0, log_every=2)
    log = RunLog.open(
        tmp_path, config, name="cell", settings={}, from_step=0, unit="windows", clock=lambda: 0.0, state={}
    )
    rest = {"loss": 1.0, "learning_rate": 1.0, "epoch": 0.0, "samples": 1, "bytes": 1, "waited": 0.0, "took": 0.0}
    for step, norm in enumerate((float("inf"), 3.0, None, None), start=1):
        log.step(step, grad_norm=norm, **rest)  # type: ignore[arg-type]
    log.dev(4, {"loss": float("nan")}, best=False)
    first, second, third = metrics(tmp_path)
    assert (first["grad_norm"], second["grad_norm"], third["loss"]) == (3.0, None, None)
    assert "samples_per_second" in json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])


def test_what_is_shown(tmp_path: Path) -> None:
    training = Training(tmp_path, every=10)
    training.start(12, save=frozenset({12}), finish=False)
    assert training.notes[0] == (0, STEPS, "")
    done, total, note = training.notes[1]
    assert (done, total) == (1, STEPS)
    assert note.startswith("loss 1.000, 2 questions/s, 2 kB/s, waiting 50%, ")
    assert note.endswith("B")
    assert training.notes[12][2].startswith("loss 0.293, 11 questions/s, 11 kB/s, waiting 50%, ")  # the line of step 10
    assert training.notes[12][2].endswith(", dev accuracy 8.0 %")
    training.notes.clear()
    training.start()
    assert [done for done, _, _ in training.notes] == list(range(12, STEPS + 1))  # a rate counts from here


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "is_main", lambda: False)
    training = Training(tmp_path)
    training.start(save=frozenset({5}))
    assert training.checkpoint == (5, {})
    assert training.notes == []
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    training = Training(tmp_path)
    training.start(8, save=frozenset({8}), finish=False)
    path = tmp_path / "metrics.jsonl"
    path.write_text("half a li\n" + path.read_text())
    with pytest.raises(UserError, match=r"expected line 1 of .*metrics.jsonl to be one of metrics, got 'half a li'; "):
        training.start()


def test_no_room_is_one_line(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl", every=1, total=2, unit="questions", clock=lambda: 0.0)
    full = Path("/dev/full")  # where every write fails for want of room; elsewhere a folder is in the way
    log._path.symlink_to(full) if full.exists() else log._path.mkdir()
    with pytest.raises(UserError, match=r"expected to write .*metrics.jsonl, got: .*; make room and run the same"):
        log.dev(1, {"loss": 1.0}, best=True)


# -- trackers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"expected the package {name} .*got none; install vqa-bench\[{name}\]"):
        Training(tmp_path, names=(name,)).start()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_shows_every_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    training = Training(tmp_path, names=("tensorboard",))
    training.start(11, finish=False)  # killed before any checkpoint: begins anew
    training.start(14, save=frozenset({7}), finish=False)
    training.start()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [5, 10, 15, 20, 23]
    assert [point.step for point in events.Scalars("dev/accuracy")] == [4, 8, 12, 16, 20]
    expected = [line["loss"] for line in metrics(tmp_path) if line["kind"] == "train"]
    assert [point.value for point in events.Scalars("train/loss")] == pytest.approx(expected)
    [shown] = tmp_path.glob("tensorboard/*/hparams.yml")
    assert "dev.every: 4" in shown.read_text()


def test_wandb_goes_on_with_the_run_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in that keeps what it is told: the package is not needed."""
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, Any]]] = []

    class Run:
        def log(self, values: dict[str, Any], step: int) -> None:
            logged.append((step, values))

        def finish(self) -> None:
            logged.append((-1, {}))

    class Config(dict[str, Any]):
        def update(self, values: dict[str, Any], allow_val_change: bool) -> None:  # type: ignore[override]
            super().update(values)

    def init(**options: Any) -> Run:
        begun.append(options)
        return Run()

    stand_in = ModuleType("wandb")
    stand_in.__spec__ = ModuleSpec("wandb", None)
    stand_in.init = init  # type: ignore[attr-defined]
    stand_in.config = Config()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    training = Training(tmp_path, names=("wandb",))
    training.start(11, finish=False)
    training.start(7, save=frozenset({7}), finish=False)
    training.start()
    assert [(options["project"], options["name"], options["dir"]) for options in begun] == [
        ("vqa-bench", "cell", str(tmp_path))
    ] * 3
    first, second, third = (options["id"] for options in begun)
    assert first != second == third  # what was begun anew is another run
    assert stand_in.config == {"steps": STEPS, "dev.every": 4, "betas": "[0.9, 0.95]", "clip": "null"}
    assert logged[-1] == (-1, {})
    assert logged[-2][0] == STEPS
    assert logged[-2][1]["train/epoch"] == STEPS / 7
