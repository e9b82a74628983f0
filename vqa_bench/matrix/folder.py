"""The run folder at its beginning: begun anew, taken up again, or refused. Knows nothing of training."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from vqa_bench.errors import UserError
from vqa_bench.matrix.cells import Key, Trainable
from vqa_bench.plugins import loaded
from vqa_bench.runs import CONFIG, PROVENANCE, RESULT, TRAINED, WEIGHTS, is_done, provenance, read_json, write_json

KEY = "key.json"
CHECKPOINTS = "checkpoints/step-*"
_FACTS = ("command", "commit", "dirty", "python", "packages", "plugins")  # of each start; the rest is the first's

Resume = Literal["auto", "never"]


@dataclass(frozen=True)
class Invocation:
    """One command, and all the processes that work for it.

    Attributes:
        resume: `auto` goes on with unfinished runs, `never` begins them anew (once: not what this command began).
        command: as it was typed, where a process that works for it has another one; None for this process's own.
        plugins: files that every process loads before it looks at a configuration.
        token: which command it is, among those that were ever given.
    """

    resume: Resume = "auto"
    command: tuple[str, ...] | None = None
    plugins: tuple[Path, ...] = ()
    token: str = field(default_factory=lambda: secrets.token_hex(8))


def is_filled(trainable: Trainable) -> bool:
    """Whether a run is finished, whole, and what it should be."""
    return is_done(trainable.run) and _has_key(trainable.run, trainable.key) and _missing(trainable.run) is None


def retitle(trainable: Trainable) -> None:
    """Give a finished run the title that it has now: titles change no result."""
    result = read_json(trainable.run / RESULT)
    if result.get("title") != trainable.config.title:
        write_json(trainable.run / RESULT, result | {"title": trainable.config.title})


def _has_key(run: Path, key: Key) -> bool:
    """Whether a run is of this key; one whose key cannot be read is not."""
    try:
        return bool(json.loads((run / KEY).read_text(encoding="utf-8")) == key)
    except (OSError, ValueError):
        return False


def _missing(run: Path) -> str | None:
    """A file that a finished run must have and has not: its result, and all that the result names with their hashes."""
    try:
        result = json.loads((run / RESULT).read_bytes())
    except (OSError, ValueError):
        return f"a {RESULT} that can be read"
    named = result.get("hashes", {}) if isinstance(result, dict) else {}
    return next((name for name in (WEIGHTS, CONFIG, *named) if not (run / name).is_file()), None)


def fault_of(run: Path, key: Key, resume: Resume) -> str | None:
    """Why the folder of a run cannot be used for what has this key; None if it can, or is not there."""
    if not run.exists() or (run.is_dir() and not any(run.iterdir())):
        return None
    if not (run / PROVENANCE).is_file():
        return f"expected a run or nothing at {run}, got something else; choose another --out"
    same = _has_key(run, key)
    if is_done(run):
        if same and (missing := _missing(run)) is not None:
            return f"expected a whole run at {run}, as it is marked DONE, got one without {missing}; delete the folder"
        if same and resume == "never":
            return f"expected no finished run at {run} for --resume never, got one; delete it first"
        what_to_do = "choose another --out, or delete that folder"
    elif resume == "never":
        return None
    else:
        what_to_do = "choose another --out, delete that folder, or begin it anew with --resume never"
    if same:
        return None
    return (
        f"expected the run in {run} to be of this configuration, data and initial weights, got one of others; "
        f"{what_to_do}"
    )


def begin(trainable: Trainable, invocation: Invocation) -> None:
    """Make the folder of a run, or take it up again, and write down that it was started.

    To be called by whoever holds the run's lock. Raises UserError where the folder holds something else.
    """
    run, key = trainable.run, trainable.key
    fault = fault_of(run, key, invocation.resume)
    if fault is not None:
        raise UserError(fault)
    for leftover in sorted(run.parent.glob(f".{run.name}.partial*")):
        shutil.rmtree(leftover)
    facts = provenance() | {"plugins": loaded()}
    if invocation.command is not None:
        facts["command"] = list(invocation.command)
    start = {name: facts[name] for name in _FACTS}
    start |= {"when": datetime.now(UTC).isoformat(timespec="seconds"), "invocation": invocation.token}
    known = _known(run) if (run / PROVENANCE).is_file() else None
    if known is not None and invocation.resume == "never" and not _began_here(known, invocation):
        _remove(run)
        known = None
    if known is None:
        partial = run.with_name(f".{run.name}.partial")
        partial.mkdir(parents=True)
        write_json(partial / KEY, key)
        write_json(partial / PROVENANCE, facts | {"starts": [start | {"from_step": 0}]})
        if run.exists():  # empty: else it would be somebody's run
            run.rmdir()
        os.replace(partial, run)
    else:
        known["starts"].append(start | {"from_step": steps_done(run)})
        write_json(run / PROVENANCE, known)


def _known(run: Path) -> dict[str, Any]:
    """The provenance of a run; one that is damaged begins again."""
    known = read_json(run / PROVENANCE)
    return {"starts": []} | known if isinstance(known, dict) else {"starts": []}


def steps_done(run: Path) -> int:
    """Optimiser steps that an unfinished run need not do again."""
    if (run / TRAINED).is_file():
        return int(read_json(run / TRAINED).get("steps", 0))
    steps = [folder.name.removeprefix("step-") for folder in run.glob(CHECKPOINTS)]
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def _began_here(known: dict[str, Any], invocation: Invocation) -> bool:
    """Whether a run was last started by this very command, in whichever of its processes."""
    starts = known.get("starts", [])
    return bool(starts) and starts[-1]["invocation"] == invocation.token


def _remove(run: Path) -> None:
    """Delete a run; killed meanwhile, nothing is left that looks like one."""
    hidden = run.with_name(f".{run.name}.partial-{secrets.token_hex(4)}")
    os.replace(run, hidden)
    shutil.rmtree(hidden)
