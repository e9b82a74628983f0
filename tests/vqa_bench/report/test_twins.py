"""A pretrained cell beside its scratch twin: which one that is, the numbers, and what a reader is told."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.vqa_bench.report.run_folder import BYTE_MODEL, byte_facts, make_byte_run, make_run
from vqa_bench.config import LoopConfig
from vqa_bench.report.collect import Graded, Run, collect
from vqa_bench.report.frame import build_frame
from vqa_bench.report.schema import CellResult
from vqa_bench.report.tables import markdown, notes
from vqa_bench.report.terminal import terminal
from vqa_bench.report.twins import find_twin
from vqa_bench.scoring.statistics import stars

MAMBA, TRANSFORMER = BYTE_MODEL["stages"]
VERSUS = ["vs_scratch", "vs_scratch_low", "vs_scratch_high", "vs_scratch_p"]


def run(name: str, init: str = "scratch", **changes: Any) -> Run:
    """A finished run whose answers don't matter."""
    level = {"n": 1, "correct": 1, "accuracy": 1.0, "low": 0.0, "high": 1.0, "chance": 0.5}
    facts = {
        "format": 2,
        "cell": name,
        "title": name.capitalize(),
        "answers": ["yes", "no"],
        "dataset": {"name": "mini", "missing_images": 0},
        "metrics": {"overall": level, "groups": {}},
        "shuffled": None,
    }
    result = CellResult.model_validate(facts | byte_facts(init, **changes))
    return Run(Path(name), result, Graded(np.array([True]), np.array(["0.png"]), "digest"), None)


def twin(runs: list[Run], **changes: Any) -> tuple[str | None, str]:
    """The name of a pretrained cell's twin among the runs, and the remark."""
    cell = run("tuned", "pretrained", **changes)
    found = find_twin(cell.result, [*runs, cell])
    return None if found.run is None else found.run.result.cell, found.remark


def remarks_of(frame: pd.DataFrame, cell: str) -> list[str]:
    return list(frame.loc[(frame["cell"] == cell) & (frame["row"] == "cell"), "remarks"].dropna())


def frame_of(results: Path) -> pd.DataFrame:
    return build_frame(collect(results).runs)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch cell and two pretrained ones that it is the twin of, a better one that is no kin, and a blind one."""
    tmp_path = tmp_path_factory.mktemp("pair")
    make_run(tmp_path / "lstm", accuracy=0.4, seed=9)
    make_byte_run(tmp_path / "scratch", accuracy=0.55, draw=1)
    make_byte_run(tmp_path / "other", accuracy=0.65, draw=2, encoding="jpeg:16x12,q=80")
    make_byte_run(tmp_path / "pretrained", accuracy=0.75, draw=3, init="pretrained")
    make_byte_run(tmp_path / "best", accuracy=0.95, draw=4, init="pretrained")
    return tmp_path


def gains_of_images(better: Path, worse: Path) -> list[tuple[int, int]]:
    """For every image: how many more questions were answered rightly, and how many there are."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for sign, run in ((1, better), (-1, worse)):
        for line in (run / "predictions.jsonl").read_text().splitlines():
            record = json.loads(line)
            sums[record["image"]][0] += sign * (record["prediction"] == record["answer"])
            sums[record["image"]][1] += sign == 1
    return [(gain, size) for gain, size in sums.values()]


def test_difference_and_interval_are_those_of_a_plain_bootstrap_over_images(pair: Path) -> None:
    row = frame_of(pair).set_index("title").loc["pretrained"]
    images = gains_of_images(pair / "pretrained", pair / "scratch")
    expected = sum(gain for gain, _ in images) / sum(size for _, size in images)
    assert row["vs_scratch"] == pytest.approx(expected, abs=1e-12)
    generator = random.Random(0)
    resampled = []
    for _ in range(4000):
        drawn = generator.choices(images, k=len(images))
        resampled.append(sum(gain for gain, _ in drawn) / sum(size for _, size in drawn))
    resampled.sort()
    assert row["vs_scratch_low"] == pytest.approx(resampled[100], abs=0.01)
    assert row["vs_scratch_high"] == pytest.approx(resampled[3900], abs=0.01)
    assert 0 < row["vs_scratch_p"] < 0.001
    assert row["twin"] == "scratch"


def test_a_pretrained_cell_stands_directly_after_its_twin(pair: Path) -> None:
    frame = frame_of(pair)
    assert list(frame["title"][frame["row"] != "shuffled"]) == [
        *("chance", "lstm"),
        *("scratch", "pretrained", "best"),  # by rising accuracy among those with one twin
        "other",
    ]
    assert list(frame["row"]) == ["chance", "cell", *["cell", "shuffled"] * 4]
    compared = frame.dropna(subset="vs_scratch")
    assert dict(zip(compared["cell"], compared["row"], strict=True)) == {"pretrained": "cell", "best": "cell"}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"config": {"checkpoint_chunks": [4]}}},
        {"model": {"config": {"stages": [MAMBA | {"kernel": "torch"}, TRANSFORMER]}}},
        {"train": dict.fromkeys(LoopConfig.NO_MATTER, "other")},
        {"train": {"checkpoint": {"time": 5.0, "steps": None}}},
        {"title": "Another"},
    ],
)
def test_what_changes_no_result_may_differ_and_is_not_mentioned(changes: dict[str, Any]) -> None:
    assert twin([run("scratch")], **changes) == ("scratch", "")


@pytest.mark.parametrize(
    "changes",
    [
        {"encoding": "pixels:16x12"},
        {"seed": 1},
        {"sequence": {"layout": "qia"}},
        {"sequence": {"weights": {"image": 1.0}}},
        {"model": {"config": {"hidden_dims": [96, 32]}}},
        {"model": {"config": {"stages": [MAMBA, TRANSFORMER | {"heads": 4}]}}},
        {"model": {"config": {"stages": [TRANSFORMER, MAMBA]}}},
        {"sequence": None},
        {"model": {"config": None}},
    ],
)
def test_a_cell_that_differs_otherwise_is_no_twin(changes: dict[str, Any]) -> None:
    nothing = (None, "No finished scratch cell has the same encoding, sequence, seed and model to compare with.")
    assert twin([run("scratch")], **changes) == nothing
    assert twin([run("scratch", **changes)]) == nothing
    expected = nothing if None in (changes.get("sequence", 0), changes.get("model", {}).get("config", 0)) else ("b", "")
    assert twin([run("a"), run("b", **changes)], **changes) == expected


def test_words_of_a_custom_block_are_compared_whatever_they_are_called() -> None:
    three, five = (
        {"model": {"config": {"stages": [MAMBA, {"kind": "custom", "block": {"kernel": width}, "kernel": width}]}}}
        for width in (3, 5)
    )
    assert twin([run("three", **three), run("five", **five)], **five) == ("five", "")


def test_pretrained_cells_and_runs_of_former_versions_are_no_twins() -> None:
    assert twin([run("also", "pretrained")])[0] is None
    assert twin([run("former", sequence=None), run("scratch")]) == ("scratch", "")


def test_of_several_the_one_with_the_same_training_is_the_twin() -> None:
    tuned = {"train": {"learning_rate": 1e-3, "steps": 900}}
    runs = [run("scratch"), run("decayed", train={"weight_decay": 0.1})]
    assert twin(runs) == ("scratch", "")
    assert twin(runs, **tuned)[0] == "scratch"
    runs.append(run("slow", **tuned))
    assert twin(runs) == ("scratch", "")
    assert twin(runs, **tuned) == ("slow", "")
    runs.append(run("again"))
    several = 'Compared with no scratch cell, as several are its twin: "Scratch", "Decayed", "Slow", "Again".'
    assert twin(runs) == (None, several)
    assert twin(runs, train={"learning_rate": 2e-3}) == (None, several)


def test_a_training_that_differs_is_said() -> None:
    changes = {
        "train": {"steps": 900, "learning_rate": 1e-3, "dev": {"every": 50}, "ema": 0.999, "compile": True},
        "model": {"config": {"stages": [MAMBA, TRANSFORMER | {"dropout": 0.1}], "byte_init": "smooth"}},
    }
    name, remark = twin([run("scratch")], **changes)
    assert name == "scratch"
    begin, _, differences = remark.partition(": ")
    assert begin == 'Trained otherwise than its scratch twin "Scratch"'
    assert sorted(differences.removesuffix(".").split("; ")) == [
        "byte_init smooth, not normal",
        "compile True, not False",
        "dev.every 50, not none",
        "dropout 0/0.1, not 0/0",
        "ema 0.999, not none",
        "learning_rate 0.001, not 0.004",
        "steps 900, not 2,100",
    ]


def test_beginning_twin_and_an_early_end_are_said_of_a_cell(tmp_path: Path) -> None:
    stopped = {"steps": 1200, "stopped": "max_time"}
    initial = {"source": "base.pth", "notes": ["257 ids became 264", "no table of positions"]}
    make_byte_run(tmp_path / "tuned", accuracy=0.6, draw=1, init="pretrained", training=stopped, initial=initial)
    make_byte_run(tmp_path / "scratch", accuracy=0.5, draw=2, training={"steps": 300, "stopped": "patience"}, seed=1)
    make_byte_run(tmp_path / "whole", accuracy=0.5, draw=3, training={"used_step": 900}, encoding="png:16x12")
    make_run(tmp_path / "majority", accuracy=0.4, training={"initial": None})
    make_byte_run(tmp_path / "waiting", accuracy=0.5, draw=1, done=False)
    make_byte_run(tmp_path / "real", accuracy=0.5, draw=1, dataset={"name": "clevr"})
    frame = frame_of(tmp_path)
    told = remarks_of(frame, "tuned")
    assert told == [
        "Began from base.pth (257 ids became 264; no table of positions). "
        "No finished scratch cell has the same encoding, sequence, seed and model to compare with. "
        "Training was stopped by max_time after 1,200 of 2,100 steps."
    ]
    assert frame["vs_scratch"].isna().all()
    assert remarks_of(frame, "scratch") == ["Training was stopped by patience after 300 of 2,100 steps."]
    assert remarks_of(frame, "whole") == remarks_of(frame, "majority") == []
    assert f'"tuned": {told[0]}' in notes(frame[frame["dataset"] == "mini"])


def test_tables_have_the_difference_only_where_there_is_one(pair: Path) -> None:
    frame = frame_of(pair)
    compared = frame.dropna(subset="vs_scratch").set_index("cell")
    shown = {
        cell: "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * row[f"vs_scratch{end}"] for end in ("", "_low", "_high")))
        + stars(row["vs_scratch_adjusted_p"])
        for cell, row in compared.iterrows()
    }
    table = markdown(frame).split("\n\n")[1]
    lines = [line.split(" | ") for line in table.splitlines()]
    place = lines[0].index("vs scratch")
    assert {line[0].removeprefix("| "): line[place].replace("\\*", "*") for line in lines[2:]} == {
        **dict.fromkeys(("chance", "lstm (blind)", "scratch", "scratch, images shuffled"), "-"),
        **dict.fromkeys((f"{title}, images shuffled" for title in ("other", "pretrained", "best")), "-"),
        "other": "-",
        "pretrained": shown["pretrained"],
        "best": shown["best"],
    }
    text = terminal(frame).splitlines()
    beside = next(number for number, line in enumerate(text) if line.startswith("  vs scratch "))
    assert text[beside - 2].startswith("pretrained ")
    assert text[beside - 1].startswith("  vision gain ")
    assert text[beside].endswith(shown["pretrained"])
    assert any(note.startswith("vs scratch: points above") for note in notes(frame))
    alone = frame[~frame["cell"].isin(["pretrained", "best"])]
    assert "vs scratch" not in markdown(alone) + terminal(alone)
