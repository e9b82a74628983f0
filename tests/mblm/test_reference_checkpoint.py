"""Checkpoints of the reference: real files of two versions give its numbers, in every form they come in."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from mblm import MBLMModelConfig
from mblm.checkpoint import CheckpointError, load_reference
from tests.mblm.checkpoints import FIXTURES, IDS, assert_same_state, expected_of, logits, one_line
from tests.mblm.reference import build

VERSIONS = ("0.4.0", "0.4.2")
MAMBA = {"d_state": 4, "d_conv": 2, "expand": 2, "headdim": 4}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["tt", "ttt-rope"])
def test_reference_checkpoint_gives_its_numbers(name: str, version: str) -> None:
    expected = expected_of(name, version)
    model = load_reference(FIXTURES / f"{name}-{version}.pth", expected["config"])
    assert not model.training
    for part in ("full", "part"):
        torch.testing.assert_close(
            logits(model, expected[f"{part}.ids"]), expected[f"{part}.logits"], rtol=1e-5, atol=1e-5
        )
    ids = expected["prompt"]
    while len(ids) < len(expected["greedy"]):
        ids = torch.cat((ids, logits(model, ids[None])[:, -1].argmax(-1)))
    assert ids.tolist() == expected["greedy"].tolist()


def test_both_namings_are_in_the_fixtures() -> None:
    names = [set(torch.load(FIXTURES / f"tt-{version}.pth", weights_only=True)["MODEL"]) for version in VERSIONS]
    assert "token_embs_rev.1.0.weight" in names[0]
    assert "token_embs_rev.1.embedding.weight" in names[1]


@pytest.mark.parametrize("form", ["object", "yaml", "json", "run"])
def test_reference_configuration_comes_in_many_forms(form: str, tmp_path: Path) -> None:
    expected = expected_of("tt", "0.4.2")
    data = expected["config"]
    path = tmp_path / "config"
    run = {"io": {"name": "x"}, "params": {**data, "input_seq_len": 24}}
    path.write_text(json.dumps(data) if form == "json" else yaml.safe_dump(run if form == "run" else data))
    config = MBLMModelConfig.model_validate(data) if form == "object" else str(path)
    model = load_reference(FIXTURES / "tt-0.4.2.pth", config)
    torch.testing.assert_close(logits(model, expected["full.ids"]), expected["full.logits"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapped_and_bare_state_dicts(prefix: str, version: str, tmp_path: Path) -> None:
    plain, config = FIXTURES / f"ttt-rope-{version}.pth", expected_of("ttt-rope", version)["config"]
    state = torch.load(plain, weights_only=True)["MODEL"]
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "bare.pth")
    assert_same_state(load_reference(tmp_path / "bare.pth", config), load_reference(plain, config))
    compiled = {name.replace("stage_models.0.", "stage_models.0._orig_mod."): value for name, value in state.items()}
    torch.save({"MODEL": compiled, "LOSS": 0.5}, tmp_path / "compiled.pth")
    assert_same_state(load_reference(tmp_path / "compiled.pth", config), load_reference(plain, config))


@pytest.mark.parametrize("version", VERSIONS)
def test_mamba_1_is_named(version: str) -> None:
    data = expected_of("tt", version)["config"]
    for first in (MAMBA, data["block"]):
        config = {**data, "num_tokens": 40, "block": [first, data["block"]]}
        with pytest.raises(CheckpointError, match=r"stage 1 \(from 1\) was saved as Mamba-1") as error:
            load_reference(FIXTURES / f"st-mamba1-{version}.pth", config)
        assert "stage_models.0.layers.0.mixer.x_proj.weight" in one_line(error)
    with pytest.raises(CheckpointError, match="got 'mamba1'") as error:  # what its own configuration says of it
        load_reference(FIXTURES / f"st-mamba1-{version}.pth", {**config, "block": {**MAMBA, "block_type": "mamba1"}})
    one_line(error)


def test_a_file_that_is_no_reference_checkpoint(tmp_path: Path) -> None:
    config, path = expected_of("tt", "0.4.2")["config"], tmp_path / "model.pth"
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_reference(path, config)
    for content in (b"", b"text", (FIXTURES / "tt-0.4.2.pth").read_bytes()[:4000]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="expected a pickled state dict") as error:
            load_reference(path, config)
        one_line(error)
    state = build([6, 4], dtype=torch.float32).state_dict()
    for value in (build, {"MODEL": [1, 2]}, {"weight": 1.0}, torch.zeros(3), {**state, "module.to_logits.bias": IDS}):
        torch.save(value, path)
        with pytest.raises(CheckpointError, match="expected") as error:
            load_reference(path, config)
        one_line(error)


def test_a_reference_configuration_that_is_none(tmp_path: Path) -> None:
    weights, path = FIXTURES / "tt-0.4.2.pth", tmp_path / "config.yaml"
    with pytest.raises(FileNotFoundError, match="YAML or JSON file"):
        load_reference(weights, path)
    for text, wanted in (("- 1", "got a list"), ("a: [", "expected YAML"), ("num_tokens: 4", "hidden_dims: Field req")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=re.escape(wanted)) as error:
            load_reference(weights, path)
        assert str(path) in one_line(error)
