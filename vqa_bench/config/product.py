"""Axes × overrides: an entry under `matrix` becomes a partial cell for every combination of its axes' values.

Knows which keys of a cell are its name and title, nothing of the others. A *combination* is an axis's name → the name
of one of its values.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import Field, ValidationError

from vqa_bench.config.base import Strict, faults_of
from vqa_bench.config.cell import NAME
from vqa_bench.config.layers import build
from vqa_bench.errors import UserError

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

Combination = dict[str, str]
Condition = dict[str, frozenset[str]]
"""An axis's name → names of its values; holds for a combination that has one of them on every such axis."""


class OverrideConfig(Strict):
    """A partial cell for the combinations of which `when` holds; without one for all."""

    when: dict[str, Any] = Field(default_factory=dict)
    set: dict[str, Any]


class ProductConfig(Strict):
    """An entry under `matrix`.

    A cell is laid together in this order: base, set, name and title, the values in the order of the axes, overrides in
    their order. All are partial cells, with the dotted keys and the `base` of `layers.build`.

    axes: a list of scalars is for the key that the axis is named after (`seed`, `train.learning_rate`); a mapping gives
    names to partial cells, whose `title` is only the value's own. name, title: with {AXIS} for the value's name or
    title; title None is the name. skip: combinations to leave out; only: those to keep.
    """

    base: Any = None
    name: str
    title: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, Any] = Field(min_length=1)
    skip: tuple[dict[str, Any], ...] = ()
    only: tuple[dict[str, Any], ...] = ()
    overrides: tuple[OverrideConfig, ...] = ()


@dataclass(frozen=True)
class _Value:
    """A value of an axis: what stands for it in a title, and what it lays over the cell."""

    title: str
    cell: Mapping[Any, Any]


Axes = dict[str, dict[str, _Value]]
"""An axis's name → the names of its values → those values, in the order written."""


def expand(entry: Any, bases: Mapping[str, Any]) -> tuple[list[dict[Any, Any]], list[str]]:
    """The cells of an entry as raw mappings, and what is wrong with it, each with its place; with faults no cells."""
    try:
        product = ProductConfig.model_validate(entry)
    except ValidationError as error:
        return [], faults_of(error)
    faults: list[str] = []
    axes = {name: _axis(name, raw, faults) for name, raw in product.axes.items()}
    skip = [_condition(raw, axes, f"skip.{at}", faults) for at, raw in enumerate(product.skip)]
    only = [_condition(raw, axes, f"only.{at}", faults) for at, raw in enumerate(product.only)]
    overrides = [
        (_condition(override.when, axes, f"overrides.{at}.when", faults), override.set)
        for at, override in enumerate(product.overrides)
    ]
    _check_places(product, axes, faults)
    if faults:
        return [], faults
    every = [dict(zip(axes, names, strict=True)) for names in itertools.product(*axes.values())]
    kept = [one for one in every if not _any_holds(skip, one) and (not only or _any_holds(only, one))]
    if not kept:
        return [], ["skip and only: expected them to leave a combination of the axes, got none left"]
    cells = []
    for combination in kept:
        layers = [{"base": product.base}, product.set, _name_and_title(product, axes, combination)]
        layers += [axes[axis][name].cell for axis, name in combination.items()]
        layers += [cell for condition, cell in overrides if _holds(condition, combination)]
        try:
            cells.append(build(layers, bases))
        except UserError as error:
            faults.append(str(error))
    faults += _same_names(product.name, kept)
    return ([], list(dict.fromkeys(faults))) if faults else (cells, [])


def _text(scalar: Any) -> str:
    """A scalar as a reader writes it: 1e-3 is 0.001, true is true."""
    if isinstance(scalar, bool) or scalar is None:
        return str(scalar).lower()
    return format(Decimal(repr(scalar)), "f") if isinstance(scalar, float) else str(scalar)


def _name(scalar: Any) -> str:
    """A scalar as part of a file's name: what a name cannot have becomes a hyphen."""
    return re.sub(r"[^a-z0-9._-]+", "-", _text(scalar).lower()).strip("-")


def _axis(axis: str, raw: Any, faults: list[str]) -> dict[str, _Value]:
    """An axis's values by their names."""
    where = f"axes.{axis}"
    if not isinstance(raw, list | dict) or not raw:
        faults.append(f"{where}: expected a list of scalars, or a mapping of names to partial cells, got {raw!r}")
        return {}
    if isinstance(raw, dict):
        return {str(name): _named_value(f"{where}.{name}", str(name), cell, faults) for name, cell in raw.items()}
    values: dict[str, _Value] = {}
    for scalar in raw:
        if not isinstance(scalar, str | int | float | None):
            faults.append(f"{where}: expected scalars in a list, got {scalar!r}; give names to partial cells instead")
        elif _name(scalar) in values:
            faults.append(f"{where}: expected every value once, got {_name(scalar)} again")
        else:
            values[_name(scalar)] = _Value(_text(scalar), {axis: scalar})
    return values


def _named_value(where: str, name: str, raw: Any, faults: list[str]) -> _Value:
    if re.fullmatch(NAME, name) is None:
        faults.append(f"{where}: expected a name of small letters, digits, '.', '_' and '-', got {name!r}")
    if not isinstance(raw, dict | None):
        faults.append(f"{where}: expected a partial cell, which is a mapping, got {raw!r}")
        return _Value(name, {})
    cell = {} if raw is None else raw
    return _Value(_text(cell.get("title", name)), {key: value for key, value in cell.items() if key != "title"})


def _condition(raw: Mapping[str, Any], axes: Axes, where: str, faults: list[str]) -> Condition:
    condition: Condition = {}
    for axis, wanted in raw.items():
        if axis not in axes:
            faults.append(f"{where}: expected one of the axes {', '.join(axes)}, got {axis!r}")
            continue
        names = [_name(value) for value in (wanted if isinstance(wanted, list) else [wanted])]
        unknown = [name for name in names if name not in axes[axis]]
        if axes[axis] and (unknown or not names):
            got = ", ".join(unknown) or "none"
            faults.append(f"{where}.{axis}: expected values among {', '.join(axes[axis])}, got {got}")
        condition[axis] = frozenset(names)
    return condition


def _check_places(product: ProductConfig, axes: Axes, faults: list[str]) -> None:
    """Templates name axes, and what is skipped or kept is not everything."""
    for key, template in (("name", product.name), ("title", product.title or "")):
        for name in dict.fromkeys(_PLACEHOLDER.findall(template)):
            if name not in axes:
                faults.append(f"{key}: expected an axis in the braces, {' or '.join(axes)}, got {name!r}")
    for key, conditions in (("skip", product.skip), ("only", product.only)):
        for at, condition in enumerate(conditions):
            if not condition:
                faults.append(f"{key}.{at}: expected an axis with a value or a list of values, got nothing")


def _name_and_title(product: ProductConfig, axes: Axes, combination: Combination) -> Mapping[Any, Any]:
    name = _fill(product.name, combination)
    titles = {axis: axes[axis][value].title for axis, value in combination.items()}
    return {"name": name, "title": name if product.title is None else _fill(product.title, titles)}


def _fill(template: str, texts: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: texts[found[1]], template)


def _holds(condition: Condition, combination: Combination) -> bool:
    return all(combination[axis] in names for axis, names in condition.items())


def _any_holds(conditions: list[Condition], combination: Combination) -> bool:
    return any(_holds(condition, combination) for condition in conditions)


def _same_names(template: str, combinations: list[Combination]) -> list[str]:
    """A fault if the template gives one name to several combinations, with the axes that would tell them apart."""
    named: dict[str, list[Combination]] = {}
    for combination in combinations:
        named.setdefault(_fill(template, combination), []).append(combination)
    lacking: dict[str, None] = {}
    for name, group in named.items():
        differing = [axis for axis in group[0] if len({combination[axis] for combination in group}) > 1]
        missing = [axis for axis in differing if axis not in _PLACEHOLDER.findall(template)]
        if differing and not missing:
            return [
                f"name: expected a name for every cell, got {name!r} for several; separate the parts of {template!r}"
            ]
        lacking |= dict.fromkeys(missing)
    if not lacking:
        return []
    wanted = ", ".join(f"{{{axis}}}" for axis in lacking)
    return [f"name: expected a template that tells the cells apart, got {template!r}; add {wanted}"]
