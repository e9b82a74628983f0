"""What is predicted follows from counts and ceilings alone."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.gpu.counts import Counts, Work
from benchmarks.gpu.predict import Step, generated, generation_rows, predicted, rows_of
from benchmarks.gpu.roofline import H200, limits, operations, seconds_of
from benchmarks.gpu.shapes import FIVE_MILLION, LONG_ST, TWO_ST

PRODUCT = Work("mm", "bfloat16", "2×2 2×2", H200.half, 1, 1)  # a second of FLOPs
COPY = Work("add", "float32", "2", 0.0, int(H200.copy), int(H200.copy))  # two seconds of bytes
SMALL = Work("mul", "float32", "1", 0.0, 4, 4)  # a launch


def counts_of(*works: Work) -> Counts:
    counts = Counts()
    counts.calls = Counter(works)
    return counts


def test_each_operation_takes_its_slowest_bound() -> None:
    assert seconds_of(counts_of(PRODUCT, COPY, SMALL)) == pytest.approx(3 + H200.launch)
    assert seconds_of(counts_of(PRODUCT, COPY, SMALL), fused=True) == pytest.approx(1)
    slow = PRODUCT._replace(kind="float32")
    assert seconds_of(counts_of(slow)) == pytest.approx(H200.half / H200.full)


def test_what_bounds_and_what_costs_most() -> None:
    counts = counts_of(PRODUCT, COPY, COPY, SMALL)
    shares = limits(counts)
    assert shares["bytes"] == pytest.approx(4 / 5, rel=1e-4)
    assert sum(shares.values()) == pytest.approx(1)
    first, second, third = operations(counts)
    assert (first["operation"], first["calls"], first["bound"]) == ("add", 2, "bytes")
    assert first["seconds"] == pytest.approx(4)
    assert (second["bound"], third["bound"]) == ("FLOPs", "launches")


def test_rows_of_a_step() -> None:
    found = {
        "peak": 90e9,
        "seconds": 2.0,
        "seconds_fused": 1.0,
        "tokens_per_second": 10.0,
        "mfu": 0.3,
        "mfu_fused": 0.6,
    }
    memory, _ = rows_of(Step(shape=FIVE_MILLION, half=False), {k: v for k, v in found.items() if "mfu" not in k})
    assert memory.reached is False
    share = rows_of(Step(shape=TWO_ST), found)[-1]
    assert (share.value, share.reached) == (30.0, False)
    (paper,) = rows_of(Step(shape=TWO_ST, batch=2, published=20.0), found)
    assert paper.against is not None
    assert paper.against.median == 20.0


def test_an_answer_costs_less_than_everything() -> None:
    shape = TWO_ST.tiny()
    whole, answer = (predicted(Step(shape=shape, batch=4, answer=count)) for count in (None, 4))
    assert answer["flops"] < whole["flops"]
    assert whole["seconds"] > whole["seconds_fused"] > 0
    assert 0 < whole["mfu"] < whole["mfu_fused"]


def test_a_byte_costs_less_than_a_forward() -> None:
    found = generated(LONG_ST.tiny())
    assert found["launches"] > 1
    assert found["seconds_graphed"] < found["seconds"]
    full, half = found["forwards"]["float32"], found["forwards"]["bfloat16"]
    assert full["flops"] == half["flops"] > 0
    assert [row.reached is None for row in generation_rows(found)] == [False, True, False, True]
