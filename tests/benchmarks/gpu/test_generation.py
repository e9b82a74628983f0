"""Rows of generation: every case runs at tiny sizes, and ways that write other bytes are told apart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import generation
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.device import Device
from benchmarks.gpu.generation import FULL, TINY, generation_rows, measure_generation
from mblm.graphs import PatchWriter

CPU = Device(torch.device("cpu"), tiny=True)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("speed", CPU, tmp_path / "speed.json", tiny=True)


@pytest.mark.slow  # the dry run from the command line has it all, see test_frame.py
def test_rows_of_a_dry_run(bench: Bench) -> None:
    rows, remarks, failures = generation_rows(bench)
    assert failures == []
    assert len(rows) == len(TINY.cases) + sum(case.forward for case in TINY.cases) + 1
    assert {row.unit for row in rows} == {"×"}
    assert all(row.reached is None for row in rows)  # a CPU has no target
    assert len(remarks) == 1 + len(TINY.cases)
    assert "not captured" in remarks[1]
    # Of every call's bytes those that were written one by one are compared.
    assert f"{TINY.byte_calls * 4} bytes were compared" in remarks[1]
    assert bench.skipped == []


def test_other_bytes_are_a_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    write = PatchWriter.write

    def wrong(self: PatchWriter, numbers: torch.Tensor | None) -> torch.Tensor:
        ids = write(self, numbers).clone()
        ids[:, 2] += 1
        return ids

    monkeypatch.setattr(PatchWriter, "write", wrong)
    result = measure_generation(CPU, TINY.cases[0], TINY)
    assert result["first_other"] == 2
    monkeypatch.setattr(generation, "TINY", replace(TINY, cases=TINY.cases[:1]))
    _, _, failures = generation_rows(bench)
    name = TINY.cases[0].name
    expected = "expected the same bytes by graphs as byte by byte, got the first other one at 2 of 12"
    assert failures == [f"generation, {name}: {expected}"]


def test_what_does_not_fit_or_has_no_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 3 GB. And more")

    monkeypatch.setattr(generation, "measure_generation", full)
    rows, remarks, failures = generation_rows(bench)
    assert (rows, failures) == ([], [])
    assert remarks[0] == f"Generation, {TINY.cases[0].name}: does not fit (tried to allocate 3 GB)."
    late = Bench("speed", CPU, bench.file.with_name("late.json"), tiny=True, seconds=0.0)
    assert generation_rows(late) == ([], [], [])
    assert len(late.skipped) == len(TINY.cases)


def test_full_sizes_fit_their_contexts() -> None:
    for case in FULL.cases:
        shape = case.shape
        patch = shape.context // shape.seq_lens[0]
        assert case.prompt % patch == 0
        assert case.prompt + FULL.graph_calls * patch <= shape.context
    assert set(FULL.flat) <= set(FULL.cases)
    assert len({case.name for case in FULL.cases}) == len(FULL.cases)
