"""What is predicted follows from counts and ceilings alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.gpu.counts import Counts, Work
from benchmarks.gpu.predict import generated, predicted
from benchmarks.gpu.predict_rows import generation_limit, generation_rows, limit_of, rows_of
from benchmarks.gpu.predict_steps import LENGTHS, MAIN, SPEEDS, TABLE, Step
from benchmarks.gpu.roofline import H200, TILE, attention_flops, limits, operations, padded, seconds_of
from benchmarks.gpu.shapes import FIVE_MILLION, LONG_ST, TWO_ST, TWO_TT
from benchmarks.peer.sizes import WEIGHTED

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


def test_attention_of_few_positions_fills_a_tile() -> None:
    shapes = {9: "2×4×9×64 2×4×9×64 2×4×9×64", 256: "2×4×256×64 2×4×256×64 2×4×256×64"}
    works = {
        positions: Work("_scaled_dot_product_flash_attention", "bfloat16", shape, positions * (positions + 1) / 2, 1, 1)
        for positions, shape in shapes.items()
    }
    filled = padded(counts_of(PRODUCT, *works.values()))
    flops = {work.shape: work.flops for work in filled.calls}
    assert flops[shapes[9]] == TILE**2  # one pair of positions was one FLOP
    assert flops[shapes[256]] == 3 * TILE**2  # of the four tiles one is all future
    assert flops[PRODUCT.shape] == PRODUCT.flops
    assert attention_flops(filled) == 4 * TILE**2


FOUND = {
    "peak": 90e9,
    "seconds": 2.0,
    "seconds_fused": 1.0,
    "seconds_padded": 2.0,
    "seconds_fused_padded": 1.0,
    "tokens_per_second": 10.0,
    "padding": 1.0,
    "limits": {"bytes": 0.75, "FLOPs": 0.25},
    "operations": [{"operation": "add", "shapes": "8×9", "seconds": 0.5}],
}
SHARES = {"mfu": 0.3, "mfu_fused": 0.6, "mfu_padded": 0.2, "mfu_fused_padded": 0.25}


def test_rows_of_a_step() -> None:
    memory, _ = rows_of(Step(shape=FIVE_MILLION, half=False), FOUND)
    assert memory.reached is False
    share = rows_of(MAIN, FOUND | SHARES)[-1]
    assert (share.value, share.reached) == (30.0, False)
    beside = rows_of(replace(MAIN, scan="torch"), FOUND | SHARES)[-1]
    assert (beside.value, beside.reached) == (30.0, None)
    *_, share, tiles = rows_of(MAIN, FOUND | SHARES | {"seconds_padded": 3.0})
    assert (share.value, tiles.value, tiles.reached) == (30.0, 20.0, False)  # held against the same number
    assert "tiles" in tiles.what
    (paper,) = rows_of(Step(shape=TWO_TT, batch=2, published=20.0), FOUND)
    assert paper.against is not None
    assert paper.against.median == 20.0


def test_what_limits_a_step_and_what_to_try() -> None:
    said = limit_of(MAIN, FOUND, FOUND)
    assert "bytes 75%, FLOPs 25%; most in one operation: add of 8×9, 25%" in said
    assert "Next: compiled layers" in said
    assert "spare at most 50% of it" in said
    assert "Next: mamba-ssm's scan, 1 s a step instead of 2 s" in limit_of(
        replace(MAIN, scan="torch"), FOUND, FOUND | {"seconds": 1.0}
    )
    wide = limit_of(replace(MAIN, half=False), FOUND | {"limits": {"FLOPs": 1.0}}, FOUND)
    assert "Next: TF32" in wide
    assert "several sequences in a tile" in limit_of(MAIN, FOUND | {"seconds_padded": 3.0}, FOUND)


def test_every_step_has_its_fused_twin_and_a_name() -> None:
    steps = [*SPEEDS, *LENGTHS, *TABLE]
    names = {step.name for step in steps}
    assert len(names) == len(steps)
    assert {replace(step, scan="triton").name for step in steps} <= names
    assert SPEEDS[0] == MAIN


def test_an_answer_costs_less_than_everything() -> None:
    shape = TWO_ST.tiny()
    whole, answer = (predicted(Step(shape=shape, batch=4, answer=count)) for count in (None, WEIGHTED))
    assert answer["flops"] < whole["flops"]
    assert whole["seconds"] > whole["seconds_fused"] > 0
    assert 0 < whole["mfu"] < whole["mfu_fused"]
    assert whole["padding"] > 100  # of 5 positions
    assert 0 < whole["mfu_fused_padded"] < whole["mfu_fused"]


def test_a_byte_costs_less_than_a_forward() -> None:
    found = generated(LONG_ST.tiny())
    assert found["launches"] > 1
    assert found["seconds_graphed"] < found["seconds"]
    full, half = found["forwards"]["float32"], found["forwards"]["bfloat16"]
    assert full["flops"] == half["flops"] > 0
    assert [row.reached is None for row in generation_rows(found)] == [False, True, False, True]
    assert "in a graph" in generation_limit(found)
