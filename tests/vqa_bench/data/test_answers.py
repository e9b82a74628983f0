"""Candidates of any data set: their file, their bytes, through shard and batch and back; and CLEVR's as ever."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vqa_bench.data.clevr_folder import edit_questions, make_clevr_folder
from tests.vqa_bench.data.other_folder import OWN_ANSWERS, make_other_folder, write_answers
from vqa_bench.data import json_entries
from vqa_bench.data.answers import CLEVR_ANSWERS, ONE_LETTER, Answers, read_answers
from vqa_bench.data.collate import ByteCollate
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import Group
from vqa_bench.data.look import look_at_sample, look_at_shard
from vqa_bench.data.questions import questions_of
from vqa_bench.data.sequences import SequenceConfig, Sequencer
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import Shard, open_shard
from vqa_bench.data.show import sample_text, shard_text
from vqa_bench.data.vocab import ANSWERS, END_PART, GROUP_OF_TYPE, LETTERS, PAD, PLAIN_TYPE, START_TEXT, group_of
from vqa_bench.errors import UserError

PIXELS = parse_spec("pixels:4x3")
MANY = tuple(f"Größe {number}" for number in range(200))
LISTS = {"three": ("ja", "naïve 日本", "🐈"), "own": OWN_ANSWERS, "many": MANY}

# A line of a file as read back: no line breaks, no blanks around, no half characters.
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=20).filter(
    lambda name: name == name.strip("﻿").strip() != ""
)


def make_own(folder: Path, answers: tuple[str, ...] = OWN_ANSWERS, *, images: int = 4, workers: int = 1) -> Shard:
    source = make_other_folder(folder / "other", {"train": images, "val": 2}, answers=answers)
    serialize(source, PIXELS, folder / "shard", workers=workers, dev_fraction=0, answers=Answers(answers))
    return open_shard(folder / "shard")


# -- the list -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "at least 2 candidate answers, got 0"),
        (("yes",), "at least 2 candidate answers, got 1"),
        (("yes", "no", "yes"), "every candidate answer once, got 'yes' more than once"),
        (("yes", ""), "candidate answers of one line each, got ''"),
        (("yes", "n\no"), r"candidate answers of one line each, got 'n\\no'"),
        (("yes", "n\u2028o"), "candidate answers of one line each"),
        (("yes", "\ud800"), "candidate answers of whole characters"),
    ],
)
def test_what_cannot_be_candidates(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Answers(names)


def test_letters_are_the_papers_for_clevr_and_in_order_for_others() -> None:
    assert CLEVR_ANSWERS.letters == LETTERS
    assert Answers(OWN_ANSWERS).letters == {"red": "0", "reddish": "1", "ja": "2", "nein": "3"}
    most = Answers(tuple(f"{n}." for n in range(62)))
    assert "".join(most.letters[name] for name in most.names) == ONE_LETTER
    assert sorted(set(ONE_LETTER)) == sorted(ONE_LETTER)
    too_many = Answers((*most.names, "one more"))
    assert (most.have_letters, too_many.have_letters) == (True, False)
    with pytest.raises(
        UserError, match=r"at most 62 answers for one letter each, got 63; set sequence\.answer to text"
    ):
        Sequencer(SequenceConfig(answer="letter"), 8, 900, 40, answers=too_many)
    with pytest.raises(UserError, match="at most 62"):
        too_many.ids("letter")


@given(st.lists(NAMES, min_size=2, max_size=30, unique=True))
def test_ids_are_the_bytes_and_an_end(names: list[str]) -> None:
    answers = Answers(tuple(names))
    read = [bytes(ids[:-1]).decode() for ids in answers.ids("text")]
    assert read == names
    assert all(ids[-1] == END_PART for form in ("text", "letter") for ids in answers.ids(form))
    assert [bytes(ids[:-1]).decode() for ids in answers.ids("letter")] == [answers.letters[name] for name in names]
    assert [answers.index[name] for name in names] == list(range(len(answers)))
    assert pickle.loads(pickle.dumps(answers)) == answers


# -- the file -------------------------------------------------------------------------------------------------------


@given(st.lists(NAMES, min_size=2, max_size=30, unique=True), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_file_lists_one_a_line(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], line_end: str, ended: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "answers.txt"
    path.write_bytes((line_end.join(names) + line_end * ended).encode())
    assert read_answers(path).names == tuple(names)


def test_a_byte_order_mark_is_no_part_of_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_bytes(b"\xef\xbb\xbfja\r\nnein\r\n\r\n")
    assert read_answers(path).names == ("ja", "nein")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ja\n\nnein\n", "line 2: expected an answer, got an empty line; remove it"),
        (b"ja\n nein\n", "line 2: expected an answer without blanks around it, got ' nein'; remove them"),
        (b"ja\nnein\nja\n", "line 3: expected every answer once, got 'ja' as in line 1; remove one"),
        (b"ja\n", "at least 2 candidate answers, got 1; list all answers"),
        (b"", "at least 2 candidate answers, got 0"),
        ("ja\nne\u2028in".encode(), r"candidate answers of one line each, got 'ne\\u2028in'; list"),
        (b"ja\nn\xe9in\n", "expected answers in UTF-8, got .* at byte 4; save it as UTF-8"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "answers.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_answers(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "answers.txt", tmp_path):
        with pytest.raises(UserError, match=f"expected a file with one answer a line, got {path}: .*; name another"):
            read_answers(path)


# -- shards ---------------------------------------------------------------------------------------------------------


def test_a_shard_of_clevr_is_what_it_was_before_there_were_others(tmp_path: Path) -> None:
    """Hashes of the tables as they were written before; and the manifest says nothing of answers."""
    source = make_clevr_folder(tmp_path / "clevr", {"train": 10, "val": 3})
    manifest = serialize(source, parse_spec("pixels:8x6"), tmp_path / "shard", workers=1)
    written = {name: info.sha256[:16] for name, info in manifest.files.items()}
    assert written == {
        "dev/images.arrow": "48205aa5603be5f1",
        "dev/questions.arrow": "0f71f7a614cca4d4",
        "test/images.arrow": "77163a3785f3cc0c",
        "test/questions.arrow": "5de8d477697ad30e",
        "train/images.arrow": "e334d6c71d2936e9",
        "train/questions.arrow": "e14cdb9268597665",
    }
    text = (tmp_path / "shard" / "manifest.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["format", "version", "spec", "source", "dev", "codecs", "splits", "files"]
    shard = open_shard(tmp_path / "shard")
    assert shard.manifest.model_dump_json(indent=2) + "\n" == text
    assert shard.answers == shard.split("test").answers == CLEVR_ANSWERS
    named = serialize(source, parse_spec("pixels:8x6"), tmp_path / "named", workers=1, answers=Answers(ANSWERS))
    assert named == manifest


@pytest.mark.parametrize("name", LISTS)
def test_own_answers_come_back_from_the_shard(tmp_path: Path, name: str) -> None:
    names = LISTS[name]
    shard = make_own(tmp_path, names, images=70)
    assert shard.manifest.answers == list(names)
    assert shard.answers == Answers(names)
    split = shard.split("train")
    assert split.answer == [names[row % len(names)] for row in range(210)]
    again = pickle.loads(pickle.dumps(split))
    assert again.answers == split.answers == Answers(names)
    places = questions_of(again).answers
    assert [names[place] for place in places] == split.answer
    assert places.max() == min(209, len(names) - 1)  # 200 of them need more than a signed byte


def test_questions_without_programs_have_types_of_their_own(tmp_path: Path) -> None:
    split = make_own(tmp_path).split("test")
    assert split.question_type == ["Farbe", "ja/nein", PLAIN_TYPE] * 2
    assert [split.program(row) for row in range(6)] == [[]] * 6
    assert split.family_index == split.num_objects == [None] * 6
    assert [group_of(kind) for kind in split.question_type[:3]] == ["Farbe", "ja/nein", PLAIN_TYPE]
    assert {kind: group_of(kind) for kind in GROUP_OF_TYPE} == GROUP_OF_TYPE


def test_a_program_says_the_type_where_there_is_one(tmp_path: Path) -> None:
    source = make_clevr_folder(tmp_path / "clevr", {"val": 1})

    def change(entries: list[dict]) -> None:
        entries[0].update(question_type="mine")
        entries[1].update(program=[], question_type="mine")
        entries[2].update(program=None)
        del entries[3]["program"]

    edit_questions(source, "val", change)
    serialize(source, PIXELS, tmp_path / "shard", workers=1)
    split = open_shard(tmp_path / "shard").split("test")
    assert split.question_type == ["exist", "mine", PLAIN_TYPE, PLAIN_TYPE, "equal_size"]
    assert [bool(split.program(row)) for row in range(5)] == [True, False, False, False, True]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_answer_that_is_none_of_them_is_named_with_its_question(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_entries, "RUN_CHARACTERS", 300)
    source = make_other_folder(tmp_path / "other", {"train": 4, "val": 2})
    edit_questions(source, "val", lambda entries: entries[4].update(answer="vielleicht"))
    message = (
        r"CLEVR_val_questions\.json: question number 4: expected one of the 4 answers red, reddish, ja, nein, got "
        r"'vielleicht'; list all answers of the data set in a file \(serialize --answers FILE"
    )
    with pytest.raises(UserError, match=message):
        serialize(source, PIXELS, tmp_path / "shard", workers=workers, answers=Answers(OWN_ANSWERS))
    assert not (tmp_path / "shard").exists()
    with pytest.raises(UserError, match=r"one of the 200 answers Größe 0, .*, Größe 29, …, got 'red'; list"):
        serialize(source, PIXELS, tmp_path / "shard", workers=1, answers=Answers(MANY))
    with pytest.raises(UserError, match=r"expected one of the 28 answers yes, no, .*, yellow, got 'reddish'"):
        serialize(source, PIXELS, tmp_path / "shard", workers=1)


def test_answers_as_json_booleans_and_numbers_are_candidates_too(tmp_path: Path) -> None:
    source = make_other_folder(tmp_path / "other", {"val": 1}, answers=("yes", "12", "no"))
    given = (True, 12, False)
    edit_questions(source, "val", lambda entries: [entries[i].update(answer=given[i]) for i in range(3)])
    serialize(source, PIXELS, tmp_path / "shard", workers=1, answers=Answers(("yes", "no", "12")))
    assert open_shard(tmp_path / "shard").split("test").answer == ["yes", "12", "no"]
    with pytest.raises(UserError, match="expected one of the 2 answers no, 12, got True"):
        serialize(source, PIXELS, tmp_path / "without", workers=1, answers=Answers(("no", "12")))


def test_a_manifest_with_impossible_answers_is_an_error(tmp_path: Path) -> None:
    path = make_own(tmp_path).path / "manifest.json"
    for wrong in (["ja"], ["ja", "ja"], ["ja", 5]):
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"answers": wrong}))
        with pytest.raises(UserError, match=r"expected the manifest of a shard of version 1, got .* with answers"):
            open_shard(path.parent)


# -- batches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form"), [("three", "text"), ("three", "letter"), ("own", "letter"), ("many", "text")]
)
@pytest.mark.parametrize("layout", ["iqa", "qiqa"])
def test_a_batch_holds_the_splits_answers(tmp_path: Path, name: str, form: str, layout: str) -> None:
    split = make_own(tmp_path, LISTS[name], images=70).split("train")
    config = SequenceConfig.model_validate({"answer": form, "layout": layout})
    own = Sequencer(config, 6, 900, 40, answers=split.answers)
    clevrs = Sequencer(config, 6, 900, 40)  # made for other candidates: the split's count
    groups = [Group(image, split.questions_of_image[image]) for image in (0, 5, 69)]
    batch = ByteCollate(own)(split, groups)
    assert torch.equal(batch.suffixes, ByteCollate(clevrs)(split, groups).suffixes)
    for b, group in enumerate(groups):
        for k, row in enumerate(group.questions):
            ids = batch.suffixes[b, k].numpy()
            answer = ids[batch.answer_patches[b, k] * 6 :]
            written = own.answers.written(split.answer[row], form)
            assert answer[0] == START_TEXT
            assert tuple(answer[answer != PAD][1:]) == (*written, END_PART)
            assert split.answers.names[batch.targets[b, k]] == split.answer[row]
            sample = own.sample(split.image_bytes(group.image), split.question[row], split.answer[row])
            assert np.array_equal(ids[: len(sample.suffix)], sample.suffix)
            assert (ids[len(sample.suffix) :] == PAD).all()
    assert len(pickle.dumps(ByteCollate(own))) < 20_000


def test_room_is_kept_for_the_longest_answer_and_question() -> None:
    answers = Answers(("ja", "n" * 100))
    with pytest.raises(UserError, match=r"at most 300 bytes \(the model's context\), got .* 102 for the answer"):
        Sequencer(SequenceConfig(answer="text"), 6, 300, 20, answers=answers)
    roomy = Sequencer(SequenceConfig(answer="text"), 6, 400, 20, answers=answers)
    roomy.check(250)
    with pytest.raises(UserError, match="for a question of 270 bytes in layout iqa, 102 for the answer"):
        roomy.check(270)


# -- to look at -----------------------------------------------------------------------------------------------------


def test_what_inspect_shows_of_own_answers(tmp_path: Path) -> None:
    shard = make_own(tmp_path)
    assert "answers      4: red, reddish, ja, nein\n" in shard_text(look_at_shard(shard.path)).plain
    shown = sample_text(look_at_sample(shard.path, 1)).plain
    assert "reddish, written as '1'" in shown
    assert "type      ja/nein, group ja/nein" in shown
    assert "\nProgram\n  none\n" in shown
    shown = sample_text(look_at_sample(shard.path, 1, config=SequenceConfig(answer="text"))).plain
    assert "reddish, written as 'reddish'" in shown


def test_many_answers_are_abbreviated_and_shown_as_text(tmp_path: Path) -> None:
    shard = make_own(tmp_path, MANY)
    view = look_at_shard(shard.path, config=SequenceConfig(answer="text"))
    assert "200: Größe 0, Größe 1, Größe 2, Größe 3, Größe 4, Größe 5, Größe 6, Größe 7, …" in shard_text(view).plain
    with pytest.raises(UserError, match="at most 62 answers"):
        look_at_shard(shard.path)


def test_the_file_that_a_test_writes_is_the_list(tmp_path: Path) -> None:
    assert read_answers(write_answers(tmp_path / "answers.txt")).names == OWN_ANSWERS
