"""The masked model against arithmetic written out patch by patch, and its configuration."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mblm import (
    MBLM,
    MBLMEncoder,
    MBLMEncoderModelConfig,
    MBLMModelConfig,
    MBLMReturnType,
    StageBlock,
    TransformerBlock,
    TransformerEncoderBlock,
)
from mblm.model import transformer_encoder
from mblm.model.transformer_encoder import bidirectional_attention
from tests.mblm.encoder_reference import (
    MASK,
    V,
    build,
    padded_rows,
    plain_attention,
    plain_hidden,
    plain_loss,
    random_ids,
    settings_of,
)
from tests.mblm.reference import assert_same_gradients, gradients

SHAPES = [[12], [5, 4], [3, 2, 4]]
STRATEGIES = ["any", "all"]
VARIANTS = [
    {},
    {"pos_emb_type": "rope"},
    {"pos_emb_type": None},
    {"attn_use_rot_embs": False, "attn_head_dims": 5, "attn_num_heads": 3},
]


# -- forward and loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_lens", SHAPES, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_forward_is_the_plain_arithmetic(seq_lens: list[int], variant: dict, strategy: str) -> None:
    model = build(seq_lens, strategy=strategy, **variant)
    L = math.prod(seq_lens) - 1  # ends inside a patch
    ids, real = padded_rows([L, L // 2, 2], L)  # the last rows have patches of padding only
    expected = torch.stack([plain_hidden(model, *row) for row in zip(ids, real, strict=True)])
    hidden = model(ids, attention_mask=real, return_type=MBLMReturnType.HIDDEN_STATE)
    torch.testing.assert_close(hidden, expected)
    logits = model(ids, attention_mask=real.long(), return_type=MBLMReturnType.LOGITS)
    torch.testing.assert_close(logits, model.to_logits(expected))
    whole = model(F.pad(ids, (0, 2))[:, :L], return_type=MBLMReturnType.HIDDEN_STATE)  # a view with gaps
    torch.testing.assert_close(whole[0], plain_hidden(model, ids[0], torch.ones(L, dtype=torch.bool)))


@pytest.mark.parametrize("seq_lens", SHAPES, ids=str)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_loss_and_gradients_are_the_plain_ones(seq_lens: list[int], strategy: str) -> None:
    model = build(seq_lens, strategy=strategy)
    ids, real = padded_rows([11, 5], 11)
    labels = random_ids(2, 11, seed=2)
    labels[:, ::3] = -100
    weights = torch.full((2, 11), 0.5, dtype=torch.float64)
    weights[0, 4] = 0
    kept = labels.clone(), weights.clone()

    def loss() -> Tensor:
        return model(ids, attention_mask=real, labels=labels, loss_mask=weights)

    expected = plain_loss(model, ids, real, labels, weights)
    torch.testing.assert_close(loss(), expected)
    both = model(ids, attention_mask=real, labels=labels, loss_mask=weights, return_type=MBLMReturnType.LOSS_LOGITS)
    torch.testing.assert_close(both[0], expected)
    torch.testing.assert_close(both[1], model(ids, attention_mask=real, return_type=MBLMReturnType.LOGITS))
    assert_same_gradients(gradients(model, loss()), gradients(model, expected))
    unweighted = plain_loss(model, ids, real, labels, torch.ones_like(weights))
    torch.testing.assert_close(model(ids, attention_mask=real, labels=labels), unweighted)
    assert torch.equal(labels, kept[0])
    assert torch.equal(weights, kept[1])


@given(data=st.data(), seq_lens=st.sampled_from([[9], [3, 3], [4, 2], [2, 3, 2]]), strategy=st.sampled_from(STRATEGIES))
@settings(max_examples=25, deadline=None)
def test_rows_of_a_batch_are_as_if_alone(data: st.DataObject, seq_lens: list[int], strategy: str) -> None:
    model = build(seq_lens, strategy=strategy)
    lengths = data.draw(st.lists(st.integers(1, math.prod(seq_lens)), min_size=1, max_size=3))
    ids, real = padded_rows(lengths, max(lengths))
    together = model(ids, attention_mask=real, return_type=MBLMReturnType.HIDDEN_STATE)
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, :length], return_type=MBLMReturnType.HIDDEN_STATE)
        torch.testing.assert_close(together[row, :length], alone[0])


def test_many_patches_are_embedded_by_table() -> None:
    model = build([100, 2])
    ids, real = random_ids(1, 200), torch.ones(200, dtype=torch.bool)
    assert ids.numel() // 2 >= 2 * V
    hidden = model(ids, return_type=MBLMReturnType.HIDDEN_STATE)
    torch.testing.assert_close(hidden[0], plain_hidden(model, ids[0], real))


def test_every_byte_sees_every_other() -> None:
    model, ids = build([3, 2, 4]), random_ids(1, 24)
    for changed in (0, 9, 23):
        other = ids.clone()
        other[0, changed] = (ids[0, changed] + 1) % 32
        outputs = [model(x, return_type=MBLMReturnType.HIDDEN_STATE)[0] for x in (ids, other)]
        assert ((outputs[0] - outputs[1]).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_of_padding_is_finite(strategy: str) -> None:
    model = build([3, 2, 4], strategy=strategy)
    ids, real = padded_rows([0, 13], 20)
    loss = model(ids, attention_mask=real, labels=ids)
    assert torch.isfinite(model(ids, attention_mask=real, return_type=MBLMReturnType.HIDDEN_STATE)).all()
    torch.testing.assert_close(loss, model(ids[1:], attention_mask=real[1:], labels=ids[1:]))
    assert all(torch.isfinite(g).all() for g in gradients(model, loss).values())


def test_nothing_to_predict_is_zero_loss_with_gradients() -> None:
    model, ids = build([5, 4]), random_ids(2, 9)
    loss = model(ids, labels=torch.full_like(ids, -100))
    assert loss == 0
    assert all((g == 0).all() for g in gradients(model, loss).values())


def test_checkpoint_chunks_change_nothing() -> None:
    model = build([3, 2, 4], chunks=[2, 5])
    ids, real = padded_rows([22, 7], 22)
    for mask in (real, None):
        expected = gradients(model.eval(), model(ids, attention_mask=mask, labels=ids))
        assert_same_gradients(gradients(model.train(), model(ids, attention_mask=mask, labels=ids)), expected)


def test_nested_ids_are_flat_ids() -> None:
    model = build([3, 2, 4])
    ids, real = padded_rows([16, 9], 16)
    flat = model(ids, attention_mask=real, labels=ids, return_type=MBLMReturnType.LOSS_LOGITS)
    nested, nested_real = ids.view(2, 2, 2, 4), real.view(2, 2, 2, 4)
    for ours, expected in zip(
        model(nested, attention_mask=nested_real, labels=nested, return_type=MBLMReturnType.LOSS_LOGITS),
        flat,
        strict=True,
    ):
        torch.testing.assert_close(ours, expected)


def test_masked_loss_hides_the_bytes_and_predicts_them() -> None:
    model = build([5, 4])
    ids, real = padded_rows([18, 9], 18)
    masked = torch.zeros_like(real)
    masked[:, ::4] = True
    sums = model.masked_loss_sums(ids, masked, real)
    assert sums.targets == 5 + 3
    hidden = ids.clone()
    hidden[masked] = MASK
    labels = torch.where(masked, ids, -100)
    expected = plain_loss(model, hidden, real, labels, torch.ones(2, 18, dtype=torch.float64))
    torch.testing.assert_close(sums.total / sums.targets, expected)


def test_masked_training_learns_to_copy_from_both_sides() -> None:
    torch.manual_seed(0)
    model = build([4, 2]).float().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    losses = []
    for _ in range(45):
        ids = torch.randint(0, 8, (32, 1)).expand(-1, 8)  # eight times the same byte
        masked = torch.rand(32, 8) < 0.3
        masked[:, 7] = False
        sums = model.masked_loss_sums(ids, masked)
        loss = sums.total / sums.targets
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 2
    assert losses[-1] < 0.5  # the byte alone, without a look at the others: ln 8 = 2.1


def test_parameters_are_named_as_those_of_the_causal_model() -> None:
    causal = MBLM(MBLMModelConfig.model_validate(settings_of([3, 2, 4]))).state_dict()
    shapes = {name: weights.shape for name, weights in causal.items() if not name.startswith("start_tokens")}
    assert {name: weights.shape for name, weights in build([3, 2, 4]).state_dict().items()} == shapes


# -- attention --------------------------------------------------------------------------------------------------------


def test_long_sequences_take_another_kernel_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(3, 7, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    real = torch.arange(7) < torch.tensor([7, 3, 0])[:, None]
    results = []
    for short in (512, 0):
        monkeypatch.setattr(transformer_encoder, "SHORT", short)
        for mask in (None, real):
            attended = bidirectional_attention(q, k, v, mask)
            results.append((attended, *torch.autograd.grad(attended.square().sum(), (q, k, v))))
    for one, other in ((0, 2), (1, 3)):
        for ours, expected in zip(results[one], results[other], strict=True):
            torch.testing.assert_close(ours, expected)
    assert (results[1][0][2] == 0).all()
    torch.testing.assert_close(results[1][0][1, :, 0], plain_attention(q[1, :, 0], k[1, :, 0], v[1, :, 0], real[1]))


def test_dropout_acts_in_training_only() -> None:
    model = build([5, 4], attn_dropout=0.5, ff_dropout=0.5)
    ids, real = padded_rows([20, 6], 20)
    torch.testing.assert_close(*(model(ids, attention_mask=real, labels=ids) for _ in range(2)))
    model.train()
    first, second = (model(ids, attention_mask=real, labels=ids) for _ in range(2))
    assert first != second
    assert torch.isfinite(first)


# -- configuration and mistakes ---------------------------------------------------------------------------------------


def test_blocks_without_a_type_are_bidirectional_ones() -> None:
    hierarchy = settings_of([5, 4])
    block = hierarchy["block"]
    for blocks in (block, [block, block | {"block_type": "transformerEncoder"}]):
        config = MBLMEncoderModelConfig.model_validate(
            {"mask_token_id": MASK, "mblm_config": hierarchy | {"block": blocks}}
        )
        assert {type(one) for one in config.mblm_config.stage_blocks()} == {TransformerEncoderBlock}
        assert MBLMEncoderModelConfig.model_validate(config.model_dump()) == config
        assert MBLMEncoderModelConfig.model_validate_json(config.model_dump_json()) == config
    assert "block_type" not in block
    assert type(MBLMModelConfig.model_validate(hierarchy).block) is TransformerBlock
    assert str(config.mask_reduce_strat) == "any"


def test_causal_blocks_are_refused() -> None:
    hierarchy = MBLMModelConfig.model_validate(settings_of([5, 4]))
    with pytest.raises(
        ValueError, match=r"expected bidirectional blocks.*got TransformerBlock; use TransformerEncoder"
    ):
        MBLMEncoderModelConfig(mask_token_id=MASK, mblm_config=hierarchy)
    with pytest.raises(ValueError, match="got TransformerBlock"):
        MBLMEncoderModelConfig.model_validate(
            {"mask_token_id": MASK, "mblm_config": settings_of([5, 4], block_type="transformer")}
        )


def test_a_bidirectional_block_of_ones_own() -> None:
    class MeanStage(torch.nn.Module):
        def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
            weights = torch.ones_like(x[..., :1]) if real is None else real[..., None].to(x.dtype)
            return x + (x * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)

    class MeanBlock(StageBlock):
        causal = False
        block_type: str = "mean"

        def to_model(self, model_dim: int, num_layers: int) -> torch.nn.Module:
            return MeanStage()

    hierarchy = settings_of([5, 4]) | {"block": MeanBlock()}
    model = MBLMEncoder(MBLMEncoderModelConfig(mask_token_id=MASK, mblm_config=MBLMModelConfig(**hierarchy)))
    ids, real = padded_rows([20, 6], 20)
    together = model(ids, attention_mask=real, return_type=MBLMReturnType.LOGITS)
    torch.testing.assert_close(together[1, :6], model(ids[1:, :6], return_type=MBLMReturnType.LOGITS)[0])


def test_the_causal_model_refuses_bidirectional_blocks() -> None:
    config = MBLMModelConfig.model_validate(settings_of([5, 4], block_type="transformerEncoder"))
    with pytest.raises(ValueError, match="MBLM needs causal stages, got TransformerEncoderBlock"):
        MBLM(config)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"block_type": "transformerEncoder", "attn_head_dims": 5}, "even number, got 5"),
        ({"block_type": "encoder"}, "expected 'transformerEncoder', got 'encoder'"),
        ({"attn_num_head": 2}, "fits none of the registered blocks"),
    ],
)
def test_a_bad_block_says_so(block: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MBLMEncoderModelConfig.model_validate({"mask_token_id": MASK, "mblm_config": settings_of([5, 4], **block)})


def test_bad_input_says_what_was_expected() -> None:
    model, ids = build([5, 4]), random_ids(2, 8)
    with pytest.raises(ValueError, match="expected labels for a loss, got none"):
        model(ids)
    with pytest.raises(ValueError, match=r"expected ids of shape \(B, L\) or \(B, P, 4\), got \(2, 3, 5\)"):
        model(random_ids(2, 3, 5), labels=ids)
    with pytest.raises(ValueError, match=r"expected at least one byte.*\(2, 0\)"):
        model(ids[:, :0], return_type=MBLMReturnType.LOGITS)
    for name in ("attention_mask", "labels", "loss_mask"):
        with pytest.raises(ValueError, match=rf"{name}: expected the ids' shape \(2, 8\), got \(2, 7\)"):
            model(ids, **{"labels": ids, name: ids[:, :7]})
    with pytest.raises(ValueError, match=r"at most 20 bytes \(5 patches of 4\).*got 6 patches"):
        model(random_ids(1, 21), labels=random_ids(1, 21))
    config = MBLMEncoderModelConfig(mask_token_id=V, mblm_config=model.config.mblm_config)
    with pytest.raises(ValueError, match="mask_token_id: expected 0 to 39 to mask bytes with, got 40"):
        MBLMEncoder(config).masked_loss_sums(ids, ids > 3)
