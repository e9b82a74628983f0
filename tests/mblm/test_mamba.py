"""The Mamba-2 stage: the chunked recurrence against a loop over positions, its states, golden vectors."""

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from mblm import MambaBlock
from mblm.model import ssd
from mblm.model.fused import causal_conv, gated_norm
from mblm.model.mamba import Mamba2Mixer, MambaStage
from mblm.model.ssd import ssd_step
from tests.mblm.reference import MAMBA, build, stages
from tests.mblm.test_mblm import random_ids

b, h, p, n = 2, 3, 4, 5


def block(**changes: object) -> MambaBlock:
    return MambaBlock.model_validate(MAMBA | changes)


def random_inputs(length: int, *, seed: int = 0) -> list[Tensor]:
    """x, dt, A, B, C, D and a state, float64."""
    torch.manual_seed(seed)
    tensors = [
        torch.randn(b, length, h, p),
        torch.rand(b, length, h),
        -3 * torch.rand(h),
        torch.randn(b, length, n),
        torch.randn(b, length, n),
        torch.randn(h),
        torch.randn(b, h, p, n),
    ]
    return [tensor.double().requires_grad_() for tensor in tensors]


def position_by_position(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor):
    """The recurrence as it is defined."""
    outputs = []
    for t in range(x.shape[1]):
        inflow = torch.einsum("bh,bhp,bn->bhpn", dt[:, t], x[:, t], B[:, t])
        state = state * torch.exp(dt[:, t] * A)[..., None, None] + inflow
        outputs.append(torch.einsum("bhpn,bn->bhp", state, C[:, t]) + D[:, None] * x[:, t])
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize("span", [2**24, 1], ids=["together", "chunk by chunk"])
@pytest.mark.parametrize(("length", "chunk"), [(1, 8), (7, 8), (8, 8), (9, 8), (37, 8), (32, 16), (5, 64)])
def test_chunks_are_the_recurrence(monkeypatch: pytest.MonkeyPatch, length: int, chunk: int, span: int) -> None:
    monkeypatch.setattr(ssd, "SPAN", span)
    inputs = random_inputs(length)
    y, state = ssd.ssd(*inputs, chunk=chunk)
    expected, expected_state = position_by_position(*inputs)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)
    weights = torch.randn_like(y), torch.randn_like(state)
    found = torch.autograd.grad((y * weights[0]).sum() + (state * weights[1]).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights[0]).sum() + (expected_state * weights[1]).sum(), inputs)
    for gradient, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-10, atol=1e-10)


def test_one_position_at_a_time_and_no_state_before() -> None:
    x, dt, A, B, C, D, _ = (tensor.detach() for tensor in random_inputs(6))
    expected, after = ssd.ssd(x, dt, A, B, C, D)
    state = x.new_zeros(b, h, p, n)
    for t in range(6):
        y, state = ssd_step(x[:, t], dt[:, t], A, B[:, t], C[:, t], D, state)
        torch.testing.assert_close(y, expected[:, t])
    torch.testing.assert_close(state, after)


@pytest.mark.parametrize(("length", "span"), [(5, 2**24), (11, 2**24), (11, 1)])
def test_no_state_behind(monkeypatch: pytest.MonkeyPatch, length: int, span: int) -> None:
    monkeypatch.setattr(ssd, "SPAN", span)
    inputs = random_inputs(length)
    for state in (None, inputs[-1]):
        given = inputs if state is not None else inputs[:-1]
        weights = torch.randn_like(inputs[0])
        expected, _ = ssd.ssd(*given, chunk=5)
        y, after = ssd.ssd(*given, chunk=5, keep=False)
        assert (after is None) == (state is None and length == 5)
        torch.testing.assert_close(y, expected)
        gradients = [torch.autograd.grad((out * weights).sum(), given) for out in (y, expected)]
        torch.testing.assert_close(*gradients)


def test_long_decays_neither_overflow_nor_lose_the_near_past() -> None:
    """A step of 30 forgets everything in one chunk: exp(-30 · 64) is zero, its inverse would be infinite."""
    x, dt, _, B, C, D, _ = (tensor.detach().float() for tensor in random_inputs(200))
    A = torch.full((h,), -30.0)
    inputs = [tensor.requires_grad_() for tensor in (x, dt, A, B, C, D)]
    y, _ = ssd.ssd(*inputs)
    doubled = [tensor.detach().double() for tensor in inputs]
    expected, _ = position_by_position(*doubled, torch.zeros(b, h, p, n, dtype=torch.float64))
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.square().sum(), inputs))


def test_bfloat16_keeps_the_decays_in_float32() -> None:
    inputs = [tensor.detach().float() for tensor in random_inputs(300)[:6]]
    inputs[2] = inputs[2] / 100  # slow decays: a sum of 300 of them is where bfloat16 would lose its digits
    exact, state = ssd.ssd(*inputs)
    x, dt, A, B, C, D = inputs
    y, rough = ssd.ssd(x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16(), D)
    assert (y.dtype, rough.dtype) == (torch.bfloat16, torch.float32)
    assert (rough - state).norm() / state.norm() < 0.01
    assert (y - exact).norm() / exact.norm() < 0.01


@pytest.mark.parametrize("lead", [0, 2])
def test_gradients_of_convolution_and_gated_norm(lead: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5 + lead, 4, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (4,)))
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=2, groups=4)
    expected = torch.nn.functional.silu(expected.transpose(1, 2)[:, lead : 5 + lead])
    torch.testing.assert_close(causal_conv(x, weight, bias, lead), expected)
    assert torch.autograd.gradcheck(lambda *inputs: causal_conv(*inputs, lead), (x, weight, bias))
    gate = torch.randn_like(x, requires_grad=True)
    gated = x * torch.nn.functional.silu(gate)
    torch.testing.assert_close(gated_norm(x, gate, 1e-5), torch.nn.functional.rms_norm(gated, (4,), eps=1e-5))
    assert torch.autograd.gradcheck(lambda y, z: gated_norm(y, z, 1e-5), (x, gate))


def test_a_convolution_longer_than_its_input() -> None:
    stage = block(d_conv=6).to_model(8, 1).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    y, state = stage.prefix(x[:, :2])
    for t in range(2, 9):
        more, state = stage.step(x[:, t], state)
        y = torch.cat((y, more[:, None]), dim=1)
    torch.testing.assert_close(y, stage(x))


def test_initialisation_is_that_of_mamba_ssm() -> None:
    torch.manual_seed(0)
    stage = block(headdim=1, expand=8).to_model(64, 4)
    mixers = [layer.mixer for layer in stage.layers]
    dt = torch.nn.functional.softplus(torch.cat([mixer.dt_bias for mixer in mixers]))
    assert dt.min() >= 1e-3 * 0.999
    assert dt.max() <= 1e-1 * 1.001
    assert abs(dt.log().mean() - math.log(1e-2)) < 0.1  # uniform in the logarithm
    A = torch.cat([mixer.A_log for mixer in mixers]).exp()
    assert A.min() >= 1
    assert A.max() <= 16
    assert abs(A.mean() - 8.5) < 0.3
    for mixer in mixers:
        assert (mixer.D == 1).all()
        assert (mixer.norm.weight == 1).all()
        bound = 1 / math.sqrt(mixer.out_proj.in_features) / math.sqrt(4)  # kaiming-uniform, over √layers
        assert 0.98 * bound < mixer.out_proj.weight.abs().max() <= bound
        assert mixer.in_proj.weight.abs().max() > 0.98 / math.sqrt(64)
        assert mixer.in_proj.bias is None


def test_parameter_names_are_those_of_checkpoints() -> None:
    names = {name for name, _ in block().to_model(8, 1).named_parameters()}
    mixer = (
        "in_proj.weight",
        "conv1d.weight",
        "conv1d.bias",
        "dt_bias",
        "A_log",
        "D",
        "norm.weight",
        "out_proj.weight",
    )
    assert names == {"layers.0.norm.weight", "norm_f.weight", *(f"layers.0.mixer.{name}" for name in mixer)}


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    stage, x = block(dropout=0.5).to_model(8, 2), torch.randn(1, 4, 8)
    assert not torch.equal(stage(x), stage(x))
    stage.eval()
    assert torch.equal(stage(x), stage(x))


def test_bad_blocks_say_what_was_expected() -> None:
    with pytest.raises(ValidationError, match="got 'mamba1': that is the model the reference falls back to"):
        block(block_type="mamba1")
    with pytest.raises(ValidationError, match="expected 'mamba2', got 'mamba3'"):
        block(block_type="mamba3")
    with pytest.raises(ValueError, match="divisor of expand·width = 16, got 5"):
        block(headdim=5).to_model(8, 1)


@pytest.mark.parametrize("letters", ["SS", "ST"])
def test_the_state_has_one_size_however_much_was_read(letters: str) -> None:
    model = build([50, 4], block=stages(letters))
    sizes = set()
    for patches in (1, 9, 40):
        x = model.with_start(0, model.embed(0, random_ids(1, 4 * patches).view(1, -1, 4)))
        _, state = model.stage_models[0].prefix(x)
        sizes.add(tuple((layer.conv.shape, layer.ssm.shape) for layer in state.layers))
    assert len(sizes) == 1


@pytest.mark.parametrize("name", ["mamba2_mixer", "mamba2_stage"])
def test_golden_vectors(golden: Path | None, name: str) -> None:
    if golden is None:
        pytest.skip("reference outputs are not at hand; the recurrence is tested above")
    tensors = load_file(golden / f"{name}.safetensors")
    config = json.loads((golden / f"{name}.json").read_text())
    dim = config["d_model"]
    made = block(**{key: config[key] for key in ("d_state", "d_conv", "expand", "headdim")})
    module: Mamba2Mixer | MambaStage = (
        Mamba2Mixer(dim, made) if name == "mamba2_mixer" else made.to_model(dim, config["n_layers"])
    )
    module.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("state.")})
    x = tensors["x"].requires_grad_()
    y = module(x, torch.ones(dim))[0] if isinstance(module, Mamba2Mixer) else module(x)
    torch.testing.assert_close(y, tensors["y"], rtol=0, atol=1e-4)
    y.backward(tensors["grad_out"])
    gradients = {key[5:]: value for key, value in tensors.items() if key.startswith("grad_") and key != "grad_out"}
    for key, expected in gradients.items():
        found = x.grad if key == "x" else module.get_parameter(key).grad
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_inside_autocast_are_as_exact() -> None:
    inputs = [tensor.detach().float().requires_grad_() for tensor in random_inputs(9)]
    y, state = ssd.ssd(*inputs, chunk=4)
    weights = torch.randn_like(y)
    expected = torch.autograd.grad((y * weights).sum() + state.sum(), inputs, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad((y * weights).sum() + state.sum(), inputs)
    for gradient, right in zip(found, expected, strict=True):
        assert torch.equal(gradient, right)
