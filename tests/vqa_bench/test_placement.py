"""How a model runs: compiled layers give the same loss and gradients, whatever the batch's shape."""

import warnings
from typing import Any

import pytest
import torch

from tests.vqa_bench.cells import BYTE_MODEL, make_cell, make_model, make_shard
from vqa_bench.data.loading import evaluation_groups
from vqa_bench.models import compile_layers, kernels_of

MAMBA = {"kind": "mamba", "d_state": 8, "head_dim": 8}
SIZES = (3, 2, 4)  # images in a batch


@pytest.mark.slow
@pytest.mark.parametrize("stages", [BYTE_MODEL["stages"], [MAMBA, BYTE_MODEL["stages"][1]]], ids=["T/T", "S/T"])
def test_compiled_layers_are_the_same_model(tmp_path: Any, stages: list[dict[str, Any]]) -> None:
    shard = make_shard(tmp_path)
    cell = make_cell(BYTE_MODEL | {"stages": stages})
    plain, compiled = make_model(cell, shard).train(), make_model(cell, shard).train()
    torch._dynamo.reset()
    compile_layers(compiled, backend="aot_eager")
    groups = evaluation_groups(shard.split("train"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        for size in SIZES:
            batch = plain.collate(shard.split("train"), groups[:size])
            expected, found = plain(batch), compiled(batch)
            torch.testing.assert_close(found.total, expected.total)
            expected.total.backward()
            found.total.backward()
    for (name, one), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
    assert list(compiled.state_dict()) == list(plain.state_dict())  # checkpoints have the same names


def test_kernels_are_named_by_stage(tmp_path: Any) -> None:
    shard = make_shard(tmp_path)
    mixed = BYTE_MODEL | {"stages": [MAMBA, BYTE_MODEL["stages"][1]]}
    assert kernels_of(make_model(make_cell(mixed), shard)) == ["torch", None]
    assert kernels_of(make_model(make_cell("cnn_lstm"), shard)) is None
