"""The run folder: what one trained cell leaves on disk, and whether it is finished. `DONE` is written last of all.

Knows files, not training. Torch is imported only where weights are read or written.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqa_bench import launch
from vqa_bench.config import CellConfig, parse
from vqa_bench.data.folders import whole_file
from vqa_bench.errors import UserError

if TYPE_CHECKING:
    from vqa_bench.models import VQAModel

CONFIG, WEIGHTS, RESULT, DONE = "config.json", "model.safetensors", "result.json", "DONE"
PROVENANCE, METRICS, TRAINED = "provenance.json", "metrics.jsonl", "trained.json"
PREDICTIONS, SHUFFLED = "predictions.jsonl", "predictions-shuffled.jsonl"
PACKAGES = ("torch", "accelerate", "datasets", "numpy", "pillow", "safetensors", "vqa-bench")


def write_json(path: Path, data: Any) -> None:
    """Indented, as people read it; the file is whole or not there."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file of a run that cannot be written is a mistake of the place, not of ours: one line."""
    with launch.alone():
        try:
            yield
        except OSError as error:
            raise UserError(
                f"expected to write {path}, got: {error.strerror or error}; make room and run the same command again"
            ) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file of a run; UserError where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"expected a run with {path.name}, got {path.parent} without one: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"expected JSON in {path}, got: {error}; train or evaluate the cell again") from error


def is_done(run: Path) -> bool:
    """Whether a run was finished."""
    return (run / DONE).is_file()


def new_run(run: Path) -> None:
    """An empty folder for a run; what an unfinished run left there is removed.

    Raises UserError for a folder that holds something else.
    """
    if run.exists():
        if not run.is_dir() or (any(run.iterdir()) and not (run / PROVENANCE).is_file()):
            raise UserError(f"expected a run or nothing at {run}, got something else; choose another --out")
        shutil.rmtree(run)
    run.mkdir(parents=True)


def provenance() -> dict[str, Any]:
    """The command, the code's commit, and the versions of what it ran on."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: _installed(name) for name in PACKAGES},
    }


def _installed(package: str) -> str | None:
    """A package's version; None where it can be imported without being installed, as from a checkout."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says of the code, None where the code is not in a checkout (or git is not there)."""
    folder = Path(__file__).resolve().parent
    try:
        found = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def save_model(run: Path, model: VQAModel) -> None:
    """Weights as safetensors, and the configuration that builds the model they belong to."""
    from safetensors.torch import save_file

    with whole_file(run / WEIGHTS) as partial:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)
    write_json(run / CONFIG, {"cell": model.cell.model_dump(mode="json"), "built": model.built})


def load_cell(run: Path) -> tuple[CellConfig, dict[str, Any]]:
    """The configuration of a run, and what its training data decided."""
    saved = read_json(run / CONFIG)
    if not isinstance(saved, dict) or set(saved) != {"cell", "built"}:
        raise UserError(f"expected `cell` and `built` in {run / CONFIG}, got something else; train the cell again")
    return parse(CellConfig, saved["cell"], str(run / CONFIG)), saved["built"]


def load_model(run: Path) -> VQAModel:
    """The trained model of a run, in evaluation mode.

    Raises UserError for a folder that is no run, and where the weights are not those of the configuration, naming
    every tensor that is missing, unexpected or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from vqa_bench.models import build

    cell, built = load_cell(run)
    model = build(cell, built)
    path = run / WEIGHTS
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"expected weights in {path}, got: {error}; train the cell again") from error
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    faults = [f"{name} is missing" for name in sorted(expected.keys() - got.keys())]
    faults += [f"{name} is unexpected" for name in sorted(got.keys() - expected.keys())]
    faults += [
        f"{name}: expected {expected[name]}, got {got[name]}"
        for name in sorted(expected.keys() & got.keys())
        if expected[name] != got[name]
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if len(faults) > 5 else "")
        raise UserError(f"{path} does not fit {run / CONFIG}: {shown}; use the configuration it was trained with")
    model.load_state_dict(weights)
    return model.eval()
