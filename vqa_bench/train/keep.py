"""Which weights are kept: the model as it would be judged now, the best evaluations' on disk, those of the end.

    <run>/best/step-00001200/    model.safetensors and config.json after that step
    <run>/trained.json           how training went; there only when it is over

Knows nothing of batches and steps.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from vqa_bench import launch
from vqa_bench.config import DevConfig
from vqa_bench.errors import SharedError, UserError
from vqa_bench.runs import TRAINED, WEIGHTS, read_json, write_json, writing
from vqa_bench.train import state as states
from vqa_bench.train.state import Best, LoopState, Trainee, step_name, write_folder
from vqa_bench.train.task import Task

BEST, KEPT = "best", "kept"


class Keeper:
    """Judges and keeps a model in training. Every process calls every method; the main one writes.

    whole_copy: for weights that are shared out, which cannot answer anything: a model that is filled with them.
    """

    def __init__(
        self, task: Task, run: Path, accelerator: Accelerator, trainee: Trainee, whole_copy: nn.Module | None
    ) -> None:
        self.task, self.run, self.accelerator, self.trainee = task, run, accelerator, trainee
        self.whole_copy = whole_copy

    @contextmanager
    def judged(self) -> Iterator[nn.Module]:
        """The model as it would be kept now: whole, with averaged weights if there are any, in evaluation mode."""
        average, model = self.trainee.average, self.trainee.model
        if average is not None:
            average.swap(model)
        kept = model
        if self.whole_copy is not None:
            self.whole_copy.load_state_dict(states.whole_state(model))
            kept = self.whole_copy.to(self.accelerator.device)
        try:
            yield kept.eval()
        finally:
            model.train()
            if average is not None:
                average.swap(model)

    def judge(self, config: DevConfig, state: LoopState) -> tuple[dict[str, float], bool]:
        """Evaluate on the dev split, write the model down if it is among the best, and put all that into `state`.

        Returns the metrics, and whether none before was better.
        """
        with self.judged() as model:
            own = self.task.develop(model, self.accelerator.device)
            sums = torch.tensor(list(own.values()), dtype=torch.float64, device=self.accelerator.device)
            totals = self.accelerator.reduce(sums, "sum").tolist()
            found = {name: total / max(count, 1) for name, (total, count) in zip(own, totals, strict=True)}
            if not math.isfinite(found["loss"]):
                raise SharedError(
                    f"expected a finite loss on the dev split, got {found['loss']} after step {state.step}; lower "
                    "train.learning_rate"
                )
            value = found["accuracy"] if config.metric == "accuracy" else -found["loss"]
            better = not state.best or value > state.best[0].value
            ranked = sorted([*state.best, Best(state.step, value)], key=lambda best: (-best.value, best.step))
            state.best = ranked[: config.keep]
            state.without_better = 0 if better else state.without_better + 1
            if any(best.step == state.step for best in state.best):
                write_folder(self.run / BEST / step_name(state.step), lambda folder: self.task.save(folder, model))
        return found, better

    def expect_best(self, state: LoopState) -> None:
        """UserError where the weights of a best evaluation are gone, now and not when training is over."""
        gone = [best.step for best in state.best if not (self.run / BEST / step_name(best.step) / WEIGHTS).is_file()]
        if gone:
            raise UserError(
                f"expected the weights of step {gone[0]} in {self.run / BEST}, got none; put them back, or begin the "
                "run anew with --resume never"
            )

    def forget(self, state: LoopState) -> None:
        """Remove weights that are not among the best, once no checkpoint needs them."""
        folder = self.run / BEST
        if launch.is_main() and folder.is_dir():
            kept = {step_name(best.step) for best in state.best}
            for found in [*folder.glob("step-*"), *folder.glob(".*.partial")]:
                if found.name not in kept:
                    shutil.rmtree(found)
        launch.barrier()

    def finish(self, config: DevConfig | None, state: LoopState, facts: dict[str, Any]) -> dict[str, Any]:
        """Write the weights to keep into the run, then say that training is over, then let go of the checkpoint.

        Returns the content of `trained.json`: `facts`, and which step's weights these are.
        """
        best = state.best[0].step if config is not None and config.use == "best" and state.best else None
        facts = facts | {"used_step": state.step if best is None else best}
        with self.judged() as model:

            def write(folder: Path) -> None:
                if best is None:
                    self.task.save(folder, model)
                else:
                    shutil.copytree(self.run / BEST / step_name(best), folder, dirs_exist_ok=True)

            write_folder(self.run / KEPT, write)
        if launch.is_main():
            with writing(self.run / TRAINED):
                for file in sorted((self.run / KEPT).iterdir()):
                    os.replace(file, self.run / file.name)
                write_json(self.run / TRAINED, facts)
        is_trained(self.run)
        return facts


def is_trained(run: Path) -> bool:
    """Whether a run's training is over; what it then no longer needs is removed."""
    over = launch.broadcast((run / TRAINED).is_file())
    if over and launch.is_main():
        for name in (states.CHECKPOINTS, KEPT):
            shutil.rmtree(run / name, ignore_errors=True)
    launch.barrier()
    return over


def facts_of(run: Path) -> dict[str, Any]:
    """What `trained.json` of a run says."""
    return dict(read_json(run / TRAINED))
