"""Weights to begin from: checkpoints of the reference, folders, runs; what changes on the way, what is refused."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mblm import MBLM, MBLMEncoder, MBLMModelConfig, block_registry
from mblm.checkpoint import load_reference, save_pretrained
from tests.mblm.checkpoints import FIXTURES, IDS, assert_same_state, expected_of, logits, one_line
from tests.mblm.test_checkpoint import TiedBlock
from tests.vqa_bench.cells import BYTE_MODEL, make_cell
from vqa_bench.config import MBLMConfig, MBLMEncoderConfig, parse
from vqa_bench.data.vocab import PAD, VOCAB_SIZE
from vqa_bench.errors import UserError
from vqa_bench.models import ByteModel, build
from vqa_bench.models.hierarchy import encoder_config
from vqa_bench.models.initial import check_initial, freeze, load_initial, model_config_of, read_initial
from vqa_bench.runs import save_model

STAGE = {"heads": 2, "head_dim": 6}
TT = {"kind": "mblm", "hidden_dims": [12, 8], "seq_lens": [100, 4], "num_layers": [1, 2], "stages": [STAGE, STAGE]}
ROPE = STAGE | {"positions": "rope"}
TTT = TT | {
    "hidden_dims": [12, 10, 8],
    "seq_lens": [60, 3, 2],
    "num_layers": [1, 1, 1],
    "stages": [ROPE, ROPE, STAGE | {"rotary": False, "positions": None}],
}


def fresh(model: dict[str, Any], *, seed: int = 0) -> ByteModel:
    """A cell's model as it is before training."""
    torch.manual_seed(seed)
    made = build(make_cell(model, seed=seed), {"image_bytes": 72})
    assert isinstance(made, ByteModel)
    return made


def config_file(folder: Path, name: str = "config.yaml", **changes: Any) -> Path:
    """What the reference's two-stage fixture was trained with."""
    path = folder / name
    path.write_text(yaml.safe_dump(expected_of("tt", "0.4.2")["config"] | changes))
    return path


def copied(folder: Path, version: str = "0.4.2") -> Path:
    """The reference's two-stage fixture with its configuration beside it."""
    path = folder / "tt.pth"
    path.write_bytes((FIXTURES / f"tt-{version}.pth").read_bytes())
    config_file(folder)
    return path


# -- what is taken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.4.0", "0.4.2"])
def test_a_reference_checkpoint_begins_a_longer_cell(version: str, tmp_path: Path) -> None:
    source = copied(tmp_path, version)
    old = load_reference(source, tmp_path / "config.yaml")
    model = fresh(TT, seed=3)
    before = copy.deepcopy(model.mblm)
    torch.manual_seed(9)
    state = torch.get_rng_state()
    initial = load_initial(model, source)
    assert torch.equal(torch.get_rng_state(), state)
    assert initial.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()

    taken = model.mblm.state_dict()
    for name, value in old.state_dict().items():
        assert torch.equal(taken[name][: len(value)], value), name  # rows 0-255, positions 0-5, all else whole
    grown = {name for name, value in old.state_dict().items() if len(taken[name]) != len(value)}
    tables = {f"token_embs_rev.{k}.embedding.weight" for k in (0, 1)}
    assert grown == {*tables, "to_logits.weight", "to_logits.bias", "pos_embs.0.weight"}
    assert torch.equal(taken["pos_embs.0.weight"][6:], before.state_dict()["pos_embs.0.weight"][6:])
    for name in tables:
        assert taken[name].shape[0] == VOCAB_SIZE
        assert not taken[name][PAD].any()
    ids = IDS[:, :12]  # the pad of the weights is a byte like others by now
    torch.testing.assert_close(logits(model.mblm.eval(), ids)[..., :256], logits(old, ids))
    assert initial.notes == [
        "read with the configuration beside them, config.yaml",
        "vocabulary of 256 ids grown to 264, the new ones as in a new model; the pad moved from id 0 to 256",
        "first stage of 100 positions from one of 6: the other 94 rows of its table of positions are as in a new model",
    ]

    again, other = fresh(TT, seed=3), fresh(TT, seed=4)
    load_initial(again, source, tmp_path / "config.yaml")
    load_initial(other, source)
    assert_same_state(again.mblm, model.mblm)
    assert torch.equal(other.mblm.to_logits.weight[:256], model.mblm.to_logits.weight[:256])
    assert not torch.equal(other.mblm.to_logits.weight[256:], model.mblm.to_logits.weight[256:])


def test_a_first_stage_without_a_table_may_have_any_length(tmp_path: Path) -> None:
    expected = expected_of("ttt-rope", "0.4.2")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(expected["config"]))
    source = FIXTURES / "ttt-rope-0.4.2.pth"
    old, model = load_reference(source, path), fresh(TTT)
    notes = load_initial(model, source, path).notes
    assert len(notes) == 2  # no file was looked for
    assert "60 positions from one of 5, which has no table of positions: nothing had to change" in notes[1]
    ids = IDS[:, :5] // 2
    torch.testing.assert_close(logits(model.mblm.eval(), ids)[..., :40], logits(old, ids))
    assert model_config_of(source, path).seq_lens == [5, 3, 2]


def test_a_shorter_first_stage_takes_the_first_rows(tmp_path: Path) -> None:
    stored = fresh(BYTE_MODEL | {"seq_lens": [64, 12]}, seed=1)
    save_pretrained(stored.mblm, tmp_path)
    model = fresh(BYTE_MODEL)
    assert load_initial(model, tmp_path).notes == [
        "first stage of 60 positions from one of 64: the first 60 rows of its table of positions were taken"
    ]
    for name, value in stored.mblm.state_dict().items():
        own = model.mblm.state_dict()[name]
        assert torch.equal(own, value[: len(own)]), name


@pytest.mark.parametrize("form", ["run", "folder"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_runs_and_folders_are_taken_whole(form: str, kind: torch.dtype, tmp_path: Path) -> None:
    stored = fresh(BYTE_MODEL, seed=1).to(kind)
    if form == "run":
        save_model(tmp_path, stored)
    else:
        save_pretrained(stored.mblm, tmp_path)
    assert_same_state(read_initial(tmp_path), stored.mblm)
    model = fresh(BYTE_MODEL | {"byte_init": "smooth"})
    initial = load_initial(model, tmp_path)
    assert_same_state(model.mblm, stored.mblm.float())
    assert initial.notes == ["weights stored as bfloat16 are trained as float32"] * (kind == torch.bfloat16) + [
        "byte_init: smooth had no effect: the vectors of bytes come with the weights"
    ]
    assert initial.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert model_config_of(tmp_path) == parse(MBLMConfig, BYTE_MODEL, "test")


def test_the_configuration_beside_a_checkpoint(tmp_path: Path) -> None:
    source = copied(tmp_path)
    config_file(tmp_path, "tt.yml")
    assert load_initial(fresh(TT), source).notes[0].endswith("tt.yml")  # of that name, before config.yaml
    config_file(tmp_path, "tt.json")
    with pytest.raises(UserError, match=r"got tt\.yml and tt\.json; name the file") as error:
        read_initial(source)
    one_line(error)
    assert read_initial(source, tmp_path / "config.yaml").config.num_tokens == VOCAB_SIZE


# -- what is refused ------------------------------------------------------------------------------------------------


def truncated(folder: Path) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    return folder


def encoder(folder: Path) -> Path:
    model = {name: value for name, value in BYTE_MODEL.items() if name != "kind"}
    save_pretrained(MBLMEncoder(encoder_config(parse(MBLMEncoderConfig, model, "test"))), folder)
    return folder


def run(folder: Path) -> Path:
    save_model(folder, fresh(BYTE_MODEL))
    return folder


def folder_of(folder: Path, **changes: Any) -> Path:
    save_pretrained(MBLM(MBLMModelConfig.model_validate(expected_of("tt", "0.4.2")["config"] | changes)), folder)
    return folder


def lstm_run(folder: Path) -> Path:
    cell = make_cell("lstm")
    save_file({"net.bias": torch.zeros(3)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"cell": cell.model_dump(mode="json"), "built": {}}))
    return folder


def rewritten(folder: Path, text: str) -> Path:
    (run(folder) / "config.json").write_text(text)
    return folder


def damaged(folder: Path) -> Path:
    path = copied(folder)
    path.write_bytes(path.read_bytes()[:3000])
    return path


def alone(folder: Path) -> Path:
    (source := copied(folder)).with_name("config.yaml").unlink()
    return source


def other_shape(folder: Path) -> Path:
    source = copied(folder)
    config_file(folder, num_layers=[2, 2])
    return source


def odd_file(folder: Path) -> Path:
    (folder / "a.bin").write_bytes(b"1")
    return folder / "a.bin"


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda folder: folder / "none", r"none: no such file or folder; name another"),
    "empty": (lambda folder: folder, r"without config\.json; name the folder of one run"),
    "file": (odd_file, r"got the file .*a\.bin"),
    "masked": (encoder, r"predicts the next byte \(MBLM\), got those of a masked one \(MBLMEncoder\)"),
    "other run": (lstm_run, r"expected the run of a byte model, got .* of kind lstm"),
    "no JSON": (lambda folder: rewritten(folder, "{"), r"expected JSON in .*config\.json"),
    "other JSON": (lambda folder: rewritten(folder, "[1]"), r"expected `cell` .* got neither"),
    "odd cell": (lambda folder: rewritten(folder, '{"cell": {"name": 1}}'), r"config\.json: name: .*; title: "),
    "torn run": (lambda folder: truncated(run(folder)), r"expected weights in .*safetensors, got"),
    "torn folder": (lambda folder: truncated(folder_of(folder)), r"expected safetensors, got"),
    "torn pth": (damaged, r"expected a pickled state dict"),
    "no config": (alone, r"one of tt\.yaml, tt\.yml, tt\.json, or config\.yaml, got none; name the file"),
    "other config": (other_shape, r"does not fit the model: stage_models\.0\.layers\.1\.0\.norm\.g \(12,\) is missing"),
    "many ids": (lambda folder: folder_of(folder, num_tokens=300), r"can grow to 264 .*, got 300 with pad 0"),
    "other pad": (lambda folder: folder_of(folder, num_tokens=260), r"256 as the pad, got 260 with pad 0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_wrong_source_is_one_line(wrong: str, tmp_path: Path) -> None:
    make, wanted = WRONG[wrong]
    source = make(tmp_path)
    with pytest.raises(UserError, match=wanted) as error:
        read_initial(source)
    one_line(error)


def test_a_configuration_for_what_has_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"beside a \.pth only") as error:
        read_initial(run(tmp_path), config_file(tmp_path))
    one_line(error)


def test_every_difference_of_the_shapes_is_named(tmp_path: Path) -> None:
    other = {"hidden_dims": [16, 12], "seq_lens": [44, 16], "num_layers": [2, 1], "checkpoint_chunks": [3]}
    stages = [{"heads": 1, "head_dim": 8, "positions": "rope"}, {"kind": "mamba", "head_dim": 4}]
    model = fresh(BYTE_MODEL | other | {"stages": stages})
    before = copy.deepcopy(model.mblm)
    with pytest.raises(UserError, match="expected a model of the shape of these weights") as error:
        load_initial(model, run(tmp_path))
    text = one_line(error)
    for fault in (
        "model.hidden_dims: expected [16, 8], got [16, 12]",
        "model.seq_lens after the first: expected [12], got [16]",
        "model.num_layers: expected [1, 1], got [2, 1]",
        "model.stages.0.heads: expected 2, got 1",
        "model.stages.0.positions: expected fixed, got rope",
        "model.stages.1.kind: expected transformer, got mamba",
        "let `vqa-bench finetune` take the shape",
    ):
        assert fault in text
    assert text.count("expected") == 7
    assert_same_state(model.mblm, before)
    with pytest.raises(UserError) as checked:
        check_initial(parse(MBLMConfig, model.cell.model.model_dump(), "test"), tmp_path)
    assert one_line(checked) == text
    check_initial(parse(MBLMConfig, BYTE_MODEL, "test"), tmp_path)
    one_stage = {"hidden_dims": [16], "seq_lens": [700], "num_layers": [1], "stages": [STAGE]}
    with pytest.raises(UserError, match=r"model\.stages: expected 2, got 1; change"):
        load_initial(fresh(BYTE_MODEL | one_stage), tmp_path)


@pytest.fixture
def registered() -> Iterator[None]:
    """TiedBlock known to the registry, for one test."""
    known = list(block_registry._blocks)
    block_registry.register(TiedBlock)
    yield
    block_registry._blocks[:] = known


@pytest.mark.usefixtures("registered")
def test_custom_stages_are_compared_by_their_fields(tmp_path: Path) -> None:
    def cell(**block: Any) -> dict[str, Any]:
        return BYTE_MODEL | {"stages": [{"kind": "custom", "block": block}, STAGE]}

    stored = fresh(cell(block_type="tied", scale=0.5, pos_emb_type="fixed"))
    save_pretrained(stored.mblm, tmp_path)
    shape = model_config_of(tmp_path)
    assert shape.stages[0].kind == "custom"
    model = fresh(shape.model_dump())
    load_initial(model, tmp_path)
    assert_same_state(model.mblm, stored.mblm)
    with pytest.raises(UserError, match=r"model\.stages\.0\.scale: expected 0\.5, got 2\.0; change"):
        load_initial(fresh(cell(scale=2.0, pos_emb_type="fixed")), tmp_path)


# -- freezing -------------------------------------------------------------------------------------------------------


def test_patterns_freeze_what_they_fit() -> None:
    model = fresh(BYTE_MODEL)
    names = freeze(model, ["stage_models.0.*", "token_embs_rev.?.embedding.weight"])
    assert "stage_models.0.layers.0.0.to_q.weight" in names
    assert "token_embs_rev.1.embedding.weight" in names
    assert not any(name.startswith("stage_models.1") for name in names)
    assert [name for name, p in model.mblm.named_parameters() if not p.requires_grad] == names
    assert freeze(fresh(BYTE_MODEL), []) == []


@pytest.mark.parametrize(
    ("patterns", "wanted"),
    [
        (
            ["stage_models.0.*", "stage_models.7.*", "Start*"],
            r"such as start_tokens\.0, .* got stage_models\.7\.\*, Start",
        ),
        (["s*", "*"], r"expected some of the model's \d+ parameters to be left to train"),
    ],
)
def test_patterns_that_cannot_be_meant(patterns: list[str], wanted: str) -> None:
    model = fresh(BYTE_MODEL)
    with pytest.raises(UserError, match=wanted) as error:
        freeze(model, patterns)
    one_line(error)
    assert all(parameter.requires_grad for parameter in model.parameters())
