"""Whether finished runs still say what follows from them: hashes, numbers, shards, tables. Changes nothing.

checks.py   what is found, and how values are compared
shards.py   shards, and predictions held against them
damage.py   answers to damaged images
run.py      a cell's run
tables.py   pretraining runs, and the tables of a results folder
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vqa_bench.config import PRETRAIN_FOLDER
from vqa_bench.errors import UserError
from vqa_bench.matrix.folder import KEY
from vqa_bench.progress import Progress, silent
from vqa_bench.runs import DONE, PROVENANCE, RESULT, is_done, read_json
from vqa_bench.verify.checks import Check, Checker
from vqa_bench.verify.run import run_checks
from vqa_bench.verify.shards import Shards
from vqa_bench.verify.tables import pretraining_checks, table_checks

__all__ = ["Check", "verify"]

_SIGNS_OF_A_RUN = (PROVENANCE, KEY, RESULT, DONE)


def verify(folder: Path, *, shards: Sequence[Path] = (), report: Progress = silent) -> list[Check]:
    """Check a run, or every run of a results folder and its tables, and go on after what does not hold.

    shards: where shards lie that are not where they were, each a shard or a folder of shards.

    Raises UserError for a folder that is no run and holds none, and for one of `shards` that holds no shard.
    """
    known = Shards(shards)
    if _is_run(folder):
        checks_of_it = pretraining_checks if _is_pretraining(folder) else partial(run_checks, shards=known)
        return list(checks_of_it(folder, folder.resolve().name))
    runs, pretraining = _runs_in(folder), _runs_in(folder / PRETRAIN_FOLDER)
    if not runs and not pretraining:
        raise UserError(f"expected a run, or a folder of runs, got {folder}, which is neither; name another")
    checks: list[Check] = []
    for number, run in enumerate((*runs, *pretraining)):
        report(number, len(runs) + len(pretraining), run.name)
        name = run.relative_to(folder).as_posix()
        if not is_done(run):
            checks.append(Checker(name).unchecked(DONE, "everything", "it is not finished"))
        elif run in runs:
            checks += run_checks(run, name, known, cell=run.name)
        else:
            checks += pretraining_checks(run, name)
    return [*checks, *table_checks(folder)]


def _is_run(folder: Path) -> bool:
    return any((folder / sign).is_file() for sign in _SIGNS_OF_A_RUN)


def _is_pretraining(run: Path) -> bool:
    """Whether a finished run, given by itself, says that it is one on text; a result that says nothing is a cell's."""
    try:
        result = read_json(run / RESULT) if is_done(run) else None
    except UserError:
        return False  # the checks of a cell's run say what is wrong with it
    return isinstance(result, dict) and result.get("kind") == "pretrain"


def _runs_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and _is_run(path)]
