"""Checkpoints by themselves: what comes back from one, and that nothing of it stays on the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqa_bench.train import state
from vqa_bench.train.optimisation import MovingAverage
from vqa_bench.train.state import Best, LoopState, Trainee


def make_trainee(seed: int, *, steps: int, scale: float) -> Trainee:
    """A small model after so many steps, with an average and a scaler."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    average = MovingAverage(model, 0.5)
    for step in range(steps):
        model(torch.randn(5, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(model, step)
    return Trainee(model, optimizer, average, torch.amp.GradScaler("cpu", init_scale=scale))


def tensors_of(trainee: Trainee) -> dict[str, Tensor]:
    """Everything that a checkpoint is to bring back."""
    named = dict(trainee.model.named_parameters())
    assert trainee.average is not None
    found = {f"model {name}": parameter.detach() for name, parameter in named.items()}
    found |= {f"average {name}": tensor for name, tensor in trainee.average.state().items()}
    for name, parameter in named.items():
        if parameter.requires_grad:
            found |= {f"{key} {name}": value for key, value in trainee.optimizer.state[parameter].items()}
    return found


def test_everything_comes_back_in_memory_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient scaler's scale too; and nothing is a view of the file, which the next checkpoint removes."""
    before, after = make_trainee(0, steps=3, scale=8.0), make_trainee(1, steps=0, scale=2.0)
    told = LoopState(7, 1.5, [Best(6, -0.5), Best(4, -0.75)], 1, None, {"line": 6})
    state.save(tmp_path, before, told)
    loaded: list[dict[str, Any]] = []
    load = torch.load

    def spy(*args: Any, **options: Any) -> Any:
        loaded.append(load(*args, **options))
        return loaded[-1]

    monkeypatch.setattr(torch, "load", spy)
    found = state.newest(tmp_path)
    assert found is not None
    assert state.load(found, after) == told
    expected, got = tensors_of(before), tensors_of(after)
    assert got.keys() == expected.keys()
    assert len(got) == 4 + 3 + 3 * 3  # one of four is frozen: no average, no moments, no count of steps
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name]), name
    assert after.scaler is not None
    assert after.scaler.get_scale() == 8.0
    places = {tensor.untyped_storage().data_ptr() for tensor in _tensors_in(loaded)}
    assert len(places) >= len(got)
    for name, tensor in got.items():
        assert tensor.untyped_storage().data_ptr() not in places, name


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [tensor for part in parts for tensor in _tensors_in(part)]
