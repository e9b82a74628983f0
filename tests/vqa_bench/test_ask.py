"""One question about one picture: the answers of the evaluation, what is refused, and the command around it."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.vqa_bench.cells import BYTE_MODEL, PIXELS, make_cell, make_model
from tests.vqa_bench.data.clevr_folder import make_clevr_folder, noise_image
from vqa_bench.ask import Answered, Size, ask, encode_file
from vqa_bench.cli import main
from vqa_bench.cli.ask import answer_text
from vqa_bench.data.answers import Answers
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import Group, evaluation_groups
from vqa_bench.data.memory import MemorySplit
from vqa_bench.data.sequences import PARTS_OF
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import ImageRow, QuestionRow, Shard, open_shard
from vqa_bench.data.vocab import ANSWERS, END_PART, START_TEXT
from vqa_bench.errors import UserError
from vqa_bench.models import VQAModel
from vqa_bench.runs import save_model
from vqa_bench.scoring.answering import answer

PNG = "png:6x4,level=6"
LONG_BYTE_MODEL = BYTE_MODEL | {"seq_lens": [80, 12]}


@pytest.fixture(scope="module")
def clevr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clevr_folder(tmp_path_factory.mktemp("ask") / "clevr", {"train": 8, "val": 3})


@pytest.fixture(scope="module")
def shards(clevr: Path) -> dict[str, Shard]:
    for spec in (PIXELS, PNG):
        serialize(clevr, parse_spec(spec), clevr.parent / spec, workers=1, dev_fraction=0)
    return {spec: open_shard(clevr.parent / spec) for spec in (PIXELS, PNG)}


def model_of(shard: Shard, model: dict[str, Any] | str, **changes: Any) -> VQAModel:
    blind = model in ("lstm", "majority")
    return make_model(make_cell(model, encoding=None if blind else shard.manifest.spec, **changes), shard)


def test_a_split_in_memory_is_read_as_that_of_a_shard(shards: dict[str, Shard]) -> None:
    stored = shards[PIXELS].split("test")
    images = [ImageRow(**row) for row in stored.images.to_pylist()]
    questions = [QuestionRow(**row) for row in stored.questions.to_pylist()]
    for split in (held := MemorySplit(images, questions), pickle.loads(pickle.dumps(held))):
        assert split.images.equals(stored.images)
        assert split.questions.equals(stored.questions)
        assert len(split) == len(stored) == 3
        assert split.image_lengths.tolist() == stored.image_lengths.tolist()
        assert [split.image_bytes(row).tolist() for row in range(3)] == [
            stored.image_bytes(row).tolist() for row in range(3)
        ]
        assert split.program(4) == stored.program(4)
        assert [rows.tolist() for rows in split.questions_of_image] == [
            rows.tolist() for rows in stored.questions_of_image
        ]
        model = model_of(shards[PIXELS], "mblm")
        mine, theirs = (model.collate(s, evaluation_groups(s)) for s in (split, stored))
        assert torch.equal(mine.suffixes, theirs.suffixes)
        assert torch.equal(mine.prefix, theirs.prefix)
    assert len(MemorySplit([], [])) == 0


MODELS: dict[str, tuple[str, dict[str, Any] | str, dict[str, Any]]] = {
    "letters": (PIXELS, "mblm", {}),
    "text, question first": (PNG, LONG_BYTE_MODEL, {"sequence": {"layout": "qia", "answer": "text"}}),
    "question twice": (PIXELS, BYTE_MODEL | {"seq_lens": [120, 12]}, {"sequence": {"layout": "qiqa"}}),
    "CNN+LSTM": (PIXELS, "cnn_lstm", {}),
    "LSTM": (PIXELS, "lstm", {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_asking_gives_the_answers_of_the_evaluation(name: str, shards: dict[str, Shard], clevr: Path) -> None:
    spec, config, changes = MODELS[name]
    model, split = model_of(shards[spec], config, **changes), shards[spec].split("test")
    predictions = answer(model, split, evaluation_groups(split))
    assert len(predictions) == 15
    for row, prediction in enumerate(predictions):
        path = clevr / "images" / "val" / prediction.image
        with Image.open(path) as picture:
            by_picture = ask(model, picture, split.question[row])
        for answered in (by_picture, ask(model, encode_file(model, path), split.question[row])):
            assert answered.names == ANSWERS
            assert answered.log_probs == pytest.approx(prediction.log_probs, abs=1e-4)
            assert answered.ranked[0][0] == prediction.prediction
            assert answered.free == prediction.free_greedy
            assert answered.mass == (None if prediction.trie_mass is None else pytest.approx(prediction.trie_mass))


def test_probabilities_are_those_of_the_candidates_alone() -> None:
    answered = Answered(("a", "b", "c"), (-700.0, -701.0, -9000.0), 1e-300, None, (), ())
    assert math.fsum(answered.probabilities) == pytest.approx(1)
    assert answered.probabilities[0] == pytest.approx(1 / (1 + math.exp(-1)))
    assert [name for name, _ in answered.ranked] == ["a", "b", "c"]
    assert json.loads(json.dumps(answered.to_dict()))["answers"][1]["log_prob"] == -701.0


@pytest.mark.parametrize("layout", PARTS_OF)
def test_the_sequence_is_shown_as_it_was_read(layout: str, shards: dict[str, Shard], clevr: Path) -> None:
    shard = shards[PIXELS]
    model = model_of(shard, BYTE_MODEL | {"seq_lens": [120, 12]}, sequence={"layout": layout})
    split = shard.split("test")
    answered = ask(model, encode_file(model, clevr / "images" / "val" / "CLEVR_val_000000.png"), split.question[0])
    assert tuple(part for part, _ in answered.parts) == PARTS_OF[layout]
    batch = model.collate(split, [Group(0, np.zeros(1, np.int64))])
    read = torch.cat([batch.prefix[0], batch.suffixes[0, 0]]).tolist()
    shown = np.concatenate([ids for _, ids in answered.parts]).tolist()
    answer_length = len(answered.parts[-1].ids)
    assert shown[:-answer_length] == read[:-answer_length]
    best = answered.ranked[0][0]
    written = model.answers.written(best, "letter")
    assert answered.parts[-1].ids[: len(written) + 2].tolist() == [START_TEXT, *written, END_PART]


def test_other_candidates_for_models_that_write_text(shards: dict[str, Shard]) -> None:
    fruits = Answers(("apple", "pear", "fig"))
    picture, question = noise_image((32, 24), seed=1), "Which fruit is there?"
    model = model_of(shards[PIXELS], LONG_BYTE_MODEL, sequence={"answer": "text"})
    answered = ask(model, picture, question, answers=fruits)
    assert answered.names == fruits.names
    both = ask(model, picture, question, answers=Answers((*ANSWERS, *fruits.names)))
    assert both.log_probs[len(ANSWERS) :] == pytest.approx(answered.log_probs, abs=1e-9)
    assert both.log_probs[: len(ANSWERS)] == pytest.approx(ask(model, picture, question).log_probs, abs=1e-9)
    assert ask(model, picture, question, answers=model.answers).names == ANSWERS
    for other in (model_of(shards[PIXELS], "mblm"), model_of(shards[PIXELS], "cnn_lstm")):
        with pytest.raises(UserError, match="expected the 28 answers that cell was trained on, got 3 others"):
            ask(other, picture, question, answers=fruits)


def test_what_cannot_be_asked(shards: dict[str, Shard], tmp_path: Path) -> None:
    picture = noise_image((32, 24), seed=1)
    model, words = model_of(shards[PIXELS], "mblm"), model_of(shards[PIXELS], "cnn_lstm")
    for asked in (model, words):
        for question in ("", "  ", "?!"):
            with pytest.raises(UserError, match="expected a question, got"):
                ask(asked, picture, question)
    longest = 205  # what the sequencer makes room for, at least
    assert ask(model, picture, "x" * longest).names
    with pytest.raises(UserError, match=r"expected a question of at most \d+ bytes, what cell has room for") as caught:
        ask(model, picture, "x" * 2000)
    fits = int(str(caught.value).split("at most ")[1].split()[0])
    assert ask(model, picture, "é" * (fits // 2)).names
    with pytest.raises(UserError, match="expected a question of at most"):
        ask(model, picture, "x" * (fits + 1))
    png = model_of(shards[PNG], LONG_BYTE_MODEL, sequence={"image_bytes": 100})
    with pytest.raises(UserError, match="expected an image of at most 100 bytes"):
        ask(png, picture, "What?")
    with pytest.raises(UserError, match="expected an image file, got"):
        encode_file(model, tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="expected a whole image file"):
        encode_file(model, tmp_path / "text.png")


def test_models_that_count_by_type_are_told_it(shards: dict[str, Shard]) -> None:
    model = model_of(shards[PIXELS], "majority")
    picture = noise_image((32, 24), seed=1)
    assert ask(model, picture, "How many?", question_type="count").names == ANSWERS
    with pytest.raises(UserError, match=r"expected the question's type,.*got none"):
        ask(model, picture, "How many?")
    with pytest.raises(UserError, match=r"expected the question's type,.*got 'sum'"):
        ask(model, picture, "How many?", question_type="sum")
    overall = model_of(shards[PIXELS], {"kind": "majority", "per_type": False})
    assert ask(overall, picture, "How many?").names == ANSWERS


@pytest.mark.parametrize(
    ("size", "trained_on", "note"),
    [
        ((32, 24), Size(32, 24), None),
        ((320, 240), Size(32, 24), None),
        ((40, 24), Size(32, 24), "of other proportions than the 32×24"),
        ((32, 24), None, "stretched to the encoding's 6×4"),
        ((60, 40), None, None),
    ],
)
def test_a_picture_of_other_proportions_is_noted(
    size: tuple[int, int], trained_on: Size | None, note: str | None, shards: dict[str, Shard]
) -> None:
    model = model_of(shards[PIXELS], "mblm")
    answered = ask(model, noise_image(size, seed=1), "What is it?", trained_on=trained_on)
    assert (note is None and answered.notes == ()) or (note is not None and note in answered.notes[0])


def test_blindness_and_new_words_are_noted(shards: dict[str, Shard], tmp_path: Path) -> None:
    model = model_of(shards[PIXELS], "lstm")
    (tmp_path / "no.png").write_text("not opened")
    answered = ask(model, encode_file(model, tmp_path / "no.png"), "Is there a zebra?")
    assert "blind" in answered.notes[0]
    assert answered.notes[1] == "1 of 4 words are new to this model."
    assert answered.mass is None
    assert answered.parts == ()


def test_the_command(shards: dict[str, Shard], clevr: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(shards[PIXELS], "mblm")
    run = tmp_path / "run"
    run.mkdir()
    save_model(run, model.float())
    picture = clevr / "images" / "val" / "CLEVR_val_000001.png"
    command = ["ask", str(run), str(picture), "Is there a cube?"]
    assert main([*command, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [entry["answer"] for entry in content["answers"]] != list(ANSWERS)
    assert sorted(entry["answer"] for entry in content["answers"]) == sorted(ANSWERS)
    assert sum(entry["probability"] for entry in content["answers"]) == pytest.approx(1)
    assert main([*command, "--top", "3"]) == 0
    shown = capsys.readouterr()
    assert len([line for line in shown.out.splitlines() if "%" in line and "answers" not in line]) == 3
    assert content["answers"][0]["answer"] in shown.out.splitlines()[0]
    assert "25 other answers" in shown.out
    assert "note: The picture is 32×24 pixels: it is stretched" in shown.err
    answers = tmp_path / "answers.txt"
    answers.write_text("a\nb\n")
    assert main([*command, "--answers", str(answers)]) == 2
    assert main(["ask", str(tmp_path / "none"), str(picture), "What?"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: expected") for line in lines] == [True, True]


def test_bars_are_as_long_as_probabilities() -> None:
    half = Answered(("yes", "no"), (math.log(0.5), math.log(0.5)), 0.25, "maybe", (), ())
    lines = answer_text(half, top=5).splitlines()
    assert lines[0] == f"yes   50.0 %  {'█' * 20}"
    assert lines[-1] == "all 2 answers together have 25.00 %; unbound, the model writes 'maybe'"
    sure = Answered(("yes", "no"), (0.0, -1000.0), None, None, (), ())
    assert answer_text(sure, top=1).splitlines() == [f"yes  100.0 %  {'█' * 40}", "1 other answers: 0.0 %"]
