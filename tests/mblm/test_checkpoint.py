"""Checkpoints: round trips, killed saves, files that must be refused, and the hub."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from mblm import MBLMModelConfig, StageBlock, block_registry
from mblm import checkpoint as module
from mblm.checkpoint import CheckpointError, from_pretrained, save_pretrained
from mblm.model.config import MBLMEncoderModelConfig
from mblm.model.encoder import MBLMEncoder
from tests.mblm.checkpoints import IDS, State, assert_same_state, logits, one_line
from tests.mblm.reference import build, stages

MAMBA = {"d_state": 4, "d_conv": 2, "expand": 2, "headdim": 4}


class TiedBlock(StageBlock):
    """A custom block: a causal cumulative mean between two projections of the same weight, with a step counter."""

    scale: float
    block_type: str = "tied"

    def to_model(self, model_dim: int, num_layers: int) -> nn.Module:
        return TiedStage(model_dim, self.scale)


class TiedStage(nn.Module):
    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.widen, self.narrow, self.scale = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), scale
        self.narrow.weight = self.widen.weight
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return self.narrow(self.scale * self.widen(x).cumsum(1) / counts)


@pytest.fixture
def registered() -> Iterator[None]:
    """TiedBlock known to the registry, for one test."""
    before = list(block_registry._blocks)
    block_registry.register(TiedBlock)
    yield
    block_registry._blocks[:] = before


# -- round trips ------------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    seq_lens=st.lists(st.integers(2, 4), min_size=1, max_size=3),
    pos_emb_type=st.sampled_from(["fixed", "rope", None]),
    attn_use_rot_embs=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_round_trip_is_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, seq_lens: list[int], dtype: torch.dtype, **block: Any
) -> None:
    model = build([*seq_lens], dtype=dtype, **block)
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = from_pretrained(folder)
    assert loaded.config == model.config
    assert not loaded.training
    assert_same_state(loaded, model)
    ids = IDS[:, : seq_lens[0]]
    assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_round_trip_of_a_state_space_stage(tmp_path: Path) -> None:
    transformer = {"attn_head_dims": 6, "attn_num_heads": 2, "attn_use_rot_embs": True}
    model = build([6, 4], dtype=torch.float32, block=[MAMBA, transformer])
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert_same_state(loaded, model)
    assert torch.equal(logits(loaded), logits(model))


def test_round_trip_of_mixed_precision(tmp_path: Path) -> None:
    model = build([6, 4], dtype=torch.float32)
    model.stage_models[1].to(torch.bfloat16)
    save_pretrained(model, tmp_path)
    assert_same_state(from_pretrained(tmp_path), model)
    assert {value.dtype for value in from_pretrained(tmp_path, dtype=torch.float64).parameters()} == {torch.float64}
    with pytest.raises(ValueError, match=r"expected a floating-point type .* got torch.int64"):
        from_pretrained(tmp_path, dtype=torch.int64)


@pytest.mark.usefixtures("registered")
def test_round_trip_of_a_custom_block_with_tied_weights(tmp_path: Path) -> None:
    model = build([6, 4], dtype=torch.float32, block=TiedBlock(scale=0.5, pos_emb_type="rope"))
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path)
    assert_same_state(loaded, model)
    assert isinstance(loaded.config.block, TiedBlock)
    assert loaded.stage_models[0].narrow.weight is loaded.stage_models[0].widen.weight
    assert torch.equal(logits(loaded), logits(model))


def test_an_unknown_block_says_what_to_do(tmp_path: Path) -> None:
    save_pretrained(build([6, 4], dtype=torch.float32, block=TiedBlock(scale=0.5)), tmp_path)
    with pytest.raises(CheckpointError, match=r"fits none of the registered blocks .* import the module") as error:
        from_pretrained(tmp_path)
    assert "'scale': 0.5" in one_line(error)


def test_round_trip_of_the_masked_model(tmp_path: Path) -> None:
    block = {"attn_head_dims": 6, "attn_num_heads": 2, "attn_use_rot_embs": True, "block_type": "transformerEncoder"}
    hierarchy = {"hidden_dims": [12, 8], "seq_lens": [6, 4], "num_layers": [1, 1], "block": block}
    model = MBLMEncoder(
        MBLMEncoderModelConfig(mask_token_id=1, mblm_config={"num_tokens": 20, "pad_token_id": 0, **hierarchy})
    )
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path, architecture=MBLMEncoder)
    assert isinstance(loaded, MBLMEncoder)
    assert_same_state(loaded, model)
    grown = from_pretrained(tmp_path, architecture=MBLMEncoder, num_tokens=24, pad_token_id=23)
    assert grown.to_logits.weight.shape == (24, 8)
    assert torch.equal(grown.token_embs_rev[1].embedding.weight[:20], model.token_embs_rev[1].embedding.weight)
    with pytest.raises(CheckpointError, match="expected a checkpoint of MBLM, got MBLMEncoder: pass `architecture"):
        from_pretrained(tmp_path)


def test_metadata_and_configuration_are_plain(tmp_path: Path) -> None:
    model = build([6, 4], dtype=torch.float32)
    save_pretrained(model, tmp_path / "deep" / "er")
    with safe_open(tmp_path / "deep" / "er" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(model.state_dict())
    data = json.loads((tmp_path / "deep" / "er" / "config.json").read_text())
    assert data.pop("architecture") == "MBLM"
    assert MBLMModelConfig.model_validate(data) == model.config


def test_saving_through_a_link_and_what_cannot_be_saved(tmp_path: Path) -> None:
    model = build([6, 4], dtype=torch.float32)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_pretrained(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same_state(from_pretrained(str(tmp_path / "link")), model)
    assert_same_state(from_pretrained(tmp_path / "real"), model)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="got the file"):
        save_pretrained(model, tmp_path / "file")
    with pytest.raises(ValueError, match="expected one of MBLM, MBLMEncoder, got DataParallel"):
        save_pretrained(nn.DataParallel(model), tmp_path / "wrapped")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.parametrize("seq_lens", [[6, 4], [5, 4]])
def test_a_killed_save_never_leaves_a_mixed_pair(
    seq_lens: list[int], steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without positions in the shapes, so that a wrong configuration would fit: only the order of steps protects."""
    old = build([6, 4], dtype=torch.float32, pos_emb_type=None)
    new = build(seq_lens, seed=1, dtype=torch.float32, pos_emb_type=None)
    save_pretrained(old, tmp_path)
    done = []

    def killing(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if len(done) == steps:
                raise KeyboardInterrupt
            done.append(step)
            return step(*args, **kwargs)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", killing(module.save_file))
        patch.setattr(Path, "write_bytes", killing(Path.write_bytes))
        patch.setattr(os, "replace", killing(os.replace))
        with pytest.raises(KeyboardInterrupt):
            save_pretrained(new, tmp_path)
    if seq_lens != [6, 4] and steps >= 2:
        with pytest.raises(FileNotFoundError, match=r"got no config.json: .* interrupted"):
            from_pretrained(tmp_path)
    else:
        left = from_pretrained(tmp_path)
        assert_same_state(left, new if steps == 3 else old)
        assert left.config == old.config
    (tmp_path / "model.safetensors.partial").write_bytes(b"what a kill leaves behind")
    save_pretrained(new, tmp_path)
    assert_same_state(from_pretrained(tmp_path), new)
    assert from_pretrained(tmp_path).config == new.config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# -- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{", "expected JSON"),
        ("[1]", "expected `architecture` to be one of MBLM, MBLMEncoder, got None"),
        ('{"architecture": "GPT"}', "got 'GPT'"),
        ('{"architecture": ["MBLM"]}', "got ['MBLM']"),
        ('{"architecture": "MBLM", "num_tokens": 4}', "hidden_dims: Field required"),
    ],
)
def test_configurations_that_are_none(text: str, wanted: str, tmp_path: Path) -> None:
    save_pretrained(build([6, 4], dtype=torch.float32), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=re.escape(wanted)) as error:
        from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in one_line(error)


def test_files_that_are_missing_or_cut(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected config.json and model.safetensors .* got no config.json"):
        from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a folder .* or a hub id"):
        from_pretrained(tmp_path / "absent")
    save_pretrained(build([6, 4], dtype=torch.float32), tmp_path)
    with pytest.raises(ValueError, match=r"revision: .* is a local folder"):
        from_pretrained(tmp_path, revision="main")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="expected safetensors") as error:
        from_pretrained(tmp_path)
    one_line(error)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"got no model\.safetensors"):
        from_pretrained(tmp_path)


# -- the hub ----------------------------------------------------------------------------------------------------------


def test_hub_ids_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build([6, 4], dtype=torch.float32)
    save_pretrained(model, tmp_path)
    asked: list[tuple[str, State]] = []

    def fetch(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    loaded = from_pretrained("some-owner/a.model_1", revision="v2", cache_dir=tmp_path / "c", local_files_only=True)
    assert_same_state(loaded, model)
    from_pretrained("some-owner/a.model_1")
    files = {"allow_patterns": ["config.json", "model.safetensors"]}
    assert asked == [
        ("some-owner/a.model_1", {"revision": "v2", "cache_dir": tmp_path / "c", "local_files_only": True, **files}),
        ("some-owner/a.model_1", {"revision": None, "cache_dir": None, "local_files_only": False, **files}),
    ]
    for path in ("/absent/model", "./owner/name", "name", "a/b/c", "owner/name/"):
        with pytest.raises(FileNotFoundError, match="or a hub id"):
            from_pretrained(path)
    with pytest.raises(FileNotFoundError, match="or a hub id"):
        from_pretrained(Path("owner/name"))
    assert len(asked) == 2


def test_a_local_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    model = build([6, 4], dtype=torch.float32)
    save_pretrained(model, "owner/name")
    assert_same_state(from_pretrained("owner/name"), model)


def test_errors_of_the_hub_become_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, told to stay offline, and an error of many lines."""
    wanted = "looked for config.json and model.safetensors of owner/name at revision v2 in the local hub cache"
    with pytest.raises(FileNotFoundError, match=wanted) as error:
        from_pretrained("owner/name", revision="v2", cache_dir=tmp_path, local_files_only=True)
    assert isinstance(error.value.__cause__, OSError)
    one_line(error)

    original = ConnectionError("no route\nto the host")

    def fail(*_: Any, **__: Any) -> str:
        raise original

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(FileNotFoundError, match=r"in the hub, .* got ConnectionError: no route: check") as error:
        from_pretrained("owner/name")
    assert error.value.__cause__ is original
    one_line(error)


def test_a_missing_hub_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=re.escape("pip install 'vqa-bench[hub]'")) as error:
        from_pretrained("owner/name")
    one_line(error)


def test_compiled_stages_are_saved_as_the_stages(tmp_path: Path) -> None:
    model = build([5, 4], block=stages("ST"))
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    model.stage_models[0] = torch.compile(model.stage_models[0], backend="eager")
    assert model.kernels() == ["torch", None]
    save_pretrained(model, tmp_path)
    loaded = from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_a_block_is_loaded_as_the_class_that_its_type_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_registry, "_blocks", list(block_registry._blocks))

    class First(StageBlock):
        block_type: str = "first"

        def to_model(self, model_dim: int, num_layers: int) -> nn.Module:
            return nn.Identity()

    class Second(First):
        block_type: str = "second"

        def to_model(self, model_dim: int, num_layers: int) -> nn.Module:
            return nn.Tanh()

    block_registry.register(First)
    block_registry.register(Second)
    model = build([5, 4], block=[Second(), First()])
    save_pretrained(model, tmp_path)
    assert [type(stage) for stage in from_pretrained(tmp_path).stage_models] == [nn.Tanh, nn.Identity]
