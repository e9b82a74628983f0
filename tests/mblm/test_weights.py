"""Weights into a model: everything that does not fit is listed, and a grown vocabulary changes nothing it knew."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mblm.checkpoint import CheckpointError, from_pretrained, grow_vocabulary, load_reference, save_pretrained
from mblm.weights import check_weights
from tests.mblm.checkpoints import FIXTURES, State, assert_same_state, expected_of, logits, one_line
from tests.mblm.reference import build


def drop(state: State) -> None:
    del state["to_logits.bias"]


def add(state: State) -> None:
    state["extra.weight"] = torch.zeros(3, 2)


def reshape(state: State) -> None:
    state["to_logits.weight"] = torch.zeros(39, 10)


def make_integer(state: State) -> None:
    state["start_tokens.0"] = torch.ones(12, dtype=torch.int32)


def break_values(state: State) -> None:
    state["start_tokens.1"] = state["start_tokens.1"].clone().index_fill_(0, torch.tensor([1, 4]), float("nan"))


def change_base(state: State) -> None:
    name = "stage_models.0.rotary_emb.inv_freq"
    state[name] = 500_000.0 ** (-torch.arange(0, 6, 2) / 6)


DAMAGES: dict[Callable[[State], None], str] = {
    drop: "to_logits.bias (40,) is missing",
    add: "extra.weight (3, 2) is unexpected",
    reshape: "to_logits.weight: expected shape (40, 10), got (39, 10)",
    make_integer: "start_tokens.0: expected floating point, got torch.int32",
    break_values: "start_tokens.1: expected finite values, got 2 of 10 that are not",
    change_base: "stage_models.0.rotary_emb.inv_freq: expected the model's rotary frequencies",
}


@pytest.mark.parametrize("loader", ["ours", "reference"])
@pytest.mark.parametrize("damages", [*([damage] for damage in DAMAGES), list(DAMAGES)], ids=lambda d: d[-1].__name__)
def test_every_fault_is_listed_by_both_loaders(
    damages: list[Callable[[State], None]], loader: str, tmp_path: Path
) -> None:
    model = build([6, 4], dtype=torch.float32)
    state: State = dict(model.state_dict())
    for damage in damages:
        damage(state)
    save_pretrained(model, tmp_path)
    with pytest.raises(CheckpointError, match="does not fit the model") as error:  # noqa: PT012
        if loader == "ours":
            save_file(state, tmp_path / "model.safetensors")
            from_pretrained(tmp_path)
        else:
            torch.save({"MODEL": state, "LOSS": 1.0}, tmp_path / "model.pth")
            load_reference(tmp_path / "model.pth", model.config)
    for damage in damages:
        assert DAMAGES[damage] in one_line(error)
    assert one_line(error).count(";") == len(damages)


def test_a_long_list_of_faults_is_cut_with_its_count() -> None:
    tensors = {f"t{i:02}": torch.zeros(i) for i in range(33)}
    with pytest.raises(CheckpointError, match=r"t19 \(19,\) is missing; and 13 more; ") as error:
        check_weights(tensors, {}, source="here")
    assert "t20" not in one_line(error)


def test_an_integer_buffer_is_not_filled_with_fractions() -> None:
    with pytest.raises(CheckpointError, match=r"steps: expected torch\.int64, got torch\.float32"):
        check_weights({"steps": torch.tensor(3)}, {"steps": torch.tensor(3.5)}, source="here")


# -- more vocabulary --------------------------------------------------------------------------------------------------


def test_growing_keeps_every_old_bit_and_trains_the_old_pad(tmp_path: Path) -> None:
    config, path = expected_of("tt", "0.4.0")["config"], FIXTURES / "tt-0.4.0.pth"
    old = load_reference(path, config)
    torch.manual_seed(5)
    grown = load_reference(path, config, num_tokens=264, pad_token_id=256)
    fresh, growing = grown.state_dict(), 0
    for name, value in old.state_dict().items():
        growing += fresh[name].shape != value.shape
        assert torch.equal(fresh[name][: len(value)], value), name
    assert growing == 4  # two byte tables, the head's weight and bias
    for table in grown.token_embs_rev:
        rows = table.embedding.weight
        assert rows.shape == (264, 8)
        assert torch.equal(rows[[0, 256]], torch.zeros(2, 8))
        assert rows[257:].std() > 0.5  # like a new table's rows, a standard normal distribution
    # Bytes that are no pad mean what they meant.
    ids = torch.arange(1, 13)[None]
    torch.testing.assert_close(logits(grown, ids)[..., :256], logits(old, ids))
    gradients = torch.autograd.grad(
        grown(torch.tensor([[0, 1, 256, 2]]), return_type="logits").sum(),
        [table.embedding.weight for table in grown.token_embs_rev][:1],
    )
    assert gradients[0][0].abs().sum() > 0
    assert gradients[0][256].abs().sum() == 0

    torch.manual_seed(5)
    assert_same_state(load_reference(path, config, num_tokens=264, pad_token_id=256), grown)
    torch.manual_seed(5)
    in_memory = grow_vocabulary(old, 264, 256)
    assert_same_state(in_memory, grown)
    assert in_memory.config == grown.config
    save_pretrained(old, tmp_path / "old")
    torch.manual_seed(5)
    assert_same_state(from_pretrained(tmp_path / "old", num_tokens=264, pad_token_id=256), grown)
    save_pretrained(grown, tmp_path / "grown")
    assert_same_state(from_pretrained(tmp_path / "grown"), grown)


def test_growing_a_model_in_memory_leaves_it_alone() -> None:
    model = build([6, 4], dtype=torch.bfloat16).train()
    before = copy.deepcopy(model)
    grown = grow_vocabulary(model, 44)
    assert grown.training
    assert grown.config.pad_token_id == model.config.pad_token_id
    assert grown.to_logits.weight.dtype == torch.bfloat16
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.add_(1)
    assert_same_state(model, before)


@pytest.mark.parametrize(
    ("num_tokens", "pad_token_id", "wanted"),
    [
        (39, None, "expected at least the 40 there are, got 39"),
        (44, 5, "expected the present 32, or a new id from 40 and below num_tokens 44, got 5"),
        (44, 44, "got 44"),
    ],
)
def test_vocabularies_that_cannot_grow_so(num_tokens: int, pad_token_id: int | None, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted) as error:
        grow_vocabulary(build([6, 4], dtype=torch.float32), num_tokens, pad_token_id)
    one_line(error)
