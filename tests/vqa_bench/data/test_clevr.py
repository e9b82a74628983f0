"""The reader of CLEVR folders: both dialects, missing images, and every way in which a folder can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vqa_bench.data.clevr_folder import (
    ANSWERS_AS_RELEASED,
    QUESTIONS,
    TYPES,
    edit_questions,
    make_clevr_folder,
    question_entry,
    questions_path,
    write_json,
)
from vqa_bench.data import json_entries as reader
from vqa_bench.data.clevr import ClevrFolder
from vqa_bench.data.image_pool import ImagePool
from vqa_bench.data.json_entries import json_entries, json_runs
from vqa_bench.data.source_split import SourceSplit, survey
from vqa_bench.errors import UserError


def read_split(
    root: Path, split: str, *, allow_missing: bool = False, keep_unasked: bool = False, workers: int = 1
) -> SourceSplit:
    clevr = ClevrFolder(root, images_only=keep_unasked)
    spill = root / f"{split}.spill"
    with ImagePool(workers) as pool:
        return survey(clevr, split, spill, pool=pool, allow_missing=allow_missing, keep_unasked=keep_unasked)


def question_rows(source: SourceSplit) -> list[dict[str, Any]]:
    """All questions, where `image` is the place of the image's name."""
    return [row._asdict() for row in source.questions(np.arange(len(source.images)))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_clevr_folder(tmp_path / "clevr", {"train": 3, "val": 2})


def test_reads_the_splits_that_have_questions(folder: Path):
    (folder / "images" / "test").mkdir()
    assert ClevrFolder(folder).splits == ("train", "val")


def test_reads_questions_images_and_scenes(folder: Path):
    split = read_split(folder, "val")
    rows = question_rows(split)
    assert len(rows) == 2 * len(QUESTIONS)
    assert split.images == ("CLEVR_val_000000.png", "CLEVR_val_000001.png")
    assert split.image_index.tolist() == [0, 1]
    assert [row["num_objects"] for row in rows] == [3] * 5 + [4] * 5
    assert (split.missing_images, split.missing_questions, split.unasked_images) == (0, 0, 0)
    assert (rows[7]["question_index"], rows[7]["image"]) == (7, 1)
    assert rows[7]["question"] == "Are there more cubes than  balls; is that so?"  # the double space stays
    assert (rows[7]["answer"], rows[7]["question_type"], rows[7]["family_index"]) == ("no", "greater_than", 2)
    assert json.loads(rows[7]["program"])[-1] == {"function": "greater_than", "inputs": [2, 5], "value_inputs": []}


def test_both_dialects_give_the_same_questions(folder: Path, tmp_path: Path):
    generated = make_clevr_folder(tmp_path / "generated", {"train": 3, "val": 2}, dialect="generator")
    questions = list(ClevrFolder(generated).questions("train"))
    assert questions == list(ClevrFolder(folder).questions("train"))
    assert tuple(question.answer for question in questions[:5]) == ANSWERS_AS_RELEASED
    assert tuple(question.question_type for question in questions[:5]) == TYPES


def test_questions_are_the_same_from_any_number_of_processes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "RUN_CHARACTERS", 700)
    edit_questions(folder, "train", list.reverse)
    assert question_rows(read_split(folder, "train", workers=2)) == question_rows(read_split(folder, "train"))


def test_scenes_and_family_indices_are_optional(tmp_path: Path):
    root = make_clevr_folder(tmp_path / "clevr", {"val": 1}, scenes=False)
    edit_questions(root, "val", lambda questions: questions[0].pop("question_family_index"))
    split = read_split(root, "val")
    assert [row["num_objects"] for row in question_rows(split)] == [None] * 5
    assert [row["family_index"] for row in question_rows(split)] == [None, 1, 2, 3, 4]
    assert split.json_files == (questions_path(root, "val"),)


def test_missing_images_are_counted_and_named(folder: Path):
    (folder / "images" / "train" / "CLEVR_train_000001.png").unlink()
    with pytest.raises(UserError, match=r"got 5 questions whose 1 images are missing, the first .*train_000001\.png"):
        read_split(folder, "train")
    split = read_split(folder, "train", allow_missing=True)
    assert (len(question_rows(split)), split.missing_images, split.missing_questions) == (10, 1, 5)
    assert split.images == ("CLEVR_train_000000.png", "CLEVR_train_000002.png")
    assert split.image_index.tolist() == [0, 2]


def test_a_missing_image_folder_misses_all_images(folder: Path):
    for image in (folder / "images" / "val").iterdir():
        image.unlink()
    (folder / "images" / "val").rmdir()
    with pytest.raises(UserError, match="got 10 questions whose 2 images are missing"):
        read_split(folder, "val")


def test_images_without_questions_are_counted_or_kept(folder: Path):
    edit_questions(folder, "val", lambda questions: questions.__delitem__(slice(5)))
    images = folder / "images" / "val"
    for name in ("photo_17.JPEG", "drawing.bmp", "readme.txt", ".hidden.png"):
        (images / name).touch()
    left_out = read_split(folder, "val")
    assert (left_out.images, left_out.unasked_images) == (("CLEVR_val_000001.png",), 3)
    kept = read_split(folder, "val", keep_unasked=True)
    assert kept.images == ("CLEVR_val_000000.png", "CLEVR_val_000001.png", "drawing.bmp", "photo_17.JPEG")
    assert kept.image_index.tolist() == [0, 1, -1, 17]  # from the scenes, the questions, nowhere, and the name
    assert kept.unasked_images == 0
    assert [row["image"] for row in question_rows(kept)] == [1] * 5


def test_images_that_are_files_of_any_kind_can_be_asked_about(folder: Path):
    (folder / "images" / "val" / "CLEVR_val_000000.png").rename(folder / "images" / "val" / "odd name")

    def rename(questions: list[dict[str, Any]]) -> None:
        for entry in questions[:5]:
            entry["image_filename"] = "odd name"

    edit_questions(folder, "val", rename)
    assert read_split(folder, "val").images == ("CLEVR_val_000001.png", "odd name")


def test_some_of_the_questions_with_rows_of_their_images(folder: Path):
    edit_questions(folder, "train", list.reverse)
    split = read_split(folder, "train")
    rows = list(split.questions(np.array([1, -1, 0])))
    assert [row.image for row in rows] == [0] * 5 + [1] * 5
    assert [row.question_index for row in rows] == [14, 13, 12, 11, 10, 4, 3, 2, 1, 0]


def test_real_clevr_is_read_as_its_facts_say(real_clevr: Path | None, tmp_path: Path):
    """2,000 real questions on 200 images, 16 of which are there; where they are not at hand, the like made here."""
    if real_clevr is not None:
        root, present, absent, per_image, unasked = real_clevr, 16, 184, 10, 3
    else:
        root, present, absent, per_image, unasked = tmp_path / "clevr", 4, 6, len(QUESTIONS), 0
        make_clevr_folder(root, {"val": present + absent})
        for index in range(present, present + absent):
            (root / "images" / "val" / f"CLEVR_val_{index:06d}.png").unlink()
    clevr, spill = ClevrFolder(root), tmp_path / "spill"
    assert clevr.splits == ("val",)
    with ImagePool(1) as pool:
        with pytest.raises(UserError, match=rf"got {absent * per_image} questions whose {absent} images are missing"):
            survey(clevr, "val", spill, pool=pool, allow_missing=False, keep_unasked=False)
        split = survey(clevr, "val", spill, pool=pool, allow_missing=True, keep_unasked=False)
    rows = question_rows(split)
    assert (len(split.images), len(rows)) == (present, present * per_image)
    assert (split.missing_images, split.missing_questions) == (absent, absent * per_image)
    assert split.unasked_images == unasked
    assert all(3 <= row["num_objects"] <= 10 for row in rows)
    assert all(row["question"].endswith("?") for row in rows)


# ---- what can be wrong


@pytest.mark.parametrize("missing", ["images", "questions"])
def test_a_folder_that_is_no_clevr_is_an_error(folder: Path, missing: str):
    (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(UserError, match=f"expected a CLEVR folder .* got {folder}"):
        ClevrFolder(folder)


def test_a_split_without_questions_is_an_error(folder: Path):
    with pytest.raises(UserError, match=r"CLEVR_test_questions\.json, got no such file"):
        read_split(folder, "test")


WRONG_ENTRIES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda entry: entry.update(answer="perhaps"), "expected one of the 28 answers .* got 'perhaps'"),
    (lambda entry: entry.update(answer=11), "got 11"),
    (lambda entry: entry.update(answer=2.0), r"got 2\.0"),
    (lambda entry: entry.pop("answer"), "expected an answer, got none .*use val"),
    (lambda entry: entry.update(program="scene"), "expected a field 'program' of type list, got 'scene'"),
    (lambda entry: entry.update(program=[]), "at least one node"),
    (lambda entry: entry.update(program=None, question_type=7), "expected a field 'question_type' of type str, got 7"),
    (lambda entry: entry.update(program=None, question_type=" "), "a question_type of one line of text, got ' '"),
    (lambda entry: entry.update(program=[], question_type="a\nb"), r"a question_type of one line of text, got 'a\\nb'"),
    (lambda entry: entry["program"][-1].update(function="guess"), "got 'guess'"),
    (lambda entry: entry["program"][0].pop("function"), "expected program nodes"),
    (lambda entry: entry["program"][1].update(inputs=[True]), r"integers as inputs .* got \(True"),
    (lambda entry: entry["program"][1].update(inputs=0), "expected program nodes"),
    (lambda entry: entry["program"][1].update(inputs="0"), "integers as inputs"),
    (lambda entry: entry["program"][0].update(value_inputs="red"), "one value at most"),
    (lambda entry: entry["program"][0].update(value_inputs=[["red"]]), "expected program nodes"),
    (lambda entry: entry.update(image_index=True), "expected a field 'image_index' of type int, got True"),
    (lambda entry: entry["program"].append("exist"), "expected program nodes"),
    (lambda entry: entry.update(question=5), "expected a field 'question' of type str, got 5"),
    (lambda entry: entry.update(question_index="5"), "expected a field 'question_index' of type int, got '5'"),
    (lambda entry: entry.update(question_family_index="5"), "expected a field 'question_family_index'"),
    (lambda entry: entry.update(image_filename="../../secret.png"), "expected the name of an image file"),
]


@pytest.mark.parametrize(("edit", "said"), WRONG_ENTRIES)
def test_a_wrong_question_is_named_with_its_file_and_number(
    folder: Path, edit: Callable[[dict[str, Any]], object], said: str
):
    edit_questions(folder, "val", lambda questions: edit(questions[6]))
    with pytest.raises(UserError, match=f"CLEVR_val_questions.json: question number 6: .*{said}") as error:
        read_split(folder, "val")
    assert "\n" not in str(error.value)


def test_a_wrong_question_is_named_by_many_processes_too(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "RUN_CHARACTERS", 700)
    edit_questions(folder, "val", lambda questions: questions[6].update(answer="perhaps"))
    with pytest.raises(UserError, match=r"question number 6: .* got 'perhaps'"):
        read_split(folder, "val", workers=2)


def test_files_that_disagree_about_an_image_are_an_error(folder: Path):
    edit_questions(folder, "val", lambda questions: questions[6].update(image_index=5))
    with pytest.raises(UserError, match=r"expected image_index 1 for CLEVR_val_000001\.png .* got 5 in question 6"):
        read_split(folder, "val")


def test_a_wrong_scene_is_named_with_its_file_and_number(folder: Path):
    write_json(folder / "scenes" / "CLEVR_val_scenes.json", {"scenes": [{"image_filename": "a.png"}]})
    with pytest.raises(UserError, match=r"CLEVR_val_scenes\.json: scene number 0: expected a field 'objects'"):
        read_split(folder, "val")


# ---- JSON, entry by entry

CONTENTS = [
    [],
    [1],
    [{"a": [1, 2]}, "]", [], None, '\\"'],
    [{"a": 1}, {"a": '}, {"a": '}, {"b": [{"a": 3}, {"a": 4}]}],
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("entries", CONTENTS)
def test_json_entries_are_those_of_the_json_module(tmp_path: Path, entries: list[Any], indent: int | None):
    path = tmp_path / "file.json"
    content = {"info": {"questions": [7]}, "before": [{}, 5], "questions": entries, "more": [1, {"b": 2}]}
    path.write_text("\n " + json.dumps(content, indent=indent) + "\n", encoding="utf-8")
    assert list(json_entries(path, "questions")) == entries
    assert [item for run in json_runs(path, "questions") for item in json.loads(f"[{run}]")] == entries


@given(entries=st.lists(json_values, max_size=6), ascii_only=st.booleans(), chunk=st.integers(1, 9))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_may_end_anywhere(tmp_path: Path, entries: list[Any], ascii_only: bool, chunk: int):
    path = tmp_path / "file.json"
    text = json.dumps({"ï": entries, "more": 12.5e3}, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "CHUNK_BYTES", chunk)
        try:
            text.encode()
        except UnicodeEncodeError:  # lone surrogates are no UTF-8
            with pytest.raises(UserError, match="valid JSON"):
                list(json_entries(path, "ï"))
        else:
            assert list(json_entries(path, "ï")) == entries


@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    length=st.integers(1, 80),
    separators=st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_runs_of_objects_are_all_objects_once(
    tmp_path: Path, counts: list[int], length: int, separators: tuple[str, str]
):
    entries = [{"index": index, "nodes": [{"inputs": [0]}] * count} for index, count in enumerate(counts)]
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"list": entries, "last": 1}, separators=separators), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "RUN_CHARACTERS", length)
        patch.setattr(reader, "CHUNK_BYTES", length)
        runs = list(json_runs(path, "list"))
    assert [item for run in runs for item in json.loads(f"[{run}]")] == entries


def test_long_lists_are_cut_into_runs_and_a_wrong_guess_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "RUN_CHARACTERS", 100)
    path = tmp_path / "file.json"
    write_json(path, {"list": [{"index": index, "text": "x" * 30} for index in range(100)]})
    assert all(100 <= len(run) < 200 for run in list(json_runs(path, "list"))[:-1])
    write_json(path, {"list": [{"index": 0, "parts": [{"index": 1}] * 100}] * 2})
    with pytest.raises(ValueError, match="delimiter"):
        [json.loads(f"[{run}]") for run in json_runs(path, "list")]


def test_questions_whose_parts_begin_like_questions_are_read_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def mislead(questions: list[dict[str, Any]]) -> None:
        for entry in questions:
            last = entry.copy()
            entry.clear()
            entry.update(parts=[{"parts": 1}] * 30, **last)

    expected = question_rows(read_split(folder, "train"))
    edit_questions(folder, "train", mislead)
    monkeypatch.setattr(reader, "RUN_CHARACTERS", 300)
    assert question_rows(read_split(folder, "train", workers=2)) == expected


@pytest.mark.parametrize("read", [json_entries, json_runs])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"questions": [1, 2',
        '{"questions": [1 2]}',
        '{"questions": [1,]}',
        '{"questions": [1]',
        '{"questions": [1]} x',
        '{"questions": [1],}',
        '{"questions" [1]}',
        '{"questions": ["never ended',
        '{"questions": [tru]}',
    ],
)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_broken_json_is_an_error_with_the_path_and_the_place(
    tmp_path: Path, text: str, chunk: int, read: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reader, "CHUNK_BYTES", chunk)
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"valid JSON, got {path} with: .*line 1 column"):
        list(read(path, "questions"))


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_the_place_of_an_error_is_that_in_the_whole_file(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "CHUNK_BYTES", chunk)
    path = tmp_path / "file.json"
    text = json.dumps({"questions": list(range(30))}, indent=2)
    broken = text.replace("27,", "27 , ?")
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(broken)
    with pytest.raises(UserError, match="valid JSON") as error:
        list(json_entries(path, "questions"))
    assert str(expected.value) in str(error.value)


def test_what_is_read_does_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "CHUNK_BYTES", 1000)
    path = tmp_path / "file.json"
    write_json(path, {"before": [{"a": "x" * 50}] * 1000, "questions": [{"a": "x" * 50}] * 1000})
    held = []
    read_on = reader._Window._read_on
    monkeypatch.setattr(reader._Window, "_read_on", lambda window: held.append(len(window.text)) or read_on(window))
    assert len(list(json_entries(path, "questions"))) == 1000
    assert max(held) < 3000


def test_bytes_that_are_no_text_are_an_error_with_the_path(tmp_path: Path):
    path = tmp_path / "file.json"
    path.write_bytes(b'{"questions": ["\xff"]}')
    with pytest.raises(UserError, match=f"valid JSON, got {path}"):
        list(json_entries(path, "questions"))


@pytest.mark.parametrize("number", ["1" * 5000, "[" * 100_000])
def test_numbers_too_long_and_lists_too_deep_are_errors(tmp_path: Path, number: str):
    path = tmp_path / "file.json"
    path.write_text(f'{{"questions": [{number}]}}', encoding="utf-8")
    with pytest.raises(UserError, match=f"valid JSON, got {path}"):
        list(json_entries(path, "questions"))


@pytest.mark.parametrize("content", [{"info": {}}, {"questions": {"a": 1}}, {"questions": None}])
def test_a_file_without_the_list_is_an_error(tmp_path: Path, content: dict[str, Any]):
    path = tmp_path / "file.json"
    write_json(path, content)
    with pytest.raises(UserError, match=f"with a list 'questions', got {path}"):
        list(json_entries(path, "questions"))


def test_the_folder_builder_writes_what_the_tests_say():
    assert question_entry(3, 1, "a.png", 1)["answer"] == "10"
    assert question_entry(3, 1, "a.png", 1, dialect="generator")["answer"] == 10
