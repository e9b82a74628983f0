"""A whole file: its data, the partial cells that others are laid over, its pretraining runs and the cells to fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator

from vqa_bench.config.across import faults_of_content, faults_of_initial_weights, faults_of_names
from vqa_bench.config.base import Strict, faults_of
from vqa_bench.config.cell import NAME, CellConfig, PretrainConfig
from vqa_bench.config.data import DataConfig
from vqa_bench.config.layers import build
from vqa_bench.config.product import expand
from vqa_bench.config.read import read_yaml
from vqa_bench.errors import UserError

Model = TypeVar("Model", bound=Strict)


class _Header(Strict):
    """What a file says beside its lists."""

    name: str = Field(pattern=NAME)
    data: DataConfig | None = None


class MatrixConfig(_Header):
    """A named experiment: data, the runs that cells may begin from, and the cells to fill.

    data: where the cells' questions and pictures come from; None where there are only pretraining runs.
    """

    pretrain: tuple[PretrainConfig, ...] = ()
    cells: list[CellConfig] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check(self) -> MatrixConfig:
        faults = _lacking(self.data, self.cells, self.pretrain) + faults_across(self.cells, self.pretrain)
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def cell(self, name: str) -> CellConfig:
        """The cell of that name; UserError with the names there are otherwise."""
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise UserError(f"expected one of the cells {', '.join(cell.name for cell in self.cells)}, got {name!r}")


def load_matrix(path: Path) -> MatrixConfig:
    """Read an experiment from YAML.

    `bases` has partial cells by name. An entry of `cells` or `pretrain` may name one or several of them under `base`
    and is laid over them (`layers.build`); both lists draw on the same ones, so that the model of a run and of the
    cells that begin from it is written once. An entry of `matrix` gives many cells (`product.ProductConfig`).

    Raises UserError for a file that is missing, not YAML, or wrong in any way: all of its faults at once.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping with name, data and cells, got {type(raw).__name__}")
    faults: list[str] = []
    bases = _taken(raw, "bases", dict, faults)
    given = {key: _taken(raw, key, list, faults) for key in ("pretrain", "cells", "matrix")}
    header = _parsed(_Header, [raw], "", faults)
    runs = _parsed_with_bases(PretrainConfig, given["pretrain"], bases, "pretrain", faults)
    cells = _parsed_with_bases(CellConfig, given["cells"], bases, "cells", faults)
    for at, entry in enumerate(given["matrix"]):
        expanded, wrong = expand(entry, bases)
        faults += [f"matrix.{at}.{fault}" for fault in wrong]
        cells += _parsed(CellConfig, expanded, f"matrix.{at}.", faults)
    faults += _lacking(raw.get("data"), [*given["cells"], *given["matrix"]], given["pretrain"])
    # With a run missing that could not be read, to say that no run has its name would mislead.
    faults += faults_across(cells, runs if len(runs) == len(given["pretrain"]) else None)
    if faults:
        raise UserError(f"{path}: {'; '.join(faults)}")
    return MatrixConfig(name=header[0].name, data=header[0].data, pretrain=tuple(runs), cells=cells)


def faults_across(cells: Sequence[CellConfig], pretrain: Sequence[PretrainConfig] | None) -> list[str]:
    """What is wrong among cells and runs that are right each for itself; None: the runs are not known."""
    runs = pretrain or ()
    fitting = [] if pretrain is None else faults_of_initial_weights(cells, pretrain)
    return [*faults_of_names(cells, runs), *faults_of_content(cells, runs), *fitting]


def _lacking(data: Any, cells: Sequence[Any], pretrain: Sequence[Any]) -> list[str]:
    """What a file must have and has not."""
    if not cells and not pretrain:
        return ["expected cells (under `cells` or `matrix`) or runs under `pretrain`, got none"]
    if cells and data is None:
        return ["data: expected where the questions of the cells come from, got nothing; add `synth` or `folder`"]
    return []


def _taken(raw: dict[Any, Any], key: str, kind: type[Any], faults: list[str]) -> Any:
    """What a file has under a key, taken out of it; an empty one where it has nothing or something else."""
    value = raw.pop(key, None)
    if value is not None and not isinstance(value, kind):
        faults.append(f"{key}: expected a {'list' if kind is list else 'mapping'}, got {value!r}")
        return kind()
    return kind() if value is None else value


def _parsed_with_bases(
    kind: type[Model], entries: Sequence[Any], bases: Mapping[str, Any], place: str, faults: list[str]
) -> list[Model]:
    """Entries of a list, each laid over its bases; those that are right."""
    right: list[Model] = []
    for at, entry in enumerate(entries):
        where = f"{place}.{at}"
        if not isinstance(entry, dict):
            faults.append(f"{where}: expected a mapping, got {entry!r}")
            continue
        try:
            right += _parsed(kind, [build([entry], bases)], f"{where}.", faults)
        except UserError as error:
            faults.append(f"{where}.{error}")
    return right


def _parsed(kind: type[Model], entries: Sequence[Any], place: str, faults: list[str]) -> list[Model]:
    """Those of the entries that are right; a fault that many of them share is said once."""
    right: list[Model] = []
    wrong: dict[str, list[str]] = {}
    for entry in entries:
        try:
            right.append(kind.model_validate(entry))
        except ValidationError as error:
            for fault in faults_of(error):
                wrong.setdefault(fault, []).append(str(entry.get("name")))
    for fault, names in wrong.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        faults.append(f"{place}{fault}" + (f" (in {names[0]}{others})" if len(entries) > 1 else ""))
    return right
