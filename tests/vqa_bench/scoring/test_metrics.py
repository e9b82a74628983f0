"""The predictions' file, its faults, and the summary against counting by hand."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.vqa_bench.scoring.predictions import make_prediction, make_predictions
from vqa_bench.data.vocab import ANSWERS, GROUP_OF_TYPE, GROUPS, QUESTION_TYPES
from vqa_bench.errors import UserError
from vqa_bench.scoring.metrics import (
    NUM_CANDIDATES,
    Prediction,
    read_predictions,
    summarise,
    write_predictions,
)

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
        answer=draw(st.sampled_from(ANSWERS)),
        prediction=ANSWERS[log_probs.index(max(log_probs))],
        log_probs=log_probs,  # type: ignore[arg-type]
        constrained_greedy=draw(st.sampled_from(ANSWERS)),
        free_greedy=draw(st.none() | st.text(max_size=8)),
        trie_mass=draw(st.none() | st.floats(0, 1)),
    )


@given(st.lists(predictions(), min_size=1, max_size=5, unique_by=lambda p: p.question_index))
def test_what_is_written_is_read_back_in_order(tmp_path_factory, records: list[Prediction]) -> None:
    path = tmp_path_factory.mktemp("run") / "predictions.jsonl"
    write_predictions(path, records)
    assert read_predictions(path) == sorted(records, key=lambda p: p.question_index)
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    keys = "question_index image question_type group answer prediction log_probs constrained_greedy free_greedy"
    assert list(json.loads(path.read_text().split("\n")[0])) == [*keys.split(), "trie_mass"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prediction": "maybe"}, "expected one of the 28 answers as prediction, got 'maybe'"),
        ({"answer": "11"}, "expected one of the 28 answers as answer, got '11'"),
        ({"group": "count"}, "expected group 'exist' for exist, got 'count'"),
        ({"question_type": "scene"}, "expected a question_type among exist, .*, got 'scene'"),
        ({"prediction": "no"}, "expected the prediction with the highest of log_probs, got 'no'"),
        ({"log_probs": [0.0]}, "log_probs: Tuple should have at least 28 items"),
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


def test_summary_equals_counting_by_hand() -> None:
    records = make_predictions(260, accuracy=0.6, seed=1)
    summary = summarise(records)
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary["groups"]) == list(GROUPS)
    assert list(summary["types"]) == list(QUESTION_TYPES)
    subsets = [(summary["overall"], records)]
    subsets += [(summary["groups"][name], [r for r in records if r.group == name]) for name in GROUPS]
    subsets += [(summary["types"][name], [r for r in records if r.question_type == name]) for name in QUESTION_TYPES]
    for entry, members in subsets:
        correct = sum(record.prediction == record.answer for record in members)
        chance = sum(1 / NUM_CANDIDATES[record.question_type] for record in members)
        assert (entry["n"], entry["correct"]) == (len(members), correct)
        assert entry["images"] == len({record.image for record in members})
        assert entry["accuracy"] == pytest.approx(correct / len(members))
        assert entry["low"] < entry["accuracy"] < entry["high"]
        assert entry["chance"] == pytest.approx(chance / len(members))
    assert sum(entry["correct"] for entry in summary["groups"].values()) == summary["overall"]["correct"]
    assert summarise(records, seed=0) == summary


def test_chance_is_by_question_type() -> None:
    types = summarise(make_predictions(26, accuracy=1, seed=0))["types"]
    more_than_two = {"count": 11, "query_color": 8, "query_shape": 3}
    for name in QUESTION_TYPES:
        assert types[name]["chance"] == pytest.approx(1 / more_than_two.get(name, 2))


def test_ways_of_decoding_are_counted_apart() -> None:
    bytes_model = {"free_greedy": "yes", "trie_mass": 0.5}
    records = [
        make_prediction(0, answer="yes", prediction="yes", constrained_greedy="no", **bytes_model),
        make_prediction(1, answer="no", prediction="yes", constrained_greedy="no", **bytes_model),
        make_prediction(2, answer="no", prediction="yes", constrained_greedy="no", free_greedy="purp", trie_mass=1.0),
        make_prediction(3, answer="no", prediction="no", constrained_greedy="no", free_greedy=None, trie_mass=0.0),
    ]
    summary = summarise(records)
    assert summary["decoding"] == {
        "likelihood": {"n": 4, "correct": 2, "accuracy": 1 / 2},
        "constrained_greedy": {"n": 4, "correct": 3, "accuracy": 3 / 4},
        "free_greedy": {"n": 4, "correct": 1, "accuracy": 1 / 4},
    }
    assert summary["trie_mass"] == {"n": 4, "mean": 1 / 2}


def test_a_model_without_bytes_has_no_byte_numbers() -> None:
    summary = summarise(make_predictions(13, accuracy=1, seed=0))
    assert summary["decoding"]["free_greedy"] is None
    assert summary["trie_mass"] is None


def test_no_prediction_is_an_error() -> None:
    with pytest.raises(UserError, match="at least one question"):
        summarise([])
