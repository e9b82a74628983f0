"""The one training loop: batches by image, the loss summed and divided once, the weights on disk at the end.

Reads from top to bottom. It knows a `VQAModel` and its plan of batches, not what kind of model it is.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from vqa_bench.config import CellConfig, TrainConfig
from vqa_bench.data.loading import TrainPlan, batches
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.models import MODELS, Batch, MajorityModel, VQAModel, build
from vqa_bench.progress import Progress, silent
from vqa_bench.runs import METRICS, save_model

LOG_EVERY = 20  # optimiser steps between two lines of metrics.jsonl


def train(cell: CellConfig, shard: Shard, run: Path, *, report: Progress = silent) -> VQAModel:
    """Train a cell on the shard's train split and save it into the run's folder; returns the model, on the CPU.

    Raises UserError where the data does not suit the cell, and where the loss stops being finite.
    """
    torch.manual_seed(cell.seed)
    model = build(cell, MODELS[cell.model.kind].decide(cell, shard))
    split = shard.split("train")
    if isinstance(model, MajorityModel):
        model.fit(split)
    else:
        assert cell.train is not None, "the configuration requires `train` of every model that is trained"
        model = _optimise(model, cell, cell.train, shard, run, report)
    save_model(run, model)
    return model


def _optimise(
    model: VQAModel, cell: CellConfig, config: TrainConfig, shard: Shard, run: Path, report: Progress
) -> VQAModel:
    if config.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("expected a GPU for precision fp16, got none; use bf16 or no")
    # accelerate keeps its settings for the whole process; the cell before may have had others.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(mixed_precision=config.precision, cpu=not torch.cuda.is_available())
    if accelerator.num_processes != 1:
        raise UserError(
            f"expected one process, got {accelerator.num_processes}; start vqa-bench without a launcher (--jobs trains "
            "several cells at a time)"
        )
    torch.set_float32_matmul_precision(config.matmul_precision)
    plan = TrainPlan(
        shard.split("train"),
        cell.seed,
        config.images_per_batch,
        config.questions_per_image,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, config))
    wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
    losses: deque[float] = deque(maxlen=LOG_EVERY)
    questions, began = 0, time.monotonic()
    with (run / METRICS).open("w", encoding="utf-8") as log:
        micro_batches = batches(
            plan.groups, partial(model.collate, plan.split), range(config.steps * config.accumulate)
        )
        for step in range(config.steps):
            # A function of seed and step, so that dropout does not depend on what ran before.
            torch.manual_seed(cell.seed * 1_000_003 + step)
            parts = [next(micro_batches).to(accelerator.device) for _ in range(config.accumulate)]
            loss = _step(accelerator, wrapped, parts, optimizer, config, step)
            schedule.step()
            losses.append(loss)
            questions += sum(int(part.present.sum()) for part in parts)
            if (step + 1) % LOG_EVERY == 0 or step + 1 == config.steps:
                mean = sum(losses) / len(losses)
                rate = questions * accelerator.num_processes / (time.monotonic() - began)
                line = {"step": step + 1, "loss": mean, "learning_rate": schedule.get_last_lr()[0]}
                line |= {"epoch": (step + 1) * config.accumulate / plan.steps_per_epoch, "questions_per_second": rate}
                log.write(json.dumps(line) + "\n")
                log.flush()
                report(step + 1, config.steps, f"loss {mean:.3f}, {rate:,.0f} questions/s")
    torch.set_float32_matmul_precision("highest")
    unwrapped: VQAModel = accelerator.unwrap_model(wrapped)
    return unwrapped.to("cpu").eval()


def _step(
    accelerator: Accelerator,
    model: nn.Module,
    parts: list[Batch],
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
) -> float:
    """One optimiser step over the micro-batches `parts`: the mean loss of all their weighted targets, on all ranks.

    Gradients of sums are added up and divided once by the global count, so a target weighs the same wherever it is.
    """
    total = torch.zeros((), dtype=torch.float64)
    count = torch.zeros((), dtype=torch.float64)
    for place, part in enumerate(parts):
        last = place + 1 == len(parts)
        with accelerator.autocast(), _synchronising(accelerator, model, last):
            sums = model(part)
            accelerator.backward(sums.total)
        total += sums.total.detach().double().cpu()
        count += sums.targets.double().cpu()
    # DDP averages gradients over the ranks; a sum is wanted, hence the number of processes.
    all_total, all_count = accelerator.reduce(torch.stack((total, count)).to(accelerator.device), "sum").tolist()
    loss = all_total / max(all_count, 1)
    if not math.isfinite(loss):
        rows = parts[0].rows[:, 0].tolist()
        raise UserError(
            f"expected a finite loss, got {loss} at step {step + 1} (first question of each image: rows {rows}); "
            "lower train.learning_rate or set train.clip"
        )
    accelerator.unscale_gradients(optimizer)
    scale_gradients(model, accelerator.num_processes / max(all_count, 1))
    if config.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def _synchronising(accelerator: Accelerator, model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Gradients travel between ranks with the last micro-batch only."""
    return nullcontext() if last else accelerator.no_sync(model)


def scale_gradients(model: nn.Module, factor: float) -> None:
    """Multiply every gradient in place."""
    gradients: list[Tensor] = [p.grad for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, factor)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; gains, biases, start vectors and embeddings do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else free).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up over `warmup` of the steps, then half a cosine to zero; `step` counts from 0."""
    warm = max(round(config.warmup * config.steps), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(config.steps - warm, 1)))
