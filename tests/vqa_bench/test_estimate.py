"""Estimates against what they estimate: FLOPs that torch counts, tensors that backward keeps, parameters of models."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mblm import MBLM, MBLMEncoder
from tests.vqa_bench.cells import BYTE_MODEL, TRAIN, make_cell, make_model, make_shard
from vqa_bench.config import MBLMConfig, MBLMEncoderConfig, PretrainConfig, parse
from vqa_bench.data.loading import TrainPlan
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.estimate import Estimate, check_memory, estimate, estimate_pretraining, plan_text
from vqa_bench.estimate.flops import hierarchy_flops
from vqa_bench.estimate.load import Rules, question_load, window_load
from vqa_bench.estimate.memory import NOTHING, hierarchy_kept
from vqa_bench.estimate.samples import fitted, samples_of
from vqa_bench.estimate.speed import PRODUCTS_SLOWER, Rates
from vqa_bench.estimate.table import duration, number
from vqa_bench.models import MODELS, ByteModel, build
from vqa_bench.models.hierarchy import encoder_config, hierarchy_config

S = {"kind": "mamba", "d_state": 16, "head_dim": 8}
CPU = torch.device("cpu")
SHAPES: dict[str, dict[str, Any]] = {
    "T": {"hidden_dims": [32], "seq_lens": [800], "num_layers": [2]},
    "S": {"hidden_dims": [32], "seq_lens": [800], "num_layers": [2]},
    "T/T": {"hidden_dims": [32, 32], "seq_lens": [100, 8], "num_layers": [2, 2]},
    "S/T": {"hidden_dims": [32, 16], "seq_lens": [100, 8], "num_layers": [2, 1]},
    "S/T/T": {"hidden_dims": [32, 32, 16], "seq_lens": [50, 4, 4], "num_layers": [2, 1, 1]},
    "T/S/T": {
        "hidden_dims": [32, 16, 16],
        "seq_lens": [50, 4, 4],
        "num_layers": [1, 1, 1],
        "checkpoint_chunks": [2, 3],
    },
}


def shape(family: str, **changes: Any) -> dict[str, Any]:
    """A small model of S and T stages."""
    sizes = SHAPES[family] | changes
    stages = [
        S if kind == "S" else {"heads": 2, "head_dim": width // 2}
        for kind, width in zip(family.split("/"), sizes["hidden_dims"], strict=True)
    ]
    return {"kind": "mblm", "stages": stages, **sizes}


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("estimate"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def counted(model: nn.Module, run: Any) -> int:
    """FLOPs of forward and backward as torch counts them: every matrix product, masked or not, nothing elementwise."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("weights", [{}, {"question": 0.5, "image": 0.1, "answer": 1.0}], ids=["answer", "all"])
@pytest.mark.parametrize("layout", ["iqa", "qia"])
@pytest.mark.parametrize("family", SHAPES)
def test_flops_of_questions_are_those_that_torch_counts(shard: Shard, family: str, layout: str, weights: Any) -> None:
    cell = make_cell(shape(family), sequence={"layout": layout, "weights": weights})
    model = build(cell, MODELS["mblm"].decide(cell, shard)).train()
    assert isinstance(model, ByteModel)
    split = shard.split("train")
    batch = model.collate(split, TrainPlan(split, 0, 8).groups(0)).to(CPU)
    config = cell.model
    assert isinstance(config, MBLMConfig)
    sequencer, samples = fitted(cell, samples_of(cell, shard), model.mblm.config.patch_size, model.mblm.config.context)
    load = question_load(config, sequencer, samples, 8)
    expected = counted(model, lambda: model(batch).total)
    assert sum(hierarchy_flops(config, load, [], dense_attention=True)) == pytest.approx(expected, rel=0.05)
    if layout == "qia" or not weights:  # a shared byte is predicted once, and counts for each of its questions
        assert load.targets == pytest.approx(float(model(batch).targets), rel=0.05)


@pytest.mark.parametrize(("windows", "length"), [(2, 640), (3, 700)])
@pytest.mark.parametrize("family", SHAPES)
def test_flops_of_text_are_those_that_torch_counts(family: str, windows: int, length: int) -> None:
    config = parse(MBLMConfig, shape(family), "test")
    model = MBLM(hierarchy_config(config)).train()
    ids = torch.randint(256, (windows, length))
    expected = counted(model, lambda: model.loss_sums(ids, torch.ones(ids.shape)).total)
    ours = hierarchy_flops(config, window_load(config, windows, length), [], dense_attention=True)
    assert sum(ours) == pytest.approx(expected, rel=0.05)
    assert sum(hierarchy_flops(config, window_load(config, windows, length), [])) <= sum(ours)


@pytest.mark.parametrize("family", ["T", "T/T"])
def test_flops_of_a_masked_model_are_those_that_torch_counts(family: str) -> None:
    config = parse(MBLMEncoderConfig, shape(family) | {"kind": "mblm_encoder"}, "test")
    model = MBLMEncoder(encoder_config(config)).train()
    ids = torch.randint(256, (3, 640))
    hidden = torch.rand(ids.shape) < config.mask_rate
    expected = counted(model, lambda: model.masked_loss_sums(ids, hidden).total)
    assert sum(hierarchy_flops(config, window_load(config, 3, 640), [])) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("family", ["T", "S", "T/T", "S/T"])
def test_activations_are_what_backward_keeps(family: str) -> None:
    widths = [96] * len(SHAPES[family]["hidden_dims"])
    config = parse(MBLMConfig, shape(family, hidden_dims=widths), "test")
    model = MBLM(hierarchy_config(config)).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.randint(256, (4, 800))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums = model.loss_sums(ids, torch.ones(ids.shape))
    assert sums.targets == ids.numel()
    ours = hierarchy_kept(config, window_load(config, 4, 800), Rules(), half=False)
    assert ours.activations == pytest.approx(sum(kept.values()), rel=0.15)
    assert hierarchy_kept(config, window_load(config, 4, 800), Rules(), half=True).activations < ours.activations


@pytest.mark.parametrize("family", SHAPES)
def test_parameters_are_those_of_the_model(shard: Shard, family: str) -> None:
    cell = make_cell(shape(family))
    expected = sum(parameter.numel() for parameter in make_model(cell, shard).parameters())
    found = estimate(cell, shard)
    assert (found.parameters, found.trainable) == (expected, expected)
    frozen = cell.model_copy(update={"init": "pretrained", "pretrained": _pretrained("stage_models.0.*")})
    stage = dict(make_model(cell, shard).named_parameters())
    first = sum(p.numel() for name, p in stage.items() if name.startswith("mblm.stage_models.0."))
    found = estimate(frozen, shard)
    assert (found.parameters, found.trainable) == (expected, expected - first)
    assert found.memory.optimizer == 8 * found.trainable


def _pretrained(*freeze: str) -> Any:
    changes = {"init": "pretrained", "pretrained": {"path": "weights", "freeze": freeze}}
    return make_cell(**changes).pretrained


def test_baselines_are_counted(shard: Shard) -> None:
    for kind in ("cnn_lstm", "lstm", "majority"):
        cell = make_cell(kind)
        for found in (estimate(cell, shard), estimate(cell, None)):
            assert (found.steps > 0) == (found.flops > 0) == (found.memory.total > 0) == (kind != "majority")
        model = make_model(cell, shard)
        assert estimate(cell, shard).parameters == sum(parameter.numel() for parameter in model.parameters())
    # 5 questions on each of 4 images, 20 words: 4 gates of 128 from 64 and 128, then an MLP.
    lstm = 4 * 5 * 2 * 3 * (20 * 4 * 128 * (64 + 128) + 128 * 256 + 256 * 28)
    assert estimate(make_cell("lstm"), shard).flops == pytest.approx(lstm, rel=0.05)


def test_lengths_come_from_the_shard(shard: Shard) -> None:
    cell = make_cell()
    model, split = make_model(cell, shard), shard.split("train")
    assert isinstance(model, ByteModel)
    lengths = [
        sum(map(len, model.sequencer.sample(split.image_bytes(int(image)), question, answer)[:2]))
        for image, question, answer in zip(split.image_of_question, split.question, split.answer, strict=True)
    ]
    found = estimate(cell, shard)
    assert found.sample_bytes == pytest.approx(sum(lengths) / len(lengths))
    assert found.longest_sample == max(lengths)
    assert found.shared_bytes == model.sequencer.image_length
    assert found.samples == TRAIN["images_per_batch"] * 5
    assert found.guesses == ()
    assert estimate(make_cell(sequence={"layout": "qia"}), shard).shared_bytes == 0


@pytest.mark.parametrize(
    ("encoding", "bytes_"), [("pixels:6x4,color=gray", 24), ("bmp:6x4", 54 + 20 * 4), ("jpeg:6x4,q=50", None)]
)
def test_without_data_lengths_follow_from_the_encoding_or_are_guessed(encoding: str, bytes_: int | None) -> None:
    cell = make_cell(BYTE_MODEL | {"seq_lens": [120, 12]}, encoding=encoding)
    found = samples_of(cell, None)
    pictures = [guess for guess in found.guesses if guess.startswith("pictures")]
    if bytes_ is None:
        assert len(pictures) == 1
        assert f"{found.image_bytes:,} bytes" in pictures[0]
    else:
        assert (found.image_bytes, pictures) == (bytes_, [])
    assert "questions as CLEVR's" in estimate(cell, None).guesses
    given = cell.model_copy(update={"sequence": cell.sequence.model_copy(update={"image_bytes": 700})})
    assert samples_of(given, None).image_bytes == 700


def test_only_a_guessed_picture_is_cut_to_what_fits() -> None:
    with pytest.raises(UserError, match="at most 720 bytes"):
        estimate(make_cell(encoding="pixels:60x40"), None)
    found = estimate(make_cell(encoding="png:60x40,level=0"), None)
    assert "all that the context has room for" in found.guesses[0]
    assert found.longest_sample is not None
    assert found.context is not None
    assert found.longest_sample <= found.context


def pretraining(**train: Any) -> PretrainConfig:
    settings = {"steps": 10, "windows_per_batch": 4, "learning_rate": 1e-3} | train
    model = shape("T/T")
    data = {"synth_text": {"bytes": 1000}}
    run = {"name": "text", "title": "Text", "data": data, "model": model, "train": settings, "context": 640}
    return parse(PretrainConfig, run, "test")


def test_a_pretraining_run() -> None:
    found = estimate_pretraining(pretraining(accumulate=3, max_time="2s"), None)
    assert (found.unit, found.samples, found.sample_bytes, found.context) == ("windows", 12, 640, 800)
    assert found.flops == 3 * estimate_pretraining(pretraining(), None).flops
    assert found.total_seconds <= 2
    assert json.loads(json.dumps(found.to_dict()))["memory"]["total"] == found.memory.total


def test_memory_is_what_is_kept_and_by_whom() -> None:
    plain = estimate_pretraining(pretraining(), None).memory
    numbers = plain.weights / 4
    assert (plain.gradients, plain.optimizer, plain.average) == (4 * numbers, 8 * numbers, 0)
    assert estimate_pretraining(pretraining(ema=0.99), None).memory.average == 4 * numbers
    assert estimate_pretraining(pretraining(accumulate=2), None).memory.total > plain.total
    shared = estimate_pretraining(pretraining(parallel="fsdp", processes=4), None).memory
    assert (shared.weights, shared.optimizer) == (numbers, 2 * numbers)
    copied = estimate_pretraining(pretraining(processes=4), None).memory
    assert (copied.weights, copied.gradients) == (4 * numbers, 8 * numbers)
    assert copied.activations < plain.activations


def test_chunks_are_recomputed_and_not_kept() -> None:
    whole = parse(MBLMConfig, shape("T/T"), "test")
    parts = whole.model_copy(update={"checkpoint_chunks": [4]})
    kept = [hierarchy_kept(config, window_load(config, 4, 800), Rules(), half=False) for config in (whole, parts)]
    assert kept[1].activations < kept[0].activations
    assert kept[1].activations + kept[1].workspace < kept[0].activations + kept[0].workspace
    flops = [sum(hierarchy_flops(config, window_load(config, 4, 800), [])) for config in (whole, parts)]
    assert 1.1 < flops[1] / flops[0] < 4 / 3


def test_a_long_context_is_estimated_without_its_memory() -> None:
    longest = shape("S/T/T") | {"seq_lens": [1000, 200, 25], "hidden_dims": [256, 128, 64]}
    run = pretraining().model_copy(update={"model": parse(MBLMConfig, longest, "test"), "context": 5_000_000})
    found = estimate_pretraining(run, None)
    assert found.sample_bytes == 5_000_000
    assert found.parameters > 64 * 5000 * 256  # the embedding of patches of 5,000 bytes
    assert found.memory.total > 1e9


def test_seconds_follow_from_rates() -> None:
    rates = Rates({64: 1e9, 128: 4e9}, memory=1e9)
    fast = replace(rates, memory=1e12)
    assert fast.step_seconds({64: 2e9, 128: 8e9}, traffic=0, weights=0) == pytest.approx(PRODUCTS_SLOWER * (2 + 2))
    assert rates.step_seconds({}, traffic=1e9, weights=0) == 1000 * fast.step_seconds({}, traffic=1e9, weights=0)


def test_what_cannot_fit_is_said_in_a_line() -> None:
    small = estimate_pretraining(pretraining(), None, device=CPU)
    assert check_memory(small) is None
    large = replace(small, memory=replace(small.memory, activations=1e18))
    line = check_memory(large)
    assert line is not None
    assert "\n" not in line
    assert line.startswith("expected a training step that fits")
    assert check_memory(small, at_once=10**9) is not None


def test_the_plan_says_what_is_guessed() -> None:
    rows = [
        estimate(make_cell(), None),
        estimate(make_cell("majority"), None),
        estimate_pretraining(pretraining(), None),
    ]
    text = plan_text(rows)
    assert [line for line in text.splitlines() if line.startswith("cell [1] ")]
    assert "[1] guessed: questions as CLEVR's" in text
    assert "3 in all" in text
    assert "80% of 800" in text
    assert plan_text([Estimate(name="a", title="A", parameters=1, trainable=1)]).splitlines()[2].startswith("a ")
    assert NOTHING.total == 0


def test_numbers_are_short() -> None:
    assert [number(x) for x in (999, 360e6, 999_900, 2.84e21)] == ["999", "360 M", "1 M", "2.84 Z"]
    assert [duration(x) for x in (40, 90, 7500, 100_000)] == ["40 s", "2 min", "2 h 5 min", "1 d 3 h"]
