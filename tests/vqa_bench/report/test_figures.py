"""The figures: the same bytes twice, what is on them, only those with data, and labels that keep apart."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from tests.vqa_bench.report.run_folder import make_byte_run, make_run
from vqa_bench.errors import UserError
from vqa_bench.report.collect import Collection, collect
from vqa_bench.report.figures import KINDS, accuracy, damage, draw_figures, learning, save_figures, types
from vqa_bench.report.figures.style import render, series_style, shortened, spread
from vqa_bench.report.frame import build_frame

GROUND_RGB = (0xEE, 0xF3, 0xF9)  # what twins stand on, and nothing else


def write_log(run: Path, *, dev: bool = True) -> None:
    """The log of 40 steps."""
    lines = [{"kind": "train", "step": step, "loss": 4 / step} for step in range(4, 41, 4)]
    lines += [{"kind": "dev", "step": 40, "loss": 0.5, "accuracy": 0.6}] if dev else []
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_damage(run: Path, kinds: dict[str, list[str]]) -> None:
    """Levels of damage by kind, from the least, at which accuracy falls and pictures become undecodable."""
    numbers = {"n": 260, "correct": 130, "low": 0.4, "high": 0.6}
    levels = [
        {"damage": kind, "level": level, "label": label, "undecodable": level / 10, "accuracy": 0.6 - level / 20}
        for kind, labels in kinds.items()
        for level, label in enumerate(labels)
    ]
    damage = {"images": 26, "questions": 260, "levels": [level | numbers for level in levels]}
    (run / "damage.json").write_text(json.dumps(damage))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    folder = tmp_path_factory.mktemp("figures")
    make_run(folder / "lstm", accuracy=0.5, seed=2, title="Question-only LSTM")
    make_byte_run(folder / "scratch", accuracy=0.6, draw=1, title="Pixels")
    make_byte_run(
        folder / "pretrained", accuracy=0.8, draw=2, init="pretrained", title="Pixels <b>&amp;</b>, pretrained"
    )
    write_log(folder / "lstm", dev=False)
    write_log(folder / "scratch")
    write_damage(folder / "scratch", {"bits flipped": ["undamaged", "1 in 10"], "end cut off": ["undamaged", "half"]})
    write_damage(folder / "pretrained", {"bits flipped": ["undamaged", "1 in 10"], "low bits dropped": ["undamaged"]})
    return collect(folder)


@pytest.fixture(scope="module")
def frame(collection: Collection) -> pd.DataFrame:
    return build_frame(collection.runs)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_all_figures_are_drawn_with_the_same_bytes_each_time(
    collection: Collection, frame: pd.DataFrame, tmp_path: Path
) -> None:
    drawn = draw_figures(collection.runs, frame)
    assert list(drawn) == list(KINDS)
    for name in ("accuracy", "damage"):  # one of each way to lay panels out
        again = KINDS[name].draw(collection.runs, frame)
        assert again is not None
        assert render(again, name) == drawn[name]
    paths = save_figures(drawn, tmp_path / "figures", tmp_path / ".partial")
    assert [path.name for path in paths] == [f"{name}.{ending}" for name in KINDS for ending in ("png", "svg")]
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]
    for path in paths[::2]:
        with Image.open(path) as image:
            assert image.info.get("Software") is None
            assert image.width == 1760
    for path in paths[1::2]:
        text = path.read_text()
        assert not re.search(r"<dc:date>|matplotlib\.org", text.lower())
        assert "<script" not in text
        assert "<b>" not in text


def test_only_figures_with_data_are_drawn(tmp_path: Path) -> None:
    bare = {"metrics": {"calibration": None, "types": {}}, "cost": {"image_bytes": None, "train_flops": None}}
    run = make_run(tmp_path / "runs" / "lstm", accuracy=0.5, seed=2)
    result = json.loads((run / "result.json").read_text())
    for name, values in bare.items():
        result[name] |= values
    (run / "result.json").write_text(json.dumps(result))
    runs = collect(tmp_path / "runs").runs
    drawn = draw_figures(runs, build_frame(runs))
    assert list(drawn) == ["accuracy"]
    assert draw_figures([], build_frame([])) == {}
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "damage.svg").touch()
    save_figures(drawn, tmp_path / "figures", tmp_path / ".partial")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["accuracy.png", "accuracy.svg"]


def test_accuracy_shows_every_cell_and_joins_a_pretrained_one_to_its_twin(
    collection: Collection, frame: pd.DataFrame, tmp_path: Path
) -> None:
    figure = accuracy.draw(collection.runs, frame)
    assert figure is not None
    assert {"Question-only LSTM", "Pixels", "best blind: Question-only LSTM", "chance"} <= set(texts(figure))
    (tmp_path / "accuracy.png").write_bytes(render(figure, "accuracy").png)
    with Image.open(tmp_path / "accuracy.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels == GROUND_RGB).all(axis=-1).sum() > 50_000
    for color in ("#0b5fa5", "#6b6b6b", "#c8560a"):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(axis=-1).sum() > 100, color


def test_learning_curves_are_those_of_the_logs(collection: Collection, frame: pd.DataFrame) -> None:
    figure = learning.draw(collection.runs, frame)
    assert figure is not None
    loss, accuracy = figure.axes
    curves = [line.get_xydata() for line in loss.lines if len(line.get_xydata()) == 10]
    assert len(curves) == 2
    for curve in curves:
        np.testing.assert_allclose(curve, [[step, 4 / step] for step in range(4, 41, 4)])
    assert [[40, 60]] in [np.asarray(line.get_xydata()).tolist() for line in accuracy.lines]
    assert texts(figure).count("Question-only LSTM") == 1
    assert texts(figure).count("Pixels") == 2


def test_long_curves_are_averaged_and_damaged_logs_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert [len(curve) for curve in learning.read_curves(path).values()] == [0, 0]
    lines = [json.dumps({"kind": "train", "step": step, "loss": step % 2}) for step in range(1000)]
    path.write_text("\n".join(lines))
    curve = learning.thinned(learning.read_curves(path)["train", "loss"])
    assert len(curve) == learning.POINTS
    assert curve[:, 1].min() >= 0.4
    np.testing.assert_allclose(curve[:, 0].mean(), 499.5)
    path.write_text("\n".join([*lines[:3], '{"kind": "tr']))
    with pytest.raises(UserError, match="line 4: expected metrics"):
        learning.read_curves(path)


def test_damage_has_a_column_a_kind_with_the_cells_that_met_it(collection: Collection, frame: pd.DataFrame) -> None:
    figure = damage.draw(collection.runs, frame)
    assert figure is not None
    columns = {panel.get_title(loc="left"): panel for panel in figure.axes if panel.get_title(loc="left")}
    assert sorted(columns) == ["bits flipped", "end cut off", "low bits dropped"]
    cells = {name: [line for line in panel.lines if line.get_marker() == "o"] for name, panel in columns.items()}
    assert {name: sum(len(line.get_xdata()) > 0 for line in lines) for name, lines in cells.items()} == {
        "bits flipped": 2,
        "end cut off": 1,
        "low bits dropped": 1,
    }
    assert len({panel.get_ylim() for panel in columns.values()}) == 1
    np.testing.assert_allclose(cells["bits flipped"][0].get_xydata(), [[0, 60], [1, 55]])


def test_types_have_their_numbers(collection: Collection, frame: pd.DataFrame) -> None:
    figure = types.draw(collection.runs, frame)
    assert figure is not None
    shown = texts(figure)
    accuracy = collection.runs[0].result.metrics.types["query_color"].accuracy
    assert f"{100 * accuracy:.1f}" in shown
    assert "query\ncolor\nn = 20" in shown
    assert shown.count("12.5") == 1  # chance among eight colours


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.001, 0.05))
def test_labels_keep_apart_in_their_order_and_inside(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap, (0.1, 0.9))
    order = sorted(range(len(positions)), key=lambda place: (positions[place], place))
    steps = np.diff([moved[place] for place in order])
    assert (steps >= gap - 1e-9).all()
    assert min(moved) >= 0.1 - 1e-9
    assert max(moved) <= 0.9 + 1e-9
    if all(step > gap for step in np.diff(sorted(positions))) and min(positions) >= 0.1 and max(positions) <= 0.9:
        np.testing.assert_allclose(moved, positions)


def test_lines_differ_and_long_titles_are_cut() -> None:
    assert len({str(series_style(place)) for place in range(35)}) == 35
    assert shortened("MBLM, pixels", 12) == "MBLM, pixels"
    assert shortened("MBLM, pixels, pretrained", 14) == "MBLM, pixels,…"
