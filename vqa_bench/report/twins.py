"""A cell that began from pretrained weights, and its scratch twin: the same model, trained from random weights.

Knows what runs say of themselves, neither their answers nor how a comparison is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vqa_bench.config import LoopConfig
from vqa_bench.report.collect import Run
from vqa_bench.report.schema import CellResult

FREE_IN_A_MODEL = frozenset({"checkpoint_chunks", "byte_init"})  # how it is trained, and how a scratch model begins
FREE_IN_A_STAGE = frozenset({"dropout", "kernel"})
RETUNED = frozenset({"learning_rate", "steps"})  # what fine-tuning commonly has its own of


@dataclass(frozen=True)
class Twin:
    """The scratch twin of a pretrained cell, None unless there is exactly one; `remark`: what a fair reader must know.

    The remark is a sentence, empty where there is nothing to say.
    """

    run: Run | None
    remark: str = ""


def find_twin(pretrained: CellResult, runs: Sequence[Run]) -> Twin:
    """Among finished runs on the same test set, the scratch cell with equal encoding, sequence, seed and model.

    Dropout, kernels, checkpoint chunks and how a scratch model's byte vectors begin may differ. Of several it is the
    one that was trained with the same settings, learning rate and steps apart; if that leaves several, with the very
    same settings.
    """
    identity = _identity(pretrained)
    found = [run for run in runs if run.result.init == "scratch" and _identity(run.result) == identity]
    if identity is None or not found:
        return Twin(None, "No finished scratch cell has the same encoding, sequence, seed and model to compare with.")
    differences = [_differences(pretrained, run.result) for run in found]
    alike = [run for run, names in zip(found, differences, strict=True) if names.keys() <= RETUNED]
    equal = [run for run, names in zip(found, differences, strict=True) if not names]
    for candidates in (found, alike, equal):
        if len(candidates) == 1:
            return Twin(candidates[0], _difference_remark(pretrained, candidates[0].result))
    names = ", ".join(f'"{run.result.title}"' for run in found)
    return Twin(None, f"Compared with no scratch cell, as several are its twin: {names}.")


def _identity(result: CellResult) -> dict[str, Any] | None:
    """What twins have in common; None for a run of a version that did not write it down."""
    if result.sequence is None or result.model.config is None:
        return None
    model = {name: value for name, value in result.model.config.items() if name not in FREE_IN_A_MODEL}
    stages = [_stage_identity(stage) for stage in model.get("stages", [])]
    return {
        "shard": None if result.shard is None else result.shard.manifest,
        "encoding": result.encoding,
        "sequence": result.sequence,
        "seed": result.seed,
        "model": model | {"stages": stages},
    }


def _stage_identity(stage: dict[str, Any]) -> dict[str, Any]:
    if stage.get("kind") == "custom":  # a plugin's own words: its `kernel` may be the width of a convolution
        return stage
    return {name: value for name, value in stage.items() if name not in FREE_IN_A_STAGE}


def _differences(pretrained: CellResult, scratch: CellResult) -> dict[str, tuple[Any, Any]]:
    """Settings of the training that differ, by dotted name: of the pretrained cell, of the scratch cell."""
    here, there = _settings(pretrained), _settings(scratch)
    return {name: (here.get(name), there.get(name)) for name in here | there if here.get(name) != there.get(name)}


def _settings(result: CellResult) -> dict[str, Any]:
    """Everything else that the trained weights depend on."""
    config = result.model.config or {}
    settings: dict[str, Any] = {}
    for name, value in (result.train or {}).items():
        if name not in LoopConfig.NO_MATTER:
            nested = isinstance(value, dict)
            settings |= {f"{name}.{key}": entry for key, entry in value.items()} if nested else {name: value}
    dropout = [stage.get("dropout") for stage in config.get("stages", [])]
    return settings | {"dropout": dropout, "byte_init": config.get("byte_init")}


def _difference_remark(pretrained: CellResult, scratch: CellResult) -> str:
    differences = _differences(pretrained, scratch)
    if not differences:
        return ""
    listed = "; ".join(f"{name} {_shown(here)}, not {_shown(there)}" for name, (here, there) in differences.items())
    return f'Trained otherwise than its scratch twin "{scratch.title}": {listed}.'


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(_shown(entry) for entry in value)
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
