"""What `vqa-bench matrix --dry-run` estimates of a training step, held against what the step takes: memory and time.

`python -m benchmarks.estimates`. Every model takes its steps in a process of its own, which estimates them as well, so
that both meet the same machine. The paper's own memory table is printed beside our estimates of it, unmeasured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.child import ChildError, measure_apart
from benchmarks.common import (
    GIB,
    RECORDED,
    Row,
    Samples,
    Target,
    machine_provenance,
    markdown,
    peak_memory,
    record,
    say,
)

if TYPE_CHECKING:
    from vqa_bench.config import PretrainConfig

MODULE = "benchmarks.estimates"
MEMORY, TIME = 1.5, 2.0  # how many times too much or too little an estimate may be
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model of S and T stages and the windows of a step; heads have 64 channels."""

    family: str
    seq_lens: tuple[int, ...]
    hidden_dims: tuple[int, ...]
    num_layers: tuple[int, ...]
    chunks: tuple[int, ...] | None = None
    windows: int = 1

    def config(self) -> PretrainConfig:
        """As a pretraining run over the whole context."""
        from vqa_bench.config import PretrainConfig, parse

        stages = [
            {"kind": "mamba"} if kind == "S" else {"heads": width // 64, "head_dim": 64}
            for kind, width in zip(self.family.split("/"), self.hidden_dims, strict=True)
        ]
        model = {
            "kind": "mblm",
            "seq_lens": list(self.seq_lens),
            "hidden_dims": list(self.hidden_dims),
            "num_layers": list(self.num_layers),
            "checkpoint_chunks": None if self.chunks is None else list(self.chunks),
            "stages": stages,
        }
        train = {"steps": STEPS, "windows_per_batch": self.windows, "learning_rate": 1e-3}
        data = {"synth_text": {"bytes": 1}}
        return parse(
            PretrainConfig, {"name": "case", "title": "case", "data": data, "model": model, "train": train}, "case"
        )


CASES = {
    "T, 256 wide, 2,048 bytes": Case(family="T", seq_lens=(2048,), hidden_dims=(256,), num_layers=(4,)),
    "S, 256 wide, 2,048 bytes": Case(family="S", seq_lens=(2048,), hidden_dims=(256,), num_layers=(3,)),
    "T/T, 256 wide, 4,096 bytes": Case(family="T/T", seq_lens=(512, 8), hidden_dims=(256, 256), num_layers=(4, 2)),
    "S/T, 256 wide, 4,096 bytes": Case(family="S/T", seq_lens=(512, 8), hidden_dims=(256, 256), num_layers=(4, 2)),
    "S/T/T, recomputed, 8,192 bytes": Case(
        family="S/T/T", seq_lens=(128, 8, 8), hidden_dims=(256, 128, 128), num_layers=(2, 2, 2), chunks=(2, 4)
    ),
    "T/T, 768 wide, 512 bytes": Case(family="T/T", seq_lens=(64, 8), hidden_dims=(768, 512), num_layers=(4, 2)),
}
WARM_UP = Case(family="S/T", seq_lens=(8, 8), hidden_dims=(64, 64), num_layers=(1, 1))
QUICK = {"T/T": Case(family="T/T", seq_lens=(16, 8), hidden_dims=(64, 64), num_layers=(1, 1))}

# GB of an 80 GB A100 at batch 2, from a secondary reading of the paper's tables (arXiv 2502.14553): unverified, the
# precision and the layers of 2D-T and 3D-T unknown; ours are such that every model has about 360 M parameters.
_PAPER_LAYERS = {1: (42,), 2: (21, 20), 3: (13, 12, 12)}
PAPER = {
    (8192,): 30.5,
    (1024, 8): 19.6,
    (256, 8, 4): 15.9,
    (16384,): 56.2,
    (2048, 8): 35.8,
    (512, 8, 4): 28.2,
}


def take_steps(case: Case) -> float:
    """Seconds of the quickest of some optimiser steps on random bytes, the loss of every byte."""
    import torch

    from vqa_bench.models import build_text

    config = case.config()
    model = build_text(config).train().mblm
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(256, (case.windows, config.window))
    seconds = []
    for _ in range(STEPS):
        start = perf_counter()
        sums = model.loss_sums(ids, torch.ones(ids.shape))  # type: ignore[operator]
        (sums.total / sums.targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(perf_counter() - start)
    return min(seconds)


def measure(case: Case, *, threads: int) -> dict[str, float]:
    """In this process: bytes and seconds of a step, estimated and measured."""
    import torch

    from vqa_bench.estimate import estimate_pretraining

    torch.set_num_threads(threads)
    take_steps(WARM_UP)  # what is loaded on first use, and thread pools
    found: list[float] = []
    memory = peak_memory(lambda: found.append(take_steps(case)))
    ours = estimate_pretraining(case.config(), None, device=torch.device("cpu"))
    return {
        "bytes": memory.peak - memory.before,
        "seconds": found[0],
        "estimated_bytes": ours.memory.total,
        "estimated_seconds": ours.seconds,
        "flops": ours.flops,
        "parameters": ours.parameters,
    }


def rows_of(name: str, measured: dict[str, float]) -> list[Row]:
    """Estimated against measured; the value is how many times it is too much or too little."""
    found = []
    for what, unit, scale, most in (("bytes", "GiB", GIB, MEMORY), ("seconds", "s", 1, TIME)):
        ours = Samples((measured[f"estimated_{what}"] / scale,), unit)
        there = Samples((measured[what] / scale,), unit)
        ratio = ours.median / there.median
        label = "memory" if what == "bytes" else "time"
        found.append(Row(f"{name}, {label}", ours, there, max(ratio, 1 / ratio), Target("≤", most)))
    return found


def paper_rows() -> list[Row]:
    """The paper's memory table beside our estimates, in float32, batch 2; nothing is measured here."""
    import torch

    from vqa_bench.estimate import estimate_pretraining

    rows = []
    for lens, published in PAPER.items():
        stages = len(lens)
        family = "/".join("T" * stages)
        layers = _PAPER_LAYERS[stages]
        case = Case(family=family, seq_lens=lens, hidden_dims=(1024,) * stages, num_layers=layers, windows=2)
        ours = estimate_pretraining(case.config(), None, device=torch.device("cpu")).memory.total / 1e9
        what = f"the paper's {stages}D-T at {case.config().window:,} bytes"
        rows.append(Row(what, Samples((ours,), "GB"), Samples((published,), "GB"), ours / published, None))
    return rows


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a toy model, to see that it runs")
    parser.add_argument("--record", action="store_true", help="write results/recorded/estimates-cpu")
    parser.add_argument("--out", type=Path, help="write into this folder instead")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.quick and parsed.record:
        parser.error("expected --out with --quick: toy numbers do not belong among the recorded ones")
    return parsed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every model and print the table; with --record or --out also write it."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = parse_options(given)
    cases = QUICK if options.quick else CASES
    if options.measure is not None:
        print(json.dumps(measure(cases[options.measure], threads=options.threads)))
        return
    measured: dict[str, Any] = {}
    for name in cases:
        child = ["--measure", name, "--threads", str(options.threads), *(["--quick"] if options.quick else [])]
        try:
            measured[name] = measure_apart(MODULE, child, options.threads)
        except ChildError as error:
            raise SystemExit(f"error: {error}") from error
        say(f"{name}: {measured[name]}")
    rows = [row for name, found in measured.items() for row in rows_of(name, found)] + paper_rows()
    remarks = [
        "The ratio of a measured row is how many times the estimate is too much or too little; of the paper's rows it "
        "is ours over theirs, which are unverified.",
        f"Memory: the most resident bytes of building the model and {STEPS} steps, above those before. Time: the "
        f"quickest of them; the estimate's rates are measured right after. float32, threads: {options.threads}.",
    ]
    table = markdown(
        "Estimates of a step against the step, on this CPU", against="measured", rows=rows, remarks=remarks
    )
    out = options.out or (RECORDED / "estimates-cpu" if options.record else None)
    if out is None:
        print(table)
        return
    about = machine_provenance(MODULE, given, options.threads)
    record(out, "estimates", table=table, rows=rows, facts={"measured": measured}, about=about)


if __name__ == "__main__":
    main()
