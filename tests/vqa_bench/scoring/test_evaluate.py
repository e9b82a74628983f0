"""What an evaluation writes down: every number of `result.json` from the files beside it, every hash from its file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.vqa_bench.cells import TRAIN, make_cell, make_shard
from vqa_bench.config import EvaluateConfig
from vqa_bench.data.answers import Answers
from vqa_bench.data.shards import Shard
from vqa_bench.data.vocab import ANSWERS
from vqa_bench.errors import UserError
from vqa_bench.estimate import estimate
from vqa_bench.models import VQAModel
from vqa_bench.runs import load_model
from vqa_bench.scoring.describe import cost
from vqa_bench.scoring.evaluate import evaluate
from vqa_bench.scoring.metrics import summarise
from vqa_bench.scoring.predictions import correct_of, images_of, read_predictions
from vqa_bench.scoring.statistics import paired_difference
from vqa_bench.train import train


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("evaluate") / "data")


@pytest.fixture(scope="module")
def run(shard: Shard) -> Path:
    """A finished run of a byte model."""
    folder = shard.path.parent.parent / "runs" / "mblm"
    folder.mkdir(parents=True)
    cell = make_cell(sequence={"answer": "text"}, evaluate={"images_per_batch": 4, "bits": 2})
    evaluate(train(cell, shard, folder), shard, folder)
    return folder


def result_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_numbers_follow_from_the_predictions(run: Path) -> None:
    result = result_of(run)
    assert result["format"] == 2
    assert (run / "DONE").is_file()
    own, shuffled = (read_predictions(run / f"predictions{name}.jsonl") for name in ("", "-shuffled"))
    assert result["answers"] == list(ANSWERS)
    assert result["metrics"] == summarise(own)
    assert result["shuffled"] == summarise(shuffled)
    gain = paired_difference(correct_of(own), correct_of(shuffled), images_of(own))
    assert result["vision_gain"] == vars(gain)
    assert set(result["controls"]["majority"]) == {"overall", "groups", "types"}
    assert result["controls"]["majority"]["overall"]["n"] == len(own) == 30
    assert list(result["bits"]) == ["image", "question", "answer"]
    assert result["bits"]["image"]["bytes"] == 2 * (6 * 4 * 3 + 1)
    assert result["bits"]["answer"]["bytes"] == sum(len(p.answer) + 1 for p in own)
    assert result["batches"] == {"images_per_batch": 4, "used": 4, "questions_per_image": None}
    assert result["invariance"] is None


def test_everything_it_rests_on_is_hashed(run: Path, shard: Shard) -> None:
    result = result_of(run)
    names = ["config.json", "model.safetensors", "predictions.jsonl", "predictions-shuffled.jsonl"]
    assert list(result["hashes"]) == names
    assert all(digest == sha256(run / name) for name, digest in result["hashes"].items())
    named = result["shard"]
    assert (run / named["path"]).resolve() == shard.path.resolve()
    assert not Path(named["path"]).is_absolute()
    assert named["manifest"] == sha256(shard.path / "manifest.json")
    assert (named["split"], named["spec"]) == ("test", shard.manifest.spec)


def test_cost_is_that_of_the_steps_that_were_done(run: Path, shard: Shard) -> None:
    result, model = result_of(run), load_model(run)
    assert result["cost"]["image_bytes"] == 6 * 4 * 3
    assert result["training"]["steps"] == TRAIN["steps"]
    assert result["cost"]["train_flops"] == pytest.approx(estimate(model.cell, shard).total_flops)


def test_cost_does_not_depend_on_the_machine(run: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is verified on a laptop may have been trained on a GPU."""
    monkeypatch.setattr("vqa_bench.estimate.setting.torch.cuda.is_available", lambda: True)
    model, training = load_model(run), result_of(run)["training"]
    found = cost(model, shard, shard.split("test"), run=run, out=run, training=training)
    assert found == result_of(run)["cost"]


def test_evaluated_elsewhere(run: Path, shard: Shard, tmp_path: Path) -> None:
    """Its configuration and weights stay where they are; settings and the way of answering may be others."""
    settings = EvaluateConfig(images_per_batch=3, shuffled=False, bits=0)
    answers = Answers((*ANSWERS, "reddish"))
    training = {"steps": 2}
    found = evaluate(
        load_model(run), shard, tmp_path, split="dev", run=run, answers=answers, settings=settings, training=training
    )
    assert found == result_of(tmp_path)
    assert [(tmp_path / name).resolve() for name in found["hashes"]][:2] == [
        (run / name).resolve() for name in ("config.json", "model.safetensors")
    ]
    assert list(found["hashes"])[2:] == ["predictions.jsonl"]
    assert (found["shuffled"], found["vision_gain"], list(found["bits"])) == (None, None, ["answer"])
    assert found["answers"] == list(answers.names)
    assert found["metrics"] == summarise(read_predictions(tmp_path / "predictions.jsonl", answers), answers=answers)
    assert found["cost"]["train_flops"] == result_of(run)["cost"]["train_flops"]
    assert found["batches"]["images_per_batch"] == 3


def test_a_baseline_has_no_bits_and_a_counted_one_no_cost(shard: Shard, tmp_path: Path) -> None:
    model: VQAModel = train(make_cell("majority"), shard, tmp_path)
    found = evaluate(model, shard, tmp_path)
    assert (found["bits"], found["shuffled"], found["vision_gain"]) == (None, None, None)
    assert found["cost"] == {"image_bytes": None, "train_flops": None}
    assert found["controls"]["majority"]["overall"] == found["metrics"]["overall"]


def test_data_of_another_encoding_are_refused(run: Path, tmp_path: Path) -> None:
    other = make_shard(tmp_path / "data", spec="pixels:6x4", train=2, val=2)
    with pytest.raises(UserError, match="expected a shard with the encoding of the run, pixels:6x4,order=block2, got"):
        evaluate(load_model(run), other, tmp_path)
