"""The benchmark of serialising, end to end at toy size."""

import json
from pathlib import Path

import pytest

from benchmarks import serialize
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from vqa_bench.data.clevr import ClevrFolder

LINUX_ONLY = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_clevr_folder(tmp_path / "clevr", {"train": 3, "val": 2})


@LINUX_ONLY
def test_rows_of_speed_and_memory(source: Path, tmp_path: Path) -> None:
    sizes = ["--images", "12", "--memory-images", "5", "10", "--workers", "1", "--repeats", "1", "--warmup", "0"]
    serialize.main(["--source", str(source), *sizes, "--out", str(tmp_path / "out")])
    rows = json.loads((tmp_path / "out" / "serialize.json").read_text(encoding="utf-8"))["rows"]
    assert [row["target"] and row["target"]["value"] for row in rows] == [0.85, None, 1.1]
    assert all(row["value"] > 0 for row in rows)
    provenance = (tmp_path / "out" / "provenance.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in provenance
    assert "--memory-images" in provenance


def test_an_enlarged_folder_is_a_clevr_folder(source: Path, tmp_path: Path) -> None:
    folder = ClevrFolder(serialize.enlarge(source, tmp_path / "large", 7))
    questions = list(folder.questions("train"))
    assert len(questions) == 70
    assert {question.image_filename for question in questions} == set(folder.files("train"))


def test_a_folder_without_questions_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(SystemExit, match="expected images and questions"):
        serialize.main(["--source", str(tmp_path)])
