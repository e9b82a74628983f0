"""Every trained baseline, through the real training loop, learns 200 samples by heart: a weak one is not a bug."""

import json
from pathlib import Path
from typing import Any

import pytest
import torchvision

from data_scripts.synth.generate import generate
from tests.baselines.test_features import small_resnet, weights_of
from tests.vqa_bench.cells import make_cell
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import Shard, open_shard
from vqa_bench.models.extract import Extractor, extract
from vqa_bench.scoring.score import score
from vqa_bench.train import train

ENCODING = "pixels:16x12"
SAMPLES = 200
TRAIN = {"steps": 400, "images_per_batch": 10, "learning_rate": 3e-3, "threads": 1}
READER = {"embedding": 32, "hidden": 64}
CELLS: dict[str, dict[str, Any]] = {
    "CNN+LSTM": {"kind": "cnn_lstm", **READER},
    "CNN+BoW": {"kind": "cnn_bow", "embedding": 32},
    "SA": {"kind": "cnn_lstm_sa", **READER, "attention_width": 64},
    "SA+MLP": {"kind": "cnn_lstm_sa", **READER, "attention_width": 64, "mlp_hidden": 64},
    "LSTM": {"kind": "lstm", **READER},
    "CNN+LSTM on features": {"kind": "cnn_lstm", **READER, "features": {"width": 32}},
    "SA+MLP on features": {
        "kind": "cnn_lstm_sa",
        **READER,
        "attention_width": 64,
        "mlp_hidden": 64,
        "features": {},
    },
}


def with_questions(folder: Path, entries: list[dict[str, Any]]) -> Shard:
    """The generated folder's shard, with these training questions alone."""
    path = folder / "synth" / "questions" / "CLEVR_train_questions.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | {"questions": entries}), encoding="utf-8")
    serialize(folder / "synth", parse_spec(ENCODING), folder / "shard", workers=1, dev_fraction=0)
    return open_shard(folder / "shard")


@pytest.fixture(scope="module")
def about_pictures(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """200 questions about 20 pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    generate("mini", folder / "synth", seed=0, workers=1, images={"train": 24, "val": 2})
    return with_questions(folder, training_questions(folder)[:SAMPLES])


@pytest.fixture(scope="module")
def about_nothing(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    """200 questions of different words: no one without the pictures could fit equal ones with different answers."""
    folder = tmp_path_factory.mktemp("words")
    generate("mini", folder / "synth", seed=0, workers=1, images={"train": 80, "val": 2})
    distinct = {entry["question"]: entry for entry in training_questions(folder)}
    return with_questions(folder, list(distinct.values())[:SAMPLES])


def training_questions(folder: Path) -> list[dict[str, Any]]:
    path = folder / "synth" / "questions" / "CLEVR_train_questions.json"
    return list(json.loads(path.read_text(encoding="utf-8"))["questions"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_200_samples_are_learnt_by_heart(
    name: str, about_pictures: Shard, about_nothing: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dict(CELLS[name])
    shard = about_nothing if model["kind"] == "lstm" else about_pictures
    if "features" in model:
        monkeypatch.setattr(torchvision.models, "resnet101", small_resnet)
        extract(shard, tmp_path / "features", Extractor(weights_of(small_resnet())), side=64)
        model["features"] = {**model["features"], "folder": str(tmp_path / "features")}
    (tmp_path / "run").mkdir()
    cell = make_cell(model, encoding=ENCODING, train=TRAIN)
    trained = train(cell, shard, tmp_path / "run")
    split = shard.split("train")
    assert split.questions.num_rows == SAMPLES
    batch = trained.collate(split, evaluation_groups(split))
    right = score(trained, batch).greedy.view_as(batch.targets) == batch.targets
    assert right[batch.present].float().mean() >= 0.99
