"""The part about millions of bytes: what its rows say, and what it says where a step does not fit."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from benchmarks.gpu import length
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.device import Device
from benchmarks.gpu.length import LIMITS, STEPS, Step, recorded_peak, run, step_rows
from benchmarks.gpu.shapes import FIVE_MILLION, TEN_MILLION, build


def bench(folder: Path) -> Bench:
    return Bench("length", Device(torch.device("cpu"), tiny=True), folder / "length.json", tiny=True)


def test_shapes_are_as_long_and_as_large_as_is_asked_for() -> None:
    for shape, context in ((FIVE_MILLION, 5_000_000), (TEN_MILLION, 10_000_000)):
        assert shape.context == context
        assert sum(parameter.numel() for parameter in build(shape, "meta").parameters()) >= 350e6
    assert {FIVE_MILLION.name, TEN_MILLION.name} == set(LIMITS)


@pytest.mark.slow  # the dry run from the command line has it all, see test_frame.py
def test_measured_beside_counted(tmp_path: Path) -> None:
    with mock.patch.object(length, "STEPS", STEPS[:1]):
        report = run(bench(tmp_path))
    assert report.failures == []
    memory, seconds = report.rows
    assert memory.against is not None
    assert memory.measured.median == pytest.approx(memory.against.median, rel=0.05)
    assert seconds.value > 0


def test_what_was_counted_of_the_very_same_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(shape=FIVE_MILLION, half=True)
    found = {"shape": asdict(FIVE_MILLION), "batch": 1, "half": True, "answer": None}
    steps = {scan: found | {"scan": scan, "peak": peak} for scan, peak in (("triton", 16), ("torch", 17))}
    monkeypatch.setattr(length, "PREDICTED", tmp_path / "predicted.json")
    assert recorded_peak(step, ["triton", None, None]) is None
    length.PREDICTED.write_text(json.dumps({"steps": steps}), encoding="utf-8")
    assert recorded_peak(step, ["triton", None, None]) == 16
    assert recorded_peak(step, ["torch", None, None]) == 17
    assert recorded_peak(replace(step, half=False), ["torch", None, None]) is None
    assert recorded_peak(replace(step, shape=TEN_MILLION), ["torch", None, None]) is None


def test_limits_are_held_to_float32() -> None:
    found = {"seconds": [2.0], "peak": 81e9, "counted": 70e9}
    memory, _ = step_rows(Step(shape=FIVE_MILLION), found, tiny=False)
    assert (memory.value, memory.reached) == (81.0, False)
    assert step_rows(Step(shape=FIVE_MILLION, half=True), found, tiny=False)[0].reached is None
    unknown = step_rows(Step(shape=TEN_MILLION), found | {"counted": None}, tiny=False)[0]
    assert (unknown.against, unknown.reached) == (None, True)


def test_a_step_that_does_not_fit_misses_its_limit(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
    with mock.patch.object(length, "measure", side_effect=error):
        report = run(bench(tmp_path))
    assert [row.reached for row in report.rows] == [False, False]
    assert sum("did not fit" in remark for remark in report.remarks) == len(STEPS)


def test_a_loss_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    found = {"seconds": [1.0], "peak": 1, "counted": 1, "loss": float("nan"), "parameters": 1, "kernels": ["torch"]}
    with mock.patch.object(length, "measure", return_value=found), mock.patch.object(length, "STEPS", STEPS[:1]):
        assert "finite" in run(bench(tmp_path)).failures[0]
