"""The one training loop: batches by number, the loss summed and divided once, a state on disk to go on from.

Reads from top to bottom. It knows a `Task`, not what kind of model it is or what data it sees.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from vqa_bench import launch
from vqa_bench.config import LoopConfig
from vqa_bench.errors import SharedError, StoppedError
from vqa_bench.models import compile_layers, kernels_of, share_out
from vqa_bench.progress import Progress, silent
from vqa_bench.train import state as states
from vqa_bench.train.interrupt import interruptions
from vqa_bench.train.keep import Keeper
from vqa_bench.train.log import RunLog
from vqa_bench.train.optimisation import (
    MovingAverage,
    learning_rate_factor,
    make_optimizer,
    scale_and_clip,
    set_learning_rate,
)
from vqa_bench.train.state import LoopState, Trainee
from vqa_bench.train.task import Amount, Task

MakeTask = Callable[[int, int], Task]
"""From a rank and the number of processes to what that process trains; its model is on the CPU."""


def optimise(
    make_task: MakeTask, config: LoopConfig, run: Path, *, seed: int, name: str, report: Progress = silent
) -> dict[str, Any]:
    """Train to the end, from the last checkpoint in `run` if there is one, and leave the kept weights in `run`.

    Returns the content of `trained.json`: how training went. Every process of a launch calls this; `run` must be a
    folder that all of them see.

    Raises UserError where the loss stops being finite, where there is no room for a checkpoint, and where processes are
    not what was asked for.
    """
    accelerator = launch.start(config)
    task = make_task(accelerator.process_index, accelerator.num_processes)
    loop = _Loop(task, config, run, accelerator, seed)
    with _settings(config), interruptions() as asked_to_stop:
        loop.train(name, report, asked_to_stop)
        return loop.finish()


@contextmanager
def _settings(config: LoopConfig) -> Iterator[None]:
    """PyTorch as the configuration wants it, and as it was afterwards."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision(config.matmul_precision)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


class _Update(NamedTuple):
    """An optimiser step over all processes: the mean loss of its targets, the gradients' norm before clipping, what was
    trained on, and whether to save and to stop."""

    loss: float
    grad_norm: float
    samples: int
    bytes: int
    save: bool
    time_up: bool
    stop: bool


class _Loop:
    """A training between two steps. Everything here happens on every process."""

    def __init__(self, task: Task, config: LoopConfig, run: Path, accelerator: Accelerator, seed: int) -> None:
        self.task, self.config, self.run, self.accelerator, self.seed = task, config, run, accelerator, seed
        self.rank = accelerator.process_index
        model = task.model.train()
        whole_copy = deepcopy(model) if config.parallel == "fsdp" else None
        if config.compile:
            compile_layers(model)
        if config.parallel == "fsdp":
            share_out(model.to(accelerator.device))
            self.wrapped = model
            optimizer = accelerator.prepare_optimizer(make_optimizer(model, config))
        else:
            self.wrapped, optimizer = accelerator.prepare(model, make_optimizer(model, config))
            # With lower precision accelerate puts a forward of its own in the model's place; a step has autocast around
            # it anyway, and the model is judged in full precision.
            vars(model).pop("forward", None)
        self.model = model
        self.optimizer = optimizer
        average = None if config.ema is None else MovingAverage(model, config.ema)
        self.trainee = Trainee(model, optimizer.optimizer, average, accelerator.scaler)
        checkpoint = states.newest(run)
        self.state = LoopState() if checkpoint is None else states.load(checkpoint, self.trainee)
        self.keeper = Keeper(task, run, accelerator, self.trainee, whole_copy)
        self.keeper.expect_best(self.state)
        self.keeper.forget(self.state)  # what a start that was killed has left behind its last checkpoint

    # -- one step after another -----------------------------------------------------------------------------------

    def train(self, name: str, report: Progress, asked_to_stop: Callable[[], bool]) -> None:
        """From where the state says to the last step, or to where something says stop."""
        config, state = self.config, self.state
        if state.stopped is not None:
            return
        clock = _clock(state.seconds)
        micro_batches, log = self._micro_batches(), self._open_log(name, report, clock)
        saved_at = clock()
        while state.stopped is None:
            update = self._step(micro_batches, log, (*self._due(clock(), saved_at), asked_to_stop()))
            state.step += 1
            last = state.step == config.steps or update.time_up
            if judge := config.dev is not None and (last or state.step % config.dev.every == 0):
                values, better = self.keeper.judge(config.dev, state)
                log.dev(state.step, values, best=better)
            state.stopped = self._ended(update)
            if state.stopped is not None:
                log.finish()  # before the last checkpoint, behind which nothing is logged any more
            by_step = config.checkpoint.steps is not None and state.step % config.checkpoint.steps == 0
            if judge or by_step or update.save or update.stop or state.stopped is not None:
                state.seconds, state.log = clock(), log.state()
                states.save(self.run, self.trainee, state)
                self.keeper.forget(state)
                saved_at = clock()
            if update.stop and state.stopped is None:
                log.close()
                raise StoppedError(
                    f"expected to train to the end, got a signal to stop; stopped after step {state.step} of "
                    f"{config.steps}: the same command goes on from there"
                )

    def _micro_batches(self) -> Iterator[Any]:
        config, gpu = self.config, self.accelerator.device.type == "cuda"
        return self.task.batches(
            range(self.state.step * config.accumulate, config.steps * config.accumulate),
            workers=(4 if gpu else 0) if config.workers is None else config.workers,
            pin=gpu,
        )

    def _open_log(self, name: str, report: Progress, clock: Callable[[], float]) -> RunLog:
        return RunLog.open(
            self.run,
            self.config,
            name=name,
            settings=self.config.outcome(),
            from_step=self.state.step,
            unit=self.task.unit,
            clock=clock,
            report=report,
            state=self.state.log,
        )

    def _step(self, micro_batches: Iterator[Any], log: RunLog, wishes: tuple[bool, bool, bool]) -> _Update:
        """Fetch this step's batches, take the step and log it."""
        config, done = self.config, self.state.step
        started = time.monotonic()
        rate = config.learning_rate * learning_rate_factor(done, config)
        set_learning_rate(self.optimizer, rate)
        parts = [next(micro_batches) for _ in range(config.accumulate)]
        amount = _sum(self.task.amount(part) for part in parts)
        waited = time.monotonic() - started
        # A function of seed, step and process, so that dropout does not depend on what ran before. Mixed, as PyTorch's
        # generator on a CPU takes no more than 32 bits of it.
        mixed = np.random.SeedSequence((self.seed, done, self.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(mixed[0]))
        update = self._update([part.to(self.accelerator.device) for part in parts], amount, wishes)
        if self.trainee.average is not None:
            self.trainee.average.update(self.model, done)
        log.step(
            done + 1,
            loss=update.loss,
            grad_norm=update.grad_norm,
            learning_rate=rate,
            epoch=(done + 1) * config.accumulate / self.task.batches_per_epoch,
            samples=update.samples,
            bytes=update.bytes,
            waited=waited,
            took=time.monotonic() - started,
        )
        return update

    def _update(self, parts: list[Any], amount: Amount, wishes: tuple[bool, bool, bool]) -> _Update:
        """One optimiser step over this process's micro-batches, which hold `amount`.

        Gradients of sums are added up and divided once by the global count, so a target weighs the same wherever it is.
        `wishes` (save, time is up, stop) travel with the loss: what one process wishes all do, after the same step.
        """
        accelerator, config = self.accelerator, self.config
        totals, counts = [], []
        for place, part in enumerate(parts):
            with self._synchronising(place + 1 == len(parts)):
                with accelerator.autocast():
                    sums = self.wrapped(part)
                # Outside, as PyTorch asks: gradients then have the types of what they are of.
                accelerator.backward(sums.total)
            totals.append(sums.total.detach().double())
            counts.append(sums.targets.detach().double())
        own = torch.stack(totals)
        vector = torch.cat((torch.stack((own.sum(), torch.stack(counts).sum())), own.new_tensor([*amount, *wishes])))
        total, count, samples, size, *wished = accelerator.reduce(vector, "sum").tolist()
        loss = total / max(count, 1)
        if not math.isfinite(loss):
            raise self._not_finite(loss, own)
        accelerator.unscale_gradients(self.optimizer)
        # DDP and FSDP average gradients over the processes; a sum is wanted, hence their number.
        norm = scale_and_clip(self.model, accelerator.num_processes / max(count, 1), config.clip)
        if not math.isfinite(norm) and accelerator.scaler is None:
            raise SharedError(
                f"expected finite gradients, got a norm of {norm} at step {self.state.step + 1}; lower "
                "train.learning_rate"
            )
        # accelerate's wrapper is there for the scaler; it looks for packages on the disk at every step.
        optimizer = self.trainee.optimizer if accelerator.scaler is None else self.optimizer
        optimizer.step()
        optimizer.zero_grad()
        save, time_up, stop = (votes > 0 for votes in wished)
        return _Update(loss, norm, int(samples), int(size), save, time_up, stop)

    def _synchronising(self, last: bool) -> AbstractContextManager[None]:
        """Under DDP gradients travel between processes with the last micro-batch only."""
        return nullcontext() if last or self.config.parallel == "fsdp" else self.accelerator.no_sync(self.wrapped)

    def _not_finite(self, loss: float, own: Tensor) -> SharedError:
        """The error that names the batches, those of all processes: all come here after the same step."""
        first = self.state.step * self.config.accumulate
        odd = [first + place for place, value in enumerate(own.tolist()) if not math.isfinite(value)]
        named = "; ".join(launch.gather([self.task.name(number) for number in odd]))
        return SharedError(
            f"expected a finite loss, got {loss} at step {self.state.step + 1}: {named}; lower train.learning_rate, "
            "set train.clip, or look at these samples"
        )

    # -- when ------------------------------------------------------------------------------------------------------

    def _due(self, now: float, saved_at: float) -> tuple[bool, bool]:
        """Whether to save and whether the time is up, by the main process's clock."""
        every, most = self.config.checkpoint.time, self.config.max_time
        save = every is not None and now - saved_at >= every
        return self.rank == 0 and save, self.rank == 0 and most is not None and now >= most

    def _ended(self, update: _Update) -> str | None:
        """Why training is over after this step, None if it is not."""
        if self.state.step == self.config.steps:
            return "steps"
        patience = None if self.config.dev is None else self.config.dev.patience
        if patience is not None and self.state.without_better >= patience:
            return "patience"
        return "max_time" if update.time_up else None

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Keep the weights; returns the content of `trained.json`."""
        facts = {
            "steps": self.state.step,
            "of_steps": self.config.steps,
            "stopped": self.state.stopped,
            "seconds": round(self.state.seconds, 3),
            "processes": self.accelerator.num_processes,
            "parallel": self.config.parallel,
            "device": self.accelerator.device.type,
            "kernels": kernels_of(self.model),
            **self.task.facts,
        }
        return self.keeper.finish(self.config.dev, self.state, facts)


def _clock(before: float) -> Callable[[], float]:
    """Seconds, `before` of them already gone."""
    began = time.monotonic()
    return lambda: before + time.monotonic() - began


def _sum(amounts: Iterator[Amount]) -> Amount:
    samples, sizes = zip(*amounts, strict=True)
    return Amount(sum(samples), sum(sizes))
