"""The hierarchy against the plain arithmetic: forward, loss, shared prefix, embedding table, golden vectors."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mblm import MBLM, MBLMModelConfig, MBLMReturnType
from mblm.decode import read_prefix
from mblm.model import hierarchy, later, short
from tests.mblm.reference import (
    assert_same_gradients,
    build,
    gradients,
    plain_loss_sum,
    plain_predictions,
    stages,
)

SHAPES = [[12], [5, 4], [3, 2, 4]]
VARIANTS = [
    {},
    {"pos_emb_type": "rope"},
    {"pos_emb_type": None},
    {"attn_use_rot_embs": False, "attn_head_dims": 5, "attn_num_heads": 3},
]


# Every mix of stages, from the most global to the local one.
MIXES = [
    ([12], "S"),
    ([5, 4], "ST"),
    ([5, 4], "TS"),
    ([5, 4], "SS"),
    ([3, 2, 4], "STT"),
    ([3, 2, 4], "SST"),
    ([3, 2, 4], "TSS"),
]
MODELS = [(seq_lens, variant) for seq_lens in SHAPES for variant in VARIANTS]
MODELS += [(seq_lens, {"block": stages(letters)}) for seq_lens, letters in MIXES]


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 32, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("seq_lens", "variant"), MODELS, ids=str)
@pytest.mark.parametrize("short_by", [0, 1, 3])
def test_forward_is_the_plain_arithmetic(seq_lens: list[int], variant: dict, short_by: int) -> None:
    model = build(seq_lens, **variant)
    ids = random_ids(2, math.prod(seq_lens) - short_by)
    expected = plain_predictions(model, ids)
    logits = model(ids, MBLMReturnType.LOGITS)
    assert logits.shape == (2, ids.shape[1], 40)
    torch.testing.assert_close(logits[:, :-1], expected[:, 1:])
    loss = F.cross_entropy(expected.transpose(1, 2), ids)
    torch.testing.assert_close(model(ids), loss)
    torch.testing.assert_close(model(ids, MBLMReturnType.LOSS_LOGITS)[0], loss)
    hidden = model(ids, MBLMReturnType.HIDDEN_STATE)
    torch.testing.assert_close(model.to_logits(hidden), logits)


@pytest.mark.parametrize(("seq_lens", "letters"), [(s, "T" * len(s)) for s in SHAPES] + MIXES, ids=str)
@pytest.mark.parametrize("where", [[0], [4], [3, 4, 5], [7, 8], list(range(12))], ids=str)
def test_loss_only_where_it_is_weighed(seq_lens: list[int], letters: str, where: list[int]) -> None:
    model = build(seq_lens, block=stages(letters))
    ids = random_ids(3, 11)
    ids[1, 8] = model.pad_token_id
    weights = torch.zeros(3, 11, dtype=torch.float64)
    weights[:, [t for t in where if t < 11]] = 0.5
    weights[2] = 0
    sums = model.loss_sums(ids, weights)
    expected = plain_loss_sum(model, ids, weights)
    torch.testing.assert_close(sums.total, expected)
    assert sums.targets == ((weights != 0) & (ids != model.pad_token_id)).sum()
    assert_same_gradients(
        gradients(model, model.loss_sums(ids, weights).total), gradients(model, plain_loss_sum(model, ids, weights))
    )
    torch.testing.assert_close(model(ids, loss_mask=weights), expected / sums.targets)


@pytest.mark.parametrize(("seq_lens", "variant"), MODELS, ids=str)
@pytest.mark.parametrize("prefix_loss", [False, True])
def test_shared_prefix_equals_separate_sequences(seq_lens: list[int], variant: dict, prefix_loss: bool) -> None:
    model = build([4 * seq_lens[0], *seq_lens[1:]], **variant)
    B, K, R = 2, 3, model.patch_bytes[0]
    prefix, suffixes = random_ids(B, 2 * R), random_ids(B, K, 2 * R + 1 + R // 2, seed=2)
    suffixes[0, 1, -3:] = model.pad_token_id
    generator = torch.Generator().manual_seed(3)
    weights = torch.rand(suffixes.shape, generator=generator, dtype=torch.float64).round(decimals=1)
    weights[1, 2] = 0  # a missing question takes no part
    prefix_weights = torch.rand((B, K, 2 * R), generator=generator, dtype=torch.float64) if prefix_loss else None
    whole = torch.cat((prefix[:, None].expand(B, K, -1), suffixes), dim=2).flatten(0, 1)
    before = torch.zeros(B, K, 2 * R, dtype=torch.float64) if prefix_weights is None else prefix_weights
    whole_weights = torch.cat((before, weights), dim=2).flatten(0, 1)

    def shared() -> torch.Tensor:
        return model.shared_loss_sums(prefix, suffixes, weights, prefix_weights).total

    counted = (whole_weights != 0) & (whole != model.pad_token_id)
    assert model.shared_loss_sums(prefix, suffixes, weights, prefix_weights).targets == counted.sum()
    torch.testing.assert_close(shared(), plain_loss_sum(model, whole, whole_weights), rtol=1e-12, atol=1e-12)
    assert_same_gradients(gradients(model, shared()), gradients(model, plain_loss_sum(model, whole, whole_weights)))


@pytest.mark.parametrize(("seq_lens", "letters"), [([5, 4], "TT"), ([5, 4], "ST"), ([3, 2, 4], "TTT")], ids=str)
@pytest.mark.parametrize("length", [1, 3, 4])
def test_suffixes_of_one_patch(seq_lens: list[int], letters: str, length: int) -> None:
    model = build(seq_lens, block=stages(letters))
    R = model.patch_bytes[0]
    prefix, suffixes = random_ids(2, R), random_ids(2, 3, length, seed=2)
    weights = torch.ones(2, 3, length, dtype=torch.float64)
    whole = torch.cat((prefix[:, None].expand(2, 3, -1), suffixes), dim=2).flatten(0, 1)
    padded = F.pad(weights.flatten(0, 1), (R, 0))
    found = gradients(model, model.shared_loss_sums(prefix, suffixes, weights).total)
    assert_same_gradients(found, gradients(model, plain_loss_sum(model, whole, padded)))


@pytest.mark.parametrize("seq_lens", [[200, 4], [60, 2, 4]], ids=str)
def test_patch_embedding_by_table(seq_lens: list[int]) -> None:
    model = build(seq_lens)
    table = model.token_embs_rev[-1]
    ids = torch.cat((random_ids(400, table.patch_size), torch.full((3, table.patch_size), model.pad_token_id)))
    plain, tabled = table._post(table.embedding(ids)), table.by_table(ids)
    torch.testing.assert_close(tabled, plain, rtol=1e-12, atol=1e-12)
    assert_same_gradients(
        gradients(table, (table.by_table(ids) ** 3).sum()),
        gradients(table, (table._post(table.embedding(ids)) ** 3).sum()),
    )
    assert gradients(table, table.by_table(ids).square().sum())["embedding.weight"][model.pad_token_id].abs().sum() == 0


@pytest.mark.parametrize(("seq_lens", "letters"), [([5, 4], "ST"), ([3, 2, 4], "TTT"), ([3, 2, 4], "TST")], ids=str)
@pytest.mark.parametrize("where", [[0], [0, 1, 7], list(range(11))], ids=str)
def test_many_sequences_share_the_reading_of_their_start(
    monkeypatch: pytest.MonkeyPatch, seq_lens: list[int], letters: str, where: list[int]
) -> None:
    monkeypatch.setattr(short, "MANY", 1)
    monkeypatch.setattr(later, "GROUP_PAYS_FROM", 0)  # and sequences are grouped by what they need
    model, ids = build(seq_lens, block=stages(letters)), random_ids(2, 11)
    weights = torch.zeros(2, 11, dtype=torch.float64)
    weights[:, where] = 1
    expected = gradients(model, plain_loss_sum(model, ids, weights))
    assert_same_gradients(gradients(model, model.loss_sums(ids, weights).total), expected)
    torch.testing.assert_close(model(ids, MBLMReturnType.LOGITS)[:, :-1], plain_predictions(model, ids)[:, 1:])
    torch.testing.assert_close(model(ids, MBLMReturnType.LOSS_LOGITS)[0], model(ids))


@pytest.mark.parametrize("letters", ["TTT", "STT", "SSS"])
@pytest.mark.parametrize("chunks", [[2, 5], [100, 1], [1, 100]], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_checkpoint_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch, letters: str, chunks: list[int], masked: bool
) -> None:
    model = build([3, 2, 4], train_checkpoint_chunks=chunks, block=stages(letters))
    ids, mask = random_ids(2, 22), None
    if masked:
        mask = torch.zeros(2, 22, dtype=torch.float64)
        mask[0, [3, 8]], mask[1, 15:18] = 1, 0.5
    expected = gradients(model.eval(), model(ids, loss_mask=mask))
    recomputed = []
    monkeypatch.setattr(hierarchy, "checkpoint", lambda *a, **k: recomputed.append(a[1:]) or checkpoint(*a, **k))
    assert_same_gradients(gradients(model.train(), model(ids, loss_mask=mask)), expected)
    assert len(recomputed) >= 2
    assert recomputed[0][0] == 0
    logits = model(ids, MBLMReturnType.LOGITS)
    torch.testing.assert_close(logits, model.eval()(ids, MBLMReturnType.LOGITS))


def test_empty_input_and_nested_ids() -> None:
    model = build([3, 2, 4])
    empty = model(torch.empty(2, 0, dtype=torch.long), MBLMReturnType.LOGITS)
    assert empty.shape == (2, 1, 40)
    first_byte = plain_predictions(model, random_ids(1, 4))[:, 0]
    assert not torch.allclose(empty[:1, 0], first_byte)  # here the local start is conditioned, there it is not
    nested = random_ids(2, 2, 2, 4)
    flat = model(nested.flatten(1), MBLMReturnType.LOGITS)
    torch.testing.assert_close(model(nested, MBLMReturnType.LOGITS).flatten(1, -2), flat)


@pytest.mark.parametrize(("seq_lens", "letters"), [([12], "T"), ([5, 4], "ST"), ([3, 2, 4], "TTT")], ids=str)
def test_a_batch_without_a_weighted_byte_gives_every_parameter_a_zero_gradient(
    seq_lens: list[int], letters: str
) -> None:
    model, ids = build(seq_lens, block=stages(letters)), random_ids(2, 9)
    sums = model.loss_sums(ids, torch.zeros(2, 9, dtype=torch.float64))
    assert sums.total == 0
    assert sums.targets == 0
    sums.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_any_weighted_byte_gives_every_parameter_a_gradient() -> None:
    model, ids = build([5, 4], block=stages("ST")), random_ids(1, 9)
    for t in range(9):
        model.zero_grad()
        model.loss_sums(ids, torch.nn.functional.one_hot(torch.tensor([t]), 9).double()).total.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == [], t


def test_too_long_an_input_is_refused_with_fixed_positions_only() -> None:
    ids = random_ids(1, 24)
    with pytest.raises(ValueError, match=r"at most 20 bytes \(5 patches of 4\).*got 6 patches"):
        build([5, 4])(ids)
    assert build([5, 4], pos_emb_type=None)(ids, MBLMReturnType.LOGITS).shape == (1, 24, 40)


@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float32], ids=str)
def test_masks_of_any_type(kind: torch.dtype) -> None:
    model, ids = build([5, 4]), random_ids(2, 18)
    mask = torch.zeros(2, 18)
    mask[:, 13:] = 1
    expected = plain_loss_sum(model, ids, mask.double()) / 10
    torch.testing.assert_close(model(ids, loss_mask=mask.to(kind)), expected)
    torch.testing.assert_close(model(ids, MBLMReturnType.LOSS_LOGITS, mask.to(kind))[0], expected)


@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float16, torch.bfloat16], ids=str)
def test_masks_of_any_type_over_a_shared_prefix(kind: torch.dtype) -> None:
    """An integer mask of the prefix leaves the suffixes' fractions as they are, and every copy counts."""
    model, prefix, suffixes = build([9, 4]), random_ids(2, 8), random_ids(2, 3, 7, seed=2)
    weights = torch.full((2, 3, 7), 0.5)
    prefix_weights = torch.zeros(2, 3, 8)
    prefix_weights[:, :2, 3:] = 1
    whole = torch.cat((prefix[:, None].expand(2, 3, 8), suffixes), dim=2).flatten(0, 1)
    expected = plain_loss_sum(model, whole, torch.cat((prefix_weights, weights), dim=2).flatten(0, 1).double())
    sums = model.shared_loss_sums(prefix, suffixes, weights, prefix_weights.to(kind))
    torch.testing.assert_close(sums.total, expected)
    assert sums.targets == 2 * 3 * 7 + 2 * 2 * 5
    hole = prefix_weights.to(kind)
    assert model.shared_loss_sums(prefix, suffixes, (weights * 2).to(kind), hole).targets == sums.targets


def test_a_half_precision_mask_counts_every_byte() -> None:
    model, ids = build([1000, 4], dtype=torch.float32), random_ids(1, 3999)
    for kind in (torch.bfloat16, torch.float16):
        assert model.loss_sums(ids, torch.ones(1, 3999, dtype=kind)).targets == 3999


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_ids_of_any_integer_type(kind: torch.dtype) -> None:
    model, ids = build([5, 4]), random_ids(2, 18)
    torch.testing.assert_close(model(ids.to(kind)), model(ids))
    torch.testing.assert_close(model(ids.to(kind), MBLMReturnType.LOGITS), model(ids, MBLMReturnType.LOGITS))
    assert torch.equal(
        model.generate(ids[0, :6].to(kind), num_tokens_to_generate=3).long(), model.generate(ids[0, :6])[:9]
    )
    with pytest.raises(ValueError, match=r"ids of an integer type, got torch\.float32"):
        model(ids.float())


@pytest.mark.parametrize("kind", ["rope", "fixed"])
def test_frequencies_survive_half_precision_and_the_meta_device(kind: str) -> None:
    model, ids = build([50, 4], pos_emb_type=kind), random_ids(1, 199)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(ids)
    rounded = model.bfloat16().double()
    rounded.load_state_dict({n: v for n, v in weights.items() if "inv_freq" not in n}, strict=False)
    torch.testing.assert_close(rounded(ids), expected)
    with torch.device("meta"):
        empty = MBLM(model.config)
    empty.to_empty(device="cpu")
    empty.double().load_state_dict(weights)
    torch.testing.assert_close(empty.eval()(ids), expected)


def test_bad_input_says_what_was_expected() -> None:
    model = build([5, 4])
    with pytest.raises(ValueError, match=r"expected ids of shape \(B, L\) or \(B, P, 4\), got \(2, 3, 5\)"):
        model(random_ids(2, 3, 5))
    for call in (model, model.generate, lambda ids: read_prefix(model, ids)):
        for outside in (40, -1):
            ids = [*random_ids(7).tolist(), outside]
            with pytest.raises(ValueError, match=f"expected ids from 0 to 39, got {outside}"):
                call(torch.tensor(ids) if call == model.generate else torch.tensor([ids]))
    with pytest.raises(ValueError, match="expected ids from 0 to 39, got 40"):
        model.shared_loss_sums(torch.full((1, 4), 40), random_ids(1, 2, 4), torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match=r"loss mask of the ids' shape \(1, 8\), got \(1, 7\)"):
        model(random_ids(1, 8), loss_mask=torch.ones(1, 7))
    with pytest.raises(ValueError, match="'hidden' is not a valid MBLMReturnType"):
        model(random_ids(1, 8), "hidden")
    for suffixes, weights in ((random_ids(1, 2, 0), torch.ones(1, 2, 0)), (random_ids(1, 2, 4), torch.ones(1, 2, 3))):
        with pytest.raises(ValueError, match="suffixes and their weights of one shape"):
            model.shared_loss_sums(random_ids(1, 4), suffixes, weights)
    with pytest.raises(ValueError, match="multiple of 4 bytes, got 6"):
        model.shared_loss_sums(random_ids(1, 6), random_ids(1, 2, 4), torch.ones(1, 2, 4))


@pytest.mark.parametrize("name", ["mblm_1d_t", "mblm_2d_tt"])
def test_golden_vectors(golden: Path | None, name: str) -> None:
    if golden is None:
        pytest.skip("reference outputs are not at hand; the plain arithmetic is tested above")
    tensors = load_file(golden / f"{name}.safetensors")
    model = MBLM(MBLMModelConfig.model_validate(json.loads((golden / f"{name}.json").read_text())))
    model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("state.")})
    for case in ("full", "part"):
        ids, mask = tensors[f"{case}.ids"], tensors[f"{case}.loss_mask"]
        logits = model(ids, MBLMReturnType.LOGITS)
        torch.testing.assert_close(logits, tensors[f"{case}.logits"], rtol=0, atol=1e-4)
        torch.testing.assert_close(model(ids), tensors[f"{case}.loss_unmasked"], rtol=0, atol=1e-5)
        loss = model(ids, loss_mask=mask)
        torch.testing.assert_close(loss, tensors[f"{case}.loss"], rtol=0, atol=1e-5)
        norm = torch.stack([g.norm() for g in gradients(model, loss).values()]).norm()
        torch.testing.assert_close(norm, tensors[f"{case}.grad_norm"], rtol=1e-4, atol=0)
    torch.testing.assert_close(model.forward_empty(1), tensors["empty.logits"], rtol=0, atol=1e-4)
