"""The command `evaluate`: what it lays over a run's settings, how it ends, and that processes share the work."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.vqa_bench.cells import BYTE_MODEL, make_cell, make_shard
from tests.vqa_bench.commands import finish, start, start_together
from tests.vqa_bench.experiments import CNN
from vqa_bench.cli import main
from vqa_bench.config import CellConfig
from vqa_bench.data.damage import damages_of
from vqa_bench.data.shards import Shard
from vqa_bench.models import MODELS, build
from vqa_bench.runs import save_model

LSTM = {"kind": "lstm", "embedding": 8, "hidden": 16}
EVALUATE = {"images_per_batch": 3, "shuffled": False, "bits": 2}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("evaluate"), val=7)


@pytest.fixture(scope="module")
def runs(shard: Shard, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs as training leaves them, but that nothing was learned."""
    folder = tmp_path_factory.mktemp("runs")
    cells = [
        make_cell(BYTE_MODEL, name="bytes", evaluate=EVALUATE, sequence={"answer": "text"}),
        make_cell(LSTM, name="blind", evaluate=EVALUATE, encoding=None),
        make_cell(CNN, name="cnn", evaluate=EVALUATE | {"check_invariance": 4}),
    ]
    return {cell.name: make_run(folder / cell.name, cell, shard) for cell in cells}


def make_run(folder: Path, cell: CellConfig, shard: Shard) -> Path:
    folder.mkdir()
    torch.manual_seed(1)
    save_model(folder, build(cell, MODELS[cell.model.kind].decide(cell, shard)))
    return folder


@pytest.fixture(autouse=True)
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that were reported on; a report is written by other tests, here it would take most of the time."""
    folders: list[Path] = []
    monkeypatch.setattr("vqa_bench.cli.report.print_report", lambda results, out=None: folders.append(results))
    return folders


@pytest.fixture
def quick_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """One damage in place of some twenty."""
    monkeypatch.setattr("vqa_bench.scoring.damage.damages_of", lambda spec: damages_of(spec)[4:5])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def evaluate(*runs: Path, shard: Shard, out: Path, options: tuple[object, ...] = ()) -> int:
    try:
        return main([str(word) for word in ("evaluate", *runs, "--shard", shard.path, "--out", out, *options)])
    except SystemExit as stop:
        return int(stop.code or 0)


def result(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return content


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return [line for line in shown.splitlines() if line.startswith("error:")]


@pytest.mark.usefixtures("quick_damage")
def test_settings_of_the_command_are_laid_over_the_runs_own(
    runs: dict[str, Path], shard: Shard, tmp_path: Path, reported: list[Path]
) -> None:
    asked, out = {name: runs[name] for name in ("cnn", "blind")}, tmp_path / "plain"
    assert evaluate(*asked.values(), shard=shard, out=out) == 0
    assert reported == [out]
    assert result(out / "blind")["invariance"] is None
    assert result(out / "cnn")["invariance"]["questions"] == 4
    assert result(out / "cnn")["invariance"]["tolerance"] == 1e-3
    assert not (out / "cnn" / "damage.json").exists()

    out = tmp_path / "asked"
    options = ("--check-invariance", 2, "--tolerance", 0.01, "--damage", 2)
    assert evaluate(*asked.values(), shard=shard, out=out, options=options) == 0
    for name in asked:
        found = result(out / name)["invariance"]
        assert (found["questions"], found["tolerance"]) == (2, 0.01)
        assert found["max_abs_delta"] < 1e-4
        assert (out / name / "damage.json").exists() == (name != "blind")
    assert json.loads((out / "cnn" / "damage.json").read_text())["images"] == 2
    assert {"damage.json", "damage.jsonl"} <= set(result(out / "cnn")["hashes"])
    for name in asked:
        written = (out / name / "predictions.jsonl").read_bytes()
        assert written == (tmp_path / "plain" / name / "predictions.jsonl").read_bytes()


@pytest.mark.usefixtures("quick_damage")
def test_damage_without_a_number_takes_all_images(runs: dict[str, Path], shard: Shard, tmp_path: Path) -> None:
    assert evaluate(runs["cnn"], shard=shard, out=tmp_path, options=("--damage",)) == 0
    assert json.loads((tmp_path / "cnn" / "damage.json").read_text())["images"] == 7


def _depends_on_its_batch() -> None:
    """What a faulty baseline could do; also called in another process."""
    from vqa_bench.models import Classifier

    honest = Classifier.log_probs

    def log_probs(self: Classifier, batch: Any) -> torch.Tensor:
        return honest(self, batch) - 0.01 * len(batch.present)

    Classifier.log_probs = log_probs  # type: ignore[method-assign]


def test_a_run_that_fails_the_check_is_exit_code_1(
    runs: dict[str, Path],
    shard: Shard,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    reported: list[Path],
) -> None:
    """The others are evaluated and shown all the same, and the same command takes up what failed."""
    from vqa_bench.models import Classifier

    options = ("--check-invariance", 4)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "log_probs", Classifier.log_probs)  # put back at the end
        _depends_on_its_batch()
        assert evaluate(runs["blind"], shard=shard, out=tmp_path, options=options) == 1
        assert reported == []
        assert evaluate(runs["blind"], runs["bytes"], shard=shard, out=tmp_path, options=options) == 1
    first, second = errors(capsys)
    assert first == second
    assert first.startswith("error: blind: expected log-probabilities that change by 0.001 nats at most")
    assert reported == [tmp_path]
    assert (tmp_path / "bytes" / "DONE").exists()
    assert not (tmp_path / "blind" / "DONE").exists()
    assert evaluate(runs["blind"], shard=shard, out=tmp_path, options=options) == 0
    assert result(tmp_path / "blind")["invariance"]["flipped"] == 0


def test_other_candidates(
    runs: dict[str, Path], shard: Shard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.txt"
    names = ["reddish", "größer", *sorted(set(shard.split("test").answer))]
    answers.write_text("\n".join(names) + "\n", encoding="utf-8")
    options = ("--answers", answers, "--check-invariance", 3)
    assert evaluate(runs["bytes"], shard=shard, out=tmp_path / "out", options=options) == 0
    found = result(tmp_path / "out" / "bytes")
    assert found["answers"] == names
    assert found["invariance"]["questions"] == 3
    first = json.loads((tmp_path / "out" / "bytes" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert len(first["log_probs"]) == len(names)
    capsys.readouterr()
    assert evaluate(runs["bytes"], runs["blind"], shard=shard, out=tmp_path / "no", options=options) == 2
    [error] = errors(capsys)
    assert "that blind was trained on" in error
    assert not (tmp_path / "no").exists(), "nothing is begun before everything was looked at"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tolerance", "0.1"), "expected --check-invariance N beside --tolerance"),
        (("--check-invariance", "0"), "expected a number of 1 to"),
        (("--check-invariance", "3", "--tolerance", "0"), "expected a number of nats above 0, got '0'"),
        (("--check-invariance", "3", "--tolerance", "nan"), "expected a number of nats above 0, got 'nan'"),
        (("--damage", "some"), "expected a number of 1 to"),
        (("--answers", "no/such/file"), "no/such/file"),
        (("--split", "none"), "expected a split of"),
    ],
)
def test_mistakes_are_one_line(
    runs: dict[str, Path],
    shard: Shard,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    assert evaluate(runs["bytes"], shard=shard, out=tmp_path / "out", options=options) == 2
    [error] = errors(capsys)
    assert said in error
    assert not (tmp_path / "out").exists()


def test_the_same_cell_twice_and_a_folder_with_something_else(
    runs: dict[str, Path], shard: Shard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(runs["blind"], runs["blind"], shard=shard, out=tmp_path / "out") == 2
    assert "expected runs of different cells, got blind, blind" in errors(capsys)[0]
    (tmp_path / "out" / "blind").mkdir(parents=True)
    (tmp_path / "out" / "blind" / "letter.txt").write_text("mine")
    assert evaluate(runs["blind"], shard=shard, out=tmp_path / "out") == 2
    assert "got something else; choose another --out" in errors(capsys)[0]
    assert (tmp_path / "out" / "blind" / "letter.txt").exists()


# -- several processes ------------------------------------------------------------------------------------------------


def command(*runs: Path, shard: Shard, out: Path, options: tuple[object, ...] = ()) -> list[object]:
    return ["evaluate", *runs, "--shard", shard.path, "--out", out, *options]


@pytest.mark.slow
def test_two_processes_answer_as_one(runs: dict[str, Path], shard: Shard, tmp_path: Path) -> None:
    options = ("--check-invariance", 4, "--damage", 3)
    assert evaluate(runs["cnn"], runs["blind"], shard=shard, out=tmp_path / "one", options=options) == 0
    both = command(runs["cnn"], runs["blind"], shard=shard, out=tmp_path / "two", options=options)
    commands = start_together(partial(start, both), tmp_path / "two.log")
    finish(commands)
    for name in ("cnn", "blind"):
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
        assert (two / "predictions.jsonl").read_bytes() == (one / "predictions.jsonl").read_bytes()
        assert result(two)["metrics"] == result(one)["metrics"]
        assert result(two)["invariance"]["questions"] == 4
    for name in ("damage.json", "damage.jsonl"):
        assert (tmp_path / "two" / "cnn" / name).read_bytes() == (tmp_path / "one" / "cnn" / name).read_bytes()
    assert "images shuffled" in commands[0].output or "blind" in commands[0].output
    assert commands[1].output == ""


@dataclass(frozen=True)
class Faulty:
    """Called in a process: baselines depend on their batches."""

    def __call__(self) -> None:
        _depends_on_its_batch()


@pytest.mark.parametrize("others", [(), pytest.param(("bytes",), marks=pytest.mark.slow)])
def test_a_run_that_fails_the_check_ends_no_process_early(
    runs: dict[str, Path], shard: Shard, tmp_path: Path, others: tuple[str, ...]
) -> None:
    asked = [runs[name] for name in ("blind", *others)]
    words = command(*asked, shard=shard, out=tmp_path, options=("--check-invariance", 4))
    commands = start_together(partial(start, words, setup=Faulty()), tmp_path / "two.log")
    finish(commands, code=1)
    assert commands[0].error.startswith("error: blind: expected log-probabilities that change by")
    assert commands[1].output == ""
    assert not (tmp_path / "blind" / "DONE").exists()
    for name in others:
        assert (tmp_path / name / "DONE").exists()
