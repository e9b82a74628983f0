"""One image's bytes read once for its ten questions, against the ten separate sequences: time and memory of a step.

`python -m benchmarks.shared_prefix`. A step is forward and backward of an answer-only loss; all ways have the same
loss and the same gradients, which is checked. This file times our own model only.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.child import ChildError, measure_apart
from benchmarks.common import (
    GIB,
    RECORDED,
    Row,
    Samples,
    alternate,
    growth,
    machine_provenance,
    markdown,
    peak_memory,
    record,
    say,
    speedup,
)
from benchmarks.shapes import TOY, Shape

if TYPE_CHECKING:
    from torch import Tensor

    from mblm import MBLM

MODULE = "benchmarks.shared_prefix"
FASTER, SMALLER = 5.0, 1 / 3
WEIGHTED = 4  # last bytes of a question with its answer that have a weight
TOLERANCE = 1e-4  # of losses and gradient norms, relative, in float32


@dataclass(frozen=True, kw_only=True)
class Sizes(Shape):
    """Shapes of the model, and lengths in bytes."""

    seq_lens: tuple[int, int] = (1200, 8)
    prefix: int = 8192
    questions: int = 10
    suffix: int = 100


QUICK = Sizes(widths=TOY, seq_lens=(48, 8), hidden_dims=(16, 16), num_layers=(2, 1), prefix=256, questions=3, suffix=20)


@dataclass(frozen=True)
class Step:
    """What one training step gave."""

    seconds: float
    loss: float
    gradient_norm: float


class Steps:
    """A model, one image with its questions, and the three ways to take a step on them."""

    def __init__(self, family: str, sizes: Sizes, threads: int) -> None:
        import torch

        from benchmarks.peer.worker import build_model

        torch.set_num_threads(threads)
        self.model: MBLM = build_model(sizes.specification(family), seed=0).train()
        self.prefix = torch.randint(256, (1, sizes.prefix))
        self.suffixes = torch.randint(256, (1, sizes.questions, sizes.suffix))
        self.weights = torch.zeros(1, sizes.questions, sizes.suffix)
        self.weights[..., -WEIGHTED:] = 1.0
        self.separate = torch.cat((self.prefix.expand(sizes.questions, -1), self.suffixes[0]), dim=1)
        self.separate_weights = torch.nn.functional.pad(self.weights[0], (sizes.prefix, 0))

    @property
    def ways(self) -> dict[str, Callable[[], float]]:
        """Forward and backward of the mean loss, each returning it."""
        return {"shared": self._shared, "batch": self._batch, "one by one": self._one_by_one}

    def take(self, way: str) -> Step:
        """One timed step from cleared gradients."""
        from benchmarks.peer.worker import gradient_norm

        run = self.ways[way]
        start = perf_counter()
        self.model.zero_grad()
        loss = run()
        return Step(perf_counter() - start, loss, gradient_norm(self.model))

    def _shared(self) -> float:
        total, targets = self.model.shared_loss_sums(self.prefix, self.suffixes, self.weights)
        return self._backward(total / targets)

    def _batch(self) -> float:
        total, targets = self.model.loss_sums(self.separate, self.separate_weights)
        return self._backward(total / targets)

    def _one_by_one(self) -> float:
        targets = self.separate_weights.count_nonzero()
        mean = 0.0
        for ids, weights in zip(self.separate, self.separate_weights, strict=True):
            loss = self.model.loss_sums(ids[None], weights[None]).total / targets
            mean += self._backward(loss)
        return mean

    @staticmethod
    def _backward(loss: Tensor) -> float:
        loss.backward()
        return loss.item()


def measure_memory(family: str, way: str, sizes: Sizes, *, threads: int) -> dict[str, int]:
    """In this process: resident bytes before a first step at full size, and at its peak.

    A toy step goes first, so that code pages and thread pools count as what was there before.
    """
    Steps(family, QUICK, threads).take(way)
    steps = Steps(family, sizes, threads)
    return asdict(peak_memory(lambda: steps.take(way)))


def _take_in_turn(steps: Steps, repeats: int) -> dict[str, list[Step]]:
    """Every way in turn; the models are let go of afterwards, before memory is measured."""

    def take(way: str) -> Callable[[], Step]:
        return lambda: steps.take(way)

    return alternate({way: take(way) for way in steps.ways}, repeats)


def family_rows(family: str, options: argparse.Namespace, sizes: Sizes) -> list[Row]:
    """Time of the shared step against the faster of the separate ones, memory against both."""
    taken = _take_in_turn(Steps(family, sizes, options.threads), options.repeats)
    check_same(family, {way: results[0] for way, results in taken.items()})
    times = {way: Samples(tuple(step.seconds for step in results), "s") for way, results in taken.items()}
    say(f"{family}: " + ", ".join(f"{way} {samples}" for way, samples in times.items()))
    memory = {way: _memory(family, way, options) for way in times}
    say(f"{family}: " + ", ".join(f"{way} {samples}" for way, samples in memory.items()))
    faster = min(("batch", "one by one"), key=lambda way: times[way].median)
    slower = "one by one" if faster == "batch" else "batch"
    named = {"batch": f"one batch of {sizes.questions}", "one by one": "one by one"}
    return [
        speedup(
            f"{family} time, the separate sequences {named[faster]}", times["shared"], times[faster], at_least=FASTER
        ),
        speedup(f"{family} time, {named[slower]}", times["shared"], times[slower]),
        growth(f"{family} peak memory, {named['batch']}", memory["shared"], memory["batch"], at_most=SMALLER),
        growth(f"{family} peak memory, {named['one by one']}", memory["shared"], memory["one by one"]),
    ]


def _memory(family: str, way: str, options: argparse.Namespace) -> Samples:
    arguments = ["--threads", str(options.threads), "--memory", family, way, *(["--quick"] if options.quick else [])]
    measured = measure_apart(MODULE, arguments, options.threads)
    return Samples(((measured["peak"] - measured["before"]) / GIB,), "GiB")


def check_same(family: str, steps: dict[str, Step]) -> None:
    """Raises ValueError unless all ways have one loss and one gradient norm."""
    expected = steps["one by one"]
    for way, step in steps.items():
        for name in ("loss", "gradient_norm"):
            got, wanted = getattr(step, name), getattr(expected, name)
            if not abs(got - wanted) <= TOLERANCE * wanted:
                raise ValueError(
                    f"{family}, {way}: expected a {name} of {wanted:g}, as one by one, got {got:g}; "
                    "times of different work are not comparable"
                )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--families", nargs="+", default=["T/T", "S/T"])
    parser.add_argument("--repeats", type=int, default=5, help="measurements a way, after one warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs; give --out")
    parser.add_argument("--out", type=Path, help="folder for the results; default: results/recorded/shared-prefix-cpu")
    parser.add_argument("--memory", nargs=2, metavar=("FAMILY", "WAY"), help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.quick and parsed.out is None and parsed.memory is None:
        parser.error("expected --out with --quick: toy numbers do not belong among the recorded ones")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every family, print the table, write shared-prefix.json, shared-prefix.md and provenance.json."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    sizes = QUICK if options.quick else Sizes()
    if options.memory is not None:
        family, way = options.memory
        print(json.dumps(measure_memory(family, way, sizes, threads=options.threads)))
        return
    try:
        rows = [row for family in options.families for row in family_rows(family, options, sizes)]
    except (ChildError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    remarks = [
        f"A step: forward and backward, {sizes.prefix:,} bytes of prefix, {sizes.questions} suffixes of "
        f"{sizes.suffix} bytes, the last {WEIGHTED} of each weighted; losses and gradient norms agreed.",
        "Medians [least, most]. Time: the ways take turns in one process, warm-up not counted. Memory: the most "
        "resident bytes above those after building the model, each way in its own process.",
        f"2D {list(sizes.seq_lens)}, widths {list(sizes.hidden_dims)}, layers {list(sizes.num_layers)}, float32, "
        f"threads: {options.threads}.",
    ]
    facts: dict[str, Any] = {"sizes": asdict(sizes)}
    about = machine_provenance(MODULE, given, options.threads)
    table = markdown(
        "Shared prefix against separate sequences, on this CPU", against="separate", rows=rows, remarks=remarks
    )
    record(
        options.out or RECORDED / "shared-prefix-cpu", "shared-prefix", table=table, rows=rows, facts=facts, about=about
    )


if __name__ == "__main__":
    main()
