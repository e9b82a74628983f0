"""The predictions' file and its faults."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.vqa_bench.scoring.predictions import make_prediction, make_predictions
from vqa_bench.data.answers import Answers
from vqa_bench.data.vocab import ANSWERS, GROUP_OF_TYPE, QUESTION_TYPES
from vqa_bench.errors import UserError
from vqa_bench.scoring.predictions import Prediction, correct_of, images_of, read_predictions, write_predictions

LOG_PROBS = st.lists(st.floats(-1e6, 0), min_size=len(ANSWERS), max_size=len(ANSWERS))


@st.composite
def predictions(draw: st.DrawFn) -> Prediction:
    log_probs = draw(LOG_PROBS)
    question_type = draw(st.sampled_from(QUESTION_TYPES))
    return Prediction(
        question_index=draw(st.integers(0, 10**6)),
        image=draw(st.text(min_size=1, max_size=8)),
        question_type=question_type,
        group=GROUP_OF_TYPE[question_type],
        program_length=draw(st.none() | st.integers(1, 30)),
        num_objects=draw(st.none() | st.integers(0, 12)),
        answer=draw(st.sampled_from(ANSWERS)),
        prediction=ANSWERS[log_probs.index(max(log_probs))],
        log_probs=log_probs,  # type: ignore[arg-type]
        constrained_greedy=draw(st.sampled_from(ANSWERS)),
        free_greedy=draw(st.none() | st.text(max_size=8)),
        trie_mass=draw(st.none() | st.floats(0, 1)),
    )


@settings(deadline=None)  # reading and writing files takes its time on a busy disk
@given(st.lists(predictions(), min_size=1, max_size=5, unique_by=lambda p: p.question_index))
def test_what_is_written_is_read_back_in_order(tmp_path_factory, records: list[Prediction]) -> None:
    path = tmp_path_factory.mktemp("run") / "predictions.jsonl"
    write_predictions(path, records)
    assert read_predictions(path) == sorted(records, key=lambda p: p.question_index)
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    keys = "question_index image question_type group program_length num_objects answer prediction log_probs "
    keys += "constrained_greedy free_greedy trie_mass"
    assert list(json.loads(path.read_text().split("\n")[0])) == keys.split()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prediction": "maybe"}, "expected one of the 28 answers as prediction, got 'maybe'"),
        ({"answer": "11"}, "expected one of the 28 answers as answer, got '11'"),
        ({"group": "count"}, "expected group 'exist' for exist, got 'count'"),
        ({"question_type": "scene"}, "expected group 'scene' for scene, got 'exist'"),
        ({"program_length": 0}, "program_length: .* greater than or equal to 1, got '0'"),
        ({"prediction": "no"}, "expected the prediction with the highest of log_probs, got 'no'"),
        ({"log_probs": [0.0]}, "expected 28 log_probs, one an answer, got 1"),
        ({"log_probs": [float("nan")] * 28}, "log_probs.0: Input should be a finite number, got 'nan'"),
        ({"trie_mass": float("inf")}, "trie_mass: Input should be a finite number"),
        ({"trie_mass": -0.1}, "trie_mass: .* greater than or equal to 0, got '-0.1'"),
        ({"question_index": "3"}, "question_index: Input should be a valid integer, got '3'"),
        ({"extra": 1}, "extra: Extra inputs are not permitted, got '1'"),
        ({"image": None}, "image: Input should be a valid string, got 'None'"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    path = tmp_path / "predictions.jsonl"
    good = [json.loads(record.model_dump_json()) for record in make_predictions(14, accuracy=1, seed=0)]
    good[13] |= change  # type exist, answered "no" or "yes" by the builder's turn of answers
    path.write_text("".join(json.dumps(line) + "\n" for line in good))
    with pytest.raises(UserError, match=f"predictions.jsonl, line 14: {complaint}.*; evaluate the cell again") as error:
        read_predictions(path)
    assert "\n" not in str(error.value)


def test_a_faulty_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(UserError, match="no such file"):
        read_predictions(path)
    path.write_text("")
    with pytest.raises(UserError, match="empty file"):
        read_predictions(path)
    write_predictions(path, make_predictions(3, accuracy=1, seed=0))
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(UserError, match="line 3: Invalid JSON"):
        read_predictions(path)
    first, second, third = whole.splitlines(keepends=True)
    path.write_text(first + third + second)
    with pytest.raises(UserError, match="line 3: expected a question_index above 2, got 1"):
        read_predictions(path)
    path.write_text(first.replace('"image":', '"picture":'))
    with pytest.raises(UserError, match="line 1: image: Field required"):
        read_predictions(path)


def test_two_answers_to_one_question_are_refused(tmp_path: Path) -> None:
    record = make_prediction(3, answer="yes", prediction="no")
    with pytest.raises(UserError, match="two for question_index 3"):
        write_predictions(tmp_path / "predictions.jsonl", [record, record])
    assert not list(tmp_path.iterdir())


def test_records_are_strict() -> None:
    with pytest.raises(ValidationError, match="question_index"):
        make_prediction(0, answer="yes", prediction="no", question_index=True)


def test_other_answers_and_types_of_question(tmp_path: Path) -> None:
    """The candidates are the reader's context; a type that CLEVR has not is its own group."""
    answers = Answers(("red", "reddish", "größe"))
    given = {"answer": "größe", "prediction": "reddish", "constrained_greedy": "red", "log_probs": (-2.0, -1.0, -3.0)}
    unknown = {"question_type": "hue", "group": "hue", "program_length": None, "num_objects": None}
    known = make_prediction(0, answer="yes", prediction="no").model_dump()
    record = Prediction.among(answers, **(known | given | unknown))
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [record])
    assert read_predictions(path, answers) == [record]
    with pytest.raises(UserError, match="line 1: expected one of the 28 answers as answer, got 'größe'"):
        read_predictions(path)
    with pytest.raises(ValidationError, match="expected group 'hue' for hue, got 'query'"):
        Prediction.among(answers, **(known | given | unknown | {"group": "query"}))


def test_what_is_counted() -> None:
    records = [make_prediction(0, answer="yes", prediction="no"), make_prediction(11, answer="2", prediction="2")]
    assert correct_of(records).tolist() == [False, True]
    assert images_of(records).tolist() == ["CLEVR_val_000000.png", "CLEVR_val_000001.png"]
