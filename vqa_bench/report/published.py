"""The tables of published numbers in `results/published`: read and checked. Knows files, no runs of ours.

Each row names its `source`, and how far it can be trusted:

yes        read in the source itself, or in a paper's table that reprints it
secondary  known from somebody else's account of the source
no         from memory
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vqa_bench.data.vocab import GROUPS, QUESTION_TYPES
from vqa_bench.errors import UserError

FOLDER = Path(__file__).resolve().parents[2] / "results" / "published"
VERIFIED = ("yes", "secondary", "no")


@dataclass(frozen=True)
class Kind:
    """A table's columns in their order, before `source` and `verified`. names: what tells its rows apart.

    numbers: those with an upper bound; each is above 0, and some may be missing. counts: whole numbers, never missing.
    """

    names: tuple[str, ...]
    numbers: dict[str, float]
    counts: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()


_PERCENT_OF_GROUPS = dict.fromkeys(("overall", *GROUPS), 100.0)

KINDS: dict[str, Kind] = {
    "clevr": Kind(("method",), _PERCENT_OF_GROUPS),
    "clevr-types": Kind(("method",), dict.fromkeys(("overall", *QUESTION_TYPES), 100.0)),
    "clevr-humans": Kind(("method",), dict.fromkeys(("trained_on_clevr", "fine_tuned"), 100.0)),
    "cogent": Kind(("method",), dict.fromkeys(("test_a", "test_b"), 100.0)),
    "mblm": Kind(("method",), _PERCENT_OF_GROUPS),
    "mblm-pg19": Kind(("model",), {"bits_per_byte": 8.0}, ("context",)),
    "mblm-memory": Kind(("model",), {"gigabytes": 80.0}, ("context",)),
    "mblm-shapes": Kind((), {}, ("context", "stages"), ("patches", "checkpoint_chunks")),
}
"""clevr: accuracy in percent on CLEVR's test set, all questions and the five groups; clevr-types: the 13 types.
clevr-humans: on human questions, trained on CLEVR alone and fine-tuned; cogent: trained on condition A.
mblm: accuracies of the byte-level paper on CLEVR; mblm-pg19: its bits per byte of PG19's test split; mblm-memory:
gigabytes of training on an 80 GB GPU with batch 2, missing where that was not enough; mblm-shapes: `patches` are
`seq_lens`, `checkpoint_chunks` are `train_checkpoint_chunks`. `context` counts bytes."""


def published(kind: str, folder: Path = FOLDER) -> pd.DataFrame:
    """One of `KINDS` as a frame: texts, `Int64` counts and `Float64` numbers in the table's own unit.

    Raises UserError for a kind there is none of, an installation without the tables, and a table with other columns, a
    row twice or without a source, a number out of its range, or a word under `verified` that means nothing.
    """
    if kind not in KINDS:
        raise UserError(f"expected a table of published numbers among {', '.join(KINDS)}, got {kind!r}")
    path = folder / f"{kind}.csv"
    if not path.is_file():
        raise UserError(f"expected {path}, got no such file; the published numbers come with a checkout of the project")
    columns = KINDS[kind]
    texts = (*columns.names, *columns.texts, "source", "verified")
    wanted = [*columns.names, *columns.counts, *columns.texts, *columns.numbers, "source", "verified"]
    table = pd.read_csv(path, dtype=dict.fromkeys(texts, "string"), encoding="utf-8")
    if sorted(table.columns) != sorted(wanted):
        raise UserError(f"{path}: expected the columns {', '.join(wanted)}, got {', '.join(table.columns)}")
    try:
        table = table.astype(dict.fromkeys(columns.counts, "Int64") | dict.fromkeys(columns.numbers, "Float64"))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: expected numbers under {', '.join(columns.numbers)}: {error}") from None
    _check(table, columns, path)
    return table[wanted]


def _check(table: pd.DataFrame, columns: Kind, path: Path) -> None:
    """UserError for the first row that breaks a rule of `published`."""
    unknown = table[~table["verified"].isin(VERIFIED)]
    if len(unknown) > 0:
        got = unknown["verified"].iloc[0]
        raise UserError(f"{_place(unknown, path)}: expected verified to be one of {', '.join(VERIFIED)}, got {got!r}")
    unnamed = table[table[["source", *columns.names, *columns.counts]].isna().any(axis=1)]
    if len(unnamed) > 0:
        raise UserError(f"{_place(unnamed, path)}: expected a source and a name, got none; say where the row is from")
    twice = table[table.duplicated([*columns.names, *columns.counts])]
    if len(twice) > 0:
        raise UserError(f"{_place(twice, path)}: expected every row once, got it again; give one of them another name")
    for name, most in columns.numbers.items():
        outside = table[table[name].notna() & ~table[name].between(0, most, inclusive="right")]
        if len(outside) > 0:
            got = outside[name].iloc[0]
            raise UserError(f"{_place(outside, path)}: expected {name} above 0 and at most {most:g}, got {got:g}")


def _place(rows: pd.DataFrame, path: Path) -> str:
    """The first of some rows as an editor numbers it: the head is line 1."""
    return f"{path}, line {rows.index[0] + 2}"
