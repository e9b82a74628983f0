"""Partial cells, one laid over another: what a cell or run of a file is made of before it is checked.

A partial cell is a mapping of any of a cell's keys. Knows nothing of what the keys mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vqa_bench.config.base import overlay
from vqa_bench.errors import UserError


def build(layers: Iterable[Mapping[Any, Any]], bases: Mapping[str, Any]) -> dict[Any, Any]:
    """The layers over one another, the first the lowest; those that a layer names under `base` lie right below it.

    `base` is the name of an entry of `bases` or a list of them. A key with dots stands for a place inside:
    `train.steps`, `model.num_layers.0`; `model.stages.*.dropout` for one in every entry of a list.

    Raises UserError for a base that there is not, and a place that cannot be.
    """
    built: dict[Any, Any] = {}
    for layer in layers:
        own = {key: value for key, value in layer.items() if key != "base"}
        for part in (*_named(layer.get("base"), bases), own):
            for key, value in part.items():
                path = key.split(".") if isinstance(key, str) else [key]
                built = _place(built, path, value, str(key))
    return built


def _named(names: Any, bases: Mapping[str, Any]) -> list[Mapping[Any, Any]]:
    """The bases of that name or those names."""
    if names is None:
        return []
    found = []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name not in bases:
            raise UserError(f"base: expected one of {', '.join(map(str, bases)) or '(no bases)'}, got {name!r}")
        if not isinstance(bases[name], dict):
            raise UserError(f"bases.{name}: expected a mapping of keys to values, got {bases[name]!r}")
        found.append(bases[name])
    return found


def _place(below: Any, path: list[Any], value: Any, where: str) -> Any:
    """`below` with a value laid over what is at the end of a path."""
    if not path:
        return overlay(below, value)
    key, *rest = path
    if isinstance(below, list):
        if key == "*":
            return [_place(entry, rest, value, where) for entry in below]
        if not (isinstance(key, str) and key.isdecimal() and int(key) < len(below)):
            raise UserError(f"{where}: expected * or one of {len(below)} entries from 0, got {key!r}")
        return [_place(entry, rest, value, where) if at == int(key) else entry for at, entry in enumerate(below)]
    below = {} if below is None else below
    if not isinstance(below, dict) or key == "*":
        raise UserError(f"{where}: expected a {'list' if key == '*' else 'mapping'} at {key!r}, got {below!r}")
    return below | {key: _place(below.get(key), rest, value, where)}
