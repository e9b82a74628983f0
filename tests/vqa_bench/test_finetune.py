"""The command `finetune`: a cell takes the shape of the weights, begins from them, and trains what is not frozen."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mblm.checkpoint import load_reference
from tests.mblm.checkpoints import FIXTURES, expected_of, one_line
from tests.vqa_bench.cells import BYTE_MODEL, PIXELS, TRAIN, make_cell
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from tests.vqa_bench.test_cli import fails
from vqa_bench.cli import main
from vqa_bench.cli.finetune import finetune_cell
from vqa_bench.config import MBLMConfig
from vqa_bench.errors import UserError
from vqa_bench.runs import load_model

SOURCE = FIXTURES / "tt-0.4.2.pth"


@pytest.fixture(scope="module")
def clevr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clevr_folder(tmp_path_factory.mktemp("finetune") / "clevr", {"train": 16, "val": 6})


@pytest.fixture(scope="module")
def reference_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reference's fixture was trained with."""
    path = tmp_path_factory.mktemp("reference") / "run.yaml"
    path.write_text(yaml.safe_dump(expected_of("tt", "0.4.2")["config"]))
    return path


def command(folder: Path, clevr: Path, cell: str = "bytes") -> list[str]:
    """`finetune` of a cell without the weights; the cells' data set is all they share with these."""
    cells = [
        {"name": "bytes", "title": "MBLM", "encoding": PIXELS, "model": BYTE_MODEL, "train": TRAIN},
        {"name": "blind", "title": "LSTM", "model": {"kind": "lstm"}, "train": TRAIN},
    ]
    config = {"name": "test", "data": {"folder": str(clevr), "dev_fraction": 0.1}, "cells": cells}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    folders = ["--out", str(folder / "runs"), "--data", str(folder / "data"), "--workers", "1"]
    return ["finetune", str(path), cell, *folders]


def test_a_reference_checkpoint_is_fine_tuned(
    tmp_path: Path, clevr: Path, reference_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = command(tmp_path, clevr)
    whole += ["--from", str(SOURCE), "--reference-config", str(reference_config), "--patches", "100"]
    whole += ["--steps", "3", "--learning-rate", "1e-2", "--freeze", "stage_models.0.*", "start_tokens.*"]
    assert main(whole) == 0
    run = tmp_path / "runs" / "bytes-from-tt-0.4.2"
    result = json.loads((run / "result.json").read_text())
    assert result["init"] == "pretrained"
    assert result["title"] == "MBLM, from tt-0.4.2"
    assert result["initial"]["source"] == str(SOURCE)
    assert any("256 ids grown to 264" in note for note in result["initial"]["notes"])
    assert any("the other 94 rows" in note for note in result["initial"]["notes"])
    assert (result["train"]["steps"], result["train"]["learning_rate"]) == (3, 1e-2)

    model = load_model(run)
    assert model.cell.model.model_dump()["seq_lens"] == [100, 4]
    trained = model.state_dict()
    for name, value in load_reference(SOURCE, reference_config).state_dict().items():
        same = torch.equal(trained[f"mblm.{name}"][: len(value)], value)
        frozen = name.startswith(("stage_models.0.", "start_tokens."))
        assert same == (frozen or name.endswith("inv_freq")), name

    capsys.readouterr()
    assert main(whole) == 0
    assert "finished before, kept" in capsys.readouterr().err
    again = [*command(tmp_path, clevr), "--from", str(run), "--steps", "1", "--name", "again"]
    assert main(again) == 0
    second = json.loads((tmp_path / "runs" / "again" / "result.json").read_text())
    assert second["initial"]["notes"] == []
    weights = load_file(tmp_path / "runs" / "again" / "model.safetensors")
    assert {name: value.shape for name, value in weights.items()} == {n: v.shape for n, v in trained.items()}


def test_mistakes_are_one_line_before_anything_trains(
    tmp_path: Path, clevr: Path, reference_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--from", SOURCE, "--reference-config", reference_config]
    bytes_ = command(tmp_path, clevr)
    assert "at most 24 bytes (the model's context)" in fails(capsys, *bytes_, *given)
    assert "no such file or folder" in fails(capsys, *bytes_, "--from", tmp_path / "none")
    assert "kind mblm, got blind of kind lstm" in fails(capsys, *command(tmp_path, clevr, "blind"), *given)
    assert "train.learning_rate: " in fails(capsys, *bytes_, *given, "--learning-rate", "-1")
    assert "name: " in fails(capsys, *bytes_, *given, "--name", "A b")
    assert "--from" in fails(capsys, *bytes_)
    assert not (tmp_path / "runs" / "bytes-from-tt-0.4.2").exists()


@pytest.mark.parametrize(
    ("stages", "kept"),
    [
        ([{"dropout": 0.1}, {"dropout": 0.2}], [0.1, 0.2]),
        ([{"dropout": 0.1}, {"kind": "mamba", "dropout": 0.2}], [0.1, 0.0]),
    ],
)
def test_the_shape_is_the_weights_and_the_rest_the_cells(
    stages: list[dict[str, Any]], kept: list[float], reference_config: Path
) -> None:
    size = {"heads": 1, "head_dim": 8}
    model = BYTE_MODEL | {
        "stages": [stage if "kind" in stage else stage | size for stage in stages],
        "checkpoint_chunks": [2],
        "byte_init": "smooth",
    }
    cell = make_cell(model, seed=5, sequence={"layout": "qia"})
    made = finetune_cell(cell, SOURCE, reference_config=reference_config)
    assert isinstance(made.model, MBLMConfig)
    assert made.name == "cell-from-tt-0.4.2"
    assert (made.model.hidden_dims, made.model.seq_lens, made.model.num_layers) == ([12, 8], [6, 4], [1, 2])
    assert made.model.checkpoint_chunks == [2]
    assert [stage.model_dump()["dropout"] for stage in made.model.stages] == kept
    assert (made.seed, made.sequence, made.encoding, made.train) == (5, cell.sequence, cell.encoding, cell.train)
    assert made.pretrained is not None
    assert (made.pretrained.path, made.pretrained.freeze) == (SOURCE, ())

    frozen = cell.model_copy(update={"pretrained": made.pretrained.model_copy(update={"freeze": ("start*",)})})
    again = finetune_cell(frozen, SOURCE, reference_config=reference_config, train={"steps": 9})
    assert again.pretrained is not None
    assert again.pretrained.freeze == ("start*",)
    assert cell.train is not None
    assert again.train == cell.train.model_copy(update={"steps": 9})
    with pytest.raises(UserError, match=r"expected what .* was trained with beside it") as error:
        finetune_cell(cell, SOURCE)
    one_line(error)
