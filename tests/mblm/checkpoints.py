"""What the tests of checkpoints share: the reference's files, and how two models are compared."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mblm import MBLM

FIXTURES = Path(__file__).parent / "fixtures"
IDS = torch.arange(1, 15)[None] * 2
State = dict[str, Any]


def expected_of(name: str, version: str) -> State:
    return torch.load(FIXTURES / f"{name}-{version}.expected.pt", weights_only=True)


def logits(model: MBLM, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids, return_type="logits")


def assert_same_state(model: nn.Module, expected: nn.Module) -> None:
    ours, theirs = model.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype, name
        assert torch.equal(ours[name], value), name


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text
