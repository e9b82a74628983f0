"""The majority control against counting by hand, and against the baseline that counts the same."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.vqa_bench.cells import make_cell, make_shard
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from tests.vqa_bench.scoring.predictions import make_prediction
from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.shards import Shard
from vqa_bench.models import MODELS, MajorityModel, build
from vqa_bench.scoring.answering import answer
from vqa_bench.scoring.controls import controls, majority
from vqa_bench.scoring.metrics import summarise


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("controls"))


def test_is_what_the_majority_baseline_answers(shard: Shard) -> None:
    cell = make_cell("majority")
    model = build(cell, MODELS["majority"].decide(cell, shard))
    assert isinstance(model, MajorityModel)
    model.fit(shard.split("train"))
    predictions = answer(model, shard.split("test"), evaluation_groups(shard.split("test")))
    metrics = summarise(predictions)
    assert controls(shard, predictions, CLEVR_ANSWERS) == {
        "majority": {name: metrics[name] for name in ("overall", "groups", "types")}
    }
    train, test = shard.split("train"), shard.split("test")
    right = 0
    for question_type, expected in zip(test.question_type, test.answer, strict=True):
        pairs = zip(train.question_type, train.answer, strict=True)
        counts = Counter(given for name, given in pairs if name == question_type)
        most = max(counts.values(), default=0)
        right += expected == next((name for name in CLEVR_ANSWERS.names if counts[name] == most), None)
    assert metrics["overall"]["correct"] == right


def test_ties_go_to_the_first_candidate() -> None:
    answers = Answers(("b", "a", "c"))
    assert majority(["x", "x", "x", "y"], ["a", "b", "c", "c"], answers) == {"x": "b", "y": "c"}
    assert majority(["x", "x", "x"], ["unknown", "unknown", "c"], answers) == {"x": "c"}


def test_a_type_that_training_has_not_gets_the_commonest_answer_of_all() -> None:
    """Counted on the train split, whatever others there are."""
    splits = {
        "train": SimpleNamespace(question_type=["exist"] * 3 + ["count"] * 3, answer=["no", "no", "yes", *"333"]),
        "test": SimpleNamespace(question_type=["exist"], answer=["yes"]),
    }
    shard: Any = SimpleNamespace(manifest=SimpleNamespace(splits=splits), split=splits.__getitem__)
    asked = [
        make_prediction(0, answer="no", prediction="yes", question_type="exist", group="exist"),
        make_prediction(1, answer="3", prediction="yes", question_type="query_color", group="query"),
    ]
    found = controls(shard, asked, CLEVR_ANSWERS)
    assert found is not None
    assert {name: entry["correct"] for name, entry in found["majority"]["types"].items()} == {
        "exist": 1,
        "query_color": 1,
    }


def test_needs_a_train_split(tmp_path: Path) -> None:
    from vqa_bench.data.encodings import parse_spec
    from vqa_bench.data.serialize import serialize
    from vqa_bench.data.shards import open_shard

    source = make_clevr_folder(tmp_path / "clevr", {"val": 2})
    serialize(source, parse_spec("pixels:6x4,order=block2"), tmp_path / "shard", workers=1, dev_fraction=0)
    assert controls(open_shard(tmp_path / "shard"), [], CLEVR_ANSWERS) is None
