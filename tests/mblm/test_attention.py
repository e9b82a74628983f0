"""Attention over shared segments: every way of computing it against repeated keys and one softmax."""

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from mblm.model import attention, fused
from mblm.model.attention import Segment, attend, causal_attention
from mblm.model.embedding import smooth_init_
from mblm.model.fused import shift_norm, unit_norm
from mblm.model.rotary import rotary_heads, turn
from mblm.model.segments import attend_segments, attend_with_dropout
from mblm.model.short import attend_short
from tests.mblm.reference import build, gradients, plain_loss_sum
from tests.mblm.test_mblm import random_ids

H, E = 2, 4


def random_segment(rows: int, length: int, *, ragged: bool = False) -> Segment:
    keys, values = torch.randn(2, rows, length, H, E, dtype=torch.float64, requires_grad=True).unbind(0)
    real = torch.arange(length) < torch.randint(1, length + 1, (rows, 1)) if ragged else None
    return Segment(keys, values, real)


def plain(q: Tensor, past: tuple[Segment, ...], own: Segment) -> Tensor:
    """Keys repeated for every row, one mask, one softmax."""
    n, S = q.shape[:2]
    keys, values, hidden = [], [], []
    for segment in (*past, own):
        group, length = n // segment.rows, segment.keys.shape[1]
        keys.append(segment.keys.repeat_interleave(group, 0))
        values.append(segment.values.repeat_interleave(group, 0))
        real = torch.ones(segment.rows, length, dtype=torch.bool) if segment.real is None else segment.real
        unseen = ~real.repeat_interleave(group, 0)[:, None].expand(n, S, length)
        hidden.append(unseen | torch.ones(S, S, dtype=torch.bool).triu(1) if segment is own else unseen)
    scores = torch.einsum("nshe,nthe->nhst", q, torch.cat(keys, 1)) * E**-0.5
    weights = scores.masked_fill(torch.cat(hidden, -1)[:, None], float("-inf")).softmax(-1)
    return torch.einsum("nhst,nthe->nshe", weights, torch.cat(values, 1))


@pytest.mark.parametrize("short", [0, 512], ids=["segments", "joined"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("rows", [(), (2,), (2, 6)], ids=str)
def test_attention_over_segments(
    monkeypatch: pytest.MonkeyPatch, short: int, ragged: bool, rows: tuple[int, ...]
) -> None:
    monkeypatch.setattr(attention, "SHORT", short)
    torch.manual_seed(0)
    past = tuple(random_segment(b, 5 + b, ragged=ragged and b > 2) for b in rows)
    own = random_segment(12, 3, ragged=ragged)
    q = torch.randn(12, 3, H, E, dtype=torch.float64, requires_grad=True)
    inputs = [q, own.keys, own.values, *(t for s in past for t in (s.keys, s.values))]
    real = torch.ones(12, 3, dtype=torch.bool) if own.real is None else own.real
    weight = torch.randn(12, 3, H, E, dtype=torch.float64) * real[..., None, None]  # what is not real may be anything
    ours, expected = attend(q, past, own, own.after(past)), plain(q, past, own)
    torch.testing.assert_close(ours * real[..., None, None], expected * real[..., None, None])
    found = torch.autograd.grad((ours * weight).sum(), inputs)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for gradient, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("with_start", [False, True])
def test_many_short_sequences(with_start: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(6, 4, 3, H, E, dtype=torch.float64, requires_grad=True)
    q, k, v = qkv.unbind(2)
    start, past, inputs = (), (), [qkv]
    if with_start:
        shared = random_segment(1, 1)
        start, past = (shared.keys[0, 0], shared.values[0, 0]), (shared,)
        inputs += [shared.keys, shared.values]
    found, expected = attend_short(q, k, v, *start), plain(q, past, Segment(k, v))
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    for gradient, right in zip(torch.autograd.grad((found * weight).sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-10)


def test_dropout_drops_a_share_of_the_weights() -> None:
    torch.manual_seed(0)
    shared, own = random_segment(1, 400), random_segment(2, 1)
    q = torch.randn(2, 1, H, E, dtype=torch.float64)
    segments = [(s.keys, s.values, None) for s in (shared, own)]
    torch.testing.assert_close(attend_with_dropout(q, segments, 0.0), attend_segments(q, segments))
    many = torch.stack([attend_with_dropout(q, segments, 0.3) for _ in range(400)])
    torch.testing.assert_close(many.mean(0), attend_segments(q, segments), rtol=0, atol=0.02)
    assert many.std(0).min() > 0.01


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_causal_attention(precision: str) -> None:
    own = random_segment(3, 7)
    q = torch.randn(3, 7, H, E, dtype=torch.float64)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)  # float64 is not rounded, but another way is taken
    try:
        found = causal_attention(q, own.keys, own.values)
    finally:
        torch.set_float32_matmul_precision(before)
    torch.testing.assert_close(found, plain(q, (), own))


def test_rows_beyond_a_call_are_other_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (torch.randn(5, 3, H, E, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.ones(5, 1, 1, 3, dtype=torch.bool)
    mask[3, ..., 2:] = False
    weights = torch.randn(5, 3, H, E, dtype=torch.float64)
    for options in ({"causal": True}, {"mask": mask}):
        whole = attention.fused_attention(q, k, v, **options)
        expected = torch.autograd.grad((whole * weights).sum(), (q, k, v))
        with monkeypatch.context() as patched:
            patched.setattr(attention, "rows_at_once", lambda q: 2)
            parts = attention.fused_attention(q, k, v, **options)
            found = torch.autograd.grad((parts * weights).sum(), (q, k, v))
        torch.testing.assert_close(parts, whole)
        torch.testing.assert_close(found, expected)


def test_rows_that_kernels_can_take() -> None:
    def rows(S: int, H: int, E: int) -> int:
        with FakeTensorMode():
            return attention.rows_at_once(torch.empty(1, S, H, E, device="cuda"))

    assert attention.rows_at_once(torch.empty(7, 3, 2, 4)) == 7  # a CPU has no such limit
    assert rows(9, 16, 64) == 2**31 // (128 * 16 * 64) - 1  # the local stage of the paper's model
    assert rows(9, 2, 8) == 65_535
    assert rows(1_000_000, 16, 64) == 2


@pytest.mark.parametrize("dim", [6, 7])
@pytest.mark.parametrize("with_before", [False, True])
@pytest.mark.parametrize("few", [0, 2**17], ids=["fused", "few"])
def test_gradients_of_the_fused_parts(monkeypatch: pytest.MonkeyPatch, dim: int, with_before: bool, few: int) -> None:
    monkeypatch.setattr(fused, "FEW", few)
    torch.manual_seed(0)
    x = torch.randn(2, 3, dim, dtype=torch.float64, requires_grad=True)
    before = torch.randn(2, dim, dtype=torch.float64, requires_grad=True) if with_before else None
    assert torch.autograd.gradcheck(shift_norm, (x, before))
    assert torch.autograd.gradcheck(unit_norm, (x,))
    weight = torch.randn(3 * H * E, dim, dtype=torch.float64, requires_grad=True)
    for turns in (None, *(angles((*rows, 3)) for rows in ((), (2,)))):
        assert torch.autograd.gradcheck(lambda x, w, turns=turns: rotary_heads(x, w, turns, H), (x, weight))


def angles(shape: tuple[int, ...]) -> Tensor:
    """Turns for queries and keys at random angles."""
    radians = torch.rand(*shape, 1, 1, E // 2, dtype=torch.float64)
    return torch.stack((radians.cos(), radians.sin()), dim=-1)


def test_both_ways_to_turn_pairs() -> None:
    x, weight, turns = torch.randn(2, 3, 5), torch.randn(3 * H * E, 5), angles((2, 3)).float()
    q, k, v = rotary_heads(x, weight, turns, H)
    plain = (x @ weight.T).unflatten(-1, (3, H, E))
    pairs = torch.view_as_complex(plain[:, :, :2].unflatten(-1, (-1, 2)).contiguous())
    expected = torch.view_as_real(pairs * torch.view_as_complex(turns)).flatten(-2)
    torch.testing.assert_close(torch.stack((q, k), dim=2), expected)
    torch.testing.assert_close(v, plain[:, :, 2])
    for found, before in ((q, plain[:, :, 0]), (k, plain[:, :, 1])):
        torch.testing.assert_close(found, turn(before, turns[..., 0, :, :]))


@pytest.mark.parametrize("few", [0, 2**17], ids=["fused", "few"])
def test_shift_and_norm_by_hand(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(fused, "FEW", few)
    x = torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])
    expected = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])  # the second channel comes one position late
    expected /= expected.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(shift_norm(x), expected)
    assert unit_norm(torch.zeros(1, 4)).abs().sum() == 0  # the floor, not a division by zero


def test_the_long_way_of_a_shared_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SHORT", 0)
    model = build([12, 4])
    prefix, suffixes = random_ids(2, 8), random_ids(2, 3, 9, seed=2)
    weights = torch.rand(2, 3, 9, dtype=torch.float64)
    whole = torch.cat((prefix[:, None].expand(2, 3, 8), suffixes), dim=2).flatten(0, 1)
    padded = torch.cat((torch.zeros(6, 8, dtype=torch.float64), weights.flatten(0, 1)), dim=1)
    found = gradients(model, model.shared_loss_sums(prefix, suffixes, weights).total)
    for name, gradient in gradients(model, plain_loss_sum(model, whole, padded)).items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-10)


def test_smooth_bytes_begin_like_their_neighbours() -> None:
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(264, 64)
    specials = embedding.weight[256:].clone()
    smooth_init_(embedding)
    vectors = embedding.weight.detach()
    near = torch.nn.functional.cosine_similarity(vectors[:255], vectors[1:256]).mean()
    far = torch.nn.functional.cosine_similarity(vectors[:128], vectors[128:256]).mean()
    assert near > 0.4
    assert far < 0.25
    assert len(vectors[:256].unique(dim=0)) == 256
    assert torch.equal(vectors[256:], specials)
