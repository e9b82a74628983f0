"""What steps are timed on: a model's shape, how many sequences at once, and which of their bytes are predicted.

Random bytes of the right lengths, as what is read changes no time but zeros do. Knows neither the clock nor rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.gpu.shapes import PaperShape
from benchmarks.gpu.training import BYTE_VALUES, Loss, random_batch
from benchmarks.peer.sizes import WEIGHTED
from mblm import MBLM
from vqa_bench.config import HierarchyConfig
from vqa_bench.estimate.flops import keys_of, layer_flops, patch_rows, products
from vqa_bench.estimate.load import Rules, window_load


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """A training step. batch: how many are read at once, fewer where memory does not suffice. repeats: of its time."""

    shape: PaperShape
    batch: int
    repeats: int = 5
    unit: ClassVar[str] = "sequence"

    @property
    @abstractmethod
    def name(self) -> str:
        """The shape, and what is predicted."""

    @abstractmethod
    def samples(self, batch: int) -> int:
        """How many sequences or questions a step trains on."""

    @abstractmethod
    def draw(self, batch: int, device: torch.device) -> tuple[Tensor, ...]:
        """A batch, what `loss` is of."""

    def loss(self, model: MBLM) -> Loss:
        """The model's summed loss of a batch."""
        return model.loss_sums

    def settings(self) -> dict[str, Any]:
        """What a kept measurement must have been made with, JSON-able."""
        return {"case": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Windows(Case):
    """Whole contexts of bytes, of which all are predicted, or as in answering the last few only."""

    answer_only: bool = False

    @property
    def name(self) -> str:
        return f"{self.shape.name}, {'answer only' if self.answer_only else 'full loss'}"

    def samples(self, batch: int) -> int:
        return batch

    def draw(self, batch: int, device: torch.device) -> tuple[Tensor, ...]:
        return random_batch(batch, self.shape.context, device, answer=WEIGHTED if self.answer_only else None)


@dataclass(frozen=True, kw_only=True)
class Questions(Case):
    """Images first, each with its questions, of which the answers are predicted; lengths in bytes.

    prefix: the image's part, whole patches. suffix: a question with its answer. shared: an image is read once for its
    questions, else once for each. batch: images at once, or questions where each has a sequence of its own.
    """

    prefix: int
    suffix: int
    questions: int = 10
    shared: bool = True
    unit: ClassVar[str] = "question"

    @property
    def name(self) -> str:
        return f"{self.shape.name}, questions {'that share images' if self.shared else 'with an image each'}"

    def samples(self, batch: int) -> int:
        return batch * self.questions if self.shared else batch

    def draw(self, batch: int, device: torch.device) -> tuple[Tensor, ...]:
        if not self.shared:
            return random_batch(batch, self.prefix + self.suffix, device, answer=WEIGHTED)
        prefix = torch.randint(BYTE_VALUES, (batch, self.prefix), device=device)
        suffixes = torch.randint(BYTE_VALUES, (batch, self.questions, self.suffix), device=device)
        weights = torch.zeros(suffixes.shape, device=device)
        weights[..., -WEIGHTED:] = 1.0
        return prefix, suffixes, weights

    def loss(self, model: MBLM) -> Loss:
        return model.shared_loss_sums if self.shared else model.loss_sums


def stage_values(shape: PaperShape) -> dict[str, Any]:
    """A shape as the harness's configuration of a byte model, in plain values and without checkpoint chunks."""
    stages: list[dict[str, Any]] = []
    for block in shape.specification()["block"]:
        ((kind, fields),) = block.items()
        if kind == "S":
            sizes = {name: fields[name] for name in ("d_state", "d_conv", "expand")}
            stages.append({"kind": "mamba", "head_dim": fields["headdim"], **sizes})
        else:
            heads, width = fields["attn_num_heads"], fields["attn_head_dims"]
            stages.append({"heads": heads, "head_dim": width, "ff_multiplier": fields["ff_multiplier"]})
    sizes = {name: list(getattr(shape, name)) for name in ("hidden_dims", "seq_lens", "num_layers")}
    return {**sizes, "stages": stages}


def useful_flops(shape: PaperShape, batch: int) -> float:
    """FLOPs of a full-loss step on so many whole contexts: three times those of the forward's matrix products.

    A multiply-add counts as two. Nothing that is computed a second time counts: neither checkpoint chunks nor what the
    recurrence's backward makes anew. Attention counts its causal half, the recurrence as it is run in chunks, patch
    vectors as they are made (from a table where that is less), start vectors as positions; elementwise work is none.
    """
    config = HierarchyConfig.model_validate(stage_values(shape))
    load = window_load(config, batch, shape.context, Rules(cpu=False))
    dims = config.hidden_dims
    forward = products(load.targets * dims[-1] * shape.specification()["num_tokens"])
    for stage, stage_load in enumerate(load.stages):
        block, layers = config.stages[stage], config.num_layers[stage]
        assert block.kind != "custom", "shapes have S and T stages"
        for reading in stage_load.readings:
            forward += layer_flops(block, dims[stage], reading, keys_of(reading, causal=True)).times(layers)
        if stage < len(dims) - 1:
            forward += products(patch_rows(config, stage, stage_load) * dims[-1] * dims[stage])
        if stage > 0:
            forward += products(stage_load.conditioned * dims[stage] * dims[stage - 1])
    return 3 * forward.forward
