"""What every benchmark shares: turns that alternate, ratios of medians, targets, tables and the recorded files."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.child import ChildError, measure_apart
from benchmarks.common import (
    Samples,
    Target,
    alternate,
    amount,
    growth,
    machine_provenance,
    markdown,
    peak_memory,
    record,
    speedup,
)
from benchmarks.shapes import TOY, specification

LINUX = Path("/proc/self/clear_refs").exists()


def seconds(*values: float) -> Samples:
    return Samples(values, "s")


def test_turns_alternate_and_warmup_is_thrown_away() -> None:
    calls: list[str] = []

    def turn(name: str) -> int:
        calls.append(name)
        return len(calls)

    results = alternate({"a": lambda: turn("a"), "b": lambda: turn("b")}, repeats=2, warmup=1)
    assert calls == ["a", "b"] * 3
    assert results == {"a": [3, 5], "b": [4, 6]}


def test_rows_are_ratios_of_medians_held_against_targets() -> None:
    ours, other = seconds(1.0, 2.0, 90.0), seconds(10.0, 11.0, 12.0)
    fast = speedup("a", ours, other, at_least=5)
    assert (fast.value, fast.reached) == (5.5, True)
    assert speedup("a", ours, other, at_least=6).reached is False
    assert speedup("a", ours, other).reached is None
    assert growth("b", ours, other, at_most=0.2).reached is True
    assert growth("b", other, ours, at_most=0.2).reached is False
    assert amount("c", Samples((7.0,), "GiB"), at_most=8).reached is True
    nothing = growth("d", ours, seconds(0.0), at_most=1)
    assert math.isnan(nothing.value)
    assert nothing.reached is False
    assert Target("≥", 3).reached(3)
    assert Target("≤", 3).reached(3)


def test_table_marks_targets_and_numbers_notes() -> None:
    ours, other = seconds(0.05, 0.06, 0.04), seconds(1.0)
    rows = [
        speedup("x", ours, other, at_least=5, notes=("first", "second")),
        speedup("y", ours, other, at_least=50, notes=("second",)),
        speedup("z", ours, other),
    ]
    lines = markdown("T", against="reference", rows=rows, remarks=["r"]).splitlines()
    assert "| x (1, 2) | 50 ms [40, 60] | 1 s | 20× | ≥ 5× | reached |" in lines
    assert "| y (2) | 50 ms [40, 60] | 1 s | 20× | ≥ 50× | **not reached** |" in lines
    assert "| z | 50 ms [40, 60] | 1 s | 20× |  |  |" in lines
    assert lines[-5:] == ["", "1. first", "2. second", "", "* r"]


def test_recorded_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [speedup("x", seconds(1.0), seconds(3.0), at_least=2)]
    about = machine_provenance("benchmarks.some", ["--quick"], 2)
    record(tmp_path, "some", table="a table\n", rows=rows, facts={"fact": 1}, about=about)
    assert capsys.readouterr().out == "a table\n\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["provenance.json", "some.json", "some.md"]
    saved = json.loads((tmp_path / "some.json").read_text(encoding="utf-8"))
    assert saved["fact"] == 1
    assert saved["rows"][0]["against"] == {"values": [3.0], "unit": "s"}
    assert saved["rows"][0]["reached"] is True
    provenance = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["command"] == ["python", "-m", "benchmarks.some", "--quick"]
    assert {"date", "cpu", "threads", "commit", "dirty", "packages"} <= provenance.keys()


@pytest.mark.skipif(not LINUX, reason="peak memory is read from Linux's /proc")
def test_peak_memory_sees_what_was_freed_again() -> None:
    size = 64 << 20
    memory = peak_memory(lambda: b"\x01" * size)
    assert memory.peak - memory.before > 0.9 * size
    assert peak_memory(lambda: None).peak < memory.peak


def test_specification_names_its_stages() -> None:
    shape = specification("S/T", TOY, seq_lens=[4, 8], hidden_dims=[16, 16], num_layers=[1, 1])
    assert [list(block) for block in shape["block"]] == [["S"], ["T"]]
    assert json.loads(json.dumps(shape)) == shape
    with pytest.raises(ValueError, match="expected S or T for each of 2 stages"):
        specification("S/X", TOY, seq_lens=[4, 8], hidden_dims=[16, 16], num_layers=[1, 1])


def test_a_failed_child_is_one_line() -> None:
    with pytest.raises(ChildError, match="got status 2") as caught:
        measure_apart("benchmarks.length", ["--lengths", "128", "300"], threads=1)
    assert "\n" not in str(caught.value)
