"""The part against the reference: rows, agreement, and what happens where the reference is absent, other, or broken."""

import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.common import Samples
from benchmarks.gpu import peer, peer_rows, wheels
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.device import Device
from benchmarks.gpu.parts import Report
from benchmarks.gpu.peer_rows import AUTOCAST
from benchmarks.peer import client, reference
from benchmarks.peer.client import Side, WorkerError, WorkerMemoryError
from benchmarks.peer.pair import Pair, ReferenceFailedError
from benchmarks.peer.reference import Reference, find_reference
from benchmarks.peer.worker import Worker, leave_fused_convolution

FAMILIES = {
    family: replace(peer.TINY, pairs=(pair,), many_patches=2)
    for family, pair in zip(("S/T", "T/T"), peer.TINY.pairs, strict=True)
}


@dataclass
class Here:
    """A worker without a process; what it is asked and answers passes through JSON. spoiled: fields it gets wrong."""

    spoiled: dict[str, Any] = field(default_factory=dict)
    fails: dict[str, type[WorkerError]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    worker: Worker = field(default_factory=lambda: Worker(1))

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append(command)
        if command in self.fails:
            raise self.fails[command](f"failed at {command}")
        answer: dict[str, Any] = json.loads(
            json.dumps(getattr(self.worker, command)(**json.loads(json.dumps(arguments))))
        )
        return answer | {key: self.spoiled[key] for key in answer.keys() & self.spoiled.keys()}

    def __exit__(self, *error: object) -> None:
        pass


@dataclass
class Stage:
    """Both sides, and a part that is given them."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    ours: Here = field(default_factory=Here)
    other: Here = field(default_factory=lambda: Here({"library": "mblm 0.4.2"}))

    family: str = "T/T"

    def run(self, *, there: bool = True, tiny: bool = False, torch_device: str = "cpu") -> tuple[Report, Bench]:
        found = Reference(Path("python"), (), "a test") if there else None
        self.monkeypatch.setattr(peer, "find_reference", lambda environment: found)
        self.monkeypatch.setattr(peer, "start_ours", lambda *arguments: self.ours)
        self.monkeypatch.setattr(Reference, "start", lambda *arguments: self.other)
        self.monkeypatch.setattr(peer, "TINY" if tiny else "FULL", FAMILIES[self.family])
        device = Device(torch.device(torch_device), tiny=True)
        bench = Bench("peer", device, self.folder / "peer.json", tiny=tiny)
        return peer.run(bench), bench


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_rows_beside_the_reference_and_kept(stage: Stage) -> None:
    report, bench = stage.run()
    assert report.failures == []
    assert all(row.what.startswith(("2D T/T 8K, training", "2D T/T 98K, generation")) for row in report.rows)
    assert [row.target.value for row in report.rows if row.target] == [2, 6, 100, 100]
    assert all(row.against is not None for row in report.rows)
    assert len(report.rows) == 6
    assert any("same weights, one sequence, apart: loss 0," in remark for remark in report.remarks)
    assert list(bench.items)[:3] == [f"2D T/T 8K, {what}" for what in ("full loss", "answer only", "agreement")]
    stage.ours.asked.clear()
    again, _ = stage.run()
    assert stage.ours.asked == []  # all kept: nobody is asked anything
    assert again.rows == report.rows


def test_alone_and_joined_later(stage: Stage) -> None:
    report, _ = stage.run(there=False)
    assert stage.other.asked == []
    assert len(report.rows) == 6
    assert all(row.against is None and row.target is None for row in report.rows)
    assert sum("No reference implementation here" in remark for remark in report.remarks) == 1
    assert report.failures == []
    joined, _ = stage.run()
    assert all(row.against is not None for row in joined.rows)  # ours was measured again, in turn with the reference


@pytest.mark.slow  # the dry run from the command line has it all, see test_frame.py
def test_a_dry_run_has_both_roles(stage: Stage) -> None:
    report, _ = stage.run(there=False, tiny=True)
    assert all(row.against is not None for row in report.rows)
    assert "In this dry run our worker plays the reference too." in report.remarks


def test_different_numbers_are_a_failure(stage: Stage) -> None:
    stage.other.spoiled |= {"loss": 1.0, "gradient_norm": 9.0, "logits": [1.0] * 264}
    report, _ = stage.run()
    found = [failure.split(", ", 1)[1].split(" within")[0] for failure in report.failures]
    step = [f"expected the same {name}" for name in ("loss", "gradient norm")]
    assert [what.rsplit(": ")[-1] for what in found] == [*step * 3, *["expected the same logits"] * 3]
    assert all(failure.endswith(" apart") for failure in report.failures)


def test_another_model_is_said_and_not_held_to_agree(stage: Stage) -> None:
    stage.family = "S/T"
    stage.other.spoiled |= {"stages": ["mblm.model.T", "mambapy.mamba.Mamba"], "loss": 0.0, "notes": ["no kernel."]}
    report, _ = stage.run()
    assert report.failures == []
    assert "load" not in stage.other.asked
    assert "the reference's S stage is `mambapy.mamba.Mamba`" in report.rows[0].notes[0]
    assert "The reference: no kernel." in report.rows[0].notes


@pytest.mark.parametrize("short", ["ours", "other"])
def test_memory_that_does_not_suffice(stage: Stage, short: str) -> None:
    getattr(stage, short).fails["train_step"] = WorkerMemoryError
    report, _ = stage.run()
    assert any("full loss: out of memory: failed at train_step." in remark for remark in report.remarks)
    trained = [row for row in report.rows if "training step" in row.what]
    assert len(trained) == (2 if short == "other" else 0)  # ours has a time where the reference has none
    assert all(row.against is None for row in trained)
    assert sum(row.against is not None for row in report.rows) == 4


def test_a_broken_reference_is_told_and_tried_again(stage: Stage) -> None:
    stage.monkeypatch.setitem(FAMILIES, "T/T", replace(peer.TINY, many_patches=2))  # both families
    stage.other.fails["generate"] = WorkerError
    report, bench = stage.run()
    assert report.failures == [
        f"2D {family} 98K, generation, bfloat16: failed at generate; {family} is measured without it from here on"
        for family in ("S/T", "T/T")
    ]
    assert [row.against is None for row in report.rows] == [False, False, True, True, True, True] * 2
    assert len(bench.items) == 10
    del stage.other.fails["generate"]
    again, _ = stage.run()
    assert again.failures == []
    assert all(row.against is not None for row in again.rows)


def test_what_a_worker_of_ours_fails_at_is_told(stage: Stage) -> None:
    stage.ours.fails["train_step"] = WorkerError
    _, bench = stage.run()
    assert bench.raised
    assert all("WorkerError: failed at train_step" in told for told in bench.raised)


def test_items_without_time_are_left_out(stage: Stage) -> None:
    stage.monkeypatch.setattr(peer.Bench, "left", 0.0)
    report, bench = stage.run()
    assert report.rows == []
    assert stage.ours.asked == []
    assert len(bench.skipped) == 5


def test_turns() -> None:
    asked: list[tuple[str, str]] = []

    @dataclass
    class Told(Here):
        name: str = ""

        def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
            asked.append((self.name, command))
            return {"library": self.name, "kernel": "torch", "stages": []}

    pair = Pair({"ours": lambda: Told(name="ours"), "reference": lambda: Told(name="reference")})  # type: ignore[dict-item,return-value]
    pair.build({})
    asked.clear()
    answers = pair.turns({name: [("hello", {}), ("kernel", {})] for name in pair.names}, 2, trim=True)
    a_round = [(name, command) for name in pair.names for command in ("hello", "kernel", "trim")]
    assert asked == [*a_round * 3, ("ours", "trim"), ("reference", "trim")]
    assert [len(rounds) for rounds in answers.values()] == [2, 2]  # the warm-up does not count
    assert answers["reference"][0][1]["library"] == "reference"  # type: ignore[index]


def test_a_reference_that_is_ours_is_refused() -> None:
    pair = Pair({"ours": Here, "reference": Here})  # type: ignore[dict-item]
    with pytest.raises(
        ReferenceFailedError, match=r"expected the reference's library, got vqa-bench .*, which is ours"
    ):
        pair.build(peer.TINY.pairs[0][0].specification())


def test_no_number_exceeds_every_limit() -> None:
    assert AUTOCAST.exceeded({"loss": 0.0, "logits": 0.1}) == []
    assert AUTOCAST.exceeded({"loss": math.nan}) == ["loss within 0.01, got nan"]


# -- the worker --------------------------------------------------------------------------------------------------------


def test_a_whole_step_does_not_move_the_weights() -> None:
    worker, shape = Worker(1), peer.TINY.pairs[1][0]
    worker.build(specification=shape.specification(), seed=0, load=None, save=None)
    assert worker.model is not None
    before = {name: value.clone() for name, value in worker.model.state_dict().items()}
    ids = [list(range(shape.context))]
    plain = worker.train_step(ids, None)
    whole = worker.train_step(ids, None, optimise=True, warmup=1)
    assert whole["loss"] == plain["loss"]
    assert whole["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in worker.model.state_dict().items())
    assert worker.optimiser is not None
    assert len(worker.optimiser.state) == len(list(worker.model.parameters()))  # Adam did have moments to move
    half = worker.train_step(ids, None, precision="bfloat16")
    assert 0 < abs(half["loss"] - plain["loss"]) < AUTOCAST.loss  # another arithmetic, the same model
    with pytest.raises(ValueError, match="expected a precision of float32, bfloat16, got 'float16'"):
        worker.forward(ids[0], precision="float16")


def test_mamba_layers_without_causal_conv1d(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = torch.nn.Linear(1, 1)
    layer.use_mem_eff_path = True  # type: ignore[assignment]
    model = torch.nn.Sequential(layer)
    here = type(sys)("ssd_combined")
    here.causal_conv1d_fwd_function = print  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.triton.ssd_combined", here)
    assert leave_fused_convolution(model) == []
    assert layer.use_mem_eff_path
    here.causal_conv1d_fwd_function = None  # type: ignore[attr-defined]
    assert "causal-conv1d is not there" in leave_fused_convolution(model)[0]
    assert not layer.use_mem_eff_path
    assert leave_fused_convolution(torch.nn.Linear(1, 1)) == []


def fake_python(folder: Path, reply: str) -> Path:
    """A program that answers every request with the same line, in which $PYTHONPATH and $* are filled in."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nwhile read request; do echo "{reply}"; done\n', encoding="utf-8")
    program.chmod(0o755)
    return program


def test_where_a_worker_imports_from_and_runs(tmp_path: Path) -> None:
    reply = '{\\"ok\\": {\\"path\\": \\"$PYTHONPATH\\", \\"given\\": \\"$*\\"}}'
    with Side("it", fake_python(tmp_path, reply), 1, path=(Path("/a"), Path("/b")), device="cuda:1") as side:
        answer = side.ask("hello")
    assert answer["path"] == f"/a{os.pathsep}/b"
    assert answer["given"] == f"-P {client.WORKER} --threads 1 --device cuda:1"


@pytest.mark.parametrize(("name", "kind"), [("OutOfMemoryError", WorkerMemoryError), ("KeyError", WorkerError)])
def test_what_a_worker_fails_of(name: str, kind: type[WorkerError], tmp_path: Path) -> None:
    with (
        Side("it", fake_python(tmp_path, f'{{\\"error\\": \\"{name}: much\\"}}'), 1) as side,
        pytest.raises(WorkerError, match=f"it failed at `build`: {name}: much") as caught,
    ):
        side.ask("build")
    assert caught.type is kind


# -- where the reference is --------------------------------------------------------------------------------------------


def test_where_the_reference_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    monkeypatch.setattr(wheels, "unpack", lambda folder: folder / "unpacked")
    assert find_reference({}) is None
    own = tmp_path / ".venv-peer" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert find_reference({}) == Reference(own, (), "the environment of `make bench-peer`")
    (tmp_path / "wheels" / "peer").mkdir(parents=True)
    for name in ("numpy-1-py3-none-any.whl", "mamba_ssm-2-py3-none-any.whl", "peer/mblm-3-py3-none-any.whl"):
        (tmp_path / "wheels" / name).touch()
    given = {"VQA_WHEELS": str(tmp_path / "wheels")}
    found = find_reference(given)
    assert found is not None
    assert (found.python, found.origin) == (
        Path(sys.executable),
        "wheels: mamba_ssm-2-py3-none-any.whl, mblm-3-py3-none-any.whl",
    )
    assert found.path == (
        tmp_path / "wheels" / "peer" / "unpacked",
        tmp_path / "wheels" / "unpacked",
        reference.STAND_INS,
    )
    named = find_reference({**given, "VQA_REFERENCE_PYTHON": sys.executable})
    assert named is not None
    assert named.python == Path(sys.executable)
    with pytest.raises(FileNotFoundError, match="expected a Python at VQA_REFERENCE_PYTHON=/nowhere, got nothing"):
        find_reference({"VQA_REFERENCE_PYTHON": "/nowhere"})


def test_a_named_reference_that_is_missing_is_a_failure(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQA_REFERENCE_PYTHON", "/nowhere")
    find = find_reference
    stage.run(there=False)  # keeps all items, so that the second run only looks for the reference
    monkeypatch.setattr(peer, "find_reference", find)
    bench = Bench("peer", Device(torch.device("cpu"), tiny=True), stage.folder / "peer.json", tiny=False)
    report = peer.run(bench)
    assert report.failures == [
        "expected a Python at VQA_REFERENCE_PYTHON=/nowhere, got nothing; name another or unset it"
    ]
    assert len(report.rows) == 6


@pytest.mark.slow
def test_the_part_with_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQA_REFERENCE_PYTHON", sys.executable)
    device = Device(torch.device("cpu"), tiny=True)
    report = peer.run(Bench("peer", device, tmp_path / "peer.json", tiny=True))
    assert report.failures == []
    assert len(report.rows) == 12
    assert all(row.against is not None for row in report.rows)


@pytest.mark.gpu
def test_on_a_gpu_memory_is_compared_too(stage: Stage) -> None:
    stage.ours, stage.other = Here(worker=Worker(1, "cuda")), Here({"library": "mblm 0.4.2"}, worker=Worker(1, "cuda"))
    report, _ = stage.run(torch_device="cuda")
    assert report.failures == []
    assert sum(row.what.endswith("peak memory") for row in report.rows) == 2
    assert all(row.value == pytest.approx(1, abs=0.2) for row in report.rows if row.what.endswith("peak memory"))


def test_what_ratios_are_held_against() -> None:
    ours, theirs = Samples((1.0,), "s"), Samples((3.0,), "s")
    for judged, expected in ((True, 2.0), (False, None)):
        findings = peer_rows.Findings(judged=judged)
        peer_rows._compare(findings, "step", ours, theirs, (), peer_rows.FULL_LOSS)
        (row,) = findings.rows
        assert (None if row.target is None else row.target.value) == expected
        assert row.value == 3
