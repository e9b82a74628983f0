"""The tables of published numbers: whole, plausible, each with its source; and what the loader refuses."""

from pathlib import Path

import pandas as pd
import pytest

from vqa_bench.data.vocab import GROUPS, QUESTION_TYPES
from vqa_bench.errors import UserError
from vqa_bench.report.published import FOLDER, KINDS, published

# Questions of each type among CLEVR's first 2,000 of the validation set, in the order of QUESTION_TYPES.
ASKED = dict(zip(QUESTION_TYPES, (279, 496, 51, 59, 65, 164, 176, 170, 180, 95, 93, 77, 95), strict=True))
SHARES = {"exist": 0.140, "count": 0.248, "compare_integer": 0.088, "query": 0.345, "compare_attribute": 0.180}


def test_every_file_has_a_kind() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.csv")) == sorted(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_named_and_have_a_source(kind: str) -> None:
    table = published(kind)
    assert len(table) > 2
    assert table["source"].str.len().gt(10).all()
    assert set(table["verified"]) <= {"yes", "secondary", "no"}
    remembered = table["source"].str.contains("from memory")
    assert (remembered == (table["verified"] == "no")).all()
    for name, most in KINDS[kind].numbers.items():
        assert table[name].dropna().between(0, most, inclusive="right").all()
        assert table[name].notna().any()


@pytest.mark.parametrize("kind", ["clevr", "mblm"])
def test_groups_add_up_to_all_questions(kind: str) -> None:
    table = published(kind)
    complete = table[table["verified"] == "yes"].dropna()  # the secondary rows do not add up, and say so
    weighted = sum(complete[group] * share for group, share in SHARES.items())
    assert len(complete) >= 1
    assert (weighted - complete["overall"]).abs().max() < 0.3
    told = table[(table["verified"] == "secondary") & table[list(GROUPS)].notna().all(axis=1)]
    assert told["source"].str.contains("less than the overall").all()


def test_types_add_up_to_all_questions() -> None:
    table = published("clevr-types")
    weighted = sum(table[name] * count for name, count in ASKED.items()) / sum(ASKED.values())
    assert (weighted - table["overall"]).abs().max() < 0.6
    assert set(table["verified"]) == {"no"}


def test_what_is_in_two_tables_is_the_same() -> None:
    """The exist, count and overall accuracies of four methods are known from a source and from memory."""
    known, types = (published(kind).set_index("method") for kind in ("clevr", "clevr-types"))
    columns = ["overall", "exist", "count"]
    for name in ("Human", "PG+EE (9K programs)", "PG+EE (18K programs)", "PG+EE (700K programs)"):
        remembered = f"{name} (IEP paper)" if name == "Human" else f"{name[:-1]}; IEP paper)"
        assert types.loc[remembered, columns].tolist() == known.loc[name, columns].tolist()
    assert published("mblm").set_index("method").loc["CNN+LSTM"].equals(known.loc["CNN+LSTM"])


def test_shapes_hold_their_context() -> None:
    for _, row in published("mblm-shapes").iterrows():
        patches = [int(number) for number in row["patches"].split(",")]
        product = 1
        for number in patches:
            product *= number
        assert (len(patches), product) == (row["stages"], row["context"])
        if not pd.isna(row["checkpoint_chunks"]):
            assert len(row["checkpoint_chunks"].split(",")) == row["stages"] - 1


def test_out_of_memory_is_missing_and_said() -> None:
    table = published("mblm-memory")
    missing = table[table["gigabytes"].isna()]
    assert missing[["model", "context"]].to_numpy().tolist() == [["MBLM 1D-T", 32768]]
    assert missing["source"].str.contains("out of memory").all()


HEAD = "method,test_a,test_b,source,verified"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEAD}\nX,1,2,somewhere,maybe\n", "line 2: expected verified to be one of yes, secondary, no, got 'maybe'"),
        (f"{HEAD}\nX,1,2,somewhere,\n", "line 2: expected verified"),
        (f"{HEAD}\nX,1,2,,yes\n", "line 2: expected a source and a name"),
        (f"{HEAD}\nX,1,2,somewhere,yes\n,1,2,somewhere,yes\n", "line 3: expected a source and a name"),
        (f"{HEAD}\nX,1,2,here,yes\nX,3,4,there,no\n", "line 3: expected every row once"),
        (f"{HEAD}\nX,1,102,somewhere,yes\n", "line 2: expected test_b above 0 and at most 100, got 102"),
        (f"{HEAD}\nX,0,2,somewhere,yes\n", "line 2: expected test_a above 0"),
        (f"{HEAD}\nX,1,two,somewhere,yes\n", "expected numbers under test_a, test_b"),
        ("method,source,verified\nX,somewhere,yes\n", "expected the columns method, test_a, test_b, source, verified"),
    ],
)
def test_a_faulty_table_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "cogent.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        published("cogent", tmp_path)
    assert "\n" not in str(error.value)


def test_without_the_tables_and_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected .*cogent\.csv, got no such file; the published numbers come with"):
        published("cogent", tmp_path)
    with pytest.raises(UserError, match=r"among clevr, clevr-types, .*, got 'imagenet'"):
        published("imagenet")
