"""What all typed configs have in common: strictness, errors that name their place, laying one mapping over another."""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from vqa_bench.errors import UserError

Model = TypeVar("Model", bound=BaseModel)

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Strict(BaseModel):
    """Unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _one_line(text: str) -> str:
    """What stands in a row of a table."""
    if not text.strip() or len(f"{text}.".splitlines()) != 1:
        raise ValueError(f"expected one line of text, got {text!r}")
    return text


Title = Annotated[str, AfterValidator(_one_line)]
"""What a cell or a run is called for people."""


def _seconds(value: Any) -> Any:
    """`90`, `30s`, `15m`, `12h`, `2d` and `1h30m` in seconds."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", value):
        raise ValueError("expected a duration such as 30s, 15m, 1h30m or 2d")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([smhd])", value))


Duration = Annotated[float, BeforeValidator(_seconds)]
"""Seconds; in a file also as text with units."""


def overlay(below: Any, above: Any) -> Any:
    """Mappings are merged key by key, everything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: overlay(below[key], value) if key in below else value for key, value in above.items()}
    return above


def parse(model: type[Model], data: Any, where: str) -> Model:
    """`data` as a typed config; UserError naming every fault and its place."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(faults_of(error))}") from error


def faults_of(error: ValidationError) -> list[str]:
    """Every fault with its place, a line each."""
    return [f"{'.'.join(map(str, fault['loc'])) or 'top level'}: {_fault(fault)}" for fault in error.errors()]


def _fault(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown key"
    return str(fault["msg"]).removeprefix("Value error, ") + (
        f", got {fault['input']!r}" if fault["type"] != "value_error" and fault["type"] != "missing" else ""
    )
