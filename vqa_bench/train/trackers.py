"""Where the lines of a run's log go beside metrics.jsonl: metrics.csv always, TensorBoard and W&B where asked for.

All are accelerate's trackers, called directly: `Accelerator.end_training` would also end the group of processes, which
evaluation still needs. A tracker is given `{"train/loss": 0.7, …}` and a step. Knows the log's lines, nothing else.
"""

from __future__ import annotations

import csv
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from vqa_bench.data.folders import whole_file
from vqa_bench.errors import UserError
from vqa_bench.runs import writing

METRICS_CSV = "metrics.csv"
COLUMNS = (
    *("kind", "step", "epoch", "loss", "accuracy", "best", "grad_norm", "learning_rate"),
    *("samples_per_second", "bytes_per_second", "data_wait", "memory_bytes", "seconds"),
)
TENSORBOARD, WANDB_ID, WANDB_PROJECT = "tensorboard", "wandb-id.txt", "vqa-bench"


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError where the package of a tracker is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(
            f"expected the package {missing[0]} for train.trackers, got none; install vqa-bench[{','.join(missing)}], "
            "or leave it out of train.trackers"
        )


def start_trackers(
    names: Sequence[str], run: Path, *, name: str, settings: Mapping[str, Any], from_step: int
) -> list[GeneralTracker]:
    """The trackers of those names, ready to log what comes after `from_step`."""
    make = {"tensorboard": _tensorboard, "wandb": _wandb}
    trackers = [make[tracker](run, name, from_step) for tracker in names]
    for tracker in trackers:
        tracker.start()
        if from_step == 0:
            tracker.store_init_configuration(flat(settings))
    return trackers


def _tensorboard(run: Path, name: str, from_step: int) -> GeneralTracker:
    if from_step == 0:
        shutil.rmtree(run / TENSORBOARD, ignore_errors=True)
    # From this step on TensorBoard hides what an earlier start has logged.
    return TensorBoardTracker(TENSORBOARD, run, purge_step=from_step + 1)


def _wandb(run: Path, name: str, from_step: int) -> GeneralTracker:
    """W&B knows the run by an id that is kept in its folder; it drops steps that it has seen."""
    file = run / WANDB_ID
    if from_step == 0 or not file.exists():
        with writing(file), whole_file(file) as partial:
            partial.write_text(secrets.token_hex(8), encoding="utf-8")
    identity = file.read_text(encoding="utf-8")
    return WandBTracker(WANDB_PROJECT, name=name, id=identity, resume="allow", dir=str(run))


class CsvTracker(GeneralTracker):
    """`metrics.csv`: the lines of metrics.jsonl as a table with the columns `COLUMNS`.

    It is written anew from the lines that are there, so that it never has more or less than they.
    """

    name = "csv"
    requires_logging_directory = True

    def __init__(self, run: Path, lines: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        self._path = run / METRICS_CSV
        with (
            writing(self._path),
            whole_file(self._path) as partial,
            partial.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(lines)

    @property
    def tracker(self) -> Path:
        """The file."""
        return self._path

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Append a row; all names of `values` have the same kind before the slash."""
        kind = next(iter(values)).partition("/")[0]
        row = {"kind": kind, "step": step} | {name.partition("/")[2]: value for name, value in values.items()}
        with writing(self._path), self._path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as trackers take them: `{"dev": {"every": 5}}` as `{"dev.every": 5}`, lists as text."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, str | int | float | bool)
            found[prefix + name] = value if plain else json.dumps(value)
    return found
