"""The majority control against counting by hand, and against the baseline that counts the same."""

from collections import Counter
from pathlib import Path

import pytest

from tests.vqa_bench.cells import make_cell, make_shard
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
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


def test_needs_a_train_split(tmp_path: Path) -> None:
    from vqa_bench.data.encodings import parse_spec
    from vqa_bench.data.serialize import serialize
    from vqa_bench.data.shards import open_shard

    source = make_clevr_folder(tmp_path / "clevr", {"val": 2})
    serialize(source, parse_spec("pixels:6x4,order=block2"), tmp_path / "shard", workers=1, dev_fraction=0)
    assert controls(open_shard(tmp_path / "shard"), [], CLEVR_ANSWERS) is None
