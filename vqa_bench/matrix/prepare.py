"""Everything that can be wrong before the first run trains, said at once. Makes data and shards, trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vqa_bench import launch
from vqa_bench.config import PRETRAIN_FOLDER, CellConfig, DataConfig, MatrixConfig, MBLMConfig, PretrainConfig
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.matrix.cells import Cell, Pretraining, Trainable, digest, weights_digest
from vqa_bench.matrix.folder import Resume, fault_of, is_filled
from vqa_bench.matrix.sources import Warehouse

if TYPE_CHECKING:
    from torch import nn

BLIND_ENCODING = "pixels:1x1"  # for a matrix in which no model sees an image: its shard needs questions only

Value = TypeVar("Value")


def select(
    config: MatrixConfig, *, only: Sequence[str] | None = None, pretraining: Sequence[str] | None = None
) -> tuple[list[CellConfig], list[PretrainConfig]]:
    """The cells and pretraining runs that are asked for, and the pretraining runs that the cells need.

    only: names of cells; pretraining: names of pretraining runs; None for both means everything in the file, for one of
    them none of its kind. Raises UserError for a name that is not there.
    """
    if only is None and pretraining is None:
        return list(config.cells), list(config.pretrain)
    cells = [config.cell(name) for name in dict.fromkeys(only or ())]
    runs = {run.name: run for run in config.pretrain}
    unknown = [name for name in pretraining or () if name not in runs]
    if unknown:
        raise UserError(f"expected one of the pretraining runs {', '.join(runs) or '(none)'}, got {', '.join(unknown)}")
    wanted = {*(pretraining or ()), *(cell.pretrained.run for cell in cells if cell.pretrained is not None)}
    return cells, [run for run in config.pretrain if run.name in wanted]


def prepare(
    data: DataConfig | None,
    cells: Sequence[CellConfig],
    pretraining: Sequence[PretrainConfig],
    out: Path,
    warehouse: Warehouse,
    *,
    resume: Resume = "auto",
    at_once: int | None = 1,
) -> list[Trainable]:
    """Data, shards and a check of everything; what to train, in an order in which it can be.

    at_once: runs that share a device, which must have memory for them; None where it is not this machine's.
    Raises UserError with everything that is wrong.
    """
    found = Faults(missing_weights(cells))
    found.raise_all()  # before data are made, which may take hours
    runs = {}
    for config in pretraining:
        books = found.catch(partial(warehouse.books, config.data), f"pretrain {config.name}")
        if books is not None:
            runs[config.name] = Pretraining(config, books, out / PRETRAIN_FOLDER / config.name)
    shards = _shards(data, cells, warehouse, found)
    found.raise_all()
    filled = [_cell(cell, shards, runs, out) for cell in cells]
    trainables: list[Trainable] = [*runs.values(), *filled]
    for trainable in trainables:
        kind = "cell" if isinstance(trainable, Cell) else "pretrain"
        found.catch(partial(check, trainable, resume, at_once), f"{kind} {trainable.config.name}")
    found.raise_all()
    return trainables


class Faults:
    """Gathers what goes wrong, so that all of it is said at once."""

    def __init__(self, lines: Sequence[str] = ()) -> None:
        self.lines = list(lines)

    def catch(self, function: Callable[[], Value], what: str) -> Value | None:
        """The function's value, or None where it raised a user's error, which is kept."""
        try:
            return function()
        except (UserError, ValueError) as error:
            self.lines.append(f"{what}: {error}")
            return None

    def raise_all(self) -> None:
        """UserError with everything kept, if anything was."""
        if self.lines:
            raise UserError("; ".join(dict.fromkeys(self.lines)))


def missing_weights(cells: Sequence[CellConfig]) -> list[str]:
    """The cells that begin from weights at a path where there are none, a line each."""
    found = Faults()
    for cell in cells:
        if cell.pretrained is not None and cell.pretrained.path is not None:
            found.catch(partial(weights_digest, cell.pretrained), f"cell {cell.name}")
    return found.lines


def _shards(
    data: DataConfig | None, cells: Sequence[CellConfig], warehouse: Warehouse, found: Faults
) -> dict[str | None, Shard]:
    """The shard of every encoding; under None the one for models that see no image."""
    if data is None or not cells:
        return {}
    specs = list(dict.fromkeys(cell.encoding for cell in cells if cell.encoding is not None)) or [BLIND_ENCODING]
    shards: dict[str | None, Shard] = {}
    for spec in specs:
        shard = found.catch(partial(warehouse.shard, data, spec), spec)
        if shard is not None:
            shards[spec] = shard
            shards.setdefault(None, shard)
    return shards


def _cell(cell: CellConfig, shards: dict[str | None, Shard], runs: dict[str, Pretraining], out: Path) -> Cell:
    shard, run = shards[cell.encoding], out / cell.name
    if cell.pretrained is None:
        return Cell(cell, shard, run)
    if cell.pretrained.run is not None:
        pretraining = runs[cell.pretrained.run]
        return Cell(cell, shard, run, initial_key=digest(pretraining.key), pretraining=pretraining.run)
    return Cell(cell, shard, run, initial_key=weights_digest(cell.pretrained))


def check(trainable: Trainable, resume: Resume = "auto", at_once: int | None = None) -> None:
    """UserError or ValueError for what is wrong with a run: its folder, its model and plan, built once, and memory."""
    from vqa_bench.models import check_kernels

    fault = fault_of(trainable.run, trainable.key, resume)
    if fault is None and not is_filled(trainable):
        model = _check_cell(trainable) if isinstance(trainable, Cell) else _check_pretraining(trainable)
        if at_once is not None:  # it is this machine that trains it
            check_kernels(model, launch.device())
            if trainable.config.train is not None:
                launch.check(trainable.config.train)
            fault = _check_memory(trainable, at_once)
    if fault is not None:
        raise UserError(fault)


def _check_cell(cell: Cell) -> nn.Module:
    import torch

    from vqa_bench.data.loading import TrainPlan, shuffled_pictures
    from vqa_bench.models import MODELS, ByteModel, build
    from vqa_bench.models.initial import check_initial, freeze
    from vqa_bench.train.trackers import check_trackers

    config = cell.config
    built = MODELS[config.model.kind].decide(config, cell.shard)
    with torch.device("meta"):
        model = build(config, built)
    model.check(cell.shard)
    if config.train is not None:
        TrainPlan(cell.shard.split("train"), config.seed, config.train.images_per_batch)
        if config.train.dev is not None:
            cell.shard.split("dev")
        check_trackers(config.train.trackers)
    if config.pretrained is not None:
        assert isinstance(model, ByteModel), "the configuration allows `pretrained` for byte models only"
        freeze(model, config.pretrained.freeze)
        if config.pretrained.path is not None:
            assert isinstance(config.model, MBLMConfig)
            check_initial(config.model, config.pretrained.path, config.pretrained.config)
    test = cell.shard.split("test")
    if config.evaluate.shuffled and not model.blind:
        shuffled_pictures(len(test), 0)
    return model


def _check_pretraining(pretraining: Pretraining) -> nn.Module:
    import torch

    from vqa_bench.data.books import WindowPlan
    from vqa_bench.models import build_text
    from vqa_bench.train.trackers import check_trackers

    config = pretraining.config
    check_trackers(config.train.trackers)
    with torch.device("meta"):
        model = build_text(config)
    WindowPlan(pretraining.books.split("train"), config.window, config.seed, config.train.windows_per_batch)
    if config.train.dev is not None:
        pretraining.books.split("validation")
    return model


def _check_memory(trainable: Trainable, at_once: int) -> str | None:
    from vqa_bench.estimate import check_memory, estimate, estimate_pretraining

    if isinstance(trainable, Cell):
        return check_memory(estimate(trainable.config, trainable.shard), at_once=at_once)
    return check_memory(estimate_pretraining(trainable.config, trainable.books), at_once=at_once)
