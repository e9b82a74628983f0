"""A whole file: its data, a base that cells share, its pretraining runs and the cells to fill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from vqa_bench.config.base import Strict, overlay, parse
from vqa_bench.config.cell import NAME, CellConfig, PretrainConfig
from vqa_bench.config.data import DataConfig
from vqa_bench.errors import UserError


class MatrixConfig(Strict):
    """A named experiment: data, the runs that cells may begin from, and the cells to fill."""

    name: str = Field(pattern=NAME)
    data: DataConfig
    pretrain: tuple[PretrainConfig, ...] = ()
    cells: list[CellConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique_names(self) -> MatrixConfig:
        names = [cell.name for cell in self.cells]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"expected every cell to have its own name, got {', '.join(repeated)} more than once")
        return self

    def cell(self, name: str) -> CellConfig:
        """The cell of that name; UserError with the names there are otherwise."""
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise UserError(f"expected one of the cells {', '.join(cell.name for cell in self.cells)}, got {name!r}")


def load_matrix(path: Path) -> MatrixConfig:
    """Read a matrix from YAML. Each cell is `base` (or the entry of `bases` it names) with its own keys laid over it.

    Raises UserError for a file that is missing, not YAML, or has unknown or wrong keys, all of them at once.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"expected a configuration file, got {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"expected YAML, got {path}: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("cells"), list):
        raise UserError(f"expected a mapping with a list of `cells`, got {path} without one")
    bases = raw.pop("bases", None) or {}
    if not isinstance(bases, dict):
        raise UserError(f"{path}: expected `bases` to be a mapping of names to cells, got {bases!r}")
    raw["cells"] = [_with_base(cell, bases, path) for cell in raw["cells"]]
    return parse(MatrixConfig, raw, str(path))


def _with_base(cell: Any, bases: dict[str, Any], path: Path) -> Any:
    if not isinstance(cell, dict) or "base" not in cell:
        return cell
    cell = dict(cell)
    base = cell.pop("base")
    if not isinstance(base, str) or base not in bases:
        raise UserError(f"{path}: expected a base among {', '.join(sorted(bases)) or '(none)'}, got {base!r}")
    return overlay(bases[base], cell)
