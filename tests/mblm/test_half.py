"""Half precision: what autocast changes in a layer, against float64 and within the rounding of bfloat16."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mblm.decode import prefill, step
from mblm.model import fused
from mblm.model.fused import gained_linear, gated_norm, shift_norm, shift_norm_beside, unit_norm
from mblm.model.precision import product_type
from mblm.model.rotary import rotary_heads, turn, turn_both
from tests.mblm.reference import build, gradients, plain_loss_sum, stages
from tests.mblm.test_attention import angles
from tests.mblm.test_mblm import random_ids

H, E, D = 2, 4, 12
ROUNDING = 2**-8  # of bfloat16, as a part of a number


@pytest.fixture(autouse=True)
def wide_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of large inputs for small ones."""
    monkeypatch.setattr(fused, "FEW", 0)


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


def assert_close_to_double(
    function: Callable[..., Tensor], inputs: list[Tensor], *, limit: float, inside: bool = False
) -> Tensor:
    """Result and gradients of float32 inputs under autocast; `inside`: backward is called there, too."""
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = function(*exact)
    weights = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, exact, weights)
    rough = [tensor.detach().float().requires_grad_() for tensor in inputs]
    with autocast():
        y = function(*rough)
        found = torch.autograd.grad(y, rough, weights.to(y.dtype)) if inside else ()
    found = found or torch.autograd.grad(y, rough, weights.to(y.dtype))
    assert distance(y, expected) < limit
    for gradient, right in zip(found, wanted, strict=True):
        assert gradient.dtype == torch.float32
        assert distance(gradient, right) < limit
    return y


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_normalised_comes_in_the_type_of_products(inside: bool) -> None:
    torch.manual_seed(0)
    x, before = torch.randn(3, 7, D), torch.randn(3, D)
    for function, inputs in (
        (shift_norm, [x]),
        (shift_norm, [x, before]),
        (lambda x: unit_norm(x, for_product=True), [x]),
        (lambda x: unit_norm(x, 1e-5, for_product=True), [x]),
    ):
        y = assert_close_to_double(function, inputs, limit=2 * ROUNDING, inside=inside)
        assert y.dtype == torch.bfloat16
        with autocast(), torch.no_grad():
            assert torch.equal(function(*inputs), y)


@pytest.mark.parametrize("with_before", [False, True])
def test_what_is_added_to_beside_what_is_normalised(with_before: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, 7, D), *([torch.randn(3, D)] if with_before else [])]

    def both(*inputs: Tensor) -> Tensor:
        return torch.cat(shift_norm_beside(*inputs), dim=-1)

    assert_close_to_double(both, inputs, limit=2 * ROUNDING)
    x = inputs[0].requires_grad_()
    with autocast():
        same, y = shift_norm_beside(*inputs)
        assert torch.equal(same, x)
        assert torch.equal(y, shift_norm(*inputs))
    gradients = [torch.autograd.grad(part.sum(), x, retain_graph=True)[0] for part in (same, y)]
    assert torch.equal(gradients[0], torch.ones_like(x))
    assert distance(torch.autograd.grad(same.sum() + y.sum(), x)[0], sum(gradients).double()) < ROUNDING
    assert shift_norm_beside(*inputs)[0] is x  # outside autocast, as ever


def test_it_is_rounded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, gain, weight = torch.randn(3, 7, D), torch.rand(D), torch.randn(5 * D, D)
    exact = {name: function(x) for name, function in (("shift", shift_norm), ("unit", unit_norm))}
    with autocast():
        assert torch.equal(shift_norm(x), exact["shift"].bfloat16())
        assert torch.equal(unit_norm(x, for_product=True), exact["unit"].bfloat16())
        assert torch.equal(unit_norm(x), exact["unit"])  # a gain follows
        found = gained_linear(shift_norm(x), gain, weight)
        assert torch.equal(found, exact["shift"].bfloat16() @ (weight * gain).bfloat16().T)
        monkeypatch.setattr(fused, "FEW", 2**17)
        assert shift_norm(x).dtype == unit_norm(x, for_product=True).dtype == torch.float32


def test_numbers_of_other_types_keep_theirs() -> None:
    with autocast():
        assert product_type(torch.ones(1)) == torch.bfloat16
        assert product_type(torch.ones(1, dtype=torch.float64)) == torch.float64
    assert product_type(torch.ones(1)) == torch.float32
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        x = torch.randn(2, 3, D, dtype=kind, requires_grad=True)
        y = shift_norm(x)
        y.sum().backward()
        assert y.dtype == x.grad.dtype == kind


def test_large_gradients_in_float16() -> None:
    """As a loss scaler makes them: 3,000 times a channel of 4 is a number, and 30 of those are none in float16."""
    x = torch.zeros(1, 1, 16).index_fill_(2, torch.tensor([3]), 1.0).requires_grad_()
    with torch.autocast("cpu", torch.float16):
        y = shift_norm(x)
    assert float(y.detach().max()) == 4
    (gradient,) = torch.autograd.grad(y, x, torch.full_like(y, 30_000))
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_gate_in_half_precision(kind: torch.dtype) -> None:
    """kind: what the recurrence before the gate comes in."""
    torch.manual_seed(0)
    exact = [torch.randn(3, 7, D).bfloat16().double().requires_grad_() for _ in range(2)]
    rough = [tensor.detach().to(to).requires_grad_() for tensor, to in zip(exact, (kind, torch.bfloat16), strict=True)]
    weights = torch.randn(3, 7, D).bfloat16()
    expected, found = gated_norm(*exact, 1e-5), gated_norm(*rough, 1e-5)
    wanted = torch.autograd.grad(expected, exact, weights.double())
    got = torch.autograd.grad(found, rough, weights)
    assert found.dtype == torch.bfloat16
    assert distance(found, expected) < 2 * ROUNDING
    for gradient, right, given in zip(got, wanted, rough, strict=True):
        assert gradient.dtype == given.dtype
        assert distance(gradient, right) < 3 * ROUNDING


def halves(weight: Tensor) -> Tensor:
    """Rows of a projection whose pairs are neighbours, in the order of a checkpoint's, where they are halves."""
    q, k, v = weight.view(3, H, E, -1)
    q, k = (part.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2) for part in (q, k))
    return torch.stack((q, k, v)).flatten(0, 2)


@pytest.mark.parametrize("rows", [(), (2,)])
def test_queries_and_keys_in_halves(rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, turns = torch.randn(2, 3, D), torch.randn(3 * H * E, D), angles((*rows, 3)).float()
    x, weight = x.bfloat16(), weight.bfloat16()
    exact = [tensor.double().requires_grad_() for tensor in (x, weight)]
    expected = rotary_heads(*exact, turns.double(), H)
    rough = [x.requires_grad_(), halves(weight).requires_grad_()]
    found = rotary_heads(*rough, turns, H)
    upstream = [torch.randn(2, 3, H, E, dtype=torch.float64) for _ in range(3)]
    wanted = torch.autograd.grad(expected, exact, upstream)
    for part, right in zip(found[:2], expected[:2], strict=True):
        ordered = part.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        assert distance(ordered, right) < 2 * ROUNDING
    assert distance(found[2], expected[2]) < ROUNDING
    turned = [part.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2) for part in upstream[:2]]
    got = torch.autograd.grad(found, rough, [part.bfloat16() for part in (*turned, upstream[2])])
    assert distance(got[0], wanted[0]) < 2 * ROUNDING
    assert distance(got[1], halves(wanted[1])) < 2 * ROUNDING


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_every_way_to_turn_has_one_order(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    q, k, turns = torch.randn(2, 3, H, E).to(kind), torch.randn(2, 3, H, E).to(kind), angles((3,)).float()
    few = turn_both(q, k, turns)
    for found, given in zip(few, (q, k), strict=True):
        if kind == torch.float32:
            given = given.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)
        assert distance(found, turn(given, turns[..., 0, :, :]).double()) < 2 * ROUNDING
    assert few[0].dtype == kind


@pytest.mark.parametrize("letters", ["ST", "TT"])
def test_gradients_of_a_model(letters: str) -> None:
    model = build([20, 4], block=stages(letters))
    ids, weights = random_ids(2, 80), torch.rand(2, 80, dtype=torch.float64)
    exact = plain_loss_sum(model, ids, weights)
    expected = gradients(model, exact)
    rough = copy.deepcopy(model).float()
    with autocast():
        loss = rough.loss_sums(ids, weights.float()).total
    found = gradients(rough, loss)
    assert abs(loss.item() / exact.item() - 1) < ROUNDING / 4
    every = (torch.cat([side[name].flatten().double() for name in expected]) for side in (found, expected))
    assert distance(*every) < 4 * ROUNDING  # narrow layers, where roundings do not average out


@pytest.mark.parametrize("read", [12, 180], ids=["few positions", "many positions"])
def test_bytes_one_by_one_behind_a_state(read: int) -> None:
    model = build([48, 4], dtype=torch.float32)
    ids = random_ids(1, 192)
    with torch.inference_mode():
        expected, _ = prefill(model, ids[:, : read + 6])
        with autocast():
            _, state = prefill(model, ids[:, :read])
            for position in range(read, read + 6):
                logits, state = step(model, state, ids[:, position])
    assert distance(logits, expected.double()) < 2 * ROUNDING


@pytest.mark.parametrize("first", [False, True])
def test_a_state_goes_on_in_its_type(first: bool) -> None:
    stage = build([48, 4], dtype=torch.float32).stage_models[0]
    x = torch.randn(1, 3, 12)
    with torch.autocast("cpu", torch.bfloat16, enabled=first):
        _, state = stage.prefix(x)
    expected = r"expected to go on in torch\.\w+, in which the state was read, got torch\.\w+: read and go on under"
    with torch.autocast("cpu", torch.bfloat16, enabled=not first), pytest.raises(ValueError, match=expected):
        stage.step(x[:, 0], state)
