"""The speed part: what is counted, what a step trains on, what becomes of results; all jobs at tiny sizes."""

from __future__ import annotations

import math
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import shapes, speed, speed_profile
from benchmarks.gpu.bench import OUT_OF_MEMORY, Bench
from benchmarks.gpu.device import Device
from benchmarks.gpu.shapes import PaperShape, build
from benchmarks.gpu.speed_cases import Case, Questions, Windows, stage_values, useful_flops
from benchmarks.gpu.speed_rows import Findings, matrix_share
from benchmarks.gpu.speed_scoring import ScoringCase, measure_scoring
from benchmarks.gpu.speed_step import COMPILE_FAILED, measure_step, prepare, profile_step, with_fitting_batch

CPU = torch.device("cpu")
TINY = Device(CPU, tiny=True)
NAME = attrgetter("name")
SCORING = next(job for job in speed.TINY.jobs if isinstance(job, ScoringCase))


# -- cases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "paper",
    [shapes.ONE_T, shapes.ONE_S, shapes.TWO_TT, shapes.TWO_ST, shapes.LONG_SS, shapes.MILLION],
    ids=NAME,
)
def test_useful_flops_are_three_forwards_of_causal_products(paper: PaperShape, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = replace(paper.tiny(), hidden_dims=(64,) * len(paper.seq_lens))
    model, acausal, plain = build(shape, CPU), [], F.scaled_dot_product_attention

    def attention(q: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        n, heads, S, channels = q.shape
        acausal.append(4 * n * heads * channels * sum(S - 1 - position for position in range(S)))
        return plain(q, *rest, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    batch = 3
    ids = torch.randint(256, (batch, shape.context))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model.loss_sums(ids, torch.ones(ids.shape))
    expected = 3 * (counter.get_total_flops() - sum(acausal))
    # The taps of convolutions, which torch's counter does not see, are a few percent of so narrow an S.
    assert useful_flops(shape, batch) == pytest.approx(expected, rel=0.04 if "S" in shape.family else 1e-9)


def test_checkpoint_chunks_are_no_useful_flops() -> None:
    chunks = shapes.MILLION.tiny()
    assert chunks.checkpoint_chunks is not None
    assert useful_flops(chunks, 2) == useful_flops(replace(chunks, checkpoint_chunks=None), 2)


SHARED = Questions(shape=shapes.TWO_ST.tiny(), batch=2, prefix=24, suffix=8, questions=3)


@pytest.mark.parametrize(
    ("case", "targets", "samples"),
    [
        (Windows(shape=shapes.TWO_ST.tiny(), batch=2), 2 * 64, 2),
        (Windows(shape=shapes.TWO_ST.tiny(), batch=2, answer_only=True), 2 * 4, 2),
        (SHARED, 2 * 3 * 4, 6),
        (replace(SHARED, shared=False), 2 * 4, 2),
    ],
)
def test_what_a_step_predicts(case: Case, targets: int, samples: int) -> None:
    sums = case.loss(build(case.shape, CPU))(*case.draw(2, CPU))
    assert int(sums.targets) == targets
    assert sums.total.item() / targets == pytest.approx(math.log(264), rel=0.5)
    assert case.samples(2) == samples


def test_a_shape_as_the_harness_has_it() -> None:
    values = stage_values(shapes.TWO_ST)
    assert values["seq_lens"] == [1024, 8]
    assert values["num_layers"] == [25, 21]
    assert values["stages"] == [
        {"kind": "mamba", "head_dim": 64, "d_state": 128, "d_conv": 4, "expand": 2},
        {"heads": 16, "head_dim": 64, "ff_multiplier": 2},
    ]


# -- steps ----------------------------------------------------------------------------------------------------------


def test_a_step_learns_its_batch_in_float32_weights() -> None:
    torch.manual_seed(0)
    training, step = prepare(SHARED, 2, CPU)
    losses = [step() for _ in range(20)]
    assert losses[-1] < losses[0] - 0.02
    assert {parameter.dtype for parameter in training.model.parameters()} == {torch.float32}


def test_what_is_measured_of_a_step() -> None:
    case = Windows(shape=shapes.THREE_TTT.tiny(), batch=2, repeats=3)
    found = measure_step(TINY, case)
    assert found["batch"] == found["samples"] == 2
    assert len(found["seconds"]) == 3
    assert found["peak"] is None
    assert found["loss"] == pytest.approx(math.log(264), rel=0.5)
    assert found["kernels"] == [None, None, None]


def test_the_batch_is_halved_until_it_fits() -> None:
    tried = []

    def measure(batch: int) -> dict[str, Any]:
        tried.append(batch)
        if batch > 3:
            raise torch.OutOfMemoryError("Tried to allocate 80 GiB. More words")
        return {"batch": batch}

    assert with_fitting_batch(measure, 13) == {"batch": 3, "halved_from": 13}
    assert tried == [13, 6, 3]
    assert with_fitting_batch(measure, 2) == {"batch": 2}


def test_not_even_one_fits() -> None:
    def measure(batch: int) -> dict[str, Any]:
        raise torch.OutOfMemoryError(f"a batch of {batch}")

    with pytest.raises(torch.OutOfMemoryError, match=r"a batch of 1$"):
        with_fitting_batch(measure, 4)


def test_a_compiler_that_fails_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    case = Windows(shape=shapes.ONE_T.tiny(), batch=1)
    result = measure_step(TINY, case, backend="no-such-backend")
    assert set(result) == {COMPILE_FAILED}
    assert "no-such-backend" in result[COMPILE_FAILED]
    assert "Traceback" in capsys.readouterr().err
    found = Findings()
    found.add_windows(case, {"compiled": result}, 1e12)
    assert found.rows == []
    assert "do not compile" in found.failures[0]


# -- rows -----------------------------------------------------------------------------------------------------------

MAIN = Windows(shape=shapes.TWO_ST.tiny(), batch=8)


def result(seconds: float, *, batch: int = 8, **more: Any) -> dict[str, Any]:
    """A step's, of three turns."""
    times = [seconds * 1.1, seconds, seconds * 0.9]
    return {"batch": batch, "samples": batch, "seconds": times, "peak": 3 * 10**9, "loss": 5.5} | more


def test_the_share_of_the_matrix_rate_and_its_target() -> None:
    rate = 1e12
    seconds = useful_flops(MAIN.shape, 8) / rate / 0.5  # at half of the rate
    found = Findings()
    slow = result(2 * seconds, kernels=["torch", None])
    found.add_windows(MAIN, {"eager": slow, "compiled": result(seconds, first_seconds=33.0)}, rate, target=40.0)
    eager, compiled = found.rows
    assert matrix_share(MAIN, slow, rate) == pytest.approx(0.25)
    assert (eager.value, compiled.value) == (pytest.approx(25.0), pytest.approx(50.0))
    assert (eager.reached, compiled.reached) == (None, True)  # the better way is held against the target
    assert compiled.measured.median == pytest.approx(8 * 64 / seconds / 1e3)
    assert compiled.against is not None
    assert compiled.against.median == pytest.approx(2 * compiled.measured.median)
    assert "8 at once, 3 GB" in eager.what
    assert "Recurrences of S stages by: torch." in found.all_remarks()
    assert any("the first step took 33 s" in remark for remark in found.remarks)


def test_pairs_are_samples_a_second() -> None:
    questions = replace(SHARED, batch=8)
    found = Findings()
    found.add_pair(questions, result(1.0, samples=24), replace(questions, shared=False), result(2.0))
    [row] = found.rows
    assert (row.measured.median, row.measured.unit) == (24.0, "questions/s")
    assert row.against is not None
    assert (row.against.median, row.value) == (4.0, 6.0)
    found.add_pair(questions, result(1e-3, samples=24), replace(questions, shared=False), result(2.0))
    assert (found.rows[1].measured.median, found.rows[1].measured.unit) == (24.0, "k questions/s")
    assert found.rows[1].value == pytest.approx(6000.0)


def test_what_is_missing_or_wrong_is_said() -> None:
    found = Findings()
    found.add_windows(MAIN, {"eager": None}, 1e12)
    assert (found.rows, found.remarks, found.failures) == ([], [], [])
    found.add_windows(MAIN, {"eager": {OUT_OF_MEMORY: "Tried to allocate"}}, 1e12)
    assert found.rows == []
    assert "does not fit, not even one at a time (Tried to allocate)" in found.remarks[0]
    found.add_windows(MAIN, {"eager": result(1.0, batch=4, halved_from=8)}, 1e12)
    assert found.remarks[1].endswith("8 at once do not fit; measured with 4.")
    found.add_windows(MAIN, {"eager": result(1.0, loss=math.nan)}, 1e12)
    assert found.failures == ["2D S/T 8K, full loss, eager: expected a finite loss, got nan"]
    found.add_pair(SHARED, {OUT_OF_MEMORY: "x"}, MAIN, result(1.0))
    assert len(found.rows) == 2


def test_scoring_that_mixes_up_questions_is_a_failure() -> None:
    scored = result(1.0, samples=80, apart=0.01, spread=0.25, agree=1.0) | {
        "seconds": {"shared": [1.0], "alone": [4.0]}
    }
    found = Findings()
    found.add_scoring(SCORING, scored)
    assert found.rows[0].value == 4.0
    assert found.failures == []
    found.add_scoring(SCORING, scored | {"apart": 0.9, "agree": 0.3})
    assert "expected the same answers both ways" in found.failures[0]


# -- the part -------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # the dry run from the command line has it all, see test_frame.py
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it
def test_all_jobs_at_tiny_sizes(tmp_path: Path) -> None:
    allowed = torch.backends.cuda.matmul.allow_tf32
    bench = Bench("speed", TINY, tmp_path / "speed.json", True)
    report = speed.run(bench)
    assert report.failures == []
    assert bench.skipped == []
    measured = {name for name in bench.items if not name.startswith("generation")}
    assert measured == {"ceilings", *(job.name for job in speed.TINY.jobs)}
    assert len(bench.items) > len(measured)
    assert all(row.value > 0 and row.target is None for row in report.rows)
    text = " ".join(report.remarks)
    assert "Attention by: flash_attention_for_cpu" in text
    assert "Recurrences of S stages by: torch" in text
    assert torch.backends.cuda.matmul.allow_tf32 == allowed
    again = Bench("speed", TINY, tmp_path / "speed.json", True, seconds=0.0)
    assert speed.run(again).rows == report.rows  # kept, as no time is left


def test_without_time_nothing_is_said(tmp_path: Path) -> None:
    bench = Bench("speed", TINY, tmp_path / "speed.json", False, seconds=0.0)
    assert speed.run(bench).rows == []
    assert set(bench.skipped) > {"ceilings", *(job.name for job in speed.FULL.jobs)}


@pytest.mark.parametrize("sizes", [speed.FULL, speed.TINY], ids=["full", "tiny"])
def test_jobs_have_names_of_their_own_and_pairs_are_measured(sizes: speed.Sizes) -> None:
    names = [job.name for job in sizes.jobs]
    assert len(set(names)) == len(names)
    eager = {job.case for job in sizes.jobs if isinstance(job, speed.Job) and job.way == "eager"}
    profiled = {job.case for job in sizes.jobs if isinstance(job, speed.Job) and job.way == "profile"}
    assert {sizes.main} == profiled
    assert {case for pair in sizes.pairs for case in pair} | {sizes.main} <= eager


def test_full_jobs_fit_the_contexts_and_the_time() -> None:
    for job in speed.FULL.jobs:
        case = job if isinstance(job, ScoringCase) else job.case
        if isinstance(case, Questions):
            assert case.prefix % math.prod(case.shape.seq_lens[1:]) == 0
            assert case.prefix + case.suffix <= case.shape.context
    assert {job.name: job.seconds for job in speed.FULL.jobs if job.seconds > 60} == {}


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    device = Device(torch.device("cuda"), tiny=True)
    for way in ("eager", "compiled"):
        found = measure_step(device, MAIN, backend="inductor" if way == "compiled" else None)
        assert COMPILE_FAILED not in found
        assert found["peak"] > 0
        assert math.isfinite(found["loss"])
    profile = profile_step(device, MAIN)
    assert profile["seconds"] > 0
    assert profile["launches"] > 0
    assert profile["kinds"][speed_profile.PRODUCTS] > 0
    assert measure_scoring(device, SCORING)["apart"] < 0.2
