"""Serialising: a CLEVR folder becomes the shard that a slow and obvious reading of the folder says it should be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.vqa_bench.data.clevr_folder import (
    ANSWERS_AS_RELEASED,
    QUESTIONS,
    TYPES,
    edit_questions,
    make_clevr_folder,
    noise_image,
    questions_path,
)
from tests.vqa_bench.data.test_encoding_registry import ToySpec
from vqa_bench.data import image_pool, json_entries
from vqa_bench.data.encodings import Spec, parse_spec
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import open_shard
from vqa_bench.data.split_plan import carve_dev
from vqa_bench.errors import UserError

PIXELS = parse_spec("pixels:8x6")
PER_IMAGE = len(QUESTIONS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_clevr_folder(tmp_path / "clevr", {"train": 10, "val": 3})


def contents(shard: Path) -> dict[str, bytes]:
    return {path.relative_to(shard).as_posix(): path.read_bytes() for path in shard.rglob("*") if path.is_file()}


def encoded(path: Path, text: str) -> bytes:
    return encoded_by(parse_spec(text), path)


def encoded_by(spec: Spec, path: Path) -> bytes:
    with Image.open(path) as image:
        return spec.encode(image)


@pytest.mark.parametrize("text", ["pixels:8x6,order=block2", "png:native,level=0", "jpeg:16x12,q=50,tables=drop"])
def test_a_shard_holds_every_image_once_and_every_question(folder: Path, tmp_path: Path, text: str):
    serialize(folder, parse_spec(text), tmp_path / "shard", workers=1, dev_fraction=0.2)
    shard = open_shard(tmp_path / "shard")
    shard.verify()
    assert shard.manifest.spec == text
    assert list(shard.manifest.splits) == ["train", "dev", "test"]
    assert [len(shard.split(name)) for name in shard.manifest.splits] == [8, 2, 3]
    for name in shard.manifest.splits:
        split, source = shard.split(name), shard.manifest.splits[name].source_split
        assert len(split.question) == PER_IMAGE * len(split)
        for row, image in enumerate(split.images.to_pylist()):
            path = folder / "images" / source / image["image_filename"]
            assert split.image_bytes(row).tobytes() == image["bytes"] == encoded(path, text)
            assert path.name == f"CLEVR_{source}_{image['image_index']:06d}.png"
            assert (image["width"], image["height"]) == (32, 24)
            rows = split.questions_of_image[row]
            assert split.question_index[rows].tolist() == [
                PER_IMAGE * image["image_index"] + template for template in range(PER_IMAGE)
            ]
            assert [split.answer[question] for question in rows] == list(ANSWERS_AS_RELEASED)
            assert [split.question_type[question] for question in rows] == list(TYPES)
            assert {split.num_objects[question] for question in rows} == {3 + image["image_index"] % 8}


def test_questions_keep_every_byte_and_their_programs(folder: Path, tmp_path: Path):
    serialize(folder, PIXELS, tmp_path / "shard", workers=1)
    split = open_shard(tmp_path / "shard").split("test")
    assert split.question[:PER_IMAGE] == [text for text, _, _ in QUESTIONS]
    assert split.family_index[:PER_IMAGE] == list(range(PER_IMAGE))
    for row, (_, _, nodes) in enumerate(QUESTIONS):
        keys = ("function", "inputs", "value_inputs")
        assert split.program(row) == [dict(zip(keys, node, strict=True)) for node in nodes]


def test_both_dialects_and_any_number_of_workers_give_the_same_tables(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(image_pool, "_IMAGES_PER_TASK", 1)  # more tasks than may wait at a time
    monkeypatch.setattr(image_pool, "_TASKS_PER_WORKER", 2)
    done: list[tuple[int, int]] = []
    serialize(folder, PIXELS, tmp_path / "one", workers=1)
    serialize(folder, PIXELS, tmp_path / "three", workers=3, progress=lambda *counts: done.append(counts))
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert done == [(count, 13) for count in range(1, 14)]
    generated = make_clevr_folder(tmp_path / "generated", {"train": 10, "val": 3}, dialect="generator")
    serialize(generated, PIXELS, tmp_path / "other", workers=1)
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "other").keys()
    for name, content in contents(tmp_path / "one").items():
        assert name == "manifest.json" or content == contents(tmp_path / "other")[name]


def test_the_manifest_counts_and_names_the_source(folder: Path, tmp_path: Path):
    noise_image((32, 24), seed=1).save(folder / "images" / "val" / "CLEVR_val_000099.png")
    edit_questions(folder, "val", lambda questions: questions.__delitem__(slice(PER_IMAGE)))
    manifest = serialize(folder, PIXELS, tmp_path / "shard", workers=1, dev_seed=3)
    assert manifest == open_shard(tmp_path / "shard").manifest
    assert manifest.source.name == "clevr"
    assert sorted(manifest.source.json_files) == [
        f"{kind}/CLEVR_{split}_{kind}.json" for kind in ("questions", "scenes") for split in ("train", "val")
    ]
    assert manifest.dev is not None
    assert (manifest.dev.fraction, manifest.dev.seed) == (0.05, 3)
    assert manifest.codecs["pil"] == Image.__version__
    assert "zlib" in manifest.codecs
    test = manifest.splits["test"]
    assert (test.images, test.questions, test.unasked_images) == (2, 2 * PER_IMAGE, 2)
    assert test.image_bytes.min == test.image_bytes.max == PIXELS.max_bytes()
    lengths = sorted(len(text) for text, _, _ in QUESTIONS)
    assert (test.question_bytes.min, test.question_bytes.median, test.question_bytes.max) == (
        lengths[0],
        lengths[2],
        lengths[4],
    )


def test_the_fingerprint_follows_the_files_that_were_read(folder: Path, tmp_path: Path):
    def fingerprint(name: str) -> str:
        return serialize(folder, PIXELS, tmp_path / name, workers=1, splits=["test"]).source.fingerprint

    first = fingerprint("first")
    noise_image((32, 24), seed=77).save(folder / "images" / "train" / "CLEVR_train_000000.png")  # not in `test`
    assert fingerprint("second") == first
    noise_image((32, 24), seed=77).save(folder / "images" / "val" / "CLEVR_val_000000.png")
    changed_image = fingerprint("third")
    path = questions_path(folder, "val")
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert len({first, changed_image, fingerprint("fourth")}) == 3


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_or_four_workers_and_two_runs_give_the_same_hashes(
    real: bool, real_clevr: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(json_entries, "RUN_CHARACTERS", 2000)  # many pieces of the questions too
    source = make_clevr_folder(tmp_path / "clevr", {"train": 140, "val": 20})
    if real and real_clevr is not None:
        source = real_clevr
    shards = [tmp_path / f"shard{run}" for run in range(3)]
    for shard, workers in zip(shards, (1, 4, 4), strict=True):
        serialize(source, parse_spec("png:16x12,level=6"), shard, workers=workers, allow_missing=True)
    assert contents(shards[0]) == contents(shards[1]) == contents(shards[2])


@pytest.mark.slow
def test_all_of_real_clevr_serialises(real_clevr: Path | None, tmp_path: Path):
    """268 training images without questions, 19 of val of which 16 are asked about, and 5 of test, without answers."""
    source = real_clevr or like_real_clevr(tmp_path)
    expected = {"train": (255, 0), "dev": (13, 0), "test": (19, 160 if real_clevr else 80), "unlabelled": (5, 0)}
    check_all_serialises(source, tmp_path, expected)
    assert sum(images for images, _ in expected.values()) == 292


def test_a_folder_like_real_clevr_serialises_whole(tmp_path: Path):
    expected = {"train": (255, 0), "dev": (13, 0), "test": (19, 80), "unlabelled": (5, 0)}
    check_all_serialises(like_real_clevr(tmp_path), tmp_path, expected)


def like_real_clevr(tmp_path: Path) -> Path:
    source = make_clevr_folder(tmp_path / "clevr", {"train": 268, "val": 16, "test": 5})
    questions_path(source, "train").unlink()
    for index in range(16, 19):
        noise_image((32, 24), seed=index).save(source / f"images/val/CLEVR_val_{index:06d}.png")
    return source


def check_all_serialises(source: Path, tmp_path: Path, expected: dict[str, tuple[int, int]]) -> None:
    manifest = serialize(source, PIXELS, tmp_path / "shard", workers=2, allow_missing=True, keep_unasked=True)
    assert {name: (info.images, info.questions) for name, info in manifest.splits.items()} == expected
    shard = open_shard(tmp_path / "shard")
    assert shard.split("train").question == []
    assert [len(rows) for rows in shard.split("unlabelled").questions_of_image] == [0] * 5
    images = shard.split("unlabelled").images.to_pylist()
    assert all(image["image_filename"] == f"CLEVR_test_{image['image_index']:06d}.png" for image in images)


# ---- splits


def test_cogent_tests_on_both_conditions(tmp_path: Path):
    splits = {"trainA": 10, "valA": 2, "valB": 3, "testA": 1, "testB": 1}
    folder = make_clevr_folder(tmp_path / "cogent", splits)
    manifest = serialize(folder, PIXELS, tmp_path / "shard", workers=1)
    assert {name: (info.source_split, info.images) for name, info in manifest.splits.items()} == {
        "train": ("trainA", 9),
        "dev": ("trainA", 1),
        "test": ("valA", 2),
        "test_b": ("valB", 3),
    }
    whole = serialize(folder, PIXELS, tmp_path / "whole", workers=1, keep_unasked=True)
    assert {name: info.questions for name, info in whole.splits.items() if "unlabelled" in name} == {
        "unlabelled": 0,
        "unlabelled_b": 0,
    }
    (folder / "images" / "train").mkdir()
    (folder / "images" / "train" / "a.png").touch()
    with pytest.raises(UserError, match="got both train and trainA"):
        serialize(folder, PIXELS, tmp_path / "both", workers=1, keep_unasked=True)


def test_unasked_images_are_left_out_unless_they_are_asked_for(folder: Path, tmp_path: Path):
    edit_questions(folder, "train", lambda questions: questions.__delitem__(slice(PER_IMAGE)))
    left_out = serialize(folder, PIXELS, tmp_path / "a", workers=1, dev_fraction=0).splits["train"]
    kept = serialize(folder, PIXELS, tmp_path / "b", workers=1, dev_fraction=0, keep_unasked=True).splits["train"]
    assert (left_out.images, left_out.unasked_images) == (9, 1)
    assert (kept.images, kept.unasked_images) == (10, 0)
    assert left_out.questions == kept.questions == 9 * PER_IMAGE
    with pytest.raises(UserError, match=r"\(train, dev, test\), got unlabelled"):
        serialize(folder, PIXELS, tmp_path / "c", workers=1, splits=["unlabelled"])


def test_dev_images_are_not_in_train_and_depend_on_the_seed_only(folder: Path, tmp_path: Path):
    def names(shard: Path) -> dict[str, list[str]]:
        opened = open_shard(shard)
        return {name: opened.split(name).images.column("image_filename").to_pylist() for name in opened.manifest.splits}

    serialize(folder, PIXELS, tmp_path / "a", workers=1, dev_fraction=0.3)
    serialize(folder, PIXELS, tmp_path / "b", workers=1, dev_fraction=0.3, dev_seed=2)
    serialize(folder, PIXELS, tmp_path / "only", workers=1, dev_fraction=0.3, splits=["dev"])
    a, b = names(tmp_path / "a"), names(tmp_path / "b")
    assert sorted(a["train"] + a["dev"]) == sorted(b["train"] + b["dev"])
    assert len(a["dev"]) == 3
    assert a["dev"] != b["dev"]
    assert all(images == sorted(images) for images in a.values())
    assert names(tmp_path / "only") == {"dev": a["dev"]}


def test_no_dev_split_and_no_train_split(folder: Path, tmp_path: Path):
    whole = serialize(folder, PIXELS, tmp_path / "whole", workers=1, dev_fraction=0)
    assert {name: info.images for name, info in whole.splits.items()} == {"train": 10, "test": 3}
    assert whole.dev is None
    only_val = make_clevr_folder(tmp_path / "val", {"val": 2}, scenes=False)
    manifest = serialize(only_val, PIXELS, tmp_path / "shard", workers=1)
    assert list(manifest.splits) == ["test"]
    assert manifest.dev is None
    assert set(open_shard(tmp_path / "shard").split("test").num_objects) == {None}


@given(st.integers(2, 200), st.floats(0.001, 0.5), st.integers(0, 5))
def test_carve_dev_takes_its_share_whatever_the_order(count: int, fraction: float, seed: int):
    images = [f"{number}.png" for number in range(count)]
    dev = carve_dev(images, fraction, seed)
    assert dev == carve_dev(images[::-1], fraction, seed)
    assert dev <= set(images)
    assert len(dev) == max(1, round(fraction * count))
    assert carve_dev(images, 0, seed) == frozenset()


def test_real_clevr_becomes_a_test_split(real_clevr: Path | None, tmp_path: Path):
    """Where the real images are not at hand, images like them made here."""
    if real_clevr is not None:
        root, present, absent, per_image = real_clevr, 16, 184, 10
    else:
        root, present, absent, per_image = tmp_path / "clevr", 4, 6, PER_IMAGE
        make_clevr_folder(root, {"val": present + absent}, size=(480, 320))
        for index in range(present, present + absent):
            (root / "images" / "val" / f"CLEVR_val_{index:06d}.png").unlink()
    text = "pixels:62x41,crop=10%,bits=3,order=planar"
    with pytest.raises(UserError, match=rf"got {absent * per_image} questions whose {absent} images are missing"):
        serialize(root, parse_spec(text), tmp_path / "shard", workers=1)
    assert not (tmp_path / "shard").exists()
    manifest = serialize(root, parse_spec(text), tmp_path / "shard", workers=1, allow_missing=True)
    info = manifest.splits["test"]
    assert (info.images, info.questions) == (present, present * per_image)
    assert (info.missing_images, info.missing_questions) == (absent, absent * per_image)
    split = open_shard(tmp_path / "shard").split("test")
    assert {len(rows) for rows in split.questions_of_image} == {per_image}
    for row, image in enumerate(split.images.to_pylist()):
        assert (image["width"], image["height"]) == (480, 320)
        path = root / "images" / "val" / image["image_filename"]
        assert split.image_bytes(row).tobytes() == encoded(path, text)


# ---- what can be wrong


def test_an_existing_shard_is_an_error_before_anything_is_read(folder: Path, tmp_path: Path):
    (tmp_path / "shard").mkdir()
    questions_path(folder, "train").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="shard, which exists"):
        serialize(folder, PIXELS, tmp_path / "shard", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("damage", ["truncated", "corrupt", "empty"])
def test_a_damaged_image_is_named_and_no_shard_is_left(folder: Path, tmp_path: Path, damage: str, workers: int):
    path = folder / "images" / "train" / "CLEVR_train_000004.png"
    data = bytearray(path.read_bytes())
    if damage == "corrupt":
        data[len(data) // 2] ^= 1  # one bit: only the checksums tell
    else:
        del data[len(data) // 2 if damage == "truncated" else 0 :]
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"expected a whole image file, got {path}") as error:
        serialize(folder, PIXELS, tmp_path / "shard", workers=workers)
    assert "\n" not in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clevr"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"workers": 0}, "at least 1 worker, got 0"),
        ({"dev_fraction": 1.0}, r"dev fraction in \[0, 1\), got 1.0"),
        ({"dev_fraction": -0.1}, r"got -0\.1"),
        ({"dev_fraction": 0.99}, r"got 0\.99 of 10"),
        ({"splits": ["val"]}, r"\(train, dev, test\), got val"),
        ({"splits": ["dev"], "dev_fraction": 0}, r"\(train, test\), got dev"),
        ({"splits": []}, "got none"),
    ],
)
def test_impossible_choices_say_what_is_possible(folder: Path, tmp_path: Path, options: dict, said: str):
    with pytest.raises(UserError, match=said):
        serialize(folder, PIXELS, tmp_path / "shard", **{"workers": 1, **options})


def test_a_folder_without_questions_for_us_is_an_error(folder: Path, tmp_path: Path):
    edit_questions(folder, "val", list.clear)
    with pytest.raises(UserError, match="expected questions about images in split val"):
        serialize(folder, PIXELS, tmp_path / "shard", workers=1)
    for split in ("train", "val"):
        questions_path(folder, split).rename(questions_path(folder, f"{split}_old"))
    with pytest.raises(UserError, match=r"can give \(none\), got none"):
        serialize(folder, PIXELS, tmp_path / "shard", workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_own_encoding_reaches_the_workers(folder: Path, tmp_path: Path, workers: int):
    serialize(folder, ToySpec(size=None), tmp_path / "shard", workers=workers, splits=["test"])
    split = open_shard(tmp_path / "shard").split("test")
    assert split.image_bytes(1).tobytes() == encoded_by(ToySpec(size=None), folder / "images/val/CLEVR_val_000001.png")


def test_serialising_imports_neither_torch_nor_pandas(folder: Path, tmp_path: Path):
    code = """if True:
        import json, sys
        from pathlib import Path
        from vqa_bench.data.encodings import parse_spec
        from vqa_bench.data.serialize import serialize
        serialize(Path(sys.argv[1]), parse_spec("pixels:8x6"), Path(sys.argv[2]), workers=1)
        print(json.dumps(sorted(sys.modules.keys() & {"torch", "datasets", "pandas"})))"""
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "shard")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == []
