"""What a training says of itself: metrics.jsonl for machines, metrics.csv and trackers for people, a note for the bar.

The lines depend on the steps, not on how often the training was killed between them. A checkpoint keeps `state`, and
`RunLog.open` cuts off what was written after it: no line is missing and none is there twice. Knows numbers, neither
models nor optimisers.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqa_bench import launch
from vqa_bench.config import LoopConfig
from vqa_bench.data.folders import whole_file
from vqa_bench.errors import UserError
from vqa_bench.progress import Progress, silent
from vqa_bench.runs import METRICS, writing
from vqa_bench.train.trackers import CsvTracker, check_trackers, start_trackers

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Line = dict[str, Any]


@dataclass
class _Sums:
    """What came since the last line, as sums; and of the newest step what a line says as it is. JSON-able."""

    step: int = 0
    epoch: float = 0.0
    learning_rate: float = 0.0
    seconds: float = 0.0
    steps: int = 0
    loss: float = 0.0
    norms: int = 0
    grad_norm: float = 0.0
    samples: int = 0
    bytes: int = 0
    waited: float = 0.0
    took: float = 0.0

    def line(self) -> Line:
        """The means and rates as a line of metrics.jsonl."""
        return {
            "kind": "train",
            "step": self.step,
            "loss": self.loss / self.steps,
            "grad_norm": self.grad_norm / self.norms if self.norms else None,
            "learning_rate": self.learning_rate,
            "epoch": self.epoch,
            "samples_per_second": self.samples / self.took if self.took else None,
            "bytes_per_second": self.bytes / self.took if self.took else None,
            "data_wait": self.waited / self.took if self.took else None,
            "memory_bytes": peak_memory(),
            "seconds": self.seconds,
        }


class RunLog:
    """The log of one training, kept by the main process; the other processes have one that does nothing.

    Everything of a step is logged before a checkpoint of that step asks for `state`.

    Args:
        every, total: optimiser steps between two lines, and of the whole training.
        unit: what a sample is called, such as "questions".
        clock: gives the seconds of training so far, all starts together.
        state: what `state` gave for the checkpoint that the training goes on from; empty at its beginning.
    """

    def __init__(
        self,
        path: Path,
        *,
        every: int,
        total: int,
        unit: str,
        clock: Callable[[], float],
        report: Progress = silent,
        trackers: Sequence[GeneralTracker] = (),
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._path, self._every, self._total, self._unit = path, every, total, unit
        self._clock, self._report, self._trackers = clock, report, list(trackers)
        state = state or {}
        self._line: int = state.get("line", 0)  # the step of the last line on training
        self._lines: int = state.get("lines", 0)
        self._sums = _Sums(**state.get("sums", {}))
        self._shown: Line | None = None
        self._developed = ""

    @classmethod
    def open(
        cls,
        run: Path,
        config: LoopConfig,
        *,
        name: str,
        settings: Mapping[str, Any],
        from_step: int,
        unit: str,
        clock: Callable[[], float],
        report: Progress = silent,
        state: Mapping[str, Any] | None = None,
    ) -> RunLog:
        """Begin the log of a run, or go on with it after `from_step` steps.

        Args:
            name, settings: what trackers call the run, and what they show of its configuration.
            unit: what a sample is called, such as "questions".
            clock: gives the seconds of training so far, all starts together.
            state: what `state` gave for the checkpoint of `from_step`; empty or None at the beginning.

        Raises:
            UserError: the package of a tracker is missing; metrics.jsonl is damaged, or cannot be written.
        """
        if not launch.is_main():
            return _SilentLog()
        assert bool(state) == (from_step > 0), "a log goes on from the state in a checkpoint"
        state = state or {}
        with launch.alone():
            check_trackers(config.trackers)
            kept = cut_metrics(run / METRICS, step=from_step, line=state.get("line", 0))
            if len(kept) != state.get("lines", 0):
                raise UserError(
                    f"expected {state['lines']} lines in {run / METRICS} up to step {from_step}, got {len(kept)}; put "
                    "the file back, or begin the run anew with --resume never"
                )
        trackers = start_trackers(config.trackers, run, name=name, settings=settings, from_step=from_step)
        report(from_step, config.steps)  # rates count from here, not from what earlier starts did
        return cls(
            run / METRICS,
            every=config.log_every,
            total=config.steps,
            unit=unit,
            clock=clock,
            report=report,
            trackers=[CsvTracker(run, kept), *trackers],
            state=state,
        )

    def step(
        self,
        step: int,
        *,
        loss: float,
        grad_norm: float | None,
        learning_rate: float,
        epoch: float,
        samples: int,
        bytes: int,
        waited: float,
        took: float,
    ) -> None:
        """Take in optimiser step `step`, counted from 1; every `log_every` steps, and at the last, write a line.

        Args:
            loss: mean over the step's weighted targets, in nats.
            grad_norm: before clipping; None where it was not computed. A step with an infinite one (which fp16's scaler
                skips) does not count in the mean.
            samples, bytes: of all processes.
            waited, took: seconds that the step waited for data, and that it took with that.
        """
        sums = self._sums
        sums.step, sums.epoch, sums.learning_rate, sums.seconds = step, epoch, learning_rate, self._clock()
        sums.steps += 1
        sums.loss += loss
        if grad_norm is not None and math.isfinite(grad_norm):
            sums.norms += 1
            sums.grad_norm += grad_norm
        sums.samples += samples
        sums.bytes += bytes
        sums.waited += waited
        sums.took += took
        if step % self._every == 0 or step == self._total:
            self._write_sums()
        # Until there is a line, what there is of it: the first one may be hours away.
        self._report(step, self._total, self._note(self._shown or sums.line()))

    def dev(self, step: int, values: Mapping[str, float], best: bool) -> None:
        """Write a line about an evaluation after step `step`; best: none before was better."""
        self._write({"kind": "dev", "step": step, **values, "best": best, "seconds": self._clock()})
        shown = f"accuracy {100 * values['accuracy']:.1f} %" if "accuracy" in values else f"loss {values['loss']:.3f}"
        self._developed = f", dev {shown}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep, JSON-able. The lines before it are then on the disk, whatever happens."""
        if self._path.exists():
            with writing(self._path), self._path.open("rb+") as file:
                os.fsync(file.fileno())
        return {"line": self._line, "lines": self._lines, "sums": asdict(self._sums)}

    def finish(self) -> None:
        """Training is over, perhaps before its last step: write what is in no line yet, and close.

        Before the last checkpoint, from which nothing is logged any more.
        """
        if self._sums.steps:
            self._write_sums()
        self.close()

    def close(self) -> None:
        """Let the trackers end; steps that are in no line yet are left to the next start."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []

    def _write_sums(self) -> None:
        self._shown = self._sums.line()
        self._write(self._shown)
        self._line, self._sums = self._sums.step, _Sums()

    def _write(self, line: Line) -> None:
        line = {name: _finite(value) for name, value in line.items()}
        with writing(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._lines += 1
        kind, step = line.pop("kind"), line.pop("step")
        values = {f"{kind}/{name}": value for name, value in line.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def _note(self, line: Line) -> str:
        """A line for people."""
        parts = [f"loss {line['loss']:.3f}"]
        if line["samples_per_second"] is not None:
            parts.append(f"{_amount(line['samples_per_second'])} {self._unit}/s")
            parts.append(f"{_amount(line['bytes_per_second'], 'B/s')}")
            parts.append(f"waiting {line['data_wait']:.0%}")
        parts.append(_amount(line["memory_bytes"], "B"))
        return ", ".join(parts) + self._developed


class _SilentLog(RunLog):
    """What the processes beside the main one have."""

    def __init__(self) -> None:
        pass

    def step(self, *_: Any, **__: Any) -> None:
        pass

    def dev(self, *_: Any, **__: Any) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {}

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def cut_metrics(path: Path, *, step: int, line: int) -> list[Line]:
    """Keep the lines that a checkpoint of `step` knows of, whose last line on training is that of step `line`.

    A half-written last line goes too. The file is replaced whole. Returns the lines that stay.

    Raises:
        UserError: a line before the last is no line of this file, or the file cannot be written.
    """
    kept = []
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
    for number, text in enumerate(texts[:-1], start=1):  # behind the last line's end: nothing, or half a line
        try:
            entry = json.loads(text)
            known = entry["step"] <= (line if entry["kind"] == "train" else step)
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"expected line {number} of {path} to be one of metrics, got {text[:60]!r}; begin the run anew"
            ) from error
        if known:
            kept.append(entry)
    with writing(path), whole_file(path) as partial:
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    return kept


def peak_memory() -> int:
    """Bytes: the most that this process has held so far, of the GPU if it uses one, else of the machine's memory."""
    if torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


def _finite(value: Any) -> Any:
    """JSON has no infinite numbers."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _amount(value: float, unit: str = "") -> str:
    """Three digits with a prefix: 950, 3.48 k, 12.1 M."""
    prefixes = ["", "k", "M", "G", "T"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        del prefixes[0]
    digits = f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
    return f"{digits} {prefixes[0]}{unit}".rstrip()
