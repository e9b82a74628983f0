"""The library on a GPU against itself on a CPU and against the plain forms; `pytest -m gpu` runs it.

float64 shows that the same is computed, whatever the device; float32 and autocast that what a GPU does otherwise (fused
kernels, attention in blocks, atomic sums) stays within its rounding.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mblm import MBLM, MBLMReturnType
from mblm.decode import prefill, step
from mblm.model.embedding import PatchEmbedding
from mblm.model.kernels import fused_ssd, resolve_kernel
from mblm.model.ssd import ssd
from tests.mblm.reference import assert_same_gradients, build, gradients, plain_loss_sum, plain_predictions, stages
from tests.mblm.test_mamba import position_by_position
from tests.mblm.test_mblm import random_ids

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
SHAPES = [("T", [24]), ("S", [24]), ("TT", [6, 4]), ("ST", [6, 4]), ("SS", [6, 4]), ("STT", [6, 4, 2])]
# As parts of the norm. TF32 is what Triton makes of float32; see benchmarks/gpu/kernels.py.
FLOAT32, TF32, BFLOAT16 = 1e-4, 5e-3, 2e-2


@pytest.fixture(autouse=True)
def full_products() -> Iterator[None]:
    """float32 products in float32, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def distance(found: Tensor, exact: Tensor) -> float:
    exact = exact.detach().double().cpu()
    return float((found.detach().double().cpu() - exact).norm() / exact.norm())


def weighted_ids(model: MBLM) -> tuple[Tensor, Tensor]:
    ids = random_ids(3, model.config.context - 1)
    torch.manual_seed(1)
    weights = torch.rand(ids.shape, dtype=torch.float64) * (torch.rand(ids.shape) < 0.3)
    weights[:, 0] = 0.5
    return ids, weights


@pytest.mark.parametrize(("letters", "seq_lens"), SHAPES)
def test_losses_and_gradients_are_those_of_the_plain_form(letters: str, seq_lens: list[int]) -> None:
    model = build(seq_lens, block=stages(letters))
    ids, weights = weighted_ids(model)
    expected = gradients(model, plain_loss_sum(model, ids, weights))
    there = copy.deepcopy(model).to(CUDA)
    found = gradients(there, there.loss_sums(ids.to(CUDA), weights.to(CUDA)).total)
    assert_same_gradients({name: gradient.cpu() for name, gradient in found.items()}, expected)


@pytest.mark.parametrize(("letters", "seq_lens"), SHAPES)
def test_predictions_in_float32(letters: str, seq_lens: list[int]) -> None:
    model = build(seq_lens, block=stages(letters))
    ids, _ = weighted_ids(model)
    there = copy.deepcopy(model).float().to(CUDA)
    limit = TF32 if "triton" in there.kernels() else FLOAT32
    with torch.no_grad():
        logits = there(ids.to(CUDA), MBLMReturnType.LOGITS)
        assert distance(logits[:, :-1], plain_predictions(model, ids)[:, 1:]) < limit


@pytest.mark.parametrize(("letters", "seq_lens"), SHAPES)
def test_gradients_in_autocast(letters: str, seq_lens: list[int]) -> None:
    model = build(seq_lens, block=stages(letters))
    ids, weights = weighted_ids(model)
    expected = gradients(model, plain_loss_sum(model, ids, weights))
    there = copy.deepcopy(model).float().to(CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        loss = there.loss_sums(ids.to(CUDA), weights.to(CUDA)).total
    found = gradients(there, loss)
    every = (torch.cat([side[name].flatten().double().cpu() for name in expected]) for side in (found, expected))
    assert distance(*every) < 2 * BFLOAT16  # narrow layers, where a rounding weighs more than at the suite's sizes


@pytest.mark.parametrize(("letters", "seq_lens"), SHAPES)
def test_a_shared_prefix(letters: str, seq_lens: list[int]) -> None:
    model = build(seq_lens, block=stages(letters))
    R = model.patch_bytes[0]
    prefix, suffixes = random_ids(2, 2 * R), random_ids(2, 3, 2 * R + 1, seed=2)
    weights = torch.rand(suffixes.shape, dtype=torch.float64)
    whole = torch.cat((prefix[:, None].expand(2, 3, -1), suffixes), dim=2).flatten(0, 1)
    padded = torch.nn.functional.pad(weights.flatten(0, 1), (2 * R, 0))
    expected = gradients(model, plain_loss_sum(model, whole, padded))
    there = copy.deepcopy(model).to(CUDA)
    found = gradients(there, there.shared_loss_sums(prefix.to(CUDA), suffixes.to(CUDA), weights.to(CUDA)).total)
    assert_same_gradients({name: gradient.cpu() for name, gradient in found.items()}, expected)


@pytest.mark.parametrize(("letters", "seq_lens"), SHAPES)
@torch.no_grad()
def test_decoding(letters: str, seq_lens: list[int]) -> None:
    model = build(seq_lens, block=stages(letters))
    ids = random_ids(2, model.config.context)
    there, there_ids = copy.deepcopy(model).to(CUDA), ids.to(CUDA)
    begin = 2 * model.patch_bytes[0] - 1
    logits, state = prefill(there, there_ids[:, :begin])
    found = [logits]
    for t in range(begin, ids.shape[1] - 1):
        logits, state = step(there, state, there_ids[:, t])
        found.append(logits)
    torch.testing.assert_close(torch.stack(found, dim=1).cpu(), plain_predictions(model, ids)[:, begin:])


def test_patches_by_table() -> None:
    torch.manual_seed(0)
    module = PatchEmbedding(40, 8, 4, 12, 32).double()
    ids = random_ids(300, 4)
    there = copy.deepcopy(module).to(CUDA)
    weight = torch.randn(300, 12, dtype=torch.float64)
    (module._post(module.embedding(ids)) * weight).sum().backward()
    (there.by_table(ids.to(CUDA)) * weight.to(CUDA)).sum().backward()
    for ours, right in zip(there.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), right.grad)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", ["torch", "triton"])
@pytest.mark.parametrize("length", [9, 256, 300])
@pytest.mark.parametrize("with_state", [False, True])
def test_the_recurrence(kind: torch.dtype, kernel: str, length: int, with_state: bool) -> None:
    """Ours and mamba-ssm's against the loop over positions: outputs, states and gradients."""
    if kernel == "triton":
        try:
            resolve_kernel("triton", CUDA)
        except RuntimeError as error:
            pytest.skip(str(error))
    torch.manual_seed(0)
    b, h, p, n = 2, 3, 64, 128
    x, B, C = (torch.randn(b, length, *shape, device=CUDA).to(kind) for shape in ((h, p), (n,), (n,)))
    dt, A, D = torch.rand(b, length, h, device=CUDA), -torch.rand(h, device=CUDA), torch.randn(h, device=CUDA)
    dt[:, length // 2 : length // 2 + 3] = 0  # as padding has it
    inputs = [x, dt, A, B, C, D] + ([torch.randn(b, h, p, n, device=CUDA)] if with_state else [])
    run = fused_ssd if kernel == "triton" else ssd
    ours = [tensor.detach().requires_grad_() for tensor in inputs]
    plain = [tensor.detach().double().requires_grad_() for tensor in inputs]
    nothing = torch.zeros(b, h, p, n, dtype=torch.float64, device=CUDA)
    found = run(*ours, *(() if with_state else (None,)))
    expected = position_by_position(*plain, *(() if with_state else (nothing,)))
    weights = [torch.randn_like(tensor) for tensor in found]
    got = torch.autograd.grad(found, ours, weights)
    wanted = torch.autograd.grad(expected, plain, [weight.double() for weight in weights])
    limit = BFLOAT16 if kind == torch.bfloat16 else TF32 if kernel == "triton" else FLOAT32
    for tensor, right in zip((*found, *got), (*expected, *wanted), strict=True):
        assert distance(tensor, right) < limit
