"""The shape of a byte model: what belongs to it, and that a configuration survives the way there and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_bench.config import MambaStageConfig, MBLMConfig, MBLMEncoderConfig, parse
from vqa_bench.errors import UserError
from vqa_bench.models.hierarchy import hierarchy_config
from vqa_bench.models.shape import as_config, check_shape, with_shape

STAGE = {"heads": 2, "head_dim": 6}


def test_settings_of_the_training_are_no_shape() -> None:
    cell = parse(
        MBLMConfig,
        {
            "hidden_dims": [16, 8],
            "seq_lens": [60, 12],
            "num_layers": [1, 1],
            "stages": [STAGE | {"dropout": 0.1}, {"kind": "mamba", "head_dim": 4, "dropout": 0.2, "kernel": "torch"}],
            "checkpoint_chunks": [2],
            "byte_init": "smooth",
        },
        "test",
    )
    weights = cell.model_copy(
        update={
            "stages": [cell.stages[0].model_copy(update={"dropout": 0.0}), MambaStageConfig(head_dim=4)],
            "checkpoint_chunks": None,
            "byte_init": "normal",
            "seq_lens": [90, 12],
        }
    )
    check_shape(cell, weights, source="weights")
    kept = with_shape(cell, weights)
    assert kept == cell.model_copy(update={"seq_lens": [90, 12], "byte_init": "normal"})
    swapped = weights.model_copy(update={"stages": weights.stages[::-1]})
    assert with_shape(cell, swapped).stages == swapped.stages
    masked = MBLMEncoderConfig(**weights.model_dump(exclude={"kind", "stages"}), stages=[cell.stages[0]] * 2)
    with pytest.raises(UserError, match="those of a masked one"):
        check_shape(cell, masked, source="weights")


TRANSFORMERS = st.fixed_dictionaries(
    {
        "heads": st.integers(1, 3),
        "head_dim": st.sampled_from([2, 4]),
        "rotary": st.booleans(),
        "positions": st.sampled_from(["fixed", "rope", None]),
        "ff_multiplier": st.integers(1, 3),
        "dropout": st.sampled_from([0.0, 0.25]),
    }
)
MAMBAS = st.fixed_dictionaries(
    {
        "kind": st.just("mamba"),
        "d_state": st.integers(1, 9),
        "d_conv": st.integers(2, 4),
        "expand": st.integers(1, 3),
        "dropout": st.sampled_from([0.0, 0.25]),
        "kernel": st.sampled_from(["auto", "torch"]),
    }
)


@given(st.lists(TRANSFORMERS | MAMBAS, min_size=1, max_size=3), st.booleans())
def test_a_configuration_comes_back(stages: list[dict[str, Any]], chunked: bool) -> None:
    N = len(stages)
    config = MBLMConfig(
        hidden_dims=[8] * N,
        seq_lens=[4] * N,
        num_layers=[1] * N,
        stages=stages,  # type: ignore[arg-type]
        checkpoint_chunks=[2] * (N - 1) if chunked else None,
    )
    assert as_config(hierarchy_config(config)) == config
