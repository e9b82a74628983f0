"""Any part of a model may be frozen: the gradients of the rest stay the same, also the hand-written ones."""

import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mblm import MBLM
from mblm.model import embedding, fused, short, transformer
from tests.mblm.reference import assert_same_gradients, build, gradients, stages

CASES = {"TS": [6, 4], "STT": [5, 3, 2]}


@pytest.fixture(params=["as it is", "quick paths always"])
def paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small inputs take plain paths; the second time they take the ones for large inputs."""
    if request.param == "quick paths always":
        monkeypatch.setattr(fused, "FEW", 0)
        monkeypatch.setattr(short, "MANY", 1)
        monkeypatch.setattr(transformer, "FEW_POSITIONS", 0)
        monkeypatch.setattr(embedding, "TABLE_PAYS_FROM", 0)


def both_losses(model: MBLM) -> Tensor:
    """The loss of separate sequences and that of a shared prefix, every position with a weight of its own."""
    generator = torch.Generator().manual_seed(1)
    B, K, R = 3, 2, model.patch_bytes[0]
    prefix = torch.randint(32, (B, 3 * R), generator=generator)
    suffixes = torch.randint(32, (B, K, 2 * R), generator=generator)
    weights = torch.rand(B, K, 5 * R, dtype=torch.float64, generator=generator)
    shared = model.shared_loss_sums(prefix, suffixes, weights[..., 3 * R :], weights[..., : 3 * R])
    return shared.total + model.loss_sums(suffixes.flatten(0, 1), weights[..., 3 * R :].flatten(0, 1)).total


def some_frozen(names: list[str]) -> Iterator[set[str]]:
    """A stage, byte tables, the head and norms, each alone and everything but it; and random halves."""
    for part in ("stage_models.0.", "token_embs_rev.", "to_logits.", "norm"):
        fits = {name for name in names if part in name}
        yield fits
        yield set(names) - fits
    rng = random.Random(0)
    yield from ({name for name in names if rng.random() < 0.5} for _ in range(2))


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("letters", CASES)
def test_gradients_of_the_rest_are_the_same(letters: str) -> None:
    chunks = [2, 2] if letters == "STT" else None
    model = build(CASES[letters], block=stages(letters), train_checkpoint_chunks=chunks).train()
    expected = gradients(model, both_losses(model))
    for frozen in some_frozen(list(expected)):
        assert 0 < len(frozen) < len(expected)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        found = gradients(model, both_losses(model))
        assert all(p.grad is None for n, p in model.named_parameters() if n in frozen)
        assert_same_gradients(
            {name: found[name] for name in found if name not in frozen},
            {name: expected[name] for name in expected if name not in frozen},
        )
