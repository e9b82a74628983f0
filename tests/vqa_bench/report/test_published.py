"""The tables of published numbers: whole, plausible, each with its source."""

from pathlib import Path

import pandas as pd
import pytest

FOLDER = Path(__file__).resolve().parents[3] / "results" / "published"
ACCURACIES = ["overall", "count", "exist", "compare_integer", "query", "compare_attribute"]

# Shares of the groups among CLEVR's first 2,000 validation questions.
SHARES = {"exist": 0.140, "count": 0.248, "compare_integer": 0.088, "query": 0.345, "compare_attribute": 0.180}


@pytest.mark.parametrize("name", ["clevr.csv", "mblm.csv"])
def test_rows_have_a_source_and_the_groups_of_verified_ones_add_up(name: str) -> None:
    table = pd.read_csv(FOLDER / name)
    assert list(table.columns) == ["method", *ACCURACIES, "source", "verified"]
    assert table["method"].is_unique
    assert set(table["verified"]) <= {"yes", "no", "secondary"}
    assert table["source"].str.len().gt(10).all()
    assert table[ACCURACIES].stack().dropna().between(0, 100).all()
    complete = table[table["verified"] == "yes"].dropna()  # the secondary rows do not add up, and say so
    weighted = sum(complete[group] * share for group, share in SHARES.items())
    assert (weighted - complete["overall"]).abs().max() < 0.3
