"""Every baseline as a cell: built from its configuration, batched, scored, saved and read back; what is refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.vqa_bench.cells import PIXELS, TRAIN, make_cell, make_shard
from vqa_bench.config import CellConfig, parse
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.models import MODELS, Classifier, CountedClassifier, build
from vqa_bench.runs import load_model, save_model
from vqa_bench.scoring.score import score
from vqa_bench.train import train
from vqa_bench.train.cell import new_model

SMALL = {"embedding": 8, "hidden": 16}
CNN = {"channels": [4, 8], "strides": [1, 2]}
CELLS: dict[str, dict[str, Any]] = {
    "CNN+LSTM": {"kind": "cnn_lstm", **SMALL, **CNN, "mlp_hidden": 16},
    "CNN+BoW": {"kind": "cnn_bow", "embedding": 8, **CNN, "mlp_hidden": 16},
    "SA": {"kind": "cnn_lstm_sa", **SMALL, **CNN, "attention_width": 8},
    "SA+MLP": {"kind": "cnn_lstm_sa", **SMALL, **CNN, "attention_width": 8, "mlp_hidden": 16},
    "LSTM": {"kind": "lstm", **SMALL, "mlp_hidden": 16},
    "BoW": {"kind": "bow"},
    "majority": {"kind": "majority"},
}
every_baseline = pytest.mark.parametrize("model", CELLS.values(), ids=CELLS)


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("cells"))


def cell_of(model: dict[str, Any], **changes: Any) -> CellConfig:
    counted = model["kind"] in ("bow", "majority")
    return make_cell(model, **{"train": None if counted else TRAIN} | changes)


def ready(model: dict[str, Any], shard: Shard) -> Classifier:
    """A baseline that has seen the training split if it is counted."""
    made = new_model(cell_of(model), shard).eval()
    assert isinstance(made, Classifier)
    if isinstance(made, CountedClassifier):
        made.fit(shard.split("train"))
    return made


@every_baseline
def test_the_scoring_seam(model: dict[str, Any], shard: Shard, tmp_path: Path) -> None:
    made, split = ready(model, shard), shard.split("test")
    assert made.blind == (model["kind"] in ("lstm", "bow", "majority"))
    batch = pickle.loads(pickle.dumps(made.collate))(split, evaluation_groups(split))
    assert (batch.images is None) == made.blind == (made.image_shape is None)
    scores = score(made, batch)
    assert scores.log_probs.shape == (6 * 5, 28)
    torch.testing.assert_close(scores.log_probs.exp().sum(-1), torch.ones(30, dtype=torch.double))
    assert torch.equal(scores.greedy, scores.log_probs.argmax(-1))
    sums = made(batch)
    expected = -scores.log_probs[torch.arange(30), batch.targets.flatten()].sum()
    torch.testing.assert_close(sums.total, expected, check_dtype=False)
    assert sums.targets == 30

    save_model(tmp_path, made)
    read = load_model(tmp_path)
    assert isinstance(read, Classifier)
    with torch.inference_mode():
        assert torch.equal(read.log_probs(batch), made.log_probs(batch))


@every_baseline
def test_the_candidates_are_those_of_the_data(model: dict[str, Any], shard: Shard) -> None:
    cell = cell_of(model)
    built = MODELS[cell.model.kind].decide(cell, shard) | {"answers": ["left", "right", "neither"]}
    made = build(cell, built).eval()
    assert isinstance(made, Classifier)
    split = shard.split("test")
    assert made.log_probs(ready(model, shard).collate(split, evaluation_groups(split))).shape == (30, 3)


def test_bow_equals_scikit_learn_on_the_split(shard: Shard) -> None:
    made, train_split, test = ready(CELLS["BoW"], shard), shard.split("train"), shard.split("test")

    def counts(questions: list[str]) -> np.ndarray:
        words = [question.replace("?", "").replace(";", " ;").split() for question in questions]
        return np.array([[row.count(word) for word in made.words.words] for row in words])

    expected = LogisticRegression(max_iter=1000).fit(counts(train_split.question), train_split.answer)
    seen = [made.answers.index[name] for name in expected.classes_]
    found = score(made, made.collate(test, evaluation_groups(test))).log_probs
    among_seen = found[:, seen].log_softmax(-1).numpy()
    np.testing.assert_allclose(among_seen, expected.predict_log_proba(counts(test.question)), atol=2e-3)
    unseen = sorted(set(range(28)) - set(seen))
    assert (found[:, unseen].max(dim=1).values < found[:, seen].min(dim=1).values).all()


def test_bow_is_fitted_by_the_command_that_trains(shard: Shard, tmp_path: Path) -> None:
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
    found = train(cell_of(CELLS["BoW"]), shard, tmp_path / "once")
    again = train(cell_of(CELLS["BoW"]), shard, tmp_path / "again")
    weights = found.state_dict()
    assert weights["net.weight"].abs().sum() > 0
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert (tmp_path / "once" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()


def test_bow_that_does_not_converge_says_what_to_set(shard: Shard) -> None:
    made = build(cell := cell_of({"kind": "bow", "max_iterations": 1}), MODELS["bow"].decide(cell, shard))
    assert isinstance(made, CountedClassifier)
    with pytest.raises(UserError, match=r"converge in 1 iterations.*set model\.max_iterations"):
        made.fit(shard.split("train"))


def test_majority_of_types_that_clevr_has_not(shard: Shard) -> None:
    cell = cell_of(CELLS["majority"])
    built = MODELS["majority"].decide(cell, shard)
    assert "types" not in built
    made = build(cell, built | {"types": ["where", "who"]})
    assert made.state_dict()["net.counts"].shape == (2, 28)


@every_baseline
def test_a_configuration_survives_its_own_json(model: dict[str, Any]) -> None:
    cell = cell_of(model)
    assert parse(CellConfig, cell.model_dump(mode="json"), "test") == cell


@pytest.mark.parametrize("kind", ["cnn_lstm", "cnn_bow", "cnn_lstm_sa"])
def test_features_take_the_place_of_a_cnn(kind: str) -> None:
    cell = make_cell({"kind": kind, "features": {"folder": "features"}})
    assert parse(CellConfig, cell.model_dump(mode="json"), "test") == cell
    with pytest.raises(UserError, match="no `channels` and `strides` of a CNN beside `features`"):
        make_cell({"kind": kind, "features": {"folder": "features"}, "channels": [8], "strides": [1]})


@pytest.mark.parametrize(
    ("model", "changes", "fault"),
    [
        ("cnn_bow", {"encoding": None}, "kind cnn_bow sees images: expected an `encoding`"),
        ("cnn_lstm_sa", {"encoding": None}, "kind cnn_lstm_sa sees images"),
        ("bow", {"train": TRAIN}, "no `train` for a model of kind bow"),
        ("majority", {"train": TRAIN}, "no `train` for a model of kind majority"),
        ("cnn_lstm_sa", {"train": None}, "expected `train` for a model of kind cnn_lstm_sa"),
        ({"kind": "cnn_lstm_sa", "features": {"folder": "f", "pool": 2}}, {}, "pool: unknown key"),
        ({"kind": "cnn_bow", "hidden": 8}, {}, "hidden: unknown key"),
    ],
)
def test_what_makes_no_sense_is_refused(model: Any, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        make_cell(model, **changes)


@pytest.mark.parametrize("model", ["lstm", {"kind": "bow"}])
def test_blind_models_need_no_encoding(model: Any) -> None:
    blind = {"encoding": None} | ({} if model == "lstm" else {"train": None})
    assert make_cell(model, **blind).encoding is None
    assert make_cell(model, **blind | {"encoding": PIXELS}).encoding == PIXELS
