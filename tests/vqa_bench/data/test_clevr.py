"""The reader of CLEVR folders: both dialects, missing images, and every way in which a folder can be wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
from vqa_bench.data.clevr import ClevrFolder
from vqa_bench.data.json_entries import json_entries
from vqa_bench.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_clevr_folder(tmp_path / "clevr", {"train": 3, "val": 2})


def test_reads_the_splits_that_have_questions(folder: Path):
    (folder / "images" / "test").mkdir()
    assert ClevrFolder(folder).splits == ("train", "val")


def test_reads_questions_images_and_scenes(folder: Path):
    split = ClevrFolder(folder).read_split("val")
    assert len(split.questions) == 2 * len(QUESTIONS)
    assert split.images == ("CLEVR_val_000000.png", "CLEVR_val_000001.png")
    assert split.num_objects == {"CLEVR_val_000000.png": 3, "CLEVR_val_000001.png": 4}
    assert (split.missing_images, split.missing_questions, split.unasked_images) == ((), 0, ())
    last = split.questions[7]
    assert (last.question_index, last.image_index, last.image_filename) == (7, 1, "CLEVR_val_000001.png")
    assert last.question == "Are there more cubes than  balls; is that so?"  # the double space stays
    assert (last.answer, last.question_type, last.family_index) == ("no", "greater_than", 2)
    assert json.loads(last.program)[-1] == {"function": "greater_than", "inputs": [2, 5], "value_inputs": []}


def test_both_dialects_give_the_same_questions(folder: Path, tmp_path: Path):
    generated = make_clevr_folder(tmp_path / "generated", {"train": 3, "val": 2}, dialect="generator")
    questions = list(ClevrFolder(generated).questions("train"))
    assert questions == list(ClevrFolder(folder).questions("train"))
    assert tuple(question.answer for question in questions[:5]) == ANSWERS_AS_RELEASED
    assert tuple(question.question_type for question in questions[:5]) == TYPES


def test_scenes_and_family_indices_are_optional(tmp_path: Path):
    root = make_clevr_folder(tmp_path / "clevr", {"val": 1}, scenes=False)
    edit_questions(root, "val", lambda questions: questions[0].pop("question_family_index"))
    split = ClevrFolder(root).read_split("val")
    assert split.num_objects == {}
    assert [question.family_index for question in split.questions] == [None, 1, 2, 3, 4]
    assert split.json_files == (questions_path(root, "val"),)


def test_missing_images_are_counted_and_named(folder: Path):
    (folder / "images" / "train" / "CLEVR_train_000001.png").unlink()
    clevr = ClevrFolder(folder)
    with pytest.raises(UserError, match=r"got 5 questions whose 1 images are missing, the first .*train_000001\.png"):
        clevr.read_split("train")
    split = clevr.read_split("train", allow_missing=True)
    assert (len(split.questions), split.missing_questions) == (10, 5)
    assert split.missing_images == ("CLEVR_train_000001.png",)
    assert split.images == ("CLEVR_train_000000.png", "CLEVR_train_000002.png")


def test_a_missing_image_folder_misses_all_images(folder: Path):
    for image in (folder / "images" / "val").iterdir():
        image.unlink()
    (folder / "images" / "val").rmdir()
    with pytest.raises(UserError, match="got 10 questions whose 2 images are missing"):
        ClevrFolder(folder).read_split("val")


def test_images_without_questions_are_listed(folder: Path):
    edit_questions(folder, "val", lambda questions: questions.__delitem__(slice(5)))
    split = ClevrFolder(folder).read_split("val")
    assert split.unasked_images == ("CLEVR_val_000000.png",)
    assert split.images == ("CLEVR_val_000001.png",)


def test_real_clevr_is_read_as_its_facts_say(real_clevr: Path | None, tmp_path: Path):
    """2,000 real questions on 200 images, 16 of which are there; where they are not at hand, the like made here."""
    if real_clevr is not None:
        root, present, absent, per_image, unasked = real_clevr, 16, 184, 10, 3
    else:
        root, present, absent, per_image, unasked = tmp_path / "clevr", 4, 6, len(QUESTIONS), 0
        make_clevr_folder(root, {"val": present + absent})
        for index in range(present, present + absent):
            (root / "images" / "val" / f"CLEVR_val_{index:06d}.png").unlink()
    clevr = ClevrFolder(root)
    assert clevr.splits == ("val",)
    with pytest.raises(UserError, match=rf"got {absent * per_image} questions whose {absent} images are missing"):
        clevr.read_split("val")
    split = clevr.read_split("val", allow_missing=True)
    assert (len(split.images), len(split.questions)) == (present, present * per_image)
    assert (len(split.missing_images), split.missing_questions) == (absent, absent * per_image)
    assert len(split.unasked_images) == unasked
    assert all(3 <= split.num_objects[image] <= 10 for image in split.images)
    assert all(question.question.endswith("?") for question in split.questions)


# ---- what can be wrong


@pytest.mark.parametrize("missing", ["images", "questions"])
def test_a_folder_that_is_no_clevr_is_an_error(folder: Path, missing: str):
    (folder / missing).rename(folder / "elsewhere")
    with pytest.raises(UserError, match=f"expected a CLEVR folder .* got {folder}"):
        ClevrFolder(folder)


def test_a_split_without_questions_is_an_error(folder: Path):
    with pytest.raises(UserError, match=r"CLEVR_test_questions\.json, got no such file"):
        ClevrFolder(folder).read_split("test")


WRONG_ENTRIES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda entry: entry.update(answer="perhaps"), "expected one of the 28 answers .* got 'perhaps'"),
    (lambda entry: entry.update(answer=11), "got 11"),
    (lambda entry: entry.update(answer=2.0), r"got 2\.0"),
    (lambda entry: entry.pop("answer"), "expected an answer, got none .*use val"),
    (lambda entry: entry.pop("program"), "expected a field 'program' of type list, got none"),
    (lambda entry: entry.update(program=[]), "at least one node"),
    (lambda entry: entry["program"][-1].update(function="guess"), "got 'guess'"),
    (lambda entry: entry["program"][0].pop("function"), "expected program nodes"),
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
        ClevrFolder(folder).read_split("val")
    assert "\n" not in str(error.value)


def test_a_wrong_scene_is_named_with_its_file_and_number(folder: Path):
    write_json(folder / "scenes" / "CLEVR_val_scenes.json", {"scenes": [{"image_filename": "a.png"}]})
    with pytest.raises(UserError, match=r"CLEVR_val_scenes\.json: scene number 0: expected a field 'objects'"):
        ClevrFolder(folder).read_split("val")


# ---- JSON, entry by entry


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("entries", [[], [1], [{"a": [1, 2]}, "]", [], None, '\\"']])
def test_json_entries_are_those_of_the_json_module(tmp_path: Path, entries: list[Any], indent: int | None):
    path = tmp_path / "file.json"
    content = {"info": {"questions": [7]}, "questions": entries, "more": [1, {"b": 2}]}
    path.write_text("\n " + json.dumps(content, indent=indent) + "\n", encoding="utf-8")
    assert list(json_entries(path, "questions")) == entries


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
    ],
)
def test_broken_json_is_an_error_with_the_path_and_the_place(tmp_path: Path, text: str):
    path = tmp_path / "file.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=rf"valid JSON, got {path} with: .*line 1 column"):
        list(json_entries(path, "questions"))


def test_bytes_that_are_no_text_are_an_error_with_the_path(tmp_path: Path):
    path = tmp_path / "file.json"
    path.write_bytes(b'{"questions": ["\xff"]}')
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
