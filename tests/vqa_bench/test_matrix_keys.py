"""Keys of runs and what is finished, case by case; a run that somebody else finishes meanwhile; threads of a run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tests.vqa_bench import texts
from tests.vqa_bench.cells import TRAIN
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from tests.vqa_bench.experiments import make_books
from tests.vqa_bench.test_matrix import BYTES, MAJORITY, TUNED, make_config, named, trainables
from vqa_bench.config import LoopConfig, PretrainedConfig
from vqa_bench.matrix import Invocation, Source, Warehouse
from vqa_bench.matrix.cells import Pretraining, Trainable, weights_digest
from vqa_bench.matrix.fill import _threads, fill
from vqa_bench.matrix.folder import KEY, begin, is_filled
from vqa_bench.matrix.locks import try_lock
from vqa_bench.matrix.prepare import prepare
from vqa_bench.matrix.work import Work, work
from vqa_bench.runs import CONFIG, DONE, RESULT, WEIGHTS, read_json, write_json


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    folder = tmp_path_factory.mktemp("keys")
    make_clevr_folder(folder / "clevr", {"train": 16, "val": 6})
    make_books(folder / "books")
    texts.make_books(folder / "others", {"train": texts.noise(2000), "test": texts.noise(300)})
    return Warehouse(folder / "data", lambda config: Source(Path(str(config.folder))), 1)


# -- what a run is recognised by ------------------------------------------------------------------------------------


def test_what_stays_frozen_is_part_of_the_outcome(warehouse: Warehouse, tmp_path: Path) -> None:
    keys = []
    for freeze in ([], ["stage_models.0.*"], ["stage_models.1.*"]):
        cell = TUNED | {"pretrained": {"run": "text", "freeze": freeze}}
        keys.append(trainables(warehouse, tmp_path, cell)["tuned"].key)
    assert len({key["outcome"] for key in keys}) == 3
    assert len({(key["data"], key["initial"]) for key in keys}) == 1


def test_other_books_are_other_data_with_the_same_settings(warehouse: Warehouse, tmp_path: Path) -> None:
    folder = warehouse.data.parent
    one, again, other = (
        trainables(warehouse, tmp_path, TUNED, data={"folder": folder / name}) for name in ("books", "books", "others")
    )
    text = "pretrain/text"
    assert one[text].key == again[text].key
    assert one[text].key["outcome"] == other[text].key["outcome"]
    assert one[text].key["data"] != other[text].key["data"]
    assert one["tuned"].key["initial"] != other["tuned"].key["initial"]


def test_weights_are_recognised_with_their_configuration(tmp_path: Path) -> None:
    """Of a folder, and of a `.pth`, whose configuration is named or lies beside it. A path does not matter."""

    def write(folder: str, **content: str) -> Path:
        (tmp_path / folder).mkdir()
        for name, text in content.items():
            (tmp_path / folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
        return tmp_path / folder

    def of(path: Path, config: Path | None = None) -> str:
        return weights_digest(PretrainedConfig(path=path, config=config))

    plain, other = '{"architecture": "MBLM"}', '{"architecture": "MBLM", "hidden_dims": [1]}'
    for number, (weights, config) in enumerate((("w", plain), ("w", plain), ("v", plain), ("w", other))):
        write(f"folder-{number}", **{WEIGHTS: weights, CONFIG: config})
        beside = write(f"beside-{number}", x__pth=weights, x__yaml=config)
        write(f"shared-{number}", x__pth=weights, config__yaml=config)
        assert of(beside / "x.pth") == of(beside / "x.pth", beside / "x.yaml")
    for form in ("folder-{}", "beside-{}/x.pth", "shared-{}/x.pth"):
        found = [of(tmp_path / form.format(number)) for number in range(4)]
        assert found[0] == found[1]
        assert len(set(found)) == 3, form
    source = tmp_path / "beside-0" / "x.pth"
    assert of(source, tmp_path / "beside-1" / "x.yaml") != of(source, tmp_path / "beside-3" / "x.yaml")


@pytest.mark.parametrize("name", ["outcome", "data", "initial"])
def test_a_finished_run_of_another_key_is_not_this_one(warehouse: Warehouse, tmp_path: Path, name: str) -> None:
    cell = trainables(warehouse, tmp_path, TUNED)["tuned"]
    assert not is_filled(cell)
    begin(cell, Invocation())
    assert not is_filled(cell)
    mark_done(cell)
    assert is_filled(cell)
    key = read_json(cell.run / KEY)
    write_json(cell.run / KEY, key | {name: "0" * 64})
    assert not is_filled(cell)
    write_json(cell.run / KEY, {part: value for part, value in key.items() if part != name})
    assert not is_filled(cell)
    (cell.run / KEY).unlink()
    assert not is_filled(cell)


def mark_done(run: Trainable) -> None:
    """As if it had been trained and tested."""
    write_json(run.run / RESULT, {"title": run.config.title})
    for name in (WEIGHTS, CONFIG, DONE):
        (run.run / name).touch()


# -- between the look and the lock ----------------------------------------------------------------------------------


def test_what_another_finishes_between_the_look_and_the_lock_is_not_trained_again(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[str] = []

    def lock_too_late(path: Path) -> FileLock | None:
        if path == runs[0].lock:
            begin(runs[0], Invocation())
            mark_done(runs[0])
        return try_lock(path)

    def fill_at_once(run: Trainable, invocation: Invocation) -> None:
        filled.append(run.label)
        begin(run, invocation)
        mark_done(run)

    cell = trainables(warehouse, tmp_path, MAJORITY)["majority"]
    runs = (named(cell, "first"), named(cell, "second"))
    monkeypatch.setattr("vqa_bench.matrix.work.try_lock", lock_too_late)
    monkeypatch.setattr("vqa_bench.matrix.work.fill", fill_at_once)
    assert work(Work(runs, Invocation())) == {}
    assert filled == ["second"]
    for run in runs:  # let go of, both
        lock = try_lock(run.lock)
        assert lock is not None
        lock.release()


# -- threads --------------------------------------------------------------------------------------------------------


def test_threads_are_those_of_the_run_for_as_long_as_it_takes() -> None:
    before = torch.get_num_threads()
    config = LoopConfig(steps=1, learning_rate=1.0, threads=before + 1)
    with _threads(config):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), _threads(config):
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
    for unset in (None, config.model_copy(update={"threads": None})):
        with _threads(unset):
            assert torch.get_num_threads() == before


def test_training_and_testing_have_the_threads_of_the_run(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    seen: list[tuple[str, int]] = []

    def note(name: str) -> Any:
        return lambda *_, **__: seen.append((name, torch.get_num_threads()))

    monkeypatch.setattr("vqa_bench.train.train", note("train"))
    monkeypatch.setattr("vqa_bench.scoring.evaluate.evaluate", note("evaluate"))
    monkeypatch.setattr("vqa_bench.train.text.pretrain", note("pretrain"))
    threads = {"threads": before + 1}
    text = {"steps": 4, "windows_per_batch": 2, "learning_rate": 1e-3} | threads
    config = make_config(warehouse, BYTES | {"train": TRAIN | threads}, train=text)
    for run in prepare(config.data, config.cells, config.pretrain, tmp_path, warehouse):
        assert isinstance(run, Pretraining) or run.label == "bytes"
        fill(run, Invocation())
    assert seen == [(name, before + 1) for name in ("pretrain", "train", "evaluate")]
    assert torch.get_num_threads() == before
