"""Speed: training steps of the paper's models, scoring and generation, held against what this GPU multiplies.

A step is the harness's: bfloat16 autocast over float32 weights, the norm clipped, fused AdamW. The most important
measurements come first, as time may run out. Knows which there are; how each is made is in speed_*.py.

speed_cases.py    what a step is timed on, and its counted FLOPs
speed_step.py     one training step, as it is or compiled
speed_profile.py  where its time goes
speed_scoring.py  answering questions
speed_rows.py     results become rows and remarks
generation.py     bytes written
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from benchmarks.gpu import shapes
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.generation import generation_rows
from benchmarks.gpu.parts import Report
from benchmarks.gpu.speed_cases import Case, Questions, Windows
from benchmarks.gpu.speed_rows import MFU, Findings
from benchmarks.gpu.speed_scoring import ScoringCase, measure_scoring
from benchmarks.gpu.speed_step import measure_step, profile_step

Result = dict[str, Any]
Way = Literal["eager", "compiled", "profile"]


@dataclass(frozen=True)
class Job:
    """A step that is timed as it is (eager) or with compiled layers, or profiled as it is. seconds: about how long."""

    case: Case
    way: Way = "eager"
    seconds: float = 8.0

    @property
    def name(self) -> str:
        return f"{self.case.name}, {self.way}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """first, later: jobs by importance, generation between them. main: the full-loss step that has a target.

    pairs: what is held against what. backend: of torch.compile.
    """

    first: tuple[Job | ScoringCase, ...]
    later: tuple[Job | ScoringCase, ...]
    main: Windows
    pairs: tuple[tuple[Case, Case], ...]
    backend: str

    @property
    def jobs(self) -> tuple[Job | ScoringCase, ...]:
        """All of them."""
        return self.first + self.later


def _full() -> Sizes:
    # Batches by what their steps hold, counted by benchmarks/gpu/counts.py with PyTorch's recurrence, in this order:
    # 65 and 55 GB, with the answer only 65 and 47 GB.
    st, tt = Windows(shape=shapes.TWO_ST, batch=8), Windows(shape=shapes.TWO_TT, batch=8)
    st_answer, tt_answer = (replace(case, batch=batch, answer_only=True) for case, batch in ((st, 32), (tt, 64)))
    # CLEVR's: pictures of 62×41 pixels in a part of 7,640 bytes, questions of about 100 with their answers.
    st_shared = Questions(shape=shapes.TWO_ST, batch=32, prefix=7640, suffix=104)
    tt_shared = replace(st_shared, shape=shapes.TWO_TT)
    st_alone, tt_alone = (replace(case, shared=False) for case in (st_shared, tt_shared))
    scoring = ScoringCase(shape=shapes.TWO_ST, encoding="pixels:62x41", images=8)
    # 53, 46, 68, 43 GB at once, then with 10 and 20 chunks, then 76 GB.
    others = (
        Windows(shape=shapes.LONG_ST, batch=1, repeats=3),
        Windows(shape=shapes.ONE_T, batch=4, repeats=3),
        Windows(shape=shapes.ONE_S, batch=2, repeats=3),
        Windows(shape=shapes.LONG_TT, batch=1, repeats=3),
        Windows(shape=shapes.MILLION, batch=1, repeats=2),
        Windows(shape=shapes.TWO_SS, batch=1, repeats=3),
    )
    return Sizes(
        first=(Job(st), Job(st_answer), Job(st, "compiled", 60), Job(st, "profile")),
        later=(
            *(Job(st_shared), Job(st_alone), scoring),
            *(Job(tt), Job(tt_answer), *map(Job, others)),
            *(Job(tt_shared), Job(tt_alone), replace(scoring, half=False)),
            *(replace(scoring, shape=shapes.TWO_TT, images=32), Job(tt, "compiled", 60)),
        ),
        main=st,
        pairs=((st_answer, st), (st_shared, st_alone), (tt_answer, tt), (tt_shared, tt_alone)),
        backend="inductor",
    )


def _tiny() -> Sizes:
    """The same kinds of jobs, one of each, in seconds on a CPU."""
    st = Windows(shape=shapes.TWO_ST.tiny(), batch=2, repeats=1)
    answer = replace(st, answer_only=True)
    # One stage, in graphs that no code is made of: a compiler for the CPU takes longer than all else here.
    one = replace(st, shape=shapes.ONE_T.tiny())
    shared = Questions(shape=st.shape, batch=2, prefix=24, suffix=8, questions=2, repeats=1)
    alone = replace(shared, shared=False)
    room = replace(st.shape, seq_lens=(80, 4))  # for the longest question that CLEVR has
    scoring = ScoringCase(shape=room, encoding="pixels:4x3", images=2, questions=2, repeats=1, seconds=0)
    million = Windows(shape=shapes.MILLION.tiny(), batch=1, repeats=1)
    steps = (Job(st), Job(answer), Job(one), Job(one, "compiled"), Job(st, "profile"), Job(shared), Job(alone))
    return Sizes(
        first=tuple(replace(job, seconds=0.0) for job in (*steps, Job(million))),
        later=(scoring,),
        main=st,
        pairs=((answer, st), (shared, alone)),
        backend="eager",
    )


FULL, TINY = _full(), _tiny()


def run(bench: Bench) -> Report:
    """All jobs by importance, as far as time goes."""
    sizes = TINY if bench.tiny else FULL
    with tensor_cores():
        ceilings = bench.item("ceilings", {}, lambda: _ceilings(bench), needs=5)
        results = {job: _measure(bench, job, sizes) for job in sizes.first}
        rows, remarks, failures = generation_rows(bench)
        results |= {job: _measure(bench, job, sizes) for job in sizes.later}
    found = Findings()
    if ceilings is not None:
        found.add_ceilings(ceilings)
        _report(found, sizes, results, ceilings, None if bench.tiny else MFU)
    return Report(
        "Speed of training, scoring and generation",
        "against",
        [*found.rows, *rows],
        [*found.all_remarks(), *remarks],
        [*found.failures, *failures],
    )


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Let products that stay in float32, the recurrence's above all, run on the matrix units in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _ceilings(bench: Bench) -> Result:
    return {"matmul": bench.device.matmul_rate, "copy": bench.device.copy_rate}


def _measure(bench: Bench, job: Job | ScoringCase, sizes: Sizes) -> Result | None:
    if isinstance(job, ScoringCase):
        return bench.item(job.name, job.settings(), lambda: measure_scoring(bench.device, job), needs=job.seconds)
    case = job.case
    if job.way == "profile":
        return bench.item(job.name, case.settings(), lambda: profile_step(bench.device, case), needs=job.seconds)
    backend = sizes.backend if job.way == "compiled" else None
    return bench.item(
        job.name,
        case.settings() | {"backend": backend},
        lambda: measure_step(bench.device, case, backend=backend),
        needs=job.seconds,
    )


def _report(
    found: Findings,
    sizes: Sizes,
    results: dict[Job | ScoringCase, Result | None],
    ceilings: Result,
    target: float | None,
) -> None:
    """Rows of the full-loss steps, each way beside the other; then what is held against what."""
    steps: dict[Case, dict[str, Result | None]] = {}
    for job, result in results.items():
        if isinstance(job, Job):
            steps.setdefault(job.case, {})[job.way] = result
    for case, ways in steps.items():
        profile = ways.pop("profile", None)
        if isinstance(case, Windows) and not case.answer_only:
            found.add_windows(case, ways, ceilings["matmul"], target=target if case == sizes.main else None)
        if profile is not None:
            found.add_profile(case, profile, ways["eager"], ceilings)
    for ours, other in sizes.pairs:
        found.add_pair(ours, steps[ours]["eager"], other, steps[other]["eager"])
    for job, result in results.items():
        if isinstance(job, ScoringCase):
            found.add_scoring(job, result)
