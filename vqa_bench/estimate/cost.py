"""The estimates of a cell and of a pretraining run, and whether one can fit the device it is for.

Knows configurations; how a number comes about is in the files beside this one.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from mblm import MBLM
from vqa_bench.config import (
    CellConfig,
    CustomStageConfig,
    HierarchyConfig,
    MBLMConfig,
    PretrainConfig,
)
from vqa_bench.data.books import Books
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.shards import Shard
from vqa_bench.estimate.load import question_load, window_load
from vqa_bench.estimate.memory import NOTHING, Memory
from vqa_bench.estimate.samples import NATIVE_SIZE, Samples, fitted, samples_of
from vqa_bench.estimate.setting import Setting
from vqa_bench.estimate.work import Work, classifier_work
from vqa_bench.models import MODELS, ByteModel, Classifier, build, build_text
from vqa_bench.models.features import RESNET101_SHAPE, SIDE, FeatureInfo
from vqa_bench.models.hierarchy import hierarchy_config
from vqa_bench.models.initial import freeze

WORDS = ("<pad>", "<unknown>", *(f"word{number}" for number in range(87)))  # CLEVR has 87
MLP_WIDTH = 256  # taken for the layers of a baseline without an LSTM
PROCESS = 0.5e9  # bytes of a process that has loaded PyTorch, or of a CUDA context
# An estimate is trusted to be wrong by no more than this: beyond, a run is refused before it begins.
TRUST = 1.5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one run costs.

    unit: what a sample is, `questions` or `windows`. sample_bytes: the mean sequence of a sample, of which
    `shared_bytes` are read once for several; longest_sample: the longest, both None where the model reads no bytes, as
    is `context`. steps: optimiser steps. samples, flops and seconds are of one such step, all processes together;
    flops and seconds without evaluation. memory: of one process.
    """

    name: str
    title: str
    parameters: int
    trainable: int
    unit: str = "questions"
    sample_bytes: float | None = None
    shared_bytes: float = 0.0
    longest_sample: int | None = None
    context: int | None = None
    steps: int = 0
    samples: float = 0.0
    flops: float = 0.0
    memory: Memory = NOTHING
    seconds: float = 0.0
    max_seconds: float | None = None
    processes: int = 1
    device: str = "cpu"
    guesses: tuple[str, ...] = ()

    @property
    def total_seconds(self) -> float:
        """Of the whole training, cut at the configuration's `max_time`."""
        seconds = self.steps * self.seconds
        return seconds if self.max_seconds is None else min(seconds, self.max_seconds)

    @property
    def total_flops(self) -> float:
        """Of all steps."""
        return self.steps * self.flops

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        totals = {"total_seconds": self.total_seconds, "total_flops": self.total_flops}
        return asdict(self) | {"memory": self.memory.to_dict(), "guesses": list(self.guesses)} | totals


def estimate(cell: CellConfig, shard: Shard | None, *, device: torch.device | None = None) -> Estimate:
    """What a cell costs, on `device` (None: a GPU where there is one).

    Without a shard lengths follow from the encoding or are guessed. Raises UserError where samples can't fit the
    model's context, and ValueError for a shape that no model can have.
    """
    samples = samples_of(cell, shard)
    if isinstance(cell.model, MBLMConfig):
        return _byte_cell(cell, cell.model, samples, device)
    with torch.random.fork_rng(devices=[]):
        model = cast(Classifier, build(cell, _decided(cell, shard)))
    parameters = model.parameters_count
    base: dict[str, Any] = {"name": cell.name, "title": cell.title, "parameters": parameters, "trainable": parameters}
    guesses = () if shard is not None else samples.guesses[-1:]
    if cell.train is None:  # counted, not trained
        return Estimate(**base, guesses=guesses)
    setting = Setting.of(cell.train, device)
    images = cell.train.images_per_batch
    width = getattr(cell.model, "hidden", MLP_WIDTH)
    work = classifier_work(model, images=images / setting.processes, per_image=samples.per_image, width=width)
    costs = _costs(setting, parameters, parameters, work)
    return Estimate(**base, **costs, samples=images * samples.per_image * cell.train.accumulate, guesses=guesses)


def estimate_pretraining(
    config: PretrainConfig, books: Books | None, *, device: torch.device | None = None
) -> Estimate:
    """What a pretraining run costs; its samples are windows, whose length the configuration says, not the books.

    Raises as `estimate`.
    """
    with torch.device("meta"):
        model = build_text(config)
    setting, windows = Setting.of(config.train, device), config.train.windows_per_batch
    load = window_load(config.model, windows, config.window, setting.rules)
    work = setting.hierarchy_work(config.model, load, _stage_parameters(model.mblm))
    parameters = model.parameters_count
    return Estimate(
        name=config.name,
        title=config.title,
        parameters=parameters,
        trainable=parameters,
        unit="windows",
        sample_bytes=config.window,
        longest_sample=config.window,
        context=model.mblm.hierarchy.context,
        samples=windows * config.train.accumulate,
        guesses=_of_custom(config.model),
        **_costs(setting, parameters, parameters, work),
    )


def check_memory(estimated: Estimate, device: torch.device | None = None, *, at_once: int = 1) -> str | None:
    """A line if a run cannot fit the device, else None; `at_once` such runs share it.

    An estimate may be wrong by half, so only what exceeds the device by more is a fault.
    """
    device = torch.device(estimated.device) if device is None else device
    # The processes of a machine share its memory, but each has a GPU of its own.
    sharing = at_once * (estimated.processes if device.type == "cpu" else 1)
    needed = (estimated.memory.total + PROCESS) * sharing
    there = _capacity(device)
    if needed <= TRUST * there:
        return None
    return (
        f"expected a training step that fits the {there / 1e9:.3g} GB of {device}, got one of about "
        f"{needed / 1e9:.3g} GB; make train's batch smaller (and accumulate more), set model.checkpoint_chunks, "
        "or use precision bf16 or parallel fsdp"
    )


def _capacity(device: torch.device) -> float:
    """Bytes of a device's memory; of a CPU, what this machine or its control group (cgroup v2) has."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else "max"
    machine = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return machine if text == "max" else min(machine, float(text))


def _byte_cell(cell: CellConfig, config: MBLMConfig, samples: Samples, device: torch.device | None) -> Estimate:
    assert cell.train is not None, "the configuration requires `train` of every model that is trained"
    shape = hierarchy_config(config)
    sequencer, samples = fitted(cell, samples, shape.patch_size, shape.context)
    counts = _counts(config.model_dump_json(), () if cell.pretrained is None else cell.pretrained.freeze)
    setting, images = Setting.of(cell.train, device), cell.train.images_per_batch
    load = question_load(config, sequencer, samples, images, setting.rules)
    work = setting.hierarchy_work(config, load, counts.stages)
    lengths = sequencer.lengths(samples.asked(len(samples.lengths)))
    return Estimate(
        name=cell.name,
        title=cell.title,
        parameters=counts.parameters,
        trainable=counts.trainable,
        sample_bytes=float(lengths.mean()),
        shared_bytes=float(sequencer.image_length if sequencer.shares_prefix else 0),
        longest_sample=int(lengths.max()),
        context=shape.context,
        samples=images * samples.per_image * cell.train.accumulate,
        guesses=(*samples.guesses, *_of_custom(config)),
        **_costs(setting, counts.parameters, counts.trainable, work),
    )


def _costs(setting: Setting, parameters: int, trainable: int, work: Work) -> dict[str, Any]:
    """The fields of an estimate that follow from the work of a batch of one process."""
    loop = setting.loop
    return {
        "steps": loop.steps,
        "flops": work.total_flops * setting.processes * loop.accumulate,
        "memory": setting.memory(parameters, trainable, work),
        "seconds": setting.seconds(work, trainable),
        "max_seconds": loop.max_time,
        "processes": setting.processes,
        "device": str(setting.device),
    }


class _Counts(NamedTuple):
    """Parameters of a byte model: all, those that are trained, and each stage's own layers'."""

    parameters: int
    trainable: int
    stages: tuple[int, ...]


@lru_cache(maxsize=64)
def _counts(model_config: str, frozen: tuple[str, ...]) -> _Counts:
    """Of a byte model's configuration as JSON; cells of a matrix share few shapes, and deep ones take a while."""
    holder = nn.Module()
    with torch.device("meta"):
        holder.mblm = MBLM(hierarchy_config(MBLMConfig.model_validate_json(model_config)))
    freeze(cast(ByteModel, holder), frozen)
    parameters = list(holder.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return _Counts(sum(map(torch.numel, parameters)), trainable, _stage_parameters(holder.mblm))


def _stage_parameters(model: nn.Module) -> tuple[int, ...]:
    stages = cast(nn.ModuleList, model.stage_models)
    return tuple(sum(map(torch.numel, stage.parameters())) for stage in stages)


def _decided(cell: CellConfig, shard: Shard | None) -> dict[str, Any]:
    """What the data decides about a baseline, or CLEVR's words and pictures in its place."""
    if shard is not None:
        return MODELS[cell.model.kind].decide(cell, shard)
    built: dict[str, Any] = {"words": {"words": list(WORDS)}}
    features = getattr(cell.model, "features", None)
    if features is not None:
        built["features"] = FeatureInfo(features.kind, "", SIDE, RESNET101_SHAPE).to_dict()
    elif cell.encoding is not None:
        width, height = parse_spec(cell.encoding).size or NATIVE_SIZE
        built["image_size"] = [height, width]
    return built


def _of_custom(config: HierarchyConfig) -> tuple[str, ...]:
    custom = any(isinstance(stage, CustomStageConfig) for stage in config.stages)
    return ("custom stages by their parameters alone",) if custom else ()
