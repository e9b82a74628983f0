"""Strict YAML, and partial cells over one another."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_bench.config import load_matrix
from vqa_bench.config.layers import build
from vqa_bench.config.read import read_yaml
from vqa_bench.errors import UserError


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([repr, "{:e}".format, "{:.17g}".format]))
def test_every_way_to_write_a_number_is_that_number(
    tmp_path_factory: pytest.TempPathFactory, number: float, write: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "number.yaml"
    path.write_text(f"value: {write(number)}\n", encoding="utf-8")
    assert read_yaml(path) == {"value": float(write(number))}


def test_words_are_words_and_keys_come_once(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text("a: 1e-3\nb: no\nc: true\nd: 7_000_000\ne: 1.\nf: e3\ng: -5\n<<: {h: 1}\n", encoding="utf-8")
    assert read_yaml(path) == {"a": 0.001, "b": "no", "c": True, "d": 7000000, "e": 1.0, "f": "e3", "g": -5, "h": 1}

    path.write_text("a: 1\nb:\n  c: 1\n  d: {x: 1, x: 2}\n  c: 3\na: 4\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_yaml(path)
    for where in (
        "line 4: expected every key once, got 'x'",
        "line 5: expected every key once, got 'c' again, which line 3 has",
        "line 6",
    ):
        assert where in str(error.value)

    path.write_text("a: &a\n  b: *a\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1: expected aliases of what is complete"):
        read_yaml(path)
    path.write_text("a: [1", encoding="utf-8")
    with pytest.raises(UserError, match="expected YAML"):
        read_yaml(path)
    with pytest.raises(UserError, match="expected a configuration file"):
        read_yaml(tmp_path)
    path.write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="expected a mapping"):
        load_matrix(path)


KEYS = st.sampled_from("abc")


@given(st.lists(st.tuples(KEYS, KEYS, KEYS, st.integers(), st.integers(0, 2))))
def test_a_key_with_dots_is_a_place_inside(assignments: list[tuple[str, str, str, int, int]]) -> None:
    """However a place is written, the result is that of assigning one after the other."""
    layers: list[dict[str, Any]] = []
    expected: dict[str, Any] = {}
    for first, second, third, value, dots in assignments:
        nested: dict[str, Any] = {first: {second: {third: value}}}
        half, whole = {f"{first}.{second}": {third: value}}, {f"{first}.{second}.{third}": value}
        layers.append([nested, half, whole][dots])
        expected.setdefault(first, {}).setdefault(second, {})[third] = value
    assert build(layers, {}) == expected


def test_lists_are_replaced_whole_and_reached_by_number_or_star() -> None:
    below = {"model": {"layers": [1, 2, 3], "stages": [{"heads": 1}, {"heads": 2}]}, "train": None}
    assert build([below, {"model": {"layers": [4]}}], {})["model"]["layers"] == [4]
    assert build([below, {"model.layers.1": 9}], {})["model"]["layers"] == [1, 9, 3]
    stages = build([below, {"model.stages.*.dropout": 0.1, "model.stages.0.heads": 5}], {})["model"]["stages"]
    assert stages == [{"heads": 5, "dropout": 0.1}, {"heads": 2, "dropout": 0.1}]
    assert build([below, {"train.steps": 3}], {})["train"] == {"steps": 3}
    assert below["model"]["stages"] == [{"heads": 1}, {"heads": 2}]
    for wrong, message in (
        ({"model.layers.3": 1}, "model.layers.3: expected * or one of 3 entries from 0, got '3'"),
        ({"model.*": 1}, "expected a list at '*'"),
        ({"model.layers.0.x": 1}, "expected a mapping at 'x', got 1"),
    ):
        with pytest.raises(UserError, match=message.replace("*", r"\*")):
            build([below, wrong], {})


def test_bases_lie_below_in_their_order() -> None:
    bases = {"one": {"a": 1, "b": {"x": 1}}, "two": {"b": {"x": 2, "y": 2}}, "bad": 3}
    assert build([{"base": ["one", "two"], "b.y": 3}], bases) == {"a": 1, "b": {"x": 2, "y": 3}}
    assert build([{"a": 0}, {"base": "one"}], bases)["a"] == 1
    for name, message in (("three", "expected one of one, two, bad, got 'three'"), ("bad", "expected a mapping")):
        with pytest.raises(UserError, match=message):
            build([{"base": name}], bases)
