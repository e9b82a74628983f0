"""The second CNN+LSTM end to end at toy size: it reads, learns, and is held against a run of ours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import second_cnn_lstm
from data_scripts.synth.generate import generate
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.serialize import serialize

TOY = ["--channels", "4", "8", "--strides", "2", "2", "--batch", "20"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("second") / "synth"
    generate("mini", out, seed=0, workers=1, images={"train": 10, "val": 3})
    return out


@pytest.fixture(autouse=True)
def _same_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def result(path: Path, *, accuracy: float, questions: int) -> Path:
    overall = {"n": questions, "accuracy": accuracy, "low": accuracy - 0.01, "high": accuracy + 0.01}
    path.write_text(json.dumps({"metrics": {"overall": overall}}))
    return path


def test_pictures_and_words_are_read_as_ours_are(folder: Path) -> None:
    part = second_cnn_lstm.read(folder, "val", (16, 12))
    serialize(folder, parse_spec("pixels:16x12"), folder.parent / "shard", workers=1, dev_fraction=0.2)
    from vqa_bench.data.shards import open_shard

    shard = open_shard(folder.parent / "shard")
    split = shard.split("test")
    for row in range(3):
        decoded = parse_spec("pixels:16x12").decode(split.image_bytes(row).tobytes())
        assert part.pictures[row].permute(1, 2, 0).numpy().tobytes() == decoded.tobytes()
    assert part.picture_of.tolist() == split.image_of_question.tolist()
    assert part.answers == split.answer
    assert part.words == [question.rstrip("?").replace(";", " ;").split() for question in split.question]
    left_out = second_cnn_lstm.images_of(shard.path / "dev" / "images.arrow")
    assert len(left_out) == 2
    kept = second_cnn_lstm.read(folder, "train", (16, 12), left_out)
    assert len(kept.pictures) == 8
    assert kept.answers == shard.split("train").answer


def test_it_learns_its_samples_and_the_table_compares(folder: Path, tmp_path: Path) -> None:
    ours = result(
        tmp_path / "result.json", accuracy=0.5, questions=len(second_cnn_lstm.read(folder, "val", (16, 12)).answers)
    )
    command = [str(folder), *TOY, "--steps", "40", "--learning-rate", "2e-2", "--ours", str(ours)]
    second_cnn_lstm.main([*command, "--out", str(tmp_path / "out")])
    saved = json.loads((tmp_path / "out" / "second-cnn-lstm.json").read_text(encoding="utf-8"))
    assert saved["second"]["accuracy_train"] > 50
    (row,) = saved["rows"]
    assert row["value"] == pytest.approx(abs(50 - saved["second"]["accuracy"]))
    assert row["target"] == {"relation": "≤", "value": 3.0}
    assert row["reached"] == (row["value"] <= 3)
    assert "interval of [49.0, 51.0] %" in (tmp_path / "out" / "second-cnn-lstm.md").read_text(encoding="utf-8")


def test_another_test_set_is_refused(folder: Path, tmp_path: Path) -> None:
    ours = result(tmp_path / "result.json", accuracy=0.5, questions=7)
    with pytest.raises(SystemExit, match="got one with 7"):
        second_cnn_lstm.main([str(folder), *TOY, "--steps", "1", "--ours", str(ours)])


def test_a_number_alone_is_not_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        second_cnn_lstm.parse(["folder", "--record"])
    assert "expected --ours with --record" in capsys.readouterr().err
