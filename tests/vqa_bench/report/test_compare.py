"""Two runs compared: every number against the statistics it is made of, and what cannot be compared in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.vqa_bench.report.run_folder import answers_of, make_run
from vqa_bench.cli import main
from vqa_bench.data.vocab import ANSWERS, GROUPS, QUESTION_TYPES
from vqa_bench.errors import UserError
from vqa_bench.report.collect import read_run
from vqa_bench.report.compare import COLUMNS, compare, notes, terminal, write_csv
from vqa_bench.report.frame import build_frame
from vqa_bench.scoring.predictions import correct_of, images_of
from vqa_bench.scoring.statistics import (
    holm,
    minimum_detectable_effect,
    paired_difference,
    stars,
    unclustered_mcnemar,
)

SETS_A, SETS_B = {"accuracy": 0.85, "seed": 3}, {"accuracy": 0.55, "seed": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model that sees, and a blind one."""
    folder = tmp_path_factory.mktemp("compare")
    seeing = make_run(folder / "pixels", shuffled_accuracy=0.4, title="MBLM, pixels", **SETS_A)  # type: ignore[arg-type]
    return seeing, make_run(folder / "lstm", **SETS_B)  # type: ignore[arg-type]


def test_there_is_a_row_for_all_questions_each_group_and_each_type_that_is_not_its_group(runs) -> None:
    frame = compare(*runs).frame
    assert frame.dtypes.astype(str).to_dict() == COLUMNS
    assert frame["questions"].tolist() == [
        *("all", "exist", "count"),
        *("compare_integer", "equal_integer", "less_than", "greater_than"),
        *("query", "query_size", "query_color", "query_material", "query_shape"),
        *("compare_attribute", "equal_size", "equal_color", "equal_material", "equal_shape"),
    ]
    expected = {**dict.fromkeys(GROUPS, "group"), **dict.fromkeys(QUESTION_TYPES[2:], "type"), "all": "overall"}
    assert dict(zip(frame["questions"], frame["scope"], strict=True)) == expected
    assert frame.loc[frame["scope"] == "group", "n"].sum() == 260


def test_every_number_is_that_of_the_statistics(runs) -> None:
    frame = compare(*runs).frame.set_index("questions")
    a, b = (answers_of(260, **sets) for sets in (SETS_A, SETS_B))  # type: ignore[arg-type]
    raw = []
    for name, row in frame.iterrows():
        chosen = [i for i, p in enumerate(a) if name in ("all", p.group, p.question_type)]
        correct_a, correct_b, images = correct_of(a)[chosen], correct_of(b)[chosen], images_of(a)[chosen]
        paired, mcnemar = paired_difference(correct_a, correct_b, images), unclustered_mcnemar(correct_a, correct_b)
        assert [row[c] for c in ("difference", "low", "high", "p_value")] == [
            *(paired.estimate, paired.low, paired.high, paired.p_value)
        ]
        assert (row["n"], row["images"]) == (len(chosen), len(set(images)))
        assert (row["accuracy_a"], row["accuracy_b"]) == (correct_a.mean(), correct_b.mean())
        assert (row["only_a"], row["only_b"]) == ((correct_a > correct_b).sum(), (correct_a < correct_b).sum())
        assert (row["unclustered_mcnemar_p"], row["unclustered_mcnemar_mid_p"]) == (mcnemar.exact_p, mcnemar.mid_p)
        assert row["detectable"] == minimum_detectable_effect(correct_a, correct_b, images)
        raw.append(paired.p_value)
    assert frame["adjusted_p"].tolist() == holm(raw)
    assert frame["stars"].tolist() == [stars(p) for p in holm(raw)]


def test_stars_can_reach_three_and_do_not_follow_mcnemar(runs) -> None:
    frame = compare(*runs).frame.set_index("questions")
    assert frame.loc["all", "stars"] == "***"
    unstarred = frame[(frame["unclustered_mcnemar_p"] < 0.05) & (frame["adjusted_p"] >= 0.05)]
    assert len(unstarred) > 0
    assert (unstarred["stars"] == "").all()


def test_turned_round_only_the_signs_change(runs) -> None:
    there, back = compare(*runs).frame, compare(*reversed(runs)).frame
    np.testing.assert_allclose(there["difference"], -back["difference"])
    assert there["only_a"].tolist() == back["only_b"].tolist()
    assert there["unclustered_mcnemar_p"].tolist() == back["unclustered_mcnemar_p"].tolist()
    np.testing.assert_allclose(there["detectable"], back["detectable"])


def test_terminal_text_is_ascii_and_explains_its_columns(runs) -> None:
    comparison = compare(*runs)
    text = terminal(comparison)
    lines = text.splitlines()
    assert text.isascii()
    assert max(map(len, lines)) <= 110
    assert lines[:3] == ["a: MBLM, pixels (pixels)", "b: lstm", "on mini: 260 questions about 26 images"]
    row = comparison.frame.iloc[0]
    shown = next(line for line in lines if line.startswith("all "))
    assert f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]" in shown
    assert shown.split()[:4] == ["all", "260", f"{100 * row['accuracy_a']:.1f}", f"{100 * row['accuracy_b']:.1f}"]
    assert "***" in shown
    assert sum(line.startswith("  e") for line in lines) == 5  # the types stand under their groups
    said = " ".join(notes(comparison))
    heads = ("a, b", "a - b", "p:", "adjusted", "visible", "only a/b", "McNemar, unclustered", "17 tests")
    assert all(head in said for head in heads)
    colored = re.sub(r"\x1b\[[0-9;]*m", "", terminal(comparison, color=True))
    assert colored != terminal(comparison, color=True)
    assert [line.split() for line in colored.splitlines() if "[" in line] == [
        line.split() for line in lines if "[" in line
    ]


def rewrite(folder: Path, change: Callable[[dict], None]) -> None:
    """Change every line of a run's predictions."""
    path = folder / "predictions.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def test_types_that_clevr_has_not_are_groups_of_their_own(tmp_path: Path) -> None:
    kinds = ["where is it", "a very long kind of question that no column of a table was ever made for"]
    for name, accuracy in (("a", 0.6), ("b", 0.5)):
        make_run(tmp_path / name, accuracy=accuracy, questions=60)
        rewrite(
            tmp_path / name,
            lambda r: r.update(question_type=kinds[r["question_index"] % 2], group=kinds[r["question_index"] % 2]),
        )
    comparison = compare(tmp_path / "a", tmp_path / "b")
    assert comparison.frame[["scope", "questions"]].to_numpy().tolist() == [
        ["overall", "all"],
        ["group", kinds[1]],
        ["group", kinds[0]],
    ]
    assert terminal(comparison).isascii()
    for name in ("a", "b"):
        rewrite(tmp_path / name, lambda r: r.update(question_type="one", group="one"))
    assert compare(tmp_path / "a", tmp_path / "b").frame["questions"].tolist() == ["all"]


def test_equal_answers_differ_in_nothing(runs, tmp_path: Path) -> None:
    twin = make_run(tmp_path / "twin", **SETS_B)  # type: ignore[arg-type]
    frame = compare(runs[1], twin).frame
    assert (frame[["difference", "low", "high", "only_a", "only_b"]] == 0).all(axis=None)
    assert (frame[["p_value", "adjusted_p", "unclustered_mcnemar_p"]] == 1).all(axis=None)
    assert frame["detectable"].between(0, 1, inclusive="right").all()


def test_what_cannot_be_compared_is_said_in_one_line(runs, tmp_path: Path) -> None:
    half = make_run(tmp_path / "half", accuracy=0.5, questions=130)
    other = make_run(tmp_path / "other", accuracy=0.5, dataset={"name": "clevr"})
    waiting = make_run(tmp_path / "waiting", accuracy=0.5, done=False)
    for folder, message in {
        half: "answered the same questions, got mini: 260 questions about 26 images of .*130 questions about 13 images",
        other: "answered the same questions, got mini: 260 .* and clevr: 260",
        waiting: "finished run",
        tmp_path / "nowhere": "finished run",
        runs[0]: "expected two runs to compare, got .* twice",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            compare(runs[0], folder)
        assert "\n" not in str(error.value)


def test_runs_that_chose_among_other_answers_are_not_compared(runs, tmp_path: Path) -> None:
    """Neither here nor in a table: among fewer it is easier to be right."""
    folder = make_run(tmp_path / "more", accuracy=0.5, seed=4)
    names = [*ANSWERS, "maybe"]
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"answers": names}))
    rewrite(folder, lambda record: record["log_probs"].append(-99.0))
    with pytest.raises(UserError, match=r"chose among the same answers in the same order, got 28 of .* and 29 others"):
        compare(runs[0], folder)
    frame = build_frame([read_run(runs[0]), read_run(folder)])
    assert frame.loc[frame["row"] == "cell", "test_set"].nunique() == 2


def test_command_prints_the_table_and_writes_the_csv(runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "compared.csv"
    assert main(["compare", *map(str, runs), "--csv", str(out)]) == 0
    assert capsys.readouterr().out == terminal(compare(*runs))
    written = pd.read_csv(out, dtype=COLUMNS, keep_default_na=False)
    pd.testing.assert_frame_equal(written, compare(*runs).frame, rtol=1e-15)
    assert [path.name for path in out.parent.iterdir()] == ["compared.csv"]
    write_csv(compare(*runs), out)
    assert main(["compare", str(runs[0]), str(runs[0])]) == 2
    assert capsys.readouterr().err.count("\n") == 1
