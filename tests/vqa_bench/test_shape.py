"""The shape of a byte model: what belongs to it, and that a configuration survives the way there and back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_bench.config import MambaStageConfig, MBLMConfig, MBLMEncoderConfig, parse
from vqa_bench.data.vocab import PAD, VOCAB_SIZE
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


def test_every_setting_of_a_stage_reaches_the_model() -> None:
    """Said one by one, as a way there and back would not notice two that are exchanged on both."""
    transformer = {"heads": 2, "head_dim": 6, "rotary": False, "positions": "rope", "ff_multiplier": 3, "dropout": 0.1}
    mamba = {"d_state": 5, "d_conv": 3, "expand": 4, "head_dim": 8, "dropout": 0.2, "positions": "fixed"}
    config = {"hidden_dims": [12, 16, 8], "seq_lens": [5, 4, 3], "num_layers": [1, 2, 3], "checkpoint_chunks": [2, 7]}
    stages = [transformer, {"kind": "mamba", "kernel": "torch"} | mamba, STAGE]
    model = hierarchy_config(parse(MBLMConfig, config | {"stages": stages}, "test"))
    assert (model.hidden_dims, model.seq_lens, model.num_layers) == ([12, 16, 8], [5, 4, 3], [1, 2, 3])
    assert model.train_checkpoint_chunks == [2, 7]
    assert (model.num_tokens, model.pad_token_id) == (VOCAB_SIZE, PAD)
    assert isinstance(model.block, list)
    first, second, last = (block.model_dump() for block in model.block)
    expected = {"attn_num_heads": 2, "attn_head_dims": 6, "attn_use_rot_embs": False, "pos_emb_type": "rope"}
    expected |= {"ff_multiplier": 3, "attn_dropout": 0.1, "ff_dropout": 0.1}
    assert {name: first[name] for name in expected} == expected
    expected = {"d_state": 5, "d_conv": 3, "expand": 4, "headdim": 8, "dropout": 0.2, "pos_emb_type": "fixed"}
    expected |= {"kernel": "torch"}
    assert {name: second[name] for name in expected} == expected
    assert (last["attn_dropout"], last["ff_dropout"], last["pos_emb_type"]) == (0.0, 0.0, "fixed")
