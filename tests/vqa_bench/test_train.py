"""The training loop: what it minimises, that it learns, repeats itself, saves the model, and stops when it must."""

import json
from pathlib import Path

import pytest
import torch

from tests.vqa_bench.cells import BYTE_MODEL, TRAIN, make_cell, make_model, make_shard
from vqa_bench.config import TrainConfig
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.models import ByteModel
from vqa_bench.runs import METRICS, load_model
from vqa_bench.scoring.score import score
from vqa_bench.train import train
from vqa_bench.train.optimisation import learning_rate_factor, parameter_groups


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("train"))


@pytest.mark.parametrize("layout", ["iqa", "qia", "qiqa"])
@pytest.mark.parametrize("weights", [{}, {"question": 0.5, "image": 0.1, "answer": 1.0}], ids=["answer", "all"])
def test_the_loss_is_that_of_separate_sequences(shard: Shard, layout: str, weights: dict) -> None:
    model = make_model(make_cell(sequence={"layout": layout, "weights": weights}), shard)
    assert isinstance(model, ByteModel)
    split = shard.split("train")
    groups = evaluation_groups(split)[:3]
    groups[1] = groups[1]._replace(questions=groups[1].questions[:2])  # places without a question take no part
    sums = model(model.collate(split, groups))
    total, count = torch.zeros((), dtype=torch.float64), 0
    for group in groups:
        for row in group.questions:
            s = model.sequencer.sample(split.image_bytes(group.image), split.question[row], split.answer[row])
            ids = torch.cat((torch.from_numpy(s.prefix), torch.from_numpy(s.suffix)))[None]
            weight = torch.cat((torch.from_numpy(s.prefix_weights), torch.from_numpy(s.suffix_weights)))[None]
            loss = model.mblm(ids, loss_mask=weight.double())
            total, count = total + loss * (weight > 0).sum(), count + int((weight > 0).sum())
    torch.testing.assert_close(sums.total, total)
    if not weights:
        assert sums.targets == count


@pytest.mark.parametrize("model", ["mblm", "cnn_lstm", "lstm", "majority"])
def test_training_repeats_itself_and_saves_what_it_trained(shard: Shard, tmp_path: Path, model: str) -> None:
    cell = make_cell(model)
    runs = [tmp_path / "first", tmp_path / "second"]
    for run in runs:
        run.mkdir()
    first, second = (train(cell, shard, run) for run in runs)
    again = load_model(runs[0])
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
        assert torch.equal(tensor, again.state_dict()[name]), name
    if model != "majority":
        lines = [json.loads(line) for line in (runs[0] / METRICS).read_text().splitlines()]
        assert lines[-1]["step"] == TRAIN["steps"]


def test_a_byte_model_learns_answers_by_heart(shard: Shard, tmp_path: Path) -> None:
    changes = {"steps": 150, "images_per_batch": 6, "learning_rate": 1e-2}
    model = train(make_cell(train=changes), shard, tmp_path)
    split = shard.split("train")
    batch = model.collate(split, evaluation_groups(split)[:10])
    predicted = score(model, batch).log_probs.argmax(-1).view_as(batch.targets)
    assert (predicted == batch.targets)[batch.present].float().mean() >= 0.99  # five questions, always the same answers


def test_accumulation_equals_one_large_batch(shard: Shard, tmp_path: Path) -> None:
    split_up = {"images_per_batch": 3, "accumulate": 2, "steps": 3, "learning_rate": 1e-3}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    # Text answers differ in length, so that a mean of means would show.
    parts = train(make_cell(train=split_up, sequence={"answer": "text"}), shard, tmp_path / "a")
    whole = split_up | {"images_per_batch": 6, "accumulate": 1}
    one = train(make_cell(train=whole, sequence={"answer": "text"}), shard, tmp_path / "b")
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_a_loss_that_is_not_finite_stops_the_run(shard: Shard, tmp_path: Path) -> None:
    wild = {"steps": 30, "images_per_batch": 4, "learning_rate": 1e30, "clip": None}
    with pytest.raises(
        UserError, match=r"expected a finite loss, got (nan|inf) at step \d+: images CLEVR_train_\d+.png, "
    ):
        train(make_cell(train=wild), shard, tmp_path)


def test_warm_up_then_cosine_to_zero() -> None:
    config = TrainConfig(steps=100, images_per_batch=1, learning_rate=1.0, warmup=0.1)
    factors = [learning_rate_factor(step, config) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_gains_biases_and_embeddings_do_not_decay(shard: Shard) -> None:
    model = make_model(make_cell(), shard)
    decayed, free = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(parameter)] for parameter in free["params"]}  # type: ignore[attr-defined]
    assert {name for name in names.values() if name.endswith(("bias", ".g", "embedding.weight"))} <= kept
    assert all("weight" in names[id(p)] and p.ndim == 2 for p in decayed["params"])  # type: ignore[attr-defined]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_a_model_too_small_for_the_image_is_refused(shard: Shard) -> None:
    with pytest.raises(UserError, match=r"at most 240 bytes .*: 96 for an image of 72 bytes"):
        make_model(make_cell(BYTE_MODEL | {"seq_lens": [20, 12]}), shard)
