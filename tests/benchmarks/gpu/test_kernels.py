"""The kernels part: that it sees what is wrong, what becomes of results, and the branch that needs mamba-ssm."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import attention, kernels, parity
from benchmarks.gpu.attention import Sequences, measure_backends, stage_sequences
from benchmarks.gpu.bench import OUT_OF_MEMORY, Bench
from benchmarks.gpu.device import Device
from benchmarks.gpu.kernels import FLOAT32, TINY, Check, Findings
from benchmarks.gpu.parity import relative_error
from benchmarks.gpu.shapes import MILLION, ONE_T, TWO_ST, TWO_TT, PaperShape, build
from mblm.model import kernels as library
from mblm.model import mamba
from mblm.model.ssd import ssd

CPU = torch.device("cpu")


@pytest.fixture
def findings(tmp_path: Path) -> Findings:
    return Findings(Bench("kernels", Device(CPU, tiny=True), tmp_path / "kernels.json", True), TINY)


def compare(findings: Findings, outputs: dict[str, float], gradients: dict[str, float] | None = None) -> None:
    result = {"outputs": outputs, "gradients": gradients or {}}
    kernels._compare(findings, Check("some", 0.01, lambda: result))


# -- distances --------------------------------------------------------------------------------------------------------


def test_relative_error() -> None:
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert relative_error(torch.tensor([3.0, 4.5]), exact) == pytest.approx(0.1)
    assert relative_error(exact, exact) == 0
    assert relative_error(torch.tensor([0.0, 0.25]), torch.zeros(2)) == 0.25
    assert math.isnan(relative_error(torch.tensor([3.0, math.nan]), exact))


Spoil = Callable[..., tuple[Tensor, Tensor]]


def forgets_the_state(*given: Any) -> tuple[Tensor, Tensor]:
    return ssd(*given[:6], None if given[6] is None else 0 * given[6])


def a_little_off(*given: Any) -> tuple[Tensor, Tensor]:
    y, state = ssd(*given)
    return y * (1 + 2 * FLOAT32), state


def wrong_gradient(x: Tensor, dt: Tensor, A: Tensor, *given: Any) -> tuple[Tensor, Tensor]:
    return ssd(x, dt, A.detach() + 0 * A, *given)


@pytest.mark.parametrize(
    ("spoiled", "named"),
    [(forgets_the_state, "state after, 9 positions behind a state"), (a_little_off, "y, 9"), (wrong_gradient, "dA, 9")],
)
def test_a_wrong_scan_is_a_failure(
    spoiled: Spoil, named: str, findings: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = replace(TINY, scan=replace(TINY.scan, lengths=(9,)))
    check = next(check for check in kernels._checks(sizes, CPU) if check.name == "scan, float32")
    kernels._compare(findings, check)
    assert findings.failures == []
    monkeypatch.setattr(parity, "ssd", spoiled)
    kernels._compare(findings, Check("again", check.limit, check.measure))
    assert any(f"again: {named}" in failure for failure in findings.failures)
    assert [row.reached for row in findings.rows] == [True, False]


@pytest.mark.parametrize("shape", TINY.models, ids=lambda shape: shape.family)
def test_models_that_are_not_the_same_differ(shape: PaperShape, monkeypatch: pytest.MonkeyPatch) -> None:
    move = parity._moved_alike

    def spoiled(found: torch.nn.Module, exact: Any) -> Any:
        exact = move(found, exact)
        exact.start_tokens[-1].data *= 1.5
        return exact

    monkeypatch.setattr(parity, "_moved_alike", spoiled)
    gradients = parity.ALL_GRADIENTS
    assert parity.loss_errors("torch", torch.float32, shape, CPU)["outputs"][gradients] > FLOAT32
    assert parity.shared_errors("torch", torch.float32, shape, CPU)["outputs"][gradients] > FLOAT32
    assert parity.decode_errors("torch", shape, CPU)["outputs"]["steps"] > FLOAT32


# -- findings ---------------------------------------------------------------------------------------------------------


def test_what_is_beyond_its_limit_is_a_failure(findings: Findings) -> None:
    compare(findings, {"y": 0.001, "state": 0.02}, {"D": 0.09, "A": 0.11})
    assert findings.failures == [
        "some: state: expected at most 0.01 of the norm from float64, got 0.02",
        "some: gradient of A: expected at most 0.1 of the norm from float64, got 0.11",
    ]
    (row,) = findings.rows
    assert (row.what, row.value, row.reached) == ("some; most: state", 0.02, False)


def test_what_is_no_number_is_a_failure(findings: Findings) -> None:
    compare(findings, {"y": 0.001, "state": math.nan, "x": 0.002}, {"A": math.nan})
    assert [failure.split(": ")[1] for failure in findings.failures] == ["state", "gradient of A"]
    assert findings.rows[0].value == math.inf
    assert findings.rows[0].reached is False


def test_what_a_kernel_raises_is_a_failure_and_the_rest_goes_on(findings: Findings) -> None:
    def raising() -> dict[str, Any]:
        raise KeyError("no such\n  layout")

    def too_large() -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried …")

    assert findings.measure("first", raising) is None
    assert findings.measure("second", too_large) is None
    assert findings.measure("third", lambda: {"a": 1}) == {"a": 1}
    assert findings.failures == ["first: raised KeyError: 'no such\\n layout'"]
    assert findings.remarks == ["second: out of memory: CUDA out of memory"]
    assert findings.bench.items["second"]["result"] == {OUT_OF_MEMORY: "CUDA out of memory"}


def test_why_there_are_no_fused_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "expected tensors on a CUDA device, got cpu" in (kernels.why_not_fused(CPU) or "")
    monkeypatch.setattr(kernels, "resolve_kernel", lambda kernel, device: "triton")
    assert kernels.why_not_fused(CPU) is None


def test_the_branch_of_mamba_ssm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scan is played by ours, once as it is and once with states that were forgotten."""

    def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int, **rest: Any) -> tuple[Tensor, Tensor]:
        assert rest["return_final_states"]
        y, state = ssd(x, dt, A, B[:, :, 0], C[:, :, 0], rest["D"], rest["initial_states"], chunk=chunk)
        return y, state * kept

    kept = 1.0
    monkeypatch.setattr(library, "_fused_scan", lambda: scan)
    monkeypatch.setattr(kernels, "resolve_kernel", lambda kernel, device: kernel)
    monkeypatch.setattr(mamba, "resolve_kernel", lambda kernel, device, kind=None: kernel)
    sizes = replace(TINY, scan=replace(TINY.scan, lengths=(70,)), models=TINY.models[:2])
    monkeypatch.setattr(kernels, "TINY", sizes)
    monkeypatch.setattr(kernels, "_checks", lambda sizes, device: iter(()))
    monkeypatch.setattr(kernels, "_look_at_attention", lambda findings: None)
    report = kernels.run(Bench("kernels", Device(CPU, tiny=True), tmp_path / "a.json", True))
    assert report.failures == []
    # Of both types: scan, stage, and of the one model with such a stage loss and shared prefix; decoding; the speed.
    assert len(report.rows) == 2 * (2 + 2) + 1 + 1
    assert "against mamba-ssm" in report.rows[-1].what
    kept = 0.0
    report = kernels.run(Bench("kernels", Device(CPU, tiny=True), tmp_path / "b.json", True))
    wrong = {failure.split(",")[0] for failure in report.failures}
    assert {"scan", "Mamba-2 stage", "shared prefix", "decoding"} <= wrong
    assert "sparse loss" not in wrong  # asks for no state


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "batch"), [(TWO_TT, 2), (TWO_ST, 1), (MILLION, 1), (ONE_T, 2)], ids=lambda s: str(s)[:9]
)
def test_sequences_are_those_the_model_gives_to_attention(
    shape: PaperShape, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = shape.tiny()
    seen = set()
    run = torch.nn.functional.scaled_dot_product_attention

    def look(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **given: Any) -> Tensor:
        assert mask is None
        assert given["is_causal"]
        seen.add((q.shape, q.stride()))
        return run(q, k, v, **given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", look)
    model = build(tiny, CPU).eval()  # in training the pieces are the same, and recomputed
    ids = torch.randint(256, (batch, tiny.context))
    model.loss_sums(ids, torch.ones(ids.shape))
    expected = [sequences.inputs(torch.float32, CPU)[0] for sequences in stage_sequences(tiny, batch)]
    assert seen == {(q.shape, q.stride()) for q in expected}
    assert len(expected) == shape.family.count("T")


def test_the_paper_s_local_stage() -> None:
    (local,) = stage_sequences(TWO_ST, 8)
    assert local == Sequences("2D S/T 8K, stage 2", rows=8192, positions=9, heads=16, channels=64)
    middle, last = stage_sequences(MILLION, 1)
    assert (middle.rows, middle.positions) == (820, 16)  # a tenth of 8,192, as it is recomputed in ten pieces
    assert (last.rows, last.positions) == (6554, 9)


def test_who_runs_and_who_cannot() -> None:
    found = measure_backends(Sequences("x", 2, 5, 2, 8), torch.float32, Device(CPU, tiny=True), repeats=3)
    assert found["picked"] == "flash"
    assert {name: len(values) for name, values in found["seconds"].items()} == {"flash": 3, "math": 3}
    assert found["refused"].keys() == {"efficient", "cudnn"}


def refuse(error: Exception, *said: str) -> Callable[[], None]:
    def work() -> None:
        for text in said:
            attention.warnings.warn(text, UserWarning, stacklevel=1)
        raise error

    return work


def test_reasons() -> None:
    nobody = RuntimeError("No available kernel. Aborting execution.")
    said = (
        "Memory efficient kernel not used because: (Triggered internally at a.cpp:1.)",
        "Memory Efficient attention has been runtime disabled. (Triggered internally at a.cpp:2.)",
        "Flash attention kernel not used because: (Triggered internally at a.cpp:3.)",
        "Expected query, key and value to all be of dtype: {Half, BFloat16}. Got float (Triggered internally at b.h:4.)",  # noqa: E501
    )
    reason = "Expected query, key and value to all be of dtype: {Half, BFloat16}. Got float"
    assert attention._refusal(refuse(nobody, *said)) == reason
    assert attention._refusal(refuse(nobody)) == "No available kernel"
    assert attention._refusal(refuse(torch.OutOfMemoryError("…"))) == "out of memory"
    assert attention._refusal(lambda: None) is None
    wrong = RuntimeError("CUDA error: invalid configuration argument. More on it.")
    assert attention._refusal(refuse(wrong)) == "CUDA error: invalid configuration argument"


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    report = kernels.run(Bench("kernels", Device(torch.device("cuda"), tiny=True), tmp_path / "kernels.json", True))
    assert report.failures == []
    assert any("attention" in row.what for row in report.rows)
