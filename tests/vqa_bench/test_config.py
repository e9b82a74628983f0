"""Experiment files: products of axes, what cells and runs must agree on, every fault at once with its place."""

import itertools
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.vqa_bench.cells import BYTE_MODEL, PIXELS, TRAIN, make_cell
from vqa_bench.config import CellConfig, MatrixConfig, load_matrix
from vqa_bench.config.product import expand
from vqa_bench.errors import UserError

DATA = {"folder": "data/clevr"}
MBLM = {"title": "MBLM", "encoding": PIXELS, "model": BYTE_MODEL, "train": TRAIN}
RUN = {
    "name": "text",
    "title": "Text",
    "data": {"folder": "data/books"},
    "model": BYTE_MODEL,
    "train": {"steps": 4, "windows_per_batch": 4, "learning_rate": 1e-3},
}


def load(folder: Path, **content: Any) -> MatrixConfig:
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "data": DATA} | content, sort_keys=False), encoding="utf-8")
    return load_matrix(path)


def faults(folder: Path, **content: Any) -> str:
    """What is wrong with a file, without its name."""
    with pytest.raises(UserError) as error:
        load(folder, **content)
    message = str(error.value)
    assert "\n" not in message
    return message.removeprefix(f"{folder / 'experiment.yaml'}: ")


def product(**content: Any) -> dict[str, Any]:
    """An entry of `matrix` with two axes of two values."""
    axes = {"seed": [0, 1], "train.learning_rate": [1e-3, 3e-3]}
    return {"name": "m-{seed}-{train.learning_rate}", "set": MBLM, "axes": axes} | content


# -- products ---------------------------------------------------------------------------------------------------------


def test_a_product_is_every_combination_in_order(tmp_path: Path) -> None:
    """Against loops that say it step by step: base, set, values, overrides, each over what came before."""
    axes = {
        "seed": [0, 1, 2],
        "size": {"small": {"title": "S", "model": {"num_layers": [1, 1]}}, "large": {"model.num_layers": [2, 2]}},
        "train.learning_rate": [1e-3, 3e-3],
    }
    entry = product(
        base="b",
        name="{size}-{seed}-{train.learning_rate}",
        title="{size} at {train.learning_rate}",
        set={"train.steps": 7, "train.warmup": 0.5},
        axes=axes,
        skip=[{"seed": 2, "size": "large"}, {"seed": [0, 1], "train.learning_rate": 3e-3, "size": "small"}],
        overrides=[
            {"when": {"size": "large", "train.learning_rate": 3e-3}, "set": {"train.learning_rate": 5e-3}},
            {"when": {"size": ["large", "small"], "seed": [1]}, "set": {"train": {"warmup": 0.25}}},
            {"set": {"model.stages.*.dropout": 0.1}},
            {"when": {"size": "large", "seed": 0}, "set": {"title": "Big"}},
        ],
    )
    cells = load(tmp_path, bases={"b": MBLM}, matrix=[entry]).cells
    expected = []
    for seed, size, rate in itertools.product([0, 1, 2], ["small", "large"], [0.001, 0.003]):
        if (seed == 2 and size == "large") or (seed in (0, 1) and rate == 0.003 and size == "small"):
            continue
        title = "Big" if size == "large" and seed == 0 else f"{'S' if size == 'small' else 'large'} at {rate}"
        layers = [1, 1] if size == "small" else [2, 2]
        learning_rate = 0.005 if size == "large" and rate == 0.003 else rate
        warmup = 0.25 if seed == 1 else 0.5
        expected.append((f"{size}-{seed}-{rate}", title, seed, layers, learning_rate, warmup))
    assert [_row(cell) for cell in cells] == expected


def _row(cell: CellConfig) -> tuple[Any, ...]:
    assert cell.train is not None
    assert cell.model.kind == "mblm"
    assert [stage.dropout for stage in cell.model.stages] == [0.1, 0.1]  # type: ignore[union-attr]
    assert cell.train.steps == 7
    return (cell.name, cell.title, cell.seed, cell.model.num_layers, cell.train.learning_rate, cell.train.warmup)


def test_only_keeps_what_it_names(tmp_path: Path) -> None:
    entry = product(
        only=[{"seed": 0}, {"train.learning_rate": "0.003"}], skip=[{"seed": 0, "train.learning_rate": 0.001}]
    )
    assert [cell.name for cell in load(tmp_path, matrix=[entry]).cells] == ["m-0-0.003", "m-1-0.003"]


def test_products_and_cells_stand_side_by_side(tmp_path: Path) -> None:
    axes = {"encoding": [PIXELS, "paper"], "model": {"lstm": {"model": {"kind": "cnn_lstm"}}}}
    blind = {"name": "{seed}", "set": MBLM | {"model": {"kind": "lstm"}, "encoding": None}, "axes": {"seed": [7]}}
    both = {"name": "{encoding}-{model}", "set": {"train": TRAIN}, "axes": axes}
    single = {"name": "one", "title": "One", "model": {"kind": "majority"}}
    cells = load(tmp_path, cells=[single], matrix=[both, blind]).cells
    assert [cell.name for cell in cells] == ["one", "pixels-6x4-order-block2-lstm", "paper-lstm", "7"]
    assert cells[1].title == cells[1].name


@pytest.mark.parametrize(
    ("scalar", "name"),
    [
        (1e-3, "0.001"),
        (1e-7, "0.0000001"),
        (5, "5"),
        (True, "true"),
        (None, "none"),
        ("A b", "a-b"),
        (2.5, "2.5"),
    ],
)
def test_values_have_names_that_files_can_have(scalar: Any, name: str) -> None:
    (cell,), wrong = expand({"name": "x-{a}", "axes": {"a": [scalar]}}, {})
    assert (cell["name"], cell["a"], wrong) == (f"x-{name}", scalar, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"name": "m-{seed}"},
            "matrix.0.name: expected a template that tells the cells apart, got 'm-{seed}'; add {train.",
        ),
        (
            {"name": "m-{colour}"},
            "matrix.0.name: expected an axis in the braces, seed or train.learning_rate, got",
        ),
        ({"title": "{x}"}, "matrix.0.title: expected an axis in the braces"),
        ({"name": "{seed}{train.learning_rate}", "axes": {"seed": [1, 11], "train.learning_rate": [12, 2]}}, "'112'"),
        ({"axes": {}}, "matrix.0.axes: "),
        ({"axes": {"seed": []}}, "matrix.0.axes.seed: expected a list of scalars"),
        ({"axes": {"seed": 3}}, "matrix.0.axes.seed: expected a list of scalars, or a mapping"),
        ({"axes": {"seed": [1, 1]}, "name": "{seed}"}, "matrix.0.axes.seed: expected every value once, got 1 again"),
        ({"axes": {"seed": [[1]]}, "name": "{seed}"}, "matrix.0.axes.seed: expected scalars in a list, got [1]"),
        ({"axes": {"size": {"Big": {}}}, "name": "{size}"}, "axes.size.Big: expected a name of small letters"),
        ({"axes": {"size": {"big": 3}}, "name": "{size}"}, "axes.size.big: expected a partial cell"),
        (
            {"skip": [{"colour": 1}]},
            "matrix.0.skip.0: expected one of the axes seed, train.learning_rate, got",
        ),
        ({"skip": [{"seed": 5}]}, "matrix.0.skip.0.seed: expected values among 0, 1, got 5"),
        ({"only": [{}]}, "matrix.0.only.0: expected an axis with a value"),
        ({"skip": [{"seed": []}]}, "matrix.0.skip.0.seed: expected values among 0, 1, got none"),
        ({"skip": [{"seed": [0, 1]}]}, "matrix.0.skip and only: expected them to leave a combination"),
        ({"overrides": [{"when": {"seed": 2}, "set": {}}]}, "matrix.0.overrides.0.when.seed: expected values among"),
        ({"overrides": [{"when": {"seed": 1}}]}, "matrix.0.overrides.0.set: Field required"),
        ({"base": "none"}, "matrix.0.base: expected one of (no bases), got 'none'"),
        ({"set": MBLM | {"train": {"stepz": 4}}}, "matrix.0.train.stepz: unknown key (in m-0-0.001 and 3 more)"),
        (
            {"overrides": [{"when": {"seed": 1}, "set": {"train.x": 4}}]},
            "train.x: unknown key (in m-1-0.001 and 1",
        ),
        ({"colour": 1}, "matrix.0.colour: unknown key"),
    ],
)
def test_faults_of_a_product_have_their_place(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    assert message in faults(tmp_path, matrix=[product(**changes)])


# -- whole files ------------------------------------------------------------------------------------------------------


def test_numbers_of_a_file_reach_the_config(tmp_path: Path) -> None:
    text = """
        name: test
        data: {folder: data/clevr}
        cells:
          - name: blind
            title: LSTM
            model: {kind: lstm}
            train: {steps: 2e3, images_per_batch: 4, learning_rate: 1e-3, precision: no, checkpoint: {time: 1h30m}}
            evaluate: {shuffled: no}
    """
    path = tmp_path / "file.yaml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    (cell,) = load_matrix(path).cells
    assert cell.train is not None
    assert (cell.train.steps, cell.train.learning_rate, cell.train.precision) == (2000, 0.001, "no")
    assert (cell.train.checkpoint.time, cell.evaluate.shuffled) == (5400, False)


def test_all_faults_of_a_file_at_once(tmp_path: Path) -> None:
    cells = [
        MBLM | {"name": "a", "encoding": "gif:1x1"},
        MBLM | {"name": "b", "base": "nothing"},
        5,
        MBLM | {"name": "c"},
        MBLM | {"name": "d"},
        MBLM | {"name": "c", "seed": 1},
    ]
    runs = [RUN | {"seed": -1}, RUN | {"name": "other", "data": {}}]
    found = faults(
        tmp_path, cells=cells, pretrain=runs, matrix=[product(name="{x}"), product(skip=[{"y": 1}])], colour=1
    )
    for message in (
        "colour: unknown key",
        "cells.0.encoding: expected an image encoding",
        "cells.1.base: expected one of",
        "cells.2: expected a mapping, got 5",
        "pretrain.0.seed: ",
        "pretrain.1.data: expected ",
        "matrix.0.name: ",
        "matrix.1.skip.0: ",
        "cells: expected every one to have its own name, got c more than once",
        "cells: expected every one to differ in its content, got the same in c and d",
    ):
        assert message in found
    assert found.count("; ") == 9


def test_cells_need_data_and_files_need_something(tmp_path: Path) -> None:
    assert load(tmp_path, data=None, pretrain=[RUN]).data is None
    assert "data: expected where" in faults(tmp_path, data=None, matrix=[product()])
    assert "expected cells (under `cells` or `matrix`) or runs under `pretrain`, got none" in faults(tmp_path)
    assert "cells: expected a list, got 3" in faults(tmp_path, cells=3)
    assert "bases: expected a mapping, got [1]" in faults(tmp_path, bases=[1], pretrain=[RUN])
    assert "the folder of the pretraining runs" in faults(tmp_path, cells=[MBLM | {"name": "pretrain"}])


def test_equal_content_is_seen_through_its_spelling(tmp_path: Path) -> None:
    one = MBLM | {"name": "one", "encoding": "paper"}
    two = MBLM | {"name": "two", "encoding": "pixels:62x41,order=planar,crop=10%", "title": "Other"}
    assert "the same in one and two" in faults(tmp_path, cells=[one, two])
    assert "the same in one and two" in faults(tmp_path, cells=[one, two | {"train": TRAIN | {"workers": 3}}])
    assert len(load(tmp_path, cells=[one, two | {"seed": 1}]).cells) == 2
    begun = {"init": "pretrained", "pretrained": {"path": "a"}}
    assert len(load(tmp_path, cells=[one, two | begun]).cells) == 2
    assert len(load(tmp_path, cells=[one | begun, two | begun | {"pretrained": {"path": "b"}}]).cells) == 2
    assert "the same in one and two" in faults(tmp_path, cells=[one | begun, two | begun])
    assert "pretrain: expected every one to differ" in faults(tmp_path, pretrain=[RUN, RUN | {"name": "again"}])
    assert len(load(tmp_path, pretrain=[RUN, RUN | {"name": "again", "data": {"folder": "other"}}]).pretrain) == 2


def test_a_cell_fits_the_run_that_it_begins_from(tmp_path: Path) -> None:
    cell = MBLM | {"name": "cell", "init": "pretrained", "pretrained": {"run": "text"}}
    other = {
        "seq_lens": [80, 12],  # the first stage's length may differ
        "stages": [{"heads": 2, "head_dim": 8, "dropout": 0.1}, {"heads": 1, "head_dim": 8}],
    }
    assert load(tmp_path, cells=[cell | {"model": BYTE_MODEL | other}], pretrain=[RUN]).pretrain[0].name == "text"
    scratch = cell | {"init": "scratch", "pretrained": {"run": "nothing"}}
    assert load(tmp_path, cells=[scratch]).cells[0].pretrained is None
    for changes, message in (
        ({"num_layers": [1, 2]}, "cell cell: model.num_layers: expected [1, 1] as in the run text, got [1, 2]"),
        ({"hidden_dims": [16, 16]}, "model.hidden_dims: expected [16, 8]"),
        ({"seq_lens": [60, 6]}, "model.seq_lens[1:]: expected [12] as in the run text, got [6]"),
        ({"stages": [{"kind": "mamba"}, {"heads": 1, "head_dim": 8}]}, "model.stages.0: expected"),
    ):
        assert message in faults(tmp_path, cells=[cell | {"model": BYTE_MODEL | changes}], pretrain=[RUN])
    masked = RUN | {"model": BYTE_MODEL | {"kind": "mblm_encoder"}}
    assert "model.kind: expected mblm_encoder" in faults(tmp_path, cells=[cell], pretrain=[masked])
    missing = faults(tmp_path, cells=[cell | {"pretrained": {"run": "texts"}}], pretrain=[RUN])
    assert "cell cell: pretrained.run: expected one of the pretraining runs text, got 'texts'" in missing
    assert "expected a run under `pretrain`" in faults(tmp_path, cells=[cell])
    unread = faults(tmp_path, cells=[cell], pretrain=[RUN | {"seed": -1}])
    assert "pretrain.0.seed" in unread
    assert "pretrained.run" not in unread


@pytest.mark.parametrize("title", ["", " ", "two\nlines", "a line and its end\n"])
def test_a_title_is_one_line(tmp_path: Path, title: str) -> None:
    cell = MBLM | {"name": "cell", "title": title}
    assert f"cells.0.title: expected one line of text, got {title!r}" in faults(tmp_path, cells=[cell])


def test_features_of_damaged_bytes_there_are_none(tmp_path: Path) -> None:
    cell = {"name": "cell", "title": "A cell", "encoding": "bmp:16x12", "train": TRAIN, "evaluate": {"damage": 5}}
    model = {"kind": "cnn_lstm", "features": {"folder": "features"}}
    assert "evaluate.damage: expected 0 for a model on extracted" in faults(tmp_path, cells=[cell | {"model": model}])
    assert load(tmp_path, cells=[cell | {"model": {"kind": "cnn_lstm"}}]).cells[0].evaluate.damage == 5


def test_a_pretrained_cell_without_training_is_one_fault(tmp_path: Path) -> None:
    """Not a missing key: `train` may be said in part, or only where the weights are named, or not at all."""
    cell = {key: value for key, value in MBLM.items() if key != "train"} | {"name": "cell", "init": "pretrained"}
    found = faults(tmp_path, cells=[cell | {"pretrained": {"run": "text"}}], pretrain=[RUN])
    assert found == "cells.0.top level: expected `train` for a model of kind mblm"
    found = faults(tmp_path, cells=[cell | {"pretrained": {"run": "text", "train": {"steps": 2}}}], pretrain=[RUN])
    assert "cells.0.train.learning_rate: Field required" in found
    whole = cell | {"pretrained": {"run": "text", "train": TRAIN}}
    assert load(tmp_path, cells=[whole], pretrain=[RUN]).cells[0].train is not None


# -- what a finished run is recognised by -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"matmul_precision": "high"},
        {"max_time": 5},
        {"dev": {"every": 2}},
        {"ema": 0.5},
        {"clip": None},
        {"warmup": 0.2},
        {"betas": (0.8, 0.9)},
        {"weight_decay": 0.1},
        {"learning_rate": 2e-3},
        {"steps": 5},
        {"accumulate": 2},
        {"images_per_batch": 5},
        {"questions_per_image": 2},
        {"threads": 2},
        {"compile": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_weights_depend_on_are_part_of_the_outcome(changes: dict[str, Any]) -> None:
    assert make_cell(train=TRAIN | changes).outcome() != make_cell(train=TRAIN).outcome()


@pytest.mark.parametrize(
    "changes",
    [
        {"workers": 1},
        {"checkpoint": {"steps": 3}},
        {"log_every": 3},
        {"processes": 2},
        {"parallel": "fsdp"},
        {"trackers": ["tensorboard"]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_that_change_no_weights_are_not(changes: dict[str, Any]) -> None:
    assert make_cell(train=TRAIN | changes).outcome() == make_cell(train=TRAIN).outcome()
