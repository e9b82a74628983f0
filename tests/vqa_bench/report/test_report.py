"""Tables, picture and the folder they are written into."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.vqa_bench.report.run_folder import make_byte_run, make_pretraining, make_run
from vqa_bench.errors import UserError
from vqa_bench.report import write_report
from vqa_bench.report.collect import collect
from vqa_bench.report.figures import save_figure
from vqa_bench.report.frame import build_frame, build_pretraining_frame
from vqa_bench.report.tables import TERMINAL_WIDTH, csv, markdown, terminal

GROUND_RGB = (0xEE, 0xF3, 0xF9)  # what twins stand on, and nothing else


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
    assert not (pixels == GROUND_RGB).all(axis=-1).any()
    for color in ("#0b5fa5", "#6b6b6b", "#c8560a"):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(axis=-1).sum() > 100, color


def test_picture_joins_a_pretrained_cell_to_its_twin(tmp_path: Path) -> None:
    make_byte_run(tmp_path / "scratch", accuracy=0.5, draw=1)
    make_byte_run(tmp_path / "pretrained", accuracy=0.7, draw=2, init="pretrained")
    save_figure(build_frame(collect(tmp_path).runs), tmp_path / "twins.png")
    with Image.open(tmp_path / "twins.png") as image:
        assert (np.asarray(image.convert("RGB")) == GROUND_RGB).all(axis=-1).sum() > 50_000


def test_pretraining_runs_have_a_table(results: Path) -> None:
    folder = results.parent / "pretraining-table"
    validation = {"bits_per_byte": 1.93124, "bytes": 20_000}
    make_pretraining(folder / "pretrain" / "text", {"validation": validation, "test": validation}, title="Scenes | all")
    hidden = {"bits_per_masked_byte": 0.93, "masked_bytes": 3_000, "bytes": 20_000}
    changes = {"objective": "masked", "training": {"steps": 120, "stopped": "patience"}, "title": "hidden"}
    make_pretraining(folder / "pretrain" / "hidden", {"test": hidden}, **changes)
    make_run(folder / "lstm", accuracy=0.5)
    collection = collect(folder)
    frame, pretraining = build_frame(collection.runs), build_pretraining_frame(collection.pretraining)
    lines = markdown(frame, pretraining=pretraining).split("## Pretraining\n\n")[1].splitlines()
    assert lines[:4] == [
        "| run | objective | text | context | parameters | validation, bits per byte | test, bits per byte | steps |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| hidden | masked | synth-text | 256 | 612,552 | - | 0.930 (3,000) | 120 |",
        "| Scenes \\| all (text) | next byte | synth-text | 256 | 612,552 | 1.931 (20,000) | 1.931 (20,000) | 600 |",
    ]
    assert '* "hidden": Training was stopped by patience after 120 of 600 steps.' in lines
    text = terminal(frame, pretraining=pretraining)
    assert max(map(len, text.splitlines())) <= TERMINAL_WIDTH
    row = next(line for line in text.splitlines() if line.startswith("Scenes | all (text)"))
    assert row.split()[-5:] == ["1.931", "(20,000)", "1.931", "(20,000)", "600"]
    assert "masked: the same over hidden bytes" in text
    assert "Pretraining" not in markdown(frame, pretraining=pretraining[:0]) + terminal(frame)


@pytest.fixture
def plain_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something simpler than a picture in its place, which others have time to disturb."""

    def save(frame: pd.DataFrame, path: Path) -> None:
        with path.open("w") as file:
            file.write(f"{len(frame)} ")
            sleep(0.02)
            file.write("rows")

    monkeypatch.setattr("vqa_bench.report.save_figure", save)


@pytest.mark.usefixtures("plain_picture")
def test_numbers_of_pretraining_runs_are_written_and_removed_with_them(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "lstm", accuracy=0.5)
    validation = {"bits_per_byte": 1.93124, "bytes": 20_000}
    folder = make_pretraining(tmp_path / "runs" / "pretrain" / "text", {"validation": validation})
    make_pretraining(tmp_path / "runs" / "pretrain" / "later", {}, done=False)
    report = write_report(tmp_path / "runs", tmp_path / "out")
    assert report.pretraining == tmp_path / "out" / "pretraining.csv"
    table = pd.read_csv(report.pretraining)
    assert table.loc[0, ["name", "validation_bits", "validation_bytes"]].tolist() == ["text", 1.93124, 20_000]
    assert "Not finished, so not shown (1): pretrain/later." in report.text
    assert report.markdown.read_text().count("\n## Pretraining\n") == 1
    (folder / "DONE").unlink()
    assert write_report(tmp_path / "runs", tmp_path / "out").pretraining is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["accuracy.png", "table.csv", "table.md"]


def test_pretraining_runs_alone_are_reported_without_cells(tmp_path: Path) -> None:
    make_pretraining(tmp_path / "pretrain" / "text", {"test": {"bits_per_byte": 1.5, "bytes": 400}})
    report = write_report(tmp_path)
    assert (report.csv, report.figure) == (None, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pretrain", "pretraining.csv", "table.md"]
    assert "1.500 (400)" in report.text
    assert "1.500 (400)" in report.markdown.read_text()


@pytest.mark.usefixtures("plain_picture")
def test_reports_of_one_folder_made_together_do_not_disturb_each_other(results: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: write_report(results, tmp_path), range(8)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "table.csv", "table.md"]
    assert len({report.text for report in reports}) == 1
    assert reports[0].csv.read_text() == csv(reports[0].frame)
    assert reports[0].figure.read_text() == "6 rows"


@pytest.mark.usefixtures("plain_picture")
def test_what_a_killed_report_left_is_cleared_away(results: Path, tmp_path: Path) -> None:
    for name in (".report.lock", ".report.partial", "table.md"):
        (tmp_path / name).write_text("half")
    report = write_report(results, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accuracy.png", "table.csv", "table.md"]
    assert report.markdown.read_text() == markdown(report.frame, unfinished=["waiting"])


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
