"""The three scripts end to end at toy size. Their processes are played inside this one; `slow` tests start them."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from benchmarks import length, shared_prefix
from benchmarks.peer import run
from benchmarks.peer.client import Side, WorkerError
from benchmarks.peer.match import DisagreementError
from benchmarks.peer.worker import Worker

LINUX_ONLY = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)


class SideHere:
    """A worker without a process of its own; what it is asked and answers passes through JSON all the same."""

    spoiled: dict[str, Any] = {}  # noqa: RUF012  (fields that the reference gets wrong)

    def __init__(self, name: str, python: Path, threads: int) -> None:
        self.name, self._worker = name, Worker(threads)

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        answer = getattr(self._worker, command)(**json.loads(json.dumps(arguments)))
        spoiled = self.spoiled if self.name == "the reference" else {}
        return json.loads(json.dumps(answer)) | {key: spoiled[key] for key in answer.keys() & spoiled.keys()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """The scripts set the number of threads; what runs after them must not notice."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run_peer(out: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(run, "Side", SideHere)
    arguments = ["--quick", "--repeats", "1", "--repeats-s", "1", "--threads", "1", "--families", family]
    run.main([*arguments, "--out", str(out)])
    saved: dict[str, Any] = json.loads((out / "peer.json").read_text(encoding="utf-8"))
    return saved


def test_peer_rows_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = run_peer(tmp_path, "T/T", monkeypatch)
    assert len(saved["rows"]) == 6
    assert all(row["value"] > 0 for row in saved["rows"])
    assert saved["families"]["T/T"]["parameters"]["ours"] == saved["families"]["T/T"]["parameters"]["reference"]
    assert (tmp_path / "peer.md").read_text(encoding="utf-8").count("| T/T ") == 6


@pytest.mark.slow
def test_peer_rows_of_different_models_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SideHere, "spoiled", {"loss": 0.0, "parameters": 7})  # nothing to agree about
    saved = run_peer(tmp_path, "S/T", monkeypatch)
    assert len(saved["rows"]) == 9
    assert "Different models" in saved["rows"][0]["notes"][0]
    assert saved["rows"][-1]["target"] == {"relation": "≤", "value": 1.3}


@pytest.mark.parametrize(
    "spoiled",
    [
        {"loss": 1.0},
        {"gradient_norm": 1.0},
        pytest.param({"ids": [0] * 8}, marks=pytest.mark.slow),
        pytest.param({"logits": [0.0] * 264}, marks=pytest.mark.slow),
    ],
    ids=["loss", "gradient_norm", "ids", "logits"],
)
def test_peer_refuses_to_compare_different_numbers(
    spoiled: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SideHere, "spoiled", spoiled)
    with pytest.raises(SystemExit, match="error: T/T: expected the same") as stopped:
        run_peer(tmp_path, "T/T", monkeypatch)
    assert isinstance(stopped.value.__cause__, DisagreementError)
    assert not list(tmp_path.iterdir())


def test_peer_without_its_environment(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `make bench-peer`"):
        Side("the reference", tmp_path / "python", 1)


def in_this_process(capsys: pytest.CaptureFixture[str], module: Any) -> Callable[..., dict[str, Any]]:
    """A stand-in for `measure_apart`: the same text in and out, no process."""

    def measure(name: str, arguments: Sequence[str], threads: int) -> dict[str, Any]:
        assert name == module.MODULE
        capsys.readouterr()
        module.main(arguments)
        measured: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return measured

    return measure


@LINUX_ONLY
@pytest.mark.parametrize("family", ["T/T", "S/T"])
def test_shared_prefix_rows(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared_prefix, "measure_apart", in_this_process(capsys, shared_prefix))
    shared_prefix.main(["--quick", "--repeats", "1", "--threads", "1", "--families", family, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "shared-prefix.json").read_text(encoding="utf-8"))["rows"]
    assert [row["target"] is None for row in rows] == [False, True, False, True]
    assert rows[0]["value"] > 0


def test_shared_prefix_refuses_to_compare_different_work() -> None:
    step = shared_prefix.Step(seconds=1.0, loss=5.0, gradient_norm=2.0)
    wrong = shared_prefix.Step(seconds=1.0, loss=5.0, gradient_norm=2.1)
    shared_prefix.check_same("T/T", {"one by one": step, "shared": step})
    with pytest.raises(ValueError, match="T/T, shared: expected a gradient_norm of 2"):
        shared_prefix.check_same("T/T", {"one by one": step, "shared": wrong})


@LINUX_ONLY
def test_length_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(length, "measure_apart", in_this_process(capsys, length))
    length.main(
        ["--quick", "--lengths", "512", "1024", "--chunks", "--repeats", "1", "--threads", "1", "--out", str(tmp_path)]
    )
    saved = json.loads((tmp_path / "length.json").read_text(encoding="utf-8"))
    assert [row["what"] for row in saved["rows"]] == [
        "1,024 bytes, time",
        "1,024 bytes, memory of the step",
        "1,024 bytes, peak of the whole process",
    ]
    assert 0.9e6 < saved["measured"]["1024"][0]["parameters"] < 1.1e6


def test_chunks_keep_their_size() -> None:
    counts = [length.shape(L, 1_048_576, "S/T/T", (10, 20))["train_checkpoint_chunks"] for L in length.LENGTHS]
    assert counts == [[3, 5], [5, 10], [10, 20]]
    with pytest.raises(ValueError, match="multiple of 128 bytes, got 100"):
        length.shape(100, 200, "S/T/T", (1, 1))


@pytest.mark.parametrize("script", [run, shared_prefix, length])
def test_toy_numbers_are_not_recorded(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["--quick"])
    assert "expected --out with --quick" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_in_their_own_processes(tmp_path: Path) -> None:
    arguments = ["--quick", "--repeats", "1", "--threads", "1", "--families", "T/T", "--out", str(tmp_path)]
    run.main([*arguments, "--reference-python", sys.executable])
    assert "reached" in (tmp_path / "peer.md").read_text(encoding="utf-8")
    with Side("ours", Path(sys.executable), 1) as side:
        with pytest.raises(WorkerError, match="ours failed at `forward`: ValueError: expected a model, got none"):
            side.ask("forward", ids=[1])
        assert side.ask("hello")["threads"] == 1


@pytest.mark.slow
@LINUX_ONLY
def test_measurements_in_their_own_processes(tmp_path: Path) -> None:
    shared_prefix.main(["--quick", "--repeats", "1", "--threads", "1", "--families", "T/T", "--out", str(tmp_path)])
    length.main(["--quick", "--repeats", "1", "--threads", "1", "--out", str(tmp_path)])
    assert {"length.md", "shared-prefix.md"} <= {path.name for path in tmp_path.iterdir()}
