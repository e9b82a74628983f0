"""How time and memory of a training step grow with length, up to a million bytes with the loss of every byte.

`python -m benchmarks.length`. Three stages, patches of 16·8 bytes; the later stages are recomputed in backward, in
chunks that keep their size as the sequence grows. Each step runs in a process of its own. This file times our own
model only.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.child import ChildError, measure_apart
from benchmarks.common import (
    GIB,
    RECORDED,
    Row,
    Samples,
    alternate,
    amount,
    growth,
    machine_provenance,
    markdown,
    peak_memory,
    record,
    say,
)
from benchmarks.shapes import Widths, specification

MODULE = "benchmarks.length"
INNER = (16, 8)  # positions of the later stages, so a patch of the first has 128 bytes
LENGTHS = (262_144, 524_288, 1_048_576)
QUICK_LENGTHS = (2048, 4096)
WIDTHS = Widths(heads=2, head=32, d_state=64, ssm_head=64)
HIDDEN_DIMS, NUM_LAYERS = (128, 64, 32), (2, 2, 2)
CHUNKS = (10, 20)  # of the second and third stage at the longest length, as in the paper's million-byte run
DOUBLING, PEAK = 2.2, 8.0  # at most so many times more for twice the bytes; at most so many GiB at the longest


def shape(length: int, longest: int, family: str, chunks: Sequence[int]) -> dict[str, Any]:
    """The model for sequences of `length` bytes, with as many chunks as keep their size."""
    if length % math.prod(INNER):
        raise ValueError(f"expected a length that is a multiple of {math.prod(INNER)} bytes, got {length}")
    return specification(
        family,
        WIDTHS,
        seq_lens=(length // math.prod(INNER), *INNER),
        hidden_dims=HIDDEN_DIMS,
        num_layers=NUM_LAYERS,
        checkpoint_chunks=[math.ceil(count * length / longest) for count in chunks] or None,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """In this process: one step at one length; its seconds, and resident bytes before and at the peak."""
    length, longest = options.measure, max(options.lengths)
    wanted = shape(length, longest, options.blocks, options.chunks)
    toy = shape(math.prod(INNER), longest, options.blocks, options.chunks)
    import torch

    from benchmarks.peer.worker import build_model, count_parameters

    torch.set_num_threads(options.threads)

    def step(model: Any, count: int) -> tuple[float, float]:
        ids = torch.randint(256, (1, count))
        start = perf_counter()
        loss = model(ids)
        loss.backward()
        return perf_counter() - start, loss.item()

    step(build_model(toy, seed=0).train(), math.prod(INNER))  # warm-up: what is loaded on first use, and thread pools
    model = build_model(wanted, seed=0).train()
    results: list[tuple[float, float]] = []
    memory = peak_memory(lambda: results.append(step(model, length)))
    ((seconds, loss),) = results
    if not math.isfinite(loss):
        raise ValueError(f"expected a finite loss at {length:,} bytes, got {loss}")
    return {
        "seconds": seconds,
        "loss": loss,
        "before": memory.before,
        "peak": memory.peak,
        "parameters": count_parameters(model),
        "model": model.config.model_dump(mode="json"),
    }


def measure_all(options: argparse.Namespace) -> dict[int, list[dict[str, Any]]]:
    """Every length in turn, as many rounds as repeats, each in a process of its own."""

    for length in options.lengths:
        shape(length, max(options.lengths), options.blocks, options.chunks)  # all checked before the first runs

    def apart(length: int) -> dict[str, Any]:
        arguments = ["--measure", str(length), "--lengths", *map(str, options.lengths), "--blocks", options.blocks]
        arguments += ["--chunks", *map(str, options.chunks), "--threads", str(options.threads)]
        measured = measure_apart(MODULE, arguments, options.threads)
        say(f"{length:,} bytes: {measured['seconds']:.1f} s, peak {measured['peak'] / GIB:.2f} GiB")
        return measured

    def turn(length: int) -> Callable[[], dict[str, Any]]:
        return lambda: apart(length)

    found = alternate({str(length): turn(length) for length in options.lengths}, options.repeats, warmup=0)
    return {int(name): results for name, results in found.items()}


def rows_of(measured: dict[int, list[dict[str, Any]]]) -> list[Row]:
    """Time and memory of every length over half of it, and the peak at the longest."""
    rows = []
    for before, length in pairwise(measured):
        now, base = samples(measured[length]), samples(measured[before])
        rows += [
            growth(f"{length:,} bytes, time", now["time"], base["time"], at_most=DOUBLING),
            growth(f"{length:,} bytes, memory of the step", now["memory"], base["memory"], at_most=DOUBLING),
        ]
    longest = max(measured)
    return [
        *rows,
        amount(f"{longest:,} bytes, peak of the whole process", samples(measured[longest])["peak"], at_most=PEAK),
    ]


def samples(measured: Sequence[dict[str, Any]]) -> dict[str, Samples]:
    """Seconds, GiB above what the built model took, and GiB in all."""
    return {
        "time": Samples(tuple(m["seconds"] for m in measured), "s"),
        "memory": Samples(tuple((m["peak"] - m["before"]) / GIB for m in measured), "GiB"),
        "peak": Samples(tuple(m["peak"] / GIB for m in measured), "GiB"),
    }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lengths", nargs="+", type=int, help="bytes, ascending, each twice the one before")
    parser.add_argument("--blocks", default="S/T/T", help="the stages: S for Mamba-2, T for transformers")
    parser.add_argument(
        "--chunks",
        nargs="*",
        type=int,
        default=list(CHUNKS),
        help="checkpoint chunks at the longest; none: no recomputation",
    )
    parser.add_argument("--repeats", type=int, default=3, help="measurements a length, each in a fresh process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="toy lengths, to see that it runs; give --out")
    parser.add_argument("--out", type=Path, help="folder for the results; default: results/recorded/length-cpu")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.quick and parsed.out is None:
        parser.error("expected --out with --quick: toy numbers do not belong among the recorded ones")
    if parsed.lengths is None:
        parsed.lengths = list(QUICK_LENGTHS if parsed.quick else LENGTHS)
    if len(parsed.lengths) < 2 or any(later != 2 * earlier for earlier, later in pairwise(parsed.lengths)):
        parser.error(f"expected two lengths or more that double from one to the next, got {parsed.lengths}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every length, print the table, write length.json, length.md and provenance.json."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(given)
    if options.measure is not None:
        print(json.dumps(measure(options)))
        return
    try:
        measured = measure_all(options)
    except (ChildError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    longest = measured[max(measured)][0]
    remarks = [
        f"A step: forward and backward of the loss of every byte, {options.blocks} with {longest['parameters']:,} "
        f"parameters at the longest: widths {list(HIDDEN_DIMS)}, layers {list(NUM_LAYERS)}, "
        f"seq_lens {longest['model']['seq_lens']}, checkpoint chunks {longest['model']['train_checkpoint_chunks']}.",
        "Medians [least, most], each measurement in its own process; the ratio is that to half the length. Memory of "
        "the step: the most resident bytes above those after building the model.",
        f"float32, threads: {options.threads}.",
    ]
    rows = rows_of(measured)
    about = machine_provenance(MODULE, given, options.threads)
    table = markdown("Length, on this CPU", against="half the length", rows=rows, remarks=remarks)
    record(
        options.out or RECORDED / "length-cpu",
        "length",
        table=table,
        rows=rows,
        facts={"measured": measured},
        about=about,
    )


if __name__ == "__main__":
    main()
