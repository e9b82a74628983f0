"""Tables, and the folder that they, the figures and the page are written into."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

import numpy as np
import pandas as pd
import pytest

from tests.vqa_bench.report.run_folder import majority_control, make_pretraining, make_run
from vqa_bench.errors import UserError
from vqa_bench.report import write_report
from vqa_bench.report.beside import with_published
from vqa_bench.report.collect import Collection, collect
from vqa_bench.report.figures.style import Rendered
from vqa_bench.report.frame import build_frame, build_pretraining_frame
from vqa_bench.report.published import published
from vqa_bench.report.tables import csv, markdown, notes
from vqa_bench.report.terminal import WIDTH, terminal
from vqa_bench.scoring.statistics import stars

FILES = ["details.csv", "figures", "report.html", "table.csv", "table.md", "table.tex"]


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


def rows_of(text: str, table: int = 0) -> dict[str, list[str]]:
    """The cells of one of the tables of a Markdown text, by their first, which is the model."""
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    lines = [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in tables[table].splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {line[0]: line[1:] for line in lines}


def percent(frame: pd.DataFrame, title: str, column: str) -> str:
    row = frame[frame["title"] == title].iloc[0]
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * row[f"{column}_{name}"] for name in ("accuracy", "low", "high")))


def test_markdown_has_every_number_with_its_interval(frame: pd.DataFrame) -> None:
    text = markdown(frame, unfinished=["waiting"])
    lines = rows_of(text)
    assert list(lines) == [
        *("model", "---", "chance", "Question-only LSTM (blind)"),
        *("JPEG bytes of quality 80 in full", "JPEG bytes of quality 80 in full, images shuffled"),
        *("Pixels \\| blocks", "Pixels \\| blocks, images shuffled"),
    ]
    best, blind = lines["Pixels \\| blocks"], lines["Question-only LSTM (blind)"]
    head = lines["model"]
    assert best[head.index("count (n = 20)")] == f"**{percent(frame, 'Pixels | blocks', 'count')}**"
    assert blind[head.index("query (n = 80)")] == percent(frame, "Question-only LSTM", "query")
    assert lines["chance"][:3] == ["42.7", "50.0", "9.1"]
    assert blind[-4:] == ["-", "best blind", "1,234,567", "260 / 26"]
    row = frame[frame["title"] == "Pixels | blocks"].iloc[0]
    for name, shown in zip(("vision_gain", "vs_blind"), best[-4:-2], strict=True):
        ends = [f"{100 * row[f'{name}{end}']:+.1f}" for end in ("", "_low", "_high")]
        marks = "\\*" * len(stars(row[f"{name}_adjusted_p"]))
        assert shown == f"{ends[0]} [{ends[1]}, {ends[2]}]{marks}"
        assert marks
    assert "compare integer (n = 60)" in head
    assert "Not finished, so not shown (1): waiting." in text
    assert "\\* p < 0.05, \\*\\* p < 0.01" in text


def test_what_else_is_known_has_a_second_table(frame: pd.DataFrame) -> None:
    rows = rows_of(markdown(frame), table=1)
    assert rows["model"] == [
        *("likelihood", "constrained greedy", "free greedy", "mass", "ECE", "Brier", "bits/byte image"),
        *("bits/byte question", "bits/byte answer", "bytes a picture", "training FLOPs"),
    ]
    assert set(rows) == {
        *("model", "---", "Question-only LSTM (blind)", "JPEG bytes of quality 80 in full", "Pixels \\| blocks")
    }
    row = frame[frame["title"] == "Pixels | blocks"].iloc[0]
    assert rows["Pixels \\| blocks"] == [
        *(f"{100 * row[name]:.1f}" for name in ("overall_accuracy", "constrained_greedy", "free_greedy")),
        *(f"{row[name]:.3f}" for name in ("trie_mass", "ece", "brier", "bits_image", "bits_question", "bits_answer")),
        *("576", "1.5e12"),
    ]
    blind = rows["Question-only LSTM (blind)"]
    assert [name for name, shown in zip(rows["model"], blind, strict=True) if shown == "-"] == [
        *("free greedy", "mass", "bits/byte image", "bits/byte question", "bits/byte answer", "bytes a picture")
    ]
    assert "ECE: " in markdown(frame)
    assert "ECE: " not in markdown(frame[frame["row"] != "cell"])


def test_published_numbers_are_marked_and_neither_ranked_nor_in_the_csv(frame: pd.DataFrame) -> None:
    beside = with_published(frame)
    rows, film = rows_of(markdown(beside)), published("clevr").set_index("method").loc["FiLM (from pixels)"]
    assert list(rows)[: len(frame) + 2] == list(rows_of(markdown(frame)))
    shown = rows["FiLM (from pixels) †"]
    assert shown[0] == f"{film['overall']:.1f}"
    assert shown[-4:] == ["-"] * 4
    assert "**" not in "".join("".join(cells) for name, cells in rows.items() if name.endswith(("†", "‡")))
    assert rows["Pixels \\| blocks"] == rows_of(markdown(frame))["Pixels \\| blocks"]
    secondary = published("mblm").query("verified == 'secondary'")["method"].iloc[0]
    assert f"{secondary} ‡" in rows
    said = "\n".join(notes(beside))
    assert "† published, other test set" in said
    assert film["source"] in said
    assert "†" not in "\n".join(notes(frame))


def test_controls_are_in_every_table(tmp_path: Path) -> None:
    control = majority_control(130)
    make_run(tmp_path / "pixels", accuracy=0.8, shuffled_accuracy=0.4, questions=130, controls=control)
    frame = build_frame(collect(tmp_path).runs)
    rows = rows_of(markdown(frame))
    assert list(rows)[2:] == ["chance", "majority per question type (blind)", "pixels", "pixels, images shuffled"]
    assert rows["majority per question type (blind)"][0].startswith(
        f"{100 * control['majority']['overall']['accuracy']:.1f} ["
    )
    assert "No blind cell is finished" in markdown(frame)
    make_run(tmp_path / "majority", accuracy=0.3, questions=130, model={"kind": "majority"}, controls=control)
    text = markdown(build_frame(collect(tmp_path).runs))
    assert "majority per question type" not in text
    assert "No question-only model is finished" in text


def test_a_control_that_is_not_that_of_every_cell_is_said_to_be(tmp_path: Path) -> None:
    """Nor is it left out for a cell that counts answers over all types."""
    for name, accuracy in (("a", 0.3), ("b", 0.6)):
        control = majority_control(130, accuracy=accuracy)
        make_run(tmp_path / name, accuracy=0.8, shuffled_accuracy=0.4, questions=130, controls=control)
    over_all = {"kind": "majority", "config": {"per_type": False}}
    make_run(tmp_path / "over-all", accuracy=0.3, questions=130, model=over_all)
    frame = build_frame(collect(tmp_path).runs)
    (remark,) = frame.loc[frame["row"] == "majority", "remarks"]
    assert remark == "The training splits of the cells differ; this is the majority of one of them."
    (tmp_path / "b" / "DONE").unlink()
    frame = build_frame(collect(tmp_path).runs)
    assert frame.loc[frame["row"] == "majority", "remarks"].isna().tolist() == [True]


def test_only_cells_that_see_are_bold(frame: pd.DataFrame) -> None:
    bold = {name: cells for name, cells in rows_of(markdown(frame)).items() if "**" in "".join(cells)}
    assert list(bold) == ["Pixels \\| blocks"]
    assert "".join(bold["Pixels \\| blocks"]).count("**") == 2 * 6
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
    assert max(map(len, visible.splitlines())) <= WIDTH
    assert ("\x1b[" in text) == color
    assert text.isascii() or color
    for expected in (
        "mini: 260 questions about 26 images",
        "chance",
        "  images shuffled",
        "best blind",
        "waiting",
        "ECE",
    ):
        assert expected in visible
    assert percent(frame, "Pixels | blocks", "overall") in visible
    assert "260" in visible.splitlines()[3]


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
    assert max(map(len, text.splitlines())) <= WIDTH
    row = next(line for line in text.splitlines() if line.startswith("Scenes | all (text)"))
    assert row.split()[-5:] == ["1.931", "(20,000)", "1.931", "(20,000)", "600"]
    assert "masked: the same over hidden bytes" in text
    assert "Pretraining" not in markdown(frame, pretraining=pretraining[:0]) + terminal(frame)


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something simpler than figures and a page in their place, which others have time to disturb."""

    def draw(runs: object, frame: pd.DataFrame) -> dict[str, Rendered]:
        content = f"{len(frame)} rows".encode()
        return {} if frame.empty else {"accuracy": Rendered(content, content), "types": Rendered(content, content)}

    def write(path: Path, collection: Collection, frame: pd.DataFrame, figures: dict[str, str]) -> None:
        with path.open("w", encoding="utf-8") as file:
            file.write(f"{len(collection.runs)} ")
            sleep(0.02)
            file.write(f"{' '.join(frame['title'])} {figures}")

    monkeypatch.setattr("vqa_bench.report.draw_figures", draw)
    monkeypatch.setattr("vqa_bench.report.page.write_page", write)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    assert names_in(tmp_path / "out") == FILES


def test_pretraining_runs_alone_are_reported_without_cells(tmp_path: Path) -> None:
    make_pretraining(tmp_path / "pretrain" / "text", {"test": {"bits_per_byte": 1.5, "bytes": 400}})
    report = write_report(tmp_path)
    assert (report.csv, report.details, report.latex, report.page, report.figures) == (None, None, None, None, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pretrain", "pretraining.csv", "table.md"]
    assert "1.500 (400)" in report.text
    assert "1.500 (400)" in report.markdown.read_text()


def test_reports_of_one_folder_made_together_do_not_disturb_each_other(results: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: write_report(results, tmp_path), range(8)))
    assert names_in(tmp_path) == FILES
    assert len({report.text for report in reports}) == 1
    assert reports[0].csv is not None
    assert reports[0].csv.read_text() == csv(reports[0].frame)
    assert [path.read_text() for path in reports[0].figures] == ["6 rows"] * 4


def test_what_a_killed_report_left_is_cleared_away(results: Path, tmp_path: Path) -> None:
    for name in (".report.lock", ".report.partial", "table.md"):
        (tmp_path / name).write_text("half")
    report = write_report(results, tmp_path)
    assert names_in(tmp_path) == FILES
    assert report.markdown.read_text() == markdown(report.frame, unfinished=["waiting"])


def test_report_writes_its_files_and_no_other(results: Path, tmp_path: Path) -> None:
    report = write_report(results, tmp_path / "out")
    assert names_in(tmp_path / "out") == FILES
    assert names_in(tmp_path / "out" / "figures") == ["accuracy.png", "accuracy.svg", "types.png", "types.svg"]
    assert report.markdown.read_text() == markdown(report.frame, unfinished=["waiting"])
    assert report.csv is not None
    assert report.csv.read_text() == csv(report.frame)
    assert report.details is not None
    details = pd.read_csv(report.details)
    assert set(details["by"]) == {"group", "type", "program_length", "num_objects", "answer"}
    assert report.page is not None
    assert report.page.read_text().startswith("3 chance")
    assert report.text == terminal(report.frame, unfinished=["waiting"])
    assert report.unfinished == ["waiting"]


def test_report_goes_into_the_results_and_can_be_repeated(tmp_path: Path) -> None:
    make_run(tmp_path / "real", accuracy=0.9, shuffled_accuracy=0.4, dataset={"name": "clevr", "missing_images": 3})
    make_run(tmp_path / "few", accuracy=1.0, questions=3)
    first = write_report(tmp_path)
    second = write_report(tmp_path)
    assert first.text == second.text
    assert set(FILES) <= set(names_in(tmp_path))
    assert "3 images of the test set were missing, their questions are left out." in first.text
    assert "No blind cell is finished" in first.text
    assert len(re.findall("^## ", first.markdown.read_text(), flags=re.MULTILINE)) == 2


def test_published_numbers_and_the_page_are_a_matter_of_choice(results: Path, tmp_path: Path) -> None:
    write_report(results, tmp_path, published=True)
    for name, has in {"table.md": True, "table.tex": True, "report.html": True, "table.csv": False}.items():
        assert ("FiLM" in (tmp_path / name).read_text()) == has
    report = write_report(results, tmp_path / "bare", page=False)
    assert report.page is None
    assert names_in(tmp_path / "bare") == [name for name in FILES if name != "report.html"]


def test_figures_without_data_any_more_are_removed(results: Path, tmp_path: Path) -> None:
    write_report(results, tmp_path)
    (tmp_path / "figures" / "damage.png").touch()
    (tmp_path / "figures" / "mine.png").touch()
    write_report(results, tmp_path)
    assert names_in(tmp_path / "figures") == [*("accuracy.png", "accuracy.svg", "mine.png", "types.png", "types.svg")]


def test_without_a_finished_run_nothing_is_written(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "waiting", accuracy=0.9, done=False)
    with pytest.raises(UserError, match="got 1 unfinished"):
        write_report(tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()
