"""What one batch costs a process, whatever the model: FLOPs by width, memory by kind.

The hierarchy's is computed from its load; a baseline is small enough to run on one image and be counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from vqa_bench.config import HierarchyConfig
from vqa_bench.estimate.flops import hierarchy_flops
from vqa_bench.estimate.load import Load, Rules
from vqa_bench.estimate.memory import hierarchy_kept
from vqa_bench.models import Classifier, ClassifierBatch

WORDS = 20  # of a question: 92 bytes, CLEVR's mean, are 18 words, and rows are padded to the longest


@dataclass(frozen=True)
class Work:
    """One batch of one process. flops: by the width of the layers they are done in. The rest in bytes, see `Kept`."""

    flops: dict[int, float]
    activations: float
    workspace: float
    traffic: float

    @property
    def total_flops(self) -> float:
        """Of all widths."""
        return sum(self.flops.values())


def hierarchy_work(
    config: HierarchyConfig, load: Load, stage_parameters: Sequence[int], rules: Rules, *, half: bool
) -> Work:
    """Of a byte model. stage_parameters: of each stage's own layers."""
    flops: dict[int, float] = {}
    for width, amount in zip(config.hidden_dims, hierarchy_flops(config, load, stage_parameters), strict=True):
        flops[width] = flops.get(width, 0.0) + amount
    kept = hierarchy_kept(config, load, rules, half=half)
    return Work(flops, kept.activations, kept.workspace, kept.traffic)


def classifier_work(model: Classifier, *, images: float, per_image: int, width: int) -> Work:
    """Of a baseline, which is changed: one image with its questions is run and counted, and taken so many times."""
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    # In float64, as the LSTM's own kernel for float32 is no matrix product to the counter.
    with torch.random.fork_rng(devices=[]):
        model = model.double()
        batch = _one_image(model, per_image)
        counter = FlopCounterMode(display=False)
        with counter, saved_tensors_hooks(keep, lambda tensor: tensor):
            model(batch).total.backward()
    kept = sum(saved.values()) / 2 * images
    return Work({width: counter.get_total_flops() * images}, kept, kept, kept)


def _one_image(model: Classifier, per_image: int) -> ClassifierBatch:
    shape = (1, per_image)
    images = None if model.image_shape is None else torch.zeros(1, *model.image_shape, dtype=torch.float64)
    return ClassifierBatch(
        present=torch.ones(shape, dtype=torch.bool),
        rows=torch.zeros(shape, dtype=torch.long),
        targets=torch.zeros(shape, dtype=torch.long),
        tokens=torch.ones(*shape, WORDS, dtype=torch.long),
        lengths=torch.full(shape, WORDS),
        images=images,
        types=["exist"] * per_image,
    )
