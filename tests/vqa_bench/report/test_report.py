"""Tables, picture and the folder they are written into."""

import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.vqa_bench.report.run_folder import make_run
from vqa_bench.errors import UserError
from vqa_bench.report import write_report
from vqa_bench.report.collect import build_frame, collect
from vqa_bench.report.figures import save_figure
from vqa_bench.report.tables import TERMINAL_WIDTH, csv, markdown, terminal


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    make_run(folder / "lstm", accuracy=0.5, seed=2, title="Question-only LSTM")
    make_run(folder / "pixels", accuracy=0.8, shuffled_accuracy=0.4, seed=3, title="Pixels | blocks")
    make_run(folder / "jpeg", accuracy=0.6, shuffled_accuracy=0.45, seed=4, title="JPEG bytes of quality 80 in full")
    make_run(folder / "waiting", accuracy=0.9, done=False)
    return folder


@pytest.fixture(scope="module")
def frame(results: Path) -> pd.DataFrame:
    return build_frame(collect(results).runs)


def percent(frame: pd.DataFrame, title: str, column: str) -> str:
    row = frame[frame["title"] == title].iloc[0]
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * row[f"{column}_{name}"] for name in ("accuracy", "low", "high")))


def test_markdown_has_every_number_with_its_interval(frame: pd.DataFrame) -> None:
    text = markdown(frame, unfinished=["waiting"])
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert list(lines) == [
        *("model", "---", "chance", "Question-only LSTM (blind)"),
        *("JPEG bytes of quality 80 in full", "JPEG bytes of quality 80 in full, images shuffled"),
        *("Pixels \\| blocks", "Pixels \\| blocks, images shuffled"),
    ]
    assert f"| **{percent(frame, 'Pixels | blocks', 'count')}** |" in lines["Pixels \\| blocks"]
    assert f"| {percent(frame, 'Question-only LSTM', 'query')} |" in lines["Question-only LSTM (blind)"]
    assert "| 42.7 | 50.0 | 9.1 |" in lines["chance"]
    assert lines["Question-only LSTM (blind)"].endswith("| best blind | 1,234,567 | 260 / 26 |")
    assert re.search(r"\| [+]\d+\.\d \[[+]\d+\.\d, [+]\d+\.\d\] \| 1,234,567 \|", lines["Pixels \\| blocks"])
    assert len({re.sub(r"\\\|", "", line).count("|") for line in lines.values()}) == 1
    assert "compare integer (n = 60)" in lines["model"]
    assert "Not finished, so not shown (1): waiting." in text


def test_only_cells_that_see_are_bold(frame: pd.DataFrame) -> None:
    bold = [line for line in markdown(frame).splitlines() if "**" in line]
    assert [line.split(" | ")[0] for line in bold] == ["| Pixels \\| blocks"]
    assert bold[0].count("**") == 2 * 6
    blind = frame[frame["row"].eq("chance") | frame["blind"].fillna(False)]
    assert "**" not in markdown(blind)


def test_csv_holds_the_frame_in_full_precision(frame: pd.DataFrame) -> None:
    again = pd.read_csv(io.StringIO(csv(frame)))
    assert list(again.columns) == list(frame.columns)
    for column in ("overall_accuracy", "query_low", "vs_blind", "vs_blind_p"):
        np.testing.assert_array_equal(again[column], frame[column].to_numpy(dtype=float, na_value=np.nan))
    assert list(again["overall_correct"][1:]) == list(frame["overall_correct"][1:])


@pytest.mark.parametrize("color", [False, True])
def test_terminal_text_fits(frame: pd.DataFrame, color: bool) -> None:
    text = terminal(frame, unfinished=["waiting"], color=color)
    visible = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert max(map(len, visible.splitlines())) <= TERMINAL_WIDTH
    assert ("\x1b[" in text) == color
    assert text.isascii() or color
    for expected in ("mini: 260 questions about 26 images", "chance", "  images shuffled", "best blind", "waiting"):
        assert expected in visible
    assert percent(frame, "Pixels | blocks", "overall") in visible
    assert "260" in visible.splitlines()[3]


def test_picture_is_deterministic_and_shows_every_cell(frame: pd.DataFrame, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    save_figure(frame, first)
    save_figure(frame, second)
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.info.get("Software") is None
        pixels = np.asarray(image.convert("RGB"))
        assert image.width > image.height
    for color in ("#0b5fa5", "#6b6b6b", "#c8560a"):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(axis=-1).sum() > 100, color


def test_report_writes_three_files_and_no_other(results: Path, tmp_path: Path) -> None:
    report = write_report(results, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["accuracy.png", "table.csv", "table.md"]
    assert report.markdown.read_text() == markdown(report.frame, unfinished=["waiting"])
    assert report.csv.read_text() == csv(report.frame)
    assert report.text == terminal(report.frame, unfinished=["waiting"])
    assert report.unfinished == ["waiting"]


def test_report_goes_into_the_results_and_can_be_repeated(tmp_path: Path) -> None:
    make_run(tmp_path / "real", accuracy=0.9, shuffled_accuracy=0.4, dataset={"name": "clevr", "missing_images": 3})
    make_run(tmp_path / "few", accuracy=1.0, questions=3)
    first = write_report(tmp_path)
    second = write_report(tmp_path)
    assert first.text == second.text
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "accuracy.png",
        "table.csv",
        "table.md",
    ]
    assert "3 images of the test set were missing, their questions are left out." in first.text
    assert "No blind cell is finished" in first.text
    assert first.markdown.read_text().count("## ") == 2


def test_without_a_finished_run_nothing_is_written(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "waiting", accuracy=0.9, done=False)
    with pytest.raises(UserError, match="got 1 unfinished"):
        write_report(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()
