"""Shards: what is written comes back byte for byte, through our reader and through Hugging Face datasets."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqa_bench.data import folders, shards
from vqa_bench.data.folders import new_folder
from vqa_bench.data.manifest import (
    ByteLengths,
    DevInfo,
    Manifest,
    SourceInfo,
    SplitInfo,
    file_info,
    fingerprint,
    write_manifest,
)
from vqa_bench.data.shards import (
    BATCH_ROWS,
    IMAGE_SCHEMA,
    QUESTION_SCHEMA,
    ImageRow,
    QuestionRow,
    SplitReader,
    open_shard,
    read_batches,
    write_rows,
)
from vqa_bench.errors import UserError

TRICKY = [b"", b"\x00", b"\x01\x00", b"\x00\x00\x01\x00\x00", bytes(range(256)), b"\xff" * 3000]


def image_row(row: int, data: bytes) -> ImageRow:
    return ImageRow(f"image_{row:06d}.png", 10 * row, data, 480, 320)


def question_row(row: int, image: int) -> QuestionRow:
    odd = row % 2 == 1
    program = json.dumps([{"function": "exist", "inputs": [row], "value_inputs": []}])
    return QuestionRow(row, image, f"Q {row}?", "yes", "exist", row if odd else None, program, None if odd else 4)


def write_shard(path: Path, data: list[bytes], images_of_questions: list[int]) -> Path:
    with new_folder(path) as folder:
        write_rows(
            folder / "train" / "images.arrow",
            IMAGE_SCHEMA,
            (image_row(row, content) for row, content in enumerate(data)),
        )
        write_rows(
            folder / "train" / "questions.arrow",
            QUESTION_SCHEMA,
            (question_row(row, image) for row, image in enumerate(images_of_questions)),
        )
        lengths = ByteLengths.of(np.array([len(content) for content in data]))
        info = SplitInfo(
            source_split="train",
            images=len(data),
            questions=len(images_of_questions),
            image_bytes=lengths,
            question_bytes=lengths,
            missing_images=0,
            missing_questions=0,
            unasked_images=0,
        )
        write_manifest(
            folder,
            spec="png:4x4,level=6",
            source=SourceInfo(name="made", fingerprint="f", json_files={}),
            dev=DevInfo(fraction=0.05, seed=0),
            codecs={"pil": "0"},
            splits={"train": info},
        )
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return write_shard(tmp_path / "shard", TRICKY, [0, 2, 2, 5, 0, 1])


def test_image_bytes_come_back_as_views_of_the_file(shard: Path):
    split = open_shard(shard).split("train")
    assert len(split) == len(TRICKY)
    assert [split.image_bytes(row).tobytes() for row in range(len(split))] == TRICKY
    assert split.image_lengths.tolist() == [len(data) for data in TRICKY]
    view = split.image_bytes(4)
    assert view.dtype == np.uint8
    assert not view.flags.owndata
    assert not view.flags.writeable
    assert np.shares_memory(view, split.image_bytes(4))
    with pytest.raises(IndexError):
        split.image_bytes(len(TRICKY))


def test_hugging_face_datasets_reads_the_same_bytes(shard: Path):
    images = Dataset.from_file(str(shard / "train" / "images.arrow"))
    assert images.column_names == list(ImageRow._fields)
    assert images.features["bytes"].dtype == "binary"
    assert images["bytes"][:] == TRICKY
    assert images[1] == image_row(1, TRICKY[1])._asdict()
    questions = Dataset.from_file(str(shard / "train" / "questions.arrow"))
    assert questions.column_names == list(QuestionRow._fields)
    assert [questions[row] for row in range(2)] == [question_row(0, 0)._asdict(), question_row(1, 2)._asdict()]


def test_questions_come_back_as_columns(shard: Path):
    split = open_shard(shard).split("train")
    assert split.image_of_question.tolist() == [0, 2, 2, 5, 0, 1]
    assert split.question_index.tolist() == list(range(6))
    assert split.question == [f"Q {row}?" for row in range(6)]
    assert split.answer == ["yes"] * 6
    assert split.question_type == ["exist"] * 6
    assert split.family_index == [None, 1, None, 3, None, 5]
    assert split.num_objects == [4, None, 4, None, 4, None]
    assert split.program(3) == [{"function": "exist", "inputs": [3], "value_inputs": []}]
    assert [rows.tolist() for rows in split.questions_of_image] == [[0, 4], [5], [1, 2], [], [], [3]]


@given(data=st.lists(st.binary(max_size=20), max_size=7), repeat=st.integers(1, 120))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_any_number_of_batches_round_trip(tmp_path: Path, data: list[bytes], repeat: int):
    path = tmp_path / str(time.monotonic_ns()) / "images.arrow"
    rows = data * repeat
    write_rows(path, IMAGE_SCHEMA, (image_row(row, content) for row, content in enumerate(rows)))
    write_rows(path.with_name("questions.arrow"), QUESTION_SCHEMA, (question_row(row, 0) for row in range(3)))
    split = SplitReader(path.parent)
    assert [split.image_bytes(row).tobytes() for row in range(len(split))] == rows
    assert [len(batch) for batch in split.images.to_batches()] == [
        min(BATCH_ROWS, len(rows) - start) for start in range(0, len(rows), BATCH_ROWS)
    ]


def test_large_images_make_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "BATCH_BYTES", 1000)
    sizes = [400, 600, 1, 999, 1000, 5000, 10, 10, 980, 981]
    path = tmp_path / "images.arrow"
    write_rows(path, IMAGE_SCHEMA, (image_row(row, b"x" * size) for row, size in enumerate(sizes)))
    batches = [[len(data) for data in batch.column("bytes").to_pylist()] for batch in read_batches(path)]
    assert batches == [[400, 600], [1, 999], [1000], [5000], [10, 10, 980], [981]]


arrow_columns = st.one_of(
    st.tuples(st.just(pa.int64()), st.lists(st.none() | st.integers(-(2**63), 2**63 - 1))),
    st.tuples(st.just(pa.int32()), st.lists(st.integers(-(2**31), 2**31 - 1))),
    st.tuples(st.just(pa.string()), st.lists(st.none() | st.text())),
    st.tuples(st.just(pa.binary()), st.lists(st.none() | st.binary())),
)


@given(arrow_columns)
def test_arrow_columns_are_those_that_arrow_makes(column: tuple[pa.DataType, list[Any]]):
    kind, values = column
    made = shards.arrow_column(values, kind)
    made.validate(full=True)
    assert made.equals(pa.array(values, kind))
    assert made.null_count == values.count(None)


def test_readers_can_be_sent_to_other_processes(shard: Path):
    opened = pickle.loads(pickle.dumps(open_shard(shard)))
    split = pickle.loads(pickle.dumps(opened.split("train")))
    assert len(pickle.dumps(split)) < 500  # the path, not the data
    assert split.image_bytes(2).tobytes() == b"\x01\x00"


def test_the_same_rows_give_the_same_files_and_the_manifest_tells_no_time_or_place(shard: Path, tmp_path: Path):
    again = write_shard(tmp_path / "deeper" / "again", TRICKY, [0, 2, 2, 5, 0, 1])
    names = sorted(path.relative_to(shard) for path in shard.rglob("*") if path.is_file())
    assert [path.name for path in names] == ["manifest.json", "images.arrow", "questions.arrow"]
    for name in names:
        assert (shard / name).read_bytes() == (again / name).read_bytes()
    assert str(tmp_path) not in (shard / "manifest.json").read_text(encoding="utf-8")


def test_verify_names_the_file_that_changed_or_went(shard: Path):
    opened = open_shard(shard)
    opened.verify()
    path = shard / "train" / "images.arrow"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path} with SHA-256 .*changed file"):
        opened.verify()
    path.unlink()
    with pytest.raises(UserError, match=f"{path} as the manifest says, got no such file"):
        opened.verify()


# ---- a shard exists whole or not at all


def test_a_failed_write_leaves_nothing(tmp_path: Path):
    def fail() -> None:
        with new_folder(tmp_path / "shard") as folder:
            (folder / "half").write_text("…", encoding="utf-8")
            raise RuntimeError("the encoder failed")

    with pytest.raises(RuntimeError, match="the encoder failed"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_path_is_never_touched(shard: Path):
    before = file_info(shard / "manifest.json")
    with pytest.raises(UserError, match="which exists; delete it or choose another"), new_folder(shard):
        pytest.fail("the block must not run")
    assert file_info(shard / "manifest.json") == before


def test_a_path_that_appears_meanwhile_is_not_overwritten(tmp_path: Path):
    out = tmp_path / "shard"

    def lose_the_race() -> None:
        with new_folder(out):
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(UserError, match="was it made meanwhile"):
        lose_the_race()
    assert [path.name for path in tmp_path.rglob("*")] == ["shard", "theirs"]


def test_leftovers_of_killed_writers_go_and_those_of_living_ones_stay(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    old = time.time() - 2 * 24 * 3600
    cases = {  # name of the temporary folder, its age, whether it stays
        f".shard.partial-{folders._HOST}-{ended.pid}-aa": (time.time(), False),
        f".shard.partial-{folders._HOST}-{os.getppid()}-aa": (old, True),
        f".shard.partial-{folders._HOST}-{os.getpid()}-aa": (time.time(), False),  # our number, but not ours
        ".shard.partial-elsewhere-1-aa": (time.time(), True),
        ".shard.partial-elsewhere-2-aa": (old, False),
        ".shard.partial-0123abcd": (old, False),
        ".shard2.partial-elsewhere-1-aa": (old, True),
    }
    for name, (changed, _) in cases.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "images.arrow").touch()
        for path in (tmp_path / name / "images.arrow", tmp_path / name):
            os.utime(path, (changed, changed))
    with new_folder(tmp_path / "shard"):
        assert {name: (tmp_path / name).exists() for name in cases} == {
            name: stays for name, (_, stays) in cases.items()
        }


def test_two_writers_of_one_process_leave_each_other_alone(tmp_path: Path):
    def write_both() -> None:
        with new_folder(tmp_path / "shard") as slower:
            with new_folder(tmp_path / "shard") as faster:
                (faster / "theirs").touch()
            assert slower.exists()

    with pytest.raises(UserError, match="was it made meanwhile"):
        write_both()
    assert [path.name for path in tmp_path.rglob("*")] == ["shard", "theirs"]


# ---- what is no shard


def test_opening_anything_else_is_an_error(tmp_path: Path, shard: Path):
    for path in (tmp_path / "nowhere", tmp_path, shard / "manifest.json"):
        with pytest.raises(UserError, match="expected a shard"):
            open_shard(path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", 2, "with version: Input should be 1"),
        ("format", "a checkpoint", "with format"),
        ("splits", None, "with splits"),
        ("extra", 1, "with extra"),
    ],
)
def test_a_manifest_of_another_kind_is_an_error(shard: Path, key: str, value: object, said: str):
    path = shard / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, key: value}), encoding="utf-8")
    with pytest.raises(UserError, match=said) as error:
        open_shard(shard)
    assert "\n" not in str(error.value)


def test_a_manifest_that_is_no_json_is_an_error(shard: Path):
    (shard / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="with the whole file: Invalid JSON"):
        open_shard(shard)


def test_an_unknown_split_and_broken_tables_are_errors(shard: Path):
    opened = open_shard(shard)
    with pytest.raises(UserError, match=r"expected a split of .* \(train\), got 'test'"):
        opened.split("test")
    path = shard / "train" / "questions.arrow"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=f"expected an Arrow stream, got {path}"):
        opened.split("train")
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"expected an Arrow stream, got {path}"):
        opened.split("train")
    path.unlink()
    with pytest.raises(UserError, match=f"{path}, got no such file"):
        opened.split("train")


# ---- the manifest


@given(st.lists(st.integers(0, 1000), min_size=1))
def test_byte_length_quantiles_are_lengths_that_occur(lengths: list[int]):
    got = ByteLengths.of(np.array(lengths))
    ordered = sorted(lengths)
    nearest_rank = {q: ordered[max(-(-q * len(ordered) // 100) - 1, 0)] for q in (50, 95)}
    assert (got.min, got.max) == (ordered[0], ordered[-1])
    assert (got.median, got.p95) == (nearest_rank[50], nearest_rank[95])


def test_no_lengths_have_quantiles_of_zero():
    assert ByteLengths.of(np.array([])) == ByteLengths(min=0, median=0, p95=0, max=0)


def test_the_manifest_prints_and_parses_into_itself(shard: Path):
    manifest = open_shard(shard).manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert manifest.splits["train"].image_bytes == ByteLengths(min=0, median=2, p95=3000, max=3000)
    assert set(manifest.files) == {"train/images.arrow", "train/questions.arrow"}


def test_the_fingerprint_depends_on_names_sizes_and_contents():
    whole = fingerprint([("x", 1, "aa"), ("y", 2, "bb")])
    assert whole == hashlib.sha256(b"x\t1\taa\ny\t2\tbb\n").hexdigest()
    changed = [[("x", 1, "aa")], [("x", 2, "bb"), ("y", 1, "aa")], [("x", 1, "aa"), ("z", 2, "bb")]]
    assert len({whole, *map(fingerprint, changed)}) == 4
    with pytest.raises(AssertionError):
        fingerprint([("y", 2, "bb"), ("x", 1, "aa")])
