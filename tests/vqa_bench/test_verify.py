"""Verifying finished runs: a fresh one holds; whatever is changed is found, with the run, the file and what to do."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.vqa_bench.cells import BYTE_MODEL, PIXELS, TRAIN
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from tests.vqa_bench.report.run_folder import make_pretraining
from vqa_bench.cli import main
from vqa_bench.cli.sources import warehouse
from vqa_bench.cli.verify import verify_text
from vqa_bench.config import MatrixConfig, parse
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.manifest import file_info
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import open_shard
from vqa_bench.errors import UserError
from vqa_bench.matrix import run_matrix
from vqa_bench.report import write_report
from vqa_bench.runs import load_model
from vqa_bench.scoring.evaluate import evaluate
from vqa_bench.verify import Check, verify
from vqa_bench.verify.checks import compare

CELLS = [
    {"name": "blind", "title": "LSTM", "model": {"kind": "lstm"}, "train": TRAIN},
    {
        "name": "bytes",
        "title": "MBLM",
        "encoding": PIXELS,
        "model": BYTE_MODEL,
        "train": TRAIN,
        "evaluate": {"damage": 3, "bits": 2},
    },
]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clevr`, `data` (the shard in it) and `runs` of two cells."""
    folder = tmp_path_factory.mktemp("verify")
    clevr = make_clevr_folder(folder / "clevr", {"train": 10, "val": 4})
    config = {"name": "test", "data": {"folder": str(clevr), "dev_fraction": 0.2}, "cells": CELLS}
    place = warehouse(folder / "data", 1)
    assert run_matrix(parse(MatrixConfig, config, "test"), folder / "runs", place) == []
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def faults(checks: list[Check]) -> list[str]:
    return [f"{check.run}: {check.file}: {fault}" for check in checks for fault in check.faults]


def shard_of(folder: Path) -> Path:
    return next((folder / "data" / "shards").iterdir())


@pytest.mark.parametrize("cell", ["blind", "bytes"])
def test_a_fresh_run_holds(cell: str, original: Path) -> None:
    checks = verify(original / "runs" / cell)
    assert faults(checks) == []
    held = {check.what for check in checks if check.status == "holds"}
    assert {"hashes", "numbers", "weights", "shard", "questions", "majority", "facts", "key"} <= held
    shown = {"numbers with images shuffled", "numbers with images damaged"}
    assert (shown <= held) == (cell == "bytes")
    assert [check.file for check in checks if check.status == "unchecked"] == ["result.json", "metrics.jsonl"]


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change what a JSON file holds."""
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    assert changed != content
    path.write_text(json.dumps(changed), encoding="utf-8")


def edit_line(path: Path, number: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change a line of a JSONL file, so that it still is one of its kind."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number] = json.dumps(change(json.loads(lines[number])))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def rehash(run: Path) -> None:
    """Let the result say the hashes of the files as they are now: what a careful forger would do."""
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    result["hashes"] = {name: file_info(run / name).sha256 for name in result["hashes"]}
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")


def with_value(content: Any, where: str, value: Any) -> Any:
    """A copy with another value at a path of keys."""
    key, _, rest = where.partition(".")
    place: Any = int(key) if isinstance(content, list) else key
    copy = list(content) if isinstance(content, list) else dict(content)
    copy[place] = with_value(content[place], rest, value) if rest else value
    return copy


def lower_a_score(line: dict[str, Any]) -> dict[str, Any]:
    """The last digit of a log-probability that is not the highest."""
    scores = line["log_probs"]
    place = min(range(len(scores)), key=scores.__getitem__)
    return line | {"log_probs": [*scores[:place], round(scores[place] - 0.00001, 6), *scores[place + 1 :]]}


def answer_otherwise(line: dict[str, Any]) -> dict[str, Any]:
    """The right answer is another one."""
    return line | {"answer": "3" if line["answer"] != "3" else "4"}


FILES = [
    "predictions.jsonl",
    "predictions-shuffled.jsonl",
    "model.safetensors",
    "config.json",
    "damage.jsonl",
    "damage.json",
]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_of_a_run_is_found(name: str, folder: Path) -> None:
    run = folder / "runs" / "bytes"
    data = (run / name).read_bytes()
    positions = random.Random(name).sample(range(len(data)), 3)
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= 1
        (run / name).write_bytes(changed)
        found = faults(verify(run))
        expected = file_info(run / name).sha256
        assert any(
            fault.startswith(f"bytes: result.json: {name}: expected SHA-256") and f"got {expected:.12}…" in fault
            for fault in found
        ), found
        assert all("\n" not in fault for fault in found)


@pytest.mark.parametrize("name", ["test/images.arrow", "test/questions.arrow", "train/images.arrow", "manifest.json"])
def test_a_changed_byte_of_the_shard_is_found(name: str, folder: Path) -> None:
    path = shard_of(folder) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for cell in ("bytes", "blind"):
        (found,) = faults(verify(folder / "runs" / cell))
        assert found.startswith(f"{cell}: shard: expected")
        assert str(path) in found or "SHA-256" in found
        assert "serialize" in found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lower_a_score, "result.json: metrics.calibration."),
        (answer_otherwise, "predictions.jsonl: question_index 5, answer: expected 'yes'"),
        (lambda line: line | {"image": "CLEVR_val_000003.png"}, "predictions.jsonl: question_index 5, image: expected"),
        (lambda line: line | {"num_objects": 11}, "predictions.jsonl: question_index 5, num_objects: expected 4"),
        (lambda line: line | {"program_length": 9}, "question_index 5, program_length: expected 3"),
        (lambda line: line | {"question_type": "count", "group": "count"}, "question_index 5, question_type: expected"),
        (lambda line: line | {"trie_mass": line["trie_mass"] / 2}, "result.json: metrics.trie_mass.mean: expected"),
        (lambda line: line | {"log_probs": line["log_probs"][1:]}, "line 6: expected 28 log_probs"),
    ],
)
def test_a_changed_prediction_is_found_though_its_hash_is_changed_too(
    change: Callable[[dict[str, Any]], dict[str, Any]], expected: str, folder: Path
) -> None:
    run = folder / "runs" / "bytes"
    edit_line(run / "predictions.jsonl", 5, change)
    rehash(run)
    found = faults(verify(run))
    assert any(expected in fault for fault in found), found
    assert not any("SHA-256" in fault for fault in found)


def test_a_removed_prediction_is_found(folder: Path) -> None:
    run = folder / "runs" / "blind"
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run / "predictions.jsonl").write_text("".join(lines[:7] + lines[8:]), encoding="utf-8")
    rehash(run)
    found = "\n".join(faults(verify(run)))
    assert "metrics.overall.n: expected 19, got 20; evaluate the cell again" in found
    assert "expected a prediction for each of 20 questions" in found
    assert "the first with question_index 7" in found


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("metrics.overall.accuracy", 0.999),
        ("metrics.types.exist.low", 0.0123),
        ("metrics.calibration.ece", 0.5),
        ("shuffled.groups.count.correct", 17),
        ("vision_gain.p_value", 0.001),
        ("controls.majority.overall.accuracy", 0.9),
        ("bits.answer.bits_per_byte", 0.1),
        ("cost.train_flops", 1.0),
        ("cost.image_bytes", 73.0),
        ("model.parameters", 12),
        ("dataset.questions", 21),
        ("training.steps", 5),
        ("train.learning_rate", 1.0),
        ("seed", 3),
        ("encoding", "png:6x4,level=6"),
        ("shard.spec", "png:6x4,level=6"),
    ],
)
def test_a_changed_number_of_the_result_is_found(where: str, value: object, folder: Path) -> None:
    run = folder / "runs" / "bytes"
    edit(run / "result.json", lambda result: with_value(result, where, value))
    (found,) = faults(verify(run))
    assert found.startswith("bytes: ")
    assert f" {where}: expected " in found
    assert f", got {json.dumps(value)}; evaluate the cell again" in found


@pytest.mark.parametrize("where", ["levels.3.accuracy", "levels.0.high", "questions"])
def test_a_changed_number_of_the_damage_is_found(where: str, folder: Path) -> None:
    run = folder / "runs" / "bytes"
    edit(run / "damage.json", lambda content: with_value(content, where, 7))
    rehash(run)
    (found,) = faults(verify(run))
    assert f"damage.json: {where}: expected " in found
    assert ", got 7; evaluate the cell again" in found


def test_a_changed_answer_to_damage_is_found(folder: Path) -> None:
    run = folder / "runs" / "bytes"
    content = json.loads((run / "damage.jsonl").read_text(encoding="utf-8").splitlines()[1])
    assert content["level"] == 0
    edit_line(run / "damage.jsonl", 1, lambda line: line | {"predictions": [27 - at for at in line["predictions"]]})
    rehash(run)
    (found,) = faults(verify(run))
    assert "expected the answers of predictions.jsonl where nothing is damaged" in found


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("key.json", lambda key: key | {"outcome": "0" * 64}, "key.json: outcome: expected"),
        ("key.json", lambda key: key | {"data": "0" * 64}, "key.json: data: expected"),
        ("trained.json", lambda trained: trained | {"steps": 3}, "result.json: training.steps: expected 3, got 4"),
        ("result.json", lambda result: result | {"format": 1}, "result.json: result.json: format: "),
        ("result.json", lambda result: {"cell": "bytes"}, "result.json: result.json: format: "),
        ("result.json", lambda result: result | {"answers": ["yes", "no"]}, "predictions.jsonl: "),
        ("result.json", lambda result: result | {"hashes": {}}, "hashes: expected that of model.safetensors, got none"),
    ],
)
def test_other_changes_are_found(name: str, change: Callable[[Any], Any], expected: str, folder: Path) -> None:
    run = folder / "runs" / "bytes"
    edit(run / name, change)
    found = faults(verify(run))
    assert any(expected in fault for fault in found), found


def test_what_is_missing_is_found(folder: Path) -> None:
    runs = folder / "runs"
    (runs / "bytes" / "model.safetensors").unlink()
    (runs / "bytes" / "predictions-shuffled.jsonl").unlink()
    found = "\n".join(faults(verify(runs / "bytes")))
    assert "result.json: model.safetensors: expected SHA-256" in found
    assert "got no such file" in found
    assert "predictions-shuffled.jsonl: expected predictions at" in found
    (runs / "blind" / "DONE").unlink()
    (found,) = faults(verify(runs / "blind"))
    assert found.startswith("blind: DONE: expected")
    left = [check for check in verify(runs) if check.run == "blind"]
    assert [check.unchecked for check in left] == ["it is not finished"]
    with pytest.raises(UserError, match="expected a run, or a folder of runs"):
        verify(folder / "clevr")


def test_two_runs_in_each_others_folders_are_found(folder: Path) -> None:
    runs = folder / "runs"
    (runs / "bytes").rename(runs / "kept")
    (runs / "blind").rename(runs / "bytes")
    (runs / "kept").rename(runs / "blind")
    found = faults(verify(runs))
    assert len(found) == 2
    assert "blind: result.json: cell: expected 'blind' in a folder of that name, got 'bytes'" in found[0]
    assert "bytes: result.json: cell: expected 'bytes'" in found[1]


def test_a_shard_that_lies_elsewhere_is_named(folder: Path, tmp_path: Path) -> None:
    run, shard = folder / "runs" / "bytes", shard_of(folder)
    rebuilt = tmp_path / "rebuilt" / "shard"
    serialize(folder / "clevr", parse_spec(PIXELS), rebuilt, workers=1, dev_fraction=0.2)
    shutil.rmtree(shard)
    (found,) = faults(verify(run))
    assert "bytes: shard: expected a shard whose manifest.json has SHA-256" in found
    assert "--shard DIR" in found
    assert faults(verify(run, shards=[rebuilt])) == []
    assert faults(verify(run, shards=[rebuilt.parent])) == []
    other = tmp_path / "other"
    serialize(folder / "clevr", parse_spec(PIXELS), other, workers=1, dev_fraction=0)
    (found,) = faults(verify(run, shards=[other]))
    assert str(other) in found
    with pytest.raises(UserError, match="expected a shard, or a folder of shards"):
        verify(run, shards=[folder / "clevr"])


def test_a_run_that_was_evaluated_apart_holds(folder: Path) -> None:
    run, out = folder / "runs" / "bytes", folder / "again" / "bytes"
    out.mkdir(parents=True)
    evaluate(load_model(run), open_shard(shard_of(folder)), out, run=run)
    checks = verify(out)
    assert faults(checks) == []
    assert [check.file for check in checks if check.status == "unchecked"] == [
        "key.json",
        "result.json",
        "metrics.jsonl",
    ]
    data = bytearray((run / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (run / "model.safetensors").write_bytes(data)
    assert "model.safetensors: expected SHA-256" in faults(verify(out))[0]


def test_the_command_and_the_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = folder / "runs"
    make_pretraining(runs / "pretrain" / "text", {"test": {"bits_per_byte": 1.5, "bytes": 100}})
    write_report(runs, page=False)
    assert main(["verify", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "ok         bytes: result, hashes, predictions, numbers" in shown
    assert "ok         pretrain/text: result" in shown
    assert "unchecked  pretrain/text: model.safetensors: hashes: a pretraining run's result holds none" in shown
    assert main(["verify", str(runs / "pretrain" / "text")]) == 0  # and by itself
    assert "ok         text: result" in capsys.readouterr().out
    tables = sorted(path.name for path in runs.iterdir() if path.suffix in (".csv", ".md", ".tex"))
    assert tables == ["details.csv", "pretraining.csv", "table.csv", "table.md", "table.tex"]
    assert f"ok         runs: {', '.join(tables)}" in shown

    text = (runs / "table.csv").read_text(encoding="utf-8")
    (runs / "table.csv").write_text(text.replace("LSTM", "LSTN", 1), encoding="utf-8")
    (runs / "table.tex").unlink()
    found = [check for check in verify(runs) if check.status == "fault"]
    assert [check.file for check in found] == ["table.csv", "table.tex"]
    assert found[0].faults[0].startswith("line ")
    assert all(name in found[0].faults[0] for name in ("LSTM", "LSTN"))
    assert found[1].faults == ("expected one, got no such file; write the report again",)

    edit(runs / "blind" / "result.json", lambda result: with_value(result, "metrics.overall.low", 0.5))
    edit_line(runs / "bytes" / "predictions.jsonl", 3, answer_otherwise)
    assert main(["verify", str(runs)]) == 1
    shown = capsys.readouterr().out
    assert "FAULT      blind: result.json: metrics.overall.low: expected" in shown
    assert "FAULT      bytes: result.json: predictions.jsonl: expected SHA-256" in shown
    assert main(["verify", str(folder / "clevr")]) == 2


def test_where_nothing_is_finished_nothing_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "begun").mkdir(parents=True)
    (tmp_path / "runs" / "begun" / "provenance.json").write_text("{}", encoding="utf-8")
    assert main(["verify", str(tmp_path / "runs")]) == 1
    assert "0 checks hold, 0 do not" in capsys.readouterr().out


def test_without_a_report_there_are_no_tables_to_check(folder: Path) -> None:
    (last,) = [check for check in verify(folder / "runs") if check.run == "runs"]
    assert last.unchecked == "no report was written here"


@pytest.mark.slow
def test_tables_with_published_numbers_hold(folder: Path) -> None:
    write_report(folder / "runs", page=False, published=True)
    assert faults(verify(folder / "runs")) == []
    (folder / "runs" / "table.md").write_text("nothing", encoding="utf-8")
    assert any("table.md: line 1: expected" in fault for fault in faults(verify(folder / "runs")))


def test_values_are_compared_to_the_last_bit() -> None:
    assert compare({"a": [1, 2.5, None]}, {"a": [1, 2.5, None]}, "", again="x") == []
    assert compare(0.1 + 0.2, 0.3, "sum", again="x") == ["sum: expected 0.30000000000000004, got 0.3; x"]
    assert compare(1, 1.0, "n", again="x") == ["n: expected 1, got 1.0; x"]
    assert compare(1, True, "n", again="x") == ["n: expected 1, got true; x"]
    assert compare({"a": 1}, {}, "", again="x") == ["a: expected 1, got nothing; x"]
    assert compare({}, {"a": {"b": 1}}, "r", again="x") == ['r.a: expected nothing, got {"b": 1}; x']
    assert compare([1, 2], [1], "", again="x") == [": expected [1, 2], got [1]; x"]
    many = compare(dict.fromkeys("abcde", 0), dict.fromkeys("abcde", 1), "", again="x")
    assert len(many) == 3
    assert many[-1] == "c: expected 0, got 1, and 2 more differences; x"


def test_the_text_of_checks_says_everything_once() -> None:
    checks = [
        Check("a", "f", "one"),
        Check("a", "f", "two", ("expected 1, got 2; do it again",)),
        Check("a", "g", "bits", unchecked="measured"),
        Check("b", "g", "bits", unchecked="measured"),
    ]
    assert verify_text(checks).splitlines() == [
        "ok         a: one",
        "FAULT      a: f: expected 1, got 2; do it again",
        "unchecked  a, b: g: bits: measured",
        "1 checks hold, 1 do not, 2 were not made",
    ]
