"""Everything that a training needs to go on as if it had never stopped, in one folder that is whole or not there.

    <run>/checkpoints/step-00001200/state.pt    weights, optimiser, moving average, gradient scaler: whole tensors
                                    loop.json   how far the loop has come

Tensors are stored whole and by name, so a training may go on with another number of processes, or with shared-out
weights instead of copied ones. What is random is a function of seed and step and needs no state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vqa_bench import launch
from vqa_bench.errors import SharedError, UserError
from vqa_bench.train.optimisation import MovingAverage

CHECKPOINTS, TENSORS, LOOP = "checkpoints", "state.pt", "loop.json"


@dataclass(frozen=True)
class Best:
    """An evaluation whose weights are on disk: after which step, and what it was judged by (higher is better)."""

    step: int
    value: float


@dataclass
class LoopState:
    """How far a training has come.

    step: finished optimiser steps. seconds: spent training, over all starts. best: the best evaluations, the best
    first. without_better: evaluations since then. stopped: why training ended, None while it has not. log: what the log
    has gathered since its last line, None at the beginning.
    """

    step: int = 0
    seconds: float = 0.0
    best: list[Best] = field(default_factory=list)
    without_better: int = 0
    stopped: str | None = None
    log: dict[str, Any] | None = None


@dataclass(frozen=True)
class Trainee:
    """What changes while training: the bare model, its optimiser, the moving average and the scaler, if any."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: MovingAverage | None
    scaler: torch.amp.GradScaler | None


def step_name(step: int) -> str:
    """The name of a folder about a step; names sort as their steps do."""
    return f"step-{step:08d}"


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """A folder that `write` fills on the main process, whole or not there; every process waits, and fails, together.

    Raises SharedError where it cannot be written, such as on a full disk; what was there before stays.
    """
    fault: str | None = None
    if launch.is_main():
        partial = path.with_name(f".{path.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write(partial)
            for file in partial.iterdir():
                os.chmod(file, 0o644)  # safetensors' files are for their owner alone, a results folder is for many
                _sync(file)
            if path.exists():  # of a start that was killed after it; the same step writes the same
                shutil.rmtree(path)
            os.replace(partial, path)
            _sync(path.parent)
        except Exception as error:  # torch and safetensors each have errors of their own for a full disk
            fault = f"{getattr(error, 'strerror', None) or error}"
            if isinstance(error, FileNotFoundError):
                fault += f": {error.filename}"
            with suppress(OSError):
                shutil.rmtree(partial)
    fault = launch.broadcast(fault)
    if fault is not None:
        raise SharedError(
            f"expected to write {path}, got: {' '.join(fault.split())}; what was written before is whole; mend "
            "that (make room on a full disk) and run the same command again"
        )


def _sync(path: Path) -> None:
    """Onto the disk, so that a folder that is there after a power failure is whole."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(run: Path, trainee: Trainee, state: LoopState) -> None:
    """Write a checkpoint after `state.step`, then remove the ones before it. Every process calls this."""
    tensors = _gathered(trainee)

    def write(folder: Path) -> None:
        with (folder / TENSORS).open("wb") as file:
            torch.save(tensors, file)
        (folder / LOOP).write_text(json.dumps(asdict(state)) + "\n", encoding="utf-8")

    folder = run / CHECKPOINTS
    write_folder(folder / step_name(state.step), write)
    if launch.is_main():
        for old in sorted(folder.glob("step-*")):
            if old.name != step_name(state.step):
                shutil.rmtree(old)
    launch.barrier()


def newest(run: Path) -> Path | None:
    """The last checkpoint of a run; remains of ones that were not finished are removed.

    The main process looks: on a shared file system others may still see what was there a moment ago.
    """
    found: list[Path] = []
    if launch.is_main() and (folder := run / CHECKPOINTS).is_dir():
        for partial in folder.glob(".*.partial"):
            shutil.rmtree(partial)
        found = sorted(folder.glob("step-*"))
    return launch.broadcast(found[-1] if found else None)


def load(checkpoint: Path, trainee: Trainee) -> LoopState:
    """Put a checkpoint's tensors where they belong; returns how far the loop had come.

    Raises UserError for a checkpoint that is damaged or belongs to another model.
    """
    try:
        loop = json.loads((checkpoint / LOOP).read_text(encoding="utf-8"))
        tensors = torch.load(checkpoint / TENSORS, map_location="cpu", weights_only=True, mmap=True)
        state = LoopState(**loop | {"best": [Best(**best) for best in loop["best"]]})
    except Exception as error:  # what torch raises for damaged files depends on where they are damaged
        cause = " ".join(str(error).split())[:200]
        raise UserError(f"expected a checkpoint at {checkpoint}, got: {cause}; delete that folder and go on") from error
    _restore(tensors, trainee, checkpoint)
    return state


# -- tensors --------------------------------------------------------------------------------------------------------


def whole(tensor: Tensor) -> Tensor:
    """A tensor in main memory, gathered where it is shared out: then every process must ask for the same ones."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict of whole tensors in main memory."""
    return {name: whole(tensor) for name, tensor in model.state_dict().items()}


def _gathered(trainee: Trainee) -> dict[str, Any]:
    optimizer: dict[str, dict[str, Tensor]] = {}
    for name, parameter in trainee.model.named_parameters():
        if parameter.requires_grad:
            moments = trainee.optimizer.state[parameter]
            optimizer[name] = {key: whole(value) for key, value in moments.items()}
    average = None if trainee.average is None else {n: whole(t) for n, t in trainee.average.state().items()}
    return {
        "model": whole_state(trainee.model),
        "optimizer": optimizer,
        "average": average,
        "scaler": None if trainee.scaler is None else trainee.scaler.state_dict(),
    }


@torch.no_grad()
def _restore(tensors: Mapping[str, Any], trainee: Trainee, checkpoint: Path) -> None:
    own = trainee.model.state_dict()
    trained = {name: p for name, p in trainee.model.named_parameters() if p.requires_grad}
    average = None if trainee.average is None else trainee.average.state()
    saved = {
        "weights": (set(own), set(tensors["model"])),
        "optimiser's tensors": (set(trained), set(tensors["optimizer"])),
        "moving averages": (set(average or ()), set(tensors["average"] or ())),
    }
    for what, (expected, got) in saved.items():
        if expected != got:
            odd = sorted(expected ^ got)
            raise UserError(
                f"expected {checkpoint} to hold this model's {what}, got others ({odd[0]} and {len(odd) - 1} more); "
                "continue with the configuration it was trained with"
            )
    sizes = {name: tensor.shape for name, tensor in tensors["model"].items()}
    odd = [name for name, tensor in own.items() if sizes[name] != tensor.shape]
    if odd:
        raise UserError(
            f"expected {odd[0]} of shape {tuple(own[odd[0]].shape)} in {checkpoint}, got {tuple(sizes[odd[0]])}; "
            "continue with the configuration it was trained with"
        )
    for name, tensor in own.items():
        tensor.copy_(_placed(tensors["model"][name], tensor))
    for name, parameter in trained.items():
        moments = tensors["optimizer"][name]
        trainee.optimizer.state[parameter] = {
            # Beside the moments there is the number of steps, a single number that is not shared out.
            key: _placed(value, parameter) if value.shape == parameter.shape else value.to(parameter.device, copy=True)
            for key, value in moments.items()
        }
    for name, tensor in (average or {}).items():
        tensor.copy_(_placed(tensors["average"][name], tensor))
    if trainee.scaler is not None:
        trainee.scaler.load_state_dict(tensors["scaler"])


def _placed(value: Tensor, like: Tensor) -> Tensor:
    """A tensor where another is: on its device, shared out as it is; memory of its own."""
    value = value.to(like.device, copy=True)
    if not isinstance(like, DTensor):
        return value
    # Every process has read the whole tensor and keeps its own part of it.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
