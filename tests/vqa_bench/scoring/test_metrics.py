"""The summary of predictions against counting by hand."""

import json
from collections import Counter

import pytest

from tests.vqa_bench.scoring.predictions import make_prediction, make_predictions
from vqa_bench.data.answers import Answers
from vqa_bench.data.vocab import ANSWERS, GROUPS, QUESTION_TYPES
from vqa_bench.errors import UserError
from vqa_bench.scoring.metrics import NUM_CANDIDATES, summarise
from vqa_bench.scoring.predictions import Prediction


def test_summary_equals_counting_by_hand() -> None:
    records = make_predictions(260, accuracy=0.6, seed=1)
    summary = summarise(records)
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary["groups"]) == list(GROUPS)
    assert list(summary["types"]) == list(QUESTION_TYPES)
    subsets = [(summary["overall"], records)]
    subsets += [(summary["groups"][name], [r for r in records if r.group == name]) for name in GROUPS]
    subsets += [(summary["types"][name], [r for r in records if r.question_type == name]) for name in QUESTION_TYPES]
    for name, entry in summary["program_lengths"].items():
        low, _, high = name.rstrip("+").partition("-")
        inside = range(int(low), int(high or 99) + 1)
        subsets.append((entry, [r for r in records if r.program_length in inside]))
    subsets += [(entry, [r for r in records if r.num_objects == int(n)]) for n, entry in summary["num_objects"].items()]
    subsets += [(entry, [r for r in records if r.answer == name]) for name, entry in summary["answers"].items()]
    for entry, members in subsets:
        correct = sum(record.prediction == record.answer for record in members)
        chance = sum(1 / NUM_CANDIDATES[record.question_type] for record in members)
        assert (entry["n"], entry["correct"]) == (len(members), correct)
        assert entry["images"] == len({record.image for record in members})
        assert entry["accuracy"] == pytest.approx(correct / len(members))
        assert entry["low"] <= entry["accuracy"] <= entry["high"]
        assert entry["chance"] == pytest.approx(chance / len(members))
    assert sum(entry["correct"] for entry in summary["groups"].values()) == summary["overall"]["correct"]
    for part in ("program_lengths", "num_objects", "answers"):
        assert sum(entry["n"] for entry in summary[part].values()) == len(records)
    assert list(summary["program_lengths"]) == ["1-4", "5-8", "9-12", "13-16", "17-20", "21+"]
    assert list(summary["num_objects"]) == ["3", "4", "5", "6", "7", "8", "9", "10"]
    assert list(summary["answers"]) == [name for name in ANSWERS if any(name == r.answer for r in records)]
    assert summarise(records, seed=0) == summary


def test_confusion_is_counted() -> None:
    records = [
        make_prediction(i, answer=a, prediction=p)
        for i, (a, p) in enumerate([("2", "2"), ("2", "3"), ("2", "3"), ("no", "yes")])
    ]
    confusion = summarise(records)["confusion"]
    assert confusion["labels"] == ["yes", "no", "2", "3"]
    pairs = Counter((record.answer, record.prediction) for record in records)
    for right, row in zip(confusion["labels"], confusion["counts"], strict=True):
        assert row == [pairs[right, given] for given in confusion["labels"]]


def test_what_data_do_not_say_is_left_out() -> None:
    """Candidates, types and groups that CLEVR has not; no programs, no scenes; order by name behind CLEVR's own."""
    answers = Answers(("red", "reddish", "yes"))
    known = make_prediction(0, answer="yes", prediction="no").model_dump()
    fields = known | {
        "answer": "red",
        "prediction": "red",
        "constrained_greedy": "red",
        "log_probs": (-1.0, -2.0, -3.0),
    }
    fields |= {"program_length": None, "num_objects": None}
    types = ["zeal", "hue", "exist"]
    records = [
        Prediction.among(answers, **(fields | {"question_index": i, "question_type": name, "group": name}))
        for i, name in enumerate(types)
    ]
    summary = summarise(records, answers=answers)
    assert list(summary["groups"]) == list(summary["types"]) == ["exist", "hue", "zeal"]
    assert [summary["types"][name]["chance"] for name in types] == [1 / 3, 1 / 3, 1 / 2]
    assert (summary["program_lengths"], summary["num_objects"]) == ({}, {})
    assert list(summary["answers"]) == ["red"]


def test_chance_is_by_question_type() -> None:
    types = summarise(make_predictions(26, accuracy=1, seed=0))["types"]
    more_than_two = {"count": 11, "query_color": 8, "query_shape": 3}
    for name in QUESTION_TYPES:
        assert types[name]["chance"] == pytest.approx(1 / more_than_two.get(name, 2))


def test_no_more_answers_are_possible_than_there_are_candidates() -> None:
    """CLEVR's types with fewer candidates than CLEVR has for them."""
    answers = Answers(("red", "blue", "green"))
    kind = {"question_type": "query_color", "group": "query"}
    fields = make_prediction(0, answer="yes", prediction="yes", **kind).model_dump()
    fields |= {"answer": "red", "prediction": "red", "constrained_greedy": "red", "log_probs": (-1.0, -2.0, -3.0)}
    summary = summarise([Prediction.among(answers, **fields)], answers=answers)
    assert summary["types"]["query_color"]["chance"] == pytest.approx(1 / 3)


def test_a_scene_without_objects_is_counted() -> None:
    summary = summarise([make_prediction(0, answer="yes", prediction="yes", num_objects=0)])
    assert list(summary["num_objects"]) == ["0"]


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
    without = make_prediction(4, answer="no", prediction="no")
    assert summarise([*records, without])["trie_mass"] == {"n": 4, "mean": 1 / 2}


def test_a_model_without_bytes_has_no_byte_numbers() -> None:
    summary = summarise(make_predictions(13, accuracy=1, seed=0))
    assert summary["decoding"]["free_greedy"] is None
    assert summary["trie_mass"] is None


def test_no_prediction_is_an_error() -> None:
    with pytest.raises(UserError, match="at least one question"):
        summarise([])
