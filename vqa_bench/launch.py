"""The processes of one training: how many there are, and whether they are what was asked for.

One process started by hand is rank 0 of 1, and everything here is then trivial and needs no torch. Under torchrun or
`accelerate launch` accelerate forms the group (gloo on a CPU). A launch that quietly became something else is refused.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from vqa_bench.errors import UserError

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator, PartialState

    from vqa_bench.config import LoopConfig

Value = TypeVar("Value")


def world() -> int:
    """How many processes there are."""
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"expected a number of processes in WORLD_SIZE, got {given!r}; unset it, or use torchrun")
    if (expected := int(given)) == 1:
        _refuse_lost_processes()
        return 1
    return _group(expected).num_processes


def rank() -> int:
    """Which of them this is, from 0."""
    return 0 if world() == 1 else _group(world()).process_index


def is_main() -> bool:
    """Whether this is the one that writes and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait for all."""
    if world() > 1:
        _group(world()).wait_for_everyone()


@contextmanager
def alone() -> Iterator[None]:
    """Around what the main process does by itself while others wait: where it fails among several, all of them end.

    The launcher sees to that when this process ends; an error that is handled here would leave the others waiting.
    """
    try:
        yield
    except UserError as error:
        if world() == 1:
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error


def broadcast(value: Value) -> Value:
    """The main process's value, on every process; it must be picklable."""
    if world() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _group(world())
    [received] = broadcast_object_list([value])
    return received


def gather(values: Sequence[Value]) -> list[Value]:
    """The values of all processes, rank by rank, on every one of them."""
    if world() == 1:
        return list(values)
    from torch import distributed

    parts: list[Any] = [None] * _group(world()).num_processes
    distributed.all_gather_object(parts, list(values))
    return [value for part in parts for value in part]


def device() -> torch.device:
    """This process's own: its GPU, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda") if world() == 1 else _group(world()).device


def start(config: LoopConfig) -> Accelerator:
    """Accelerate, set up for a training.

    Raises UserError where precision, the number of processes or the way to share work is not what was asked for.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from torch import cuda

    check(config)
    count = world()
    # Its settings are kept for the whole process; the cell before may have had others. The group of processes stays.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not cuda.is_available())
    if accelerator.num_processes != count:
        raise UserError(f"expected {count} processes that train together, got {accelerator.num_processes}")
    return accelerator


def check(config: LoopConfig) -> None:
    """UserError where a training would not get the precision, the processes or the sharing that it asks for."""
    from torch import cuda

    if config.precision == "fp16" and not cuda.is_available():
        raise UserError("expected a GPU for precision fp16, got none; use bf16 or no")
    _refuse_settings()
    count = world()
    if config.processes is not None and count != config.processes:
        raise UserError(
            f"expected {config.processes} processes (train.processes), got {count}; start them with torchrun "
            f"--nproc_per_node {config.processes} -m vqa_bench …, or change the configuration"
        )
    if config.parallel == "fsdp" and count == 1:
        raise UserError(
            "expected several processes for train.parallel: fsdp, got one; start them with torchrun --nproc_per_node N "
            "-m vqa_bench …, or use ddp"
        )


def _group(expected: int) -> PartialState:
    """Accelerate's view of the processes, formed on first use; UserError unless it sees all of them."""
    from accelerate import PartialState
    from torch import cuda

    # Without `cpu`, accelerate on a machine without a GPU starts as many trainings as processes, all into one folder.
    # The others may have to wait while the main process makes data.
    try:
        state = PartialState(cpu=not cuda.is_available(), timeout=timedelta(days=1))
    except ValueError as error:
        raise UserError(
            f"expected {expected} processes as WORLD_SIZE says, got no way to meet the others: "
            f"{' '.join(str(error).split())}; start them with torchrun"
        ) from error
    if state.num_processes != expected:
        raise UserError(
            f"expected {expected} processes as WORLD_SIZE says, got a group of {state.num_processes}; start them with "
            "torchrun"
        )
    return state


def _refuse_settings() -> None:
    """What `accelerate launch` can ask for and would change a training behind the configuration's back.

    FSDP on a CPU, for one, becomes DDP without a word; and accelerate's wrapper knows nothing of shared prefixes.
    """
    instead = {
        "ACCELERATE_USE_FSDP": ("false", "train.parallel: fsdp"),
        "ACCELERATE_USE_DEEPSPEED": ("false", "train.parallel: fsdp"),
        "ACCELERATE_USE_MEGATRON_LM": ("false", "train.parallel: fsdp"),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "train.accumulate"),
        "ACCELERATE_DYNAMO_BACKEND": ("no", "train.compile"),
    }
    for name, (unset, setting) in instead.items():
        got = os.environ.get(name, unset)
        if got.lower() != unset:
            raise UserError(
                f"expected accelerate to be launched without settings of its own, got {name}={got}, which is not used; "
                f"set {setting} in the configuration"
            )


def _refuse_lost_processes() -> None:
    """`accelerate launch --cpu --num_processes 2` runs one process without a word, with an address to meet at."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "expected the several processes that `accelerate launch` was asked for, got one: it starts no others on a "
            "CPU; use torchrun --nproc_per_node N -m vqa_bench …"
        )
