"""The matrix in one process: what runs are recognised by, how their folders begin, who trains what, and all faults."""

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from mblm import MBLM
from mblm.checkpoint import save_pretrained
from tests.vqa_bench.cells import BYTE_MODEL, PIXELS, TRAIN
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from tests.vqa_bench.experiments import make_books
from vqa_bench.config import MatrixConfig, MBLMConfig, parse
from vqa_bench.errors import StoppedError, UserError
from vqa_bench.matrix import How, Invocation, Source, Warehouse, run_matrix
from vqa_bench.matrix.cells import Cell, Pretraining, Trainable
from vqa_bench.matrix.folder import KEY, begin, fault_of
from vqa_bench.matrix.locks import alone, try_lock
from vqa_bench.matrix.prepare import prepare, select
from vqa_bench.matrix.work import Work, fault_in, is_filled, work
from vqa_bench.models.hierarchy import hierarchy_config
from vqa_bench.runs import CONFIG, DONE, PROVENANCE, RESULT, WEIGHTS, read_json, write_json

MAJORITY = {"name": "majority", "title": "Majority", "model": {"kind": "majority"}}
BYTES = {"name": "bytes", "title": "MBLM", "encoding": PIXELS, "model": BYTE_MODEL, "train": TRAIN}
TUNED = BYTES | {"name": "tuned", "init": "pretrained", "pretrained": {"run": "text"}}


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    folder = tmp_path_factory.mktemp("matrix")
    make_clevr_folder(folder / "clevr", {"train": 16, "val": 6})
    make_books(folder / "books")
    return Warehouse(folder / "data", lambda config: Source(Path(str(config.folder))), 1)


def finish(run: Path) -> None:
    """Everything that a finished run must have, without having been trained."""
    (run / RESULT).write_text("{}", encoding="utf-8")
    for name in (WEIGHTS, CONFIG, DONE):
        (run / name).touch()


def make_config(warehouse: Warehouse, *cells: dict[str, Any], **text: Any) -> MatrixConfig:
    """Cells on the warehouse's data, and one pretraining run on its books."""
    folder = warehouse.data.parent
    train = {"steps": 4, "windows_per_batch": 2, "learning_rate": 1e-3, "threads": 1}
    run = {"name": "text", "title": "Text", "data": {"folder": folder / "books"}, "model": BYTE_MODEL, "context": 96}
    content = {"name": "test", "data": {"folder": folder / "clevr", "dev_fraction": 0.1}, "cells": list(cells)}
    return parse(MatrixConfig, content | {"pretrain": [run | {"train": train} | text]}, "test")


def trainables(warehouse: Warehouse, out: Path, *cells: dict[str, Any], **text: Any) -> dict[str, Trainable]:
    config = make_config(warehouse, *cells, **text)
    wanted = select(config, only=[cell["name"] for cell in cells])
    return {run.label: run for run in prepare(config.data, *wanted, out, warehouse)}


# -- keys -----------------------------------------------------------------------------------------------------------


def test_a_key_follows_what_matters_and_nothing_else(warehouse: Warehouse, tmp_path: Path) -> None:
    def key(cell: dict[str, Any], **text: Any) -> dict[str, str]:
        return trainables(warehouse, tmp_path, cell, **text)[cell["name"]].key

    assert key(BYTES) == key(BYTES | {"title": "Another"}) == key(BYTES | {"train": TRAIN | {"log_every": 3}})
    others = [BYTES | {"seed": 1}, BYTES | {"train": TRAIN | {"steps": 5}}, BYTES | {"encoding": "pixels:6x4"}, TUNED]
    assert all(key(other) != key(BYTES) for other in others)
    changed_text = {"seed": 1}
    assert key(TUNED) != key(TUNED, **changed_text)
    assert key(BYTES) == key(BYTES, **changed_text)


def test_a_model_without_images_is_recognised_beside_any_encoding(warehouse: Warehouse, tmp_path: Path) -> None:
    alone_, beside = trainables(warehouse, tmp_path, MAJORITY), trainables(warehouse, tmp_path, BYTES, MAJORITY)
    assert alone_["majority"].key == beside["majority"].key


def test_weights_at_a_path_are_recognised_by_their_bytes(warehouse: Warehouse, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    cell = BYTES | {"init": "pretrained", "pretrained": {"path": weights}}
    with pytest.raises(UserError, match=r"expected a finished run, a folder .*weights: no such file"):
        trainables(warehouse, tmp_path, cell)
    keys = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_pretrained(MBLM(hierarchy_config(parse(MBLMConfig, BYTE_MODEL, "test"))), weights)
        keys.append(trainables(warehouse, tmp_path / "out", cell)["bytes"].key)
    assert keys[0]["initial"] != keys[1]["initial"]
    assert {**keys[0], "initial": ""} == {**keys[1], "initial": ""}


# -- the run folder ---------------------------------------------------------------------------------------------------


def test_a_run_is_begun_once_taken_up_again_and_deleted_only_when_asked(warehouse: Warehouse, tmp_path: Path) -> None:
    cell = trainables(warehouse, tmp_path, MAJORITY)["majority"]
    litter = tmp_path / f".{cell.run.name}.partial"
    litter.mkdir()
    first, second = Invocation(), Invocation(command=("vqa-bench", "matrix"))
    begin(cell, first)
    assert not litter.exists()
    checkpoint = cell.run / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    begin(cell, second)
    provenance = read_json(cell.run / PROVENANCE)
    assert [start["from_step"] for start in provenance["starts"]] == [0, 12]
    assert provenance["starts"][1]["command"] == ["vqa-bench", "matrix"] != provenance["command"]
    assert {"commit", "dirty", "packages", "when", "invocation"} <= provenance["starts"][1].keys()

    anew = Invocation(resume="never")
    begin(cell, anew)
    assert not checkpoint.exists()
    checkpoint.mkdir(parents=True)
    begin(cell, anew)  # a worker of the same command goes on with what another began
    assert checkpoint.exists()
    assert len(read_json(cell.run / PROVENANCE)["starts"]) == 2


@pytest.mark.parametrize(
    ("done", "same", "resume", "fault"),
    [
        (True, True, "auto", None),
        (True, True, "never", "delete it first"),
        (True, False, "auto", "choose another --out, or delete that folder"),
        (True, False, "never", "choose another --out, or delete that folder"),
        (False, True, "auto", None),
        (False, True, "never", None),
        (False, False, "auto", "begin it anew with --resume never"),
        (False, False, "never", None),
    ],
)
def test_what_may_become_of_a_folder(tmp_path: Path, done: bool, same: bool, resume: Any, fault: str | None) -> None:
    run, key = tmp_path / "run", {"outcome": "a", "data": "b"}
    run.mkdir()
    assert fault_of(run, key, resume) is None  # an empty one
    write_json(run / PROVENANCE, {})
    write_json(run / KEY, key if same else {"config": "a", "data": "b"})  # as keys once were
    if done:
        finish(run)
    got = fault_of(run, key, resume)
    assert got is None if fault is None else got is not None and fault in got


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    assert "got something else" in str(fault_of(tmp_path, {}, "never"))


# -- one run after another ---------------------------------------------------------------------------------------------


@pytest.fixture
def filled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Instead of training, runs are marked as finished; the labels in their order. One called `bad…` fails."""
    labels: list[str] = []

    def fill(run: Trainable, invocation: Invocation) -> None:
        begin(run, invocation)
        labels.append(run.label)
        if "bad" in run.label:
            raise UserError("no luck") if "worse" not in run.label else ZeroDivisionError("no luck at all")
        finish(run.run)

    monkeypatch.setattr("vqa_bench.matrix.work.fill", fill)
    monkeypatch.setattr("vqa_bench.matrix.work.POLL_SECONDS", 0.01)
    return labels


def named(cell: Trainable, name: str) -> Cell:
    assert isinstance(cell, Cell)
    config = cell.config.model_copy(update={"name": name})
    return dataclasses.replace(cell, config=config, run=cell.run.with_name(name))


def test_a_failing_run_is_reported_and_does_not_stop_the_others(
    warehouse: Warehouse, tmp_path: Path, filled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cell = trainables(warehouse, tmp_path, MAJORITY)["majority"]
    runs = tuple(named(cell, name) for name in ("a", "bad", "bad-and-worse", "b"))
    todo = Work(runs, Invocation())
    assert work(todo) == {"bad": "no luck", "bad-and-worse": "ZeroDivisionError: no luck at all"}
    assert filled == ["a", "bad", "bad-and-worse", "b"]
    said = capsys.readouterr().err
    assert "error: bad: no luck" in said
    assert "Traceback" in said
    assert [is_filled(run) for run in runs] == [True, False, False, True]

    assert work(todo) == {}  # another worker of the same command does not try again
    assert len(filled) == 4
    assert fault_in(runs[1], todo.invocation) == "no luck"
    assert work(Work(runs, Invocation())) != {}  # another command does
    assert filled[4:] == ["bad", "bad-and-worse"]


def test_what_begins_from_a_failed_run_fails_and_names_it(
    warehouse: Warehouse, tmp_path: Path, filled: list[str]
) -> None:
    found = trainables(warehouse, tmp_path, BYTES, TUNED)
    text = found["pretrain/text"]
    assert isinstance(text, Pretraining)
    bad = dataclasses.replace(
        text, config=text.config.model_copy(update={"name": "bad"}), run=text.run.with_name("bad")
    )
    tuned = found["tuned"]
    assert isinstance(tuned, Cell)
    cells = (dataclasses.replace(tuned, pretraining=bad.run), found["bytes"])
    faults = work(Work((bad, *cells), Invocation()))
    assert filled == ["pretrain/bad", "bytes"]
    assert faults["pretrain/bad"] == "no luck"
    assert "expected pretrain/bad to begin from" in faults["tuned"]


def test_what_another_holds_is_left_for_later_and_taken_over(
    warehouse: Warehouse, tmp_path: Path, filled: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    cell = trainables(warehouse, tmp_path, MAJORITY)["majority"]
    runs = tuple(named(cell, name) for name in ("finishes", "dies", "free"))
    held = [try_lock(run.lock) for run in runs[:2]]
    assert None not in held
    assert try_lock(runs[0].lock) is None

    def others() -> None:
        begin(runs[0], Invocation())
        finish(runs[0].run)

    thread = threading.Thread(target=lambda: work(Work(runs, Invocation())))
    thread.start()
    while "free" not in filled or "waiting for" not in capsys.readouterr().err:
        assert thread.is_alive()
    others()
    for lock in held:
        assert lock is not None
        lock.release(force=True)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert filled == ["free", "dies"]
    assert all(is_filled(run) for run in runs)
    assert all(len(read_json(run.run / PROVENANCE)["starts"]) == 1 for run in runs)


def test_a_request_to_stop_ends_the_work_and_lets_go(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = trainables(warehouse, tmp_path, MAJORITY)["majority"]

    def stop(run: Trainable, invocation: Invocation) -> None:
        raise StoppedError("stopped")

    monkeypatch.setattr("vqa_bench.matrix.work.fill", stop)
    todo = Work((cell, named(cell, "next")), Invocation())
    with pytest.raises(StoppedError):
        work(todo)
    assert fault_in(cell, todo.invocation) is None
    lock = try_lock(cell.lock)
    assert lock is not None
    lock.release()


def test_data_are_made_by_one_while_the_other_waits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = []

    def make() -> None:
        made.append(1)
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "info.json").touch()

    place = Warehouse(tmp_path, lambda _: Source(tmp_path / "set", make), 1)
    threads = [threading.Thread(target=place.source, args=(None,)) for _ in range(3)]
    with alone(tmp_path / ".locks" / "set.lock", what="nothing"):
        for thread in threads:
            thread.start()
        while capsys.readouterr().err.count("waiting for another process that is at the making of") < 1:
            pass
        assert not made
    for thread in threads:
        thread.join(timeout=60)
    assert made == [1]


# -- before the first run trains -------------------------------------------------------------------------------------


def test_all_faults_are_said_at_once_and_nothing_is_trained(warehouse: Warehouse, tmp_path: Path) -> None:
    small = BYTES | {"name": "small", "model": BYTE_MODEL | {"seq_lens": [20, 12]}}
    many = BYTES | {"name": "many", "train": TRAIN | {"images_per_batch": 1000}}
    config = make_config(warehouse, small, many, MAJORITY, context=721)
    with pytest.raises(UserError) as error:
        run_matrix(config, tmp_path / "out", warehouse)
    for text in ("cell small: ", "the model's context", "cell many: ", "pretrain text: ", "at most 720 bytes"):
        assert text in str(error.value)
    assert not (tmp_path / "out").exists()
    early = make_config(warehouse, BYTES | {"init": "pretrained", "pretrained": {"path": "no"}})
    with pytest.raises(UserError, match=r"cell bytes: expected a finished run, a folder with"):
        run_matrix(early, tmp_path / "out", warehouse)


def test_the_cells_and_pretraining_runs_that_are_asked_for(warehouse: Warehouse) -> None:
    config = make_config(warehouse, MAJORITY, BYTES, TUNED)

    def names(**wanted: Any) -> tuple[list[str], list[str]]:
        cells, runs = select(config, **wanted)
        return [cell.name for cell in cells], [run.name for run in runs]

    assert names() == (["majority", "bytes", "tuned"], ["text"])
    assert names(only=["majority", "bytes"]) == (["majority", "bytes"], [])
    assert names(only=["tuned"]) == (["tuned"], ["text"])
    assert names(pretraining=["text"]) == ([], ["text"])
    with pytest.raises(UserError, match=r"expected one of the pretraining runs text, got other"):
        names(pretraining=["other"])


def test_a_pretrained_cell_begins_from_the_one_run_that_is_trained_for_it(warehouse: Warehouse, tmp_path: Path) -> None:
    again = TUNED | {"name": "again", "seed": 1}
    config = make_config(warehouse, BYTES, TUNED, again)
    assert run_matrix(config, tmp_path, warehouse) == []
    text = tmp_path / "pretrain" / "text"
    assert len(read_json(text / PROVENANCE)["starts"]) == 1
    results = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in ("bytes", "tuned", "again")}
    assert {name: result["init"] for name, result in results.items()} == {
        "bytes": "scratch",
        "tuned": "pretrained",
        "again": "pretrained",
    }
    assert results["tuned"]["initial"]["source"] == "text"
    before = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    assert run_matrix(config, tmp_path, warehouse, how=How()) == []  # all is kept
    assert before == {path: path.stat().st_mtime_ns for path in sorted(tmp_path.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("content", "lacks"), [("{", "a result.json that can be read"), (None, "predictions.jsonl")])
def test_a_finished_run_that_is_damaged_is_not_kept(tmp_path: Path, content: str | None, lacks: str) -> None:
    """Else the advice to run the cell again would lead nowhere."""
    write_json(tmp_path / KEY, {"outcome": "this"})
    write_json(tmp_path / PROVENANCE, {})
    finish(tmp_path)
    assert fault_of(tmp_path, {"outcome": "this"}, "auto") is None
    text = json.dumps({"hashes": {"predictions.jsonl": "0"}}) if content is None else content
    (tmp_path / RESULT).write_text(text, encoding="utf-8")
    assert f"marked DONE, got one without {lacks}; delete" in str(fault_of(tmp_path, {"outcome": "this"}, "auto"))
