"""The slow, obvious training loop that the harness's is held against: one process, one batch a step, plain tensors.

Every question is in one large batch, and its mean loss is differentiated; nothing is accumulated, sharded or resumed.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from vqa_bench.config import CellConfig, TrainConfig
from vqa_bench.data.loading import TrainPlan
from vqa_bench.data.shards import Shard
from vqa_bench.models import MODELS, VQAModel, build
from vqa_bench.runs import load_model


@dataclass
class Reference:
    """What came out: the model, the moving average of its weights by name, and a number a step."""

    model: VQAModel
    average: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def reference_training(cell: CellConfig, shard: Shard) -> Reference:
    """Train a cell without dropout as its configuration says, in float32."""
    config = cell.train
    assert config is not None
    torch.manual_seed(cell.seed)
    model = build(cell, MODELS[cell.model.kind].decide(cell, shard)).train()
    split = shard.split("train")
    plan = TrainPlan(split, cell.seed, config.images_per_batch, config.questions_per_image)
    matrices = [p for name, p in model.named_parameters() if decays(model, name, p)]
    others = [p for name, p in model.named_parameters() if not decays(model, name, p)]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
    found = Reference(model, {name: p.detach().clone() for name, p in model.named_parameters()})
    for step in range(config.steps):
        rate = config.learning_rate * factor(step, config)
        for group in optimizer.param_groups:
            group["lr"] = rate
        numbers = range(step * config.accumulate, (step + 1) * config.accumulate)
        batch = model.collate(split, [group for number in numbers for group in plan.groups(number)])
        sums = model(batch.to(torch.device("cpu")))
        loss = sums.total / sums.targets
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
        if config.clip is not None and norm > config.clip:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= config.clip / norm
        optimizer.step()
        if config.ema is not None:
            decay = min(config.ema, (1 + step) / (10 + step))
            for name, parameter in model.named_parameters():
                found.average[name] = decay * found.average[name] + (1 - decay) * parameter.detach()
        found.losses.append(loss.item())
        found.norms.append(norm)
        found.rates.append(rate)
    return found


def decays(model: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Weights of linear layers and convolutions; neither gains, biases nor embeddings."""
    module = model.get_submodule(name.rpartition(".")[0])
    return parameter.ndim >= 2 and not isinstance(module, nn.Embedding)


def factor(step: int, config: TrainConfig) -> float:
    """The share of the learning rate: rises evenly over the first steps, then falls like a cosine to zero."""
    rising = max(round(config.warmup * config.steps), 1)
    if step < rising:
        return (step + 1) / rising
    return math.cos(math.pi / 2 * (step - rising) / (config.steps - rising)) ** 2


def expect_weights(run: Path, expected: dict[str, Tensor], *, atol: float = 2e-5) -> None:
    """The weights of a run are these."""
    found = dict(load_model(run).named_parameters())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].detach(), tensor.detach(), rtol=0, atol=atol, msg=name)
