"""The columns of the second table: what is known of a cell's answers beside how many are right.

Knows the frame's columns, their words and digits; not how a table is drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

MISSING = "-"


@dataclass(frozen=True)
class Score:
    """A column: its words (a line break where a narrow head has one), how a number is written, what it means."""

    column: str
    heading: str
    write: Callable[[float], str]
    note: str = ""
    narrow: bool = True


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _digits(value: float) -> str:
    return f"{value:.3f}"


def _power(value: float) -> str:
    return f"{value:.1e}".replace("e+", "e")


_GREEDY = (
    "Likelihood: the candidate with the highest log-probability is right, as in the table above, in percent. Greedy: "
    "the likeliest byte each time, among those that go on with a candidate (constrained) or among all (free)."
)
_ECE = "ECE: how far confidence and accuracy are apart, in the mean over bins of confidence."
_BRIER = "Brier: the candidates' probabilities against 1 for the right one and 0 for the others, squared and summed."
_FLOPS = (
    "Training FLOPs: of a cell's own steps; pretraining before them and the extraction of features are not in them."
)
_BITS = (
    "Bits per byte of a part: the mean of -log2 p over its bytes, given all that comes before; a model whose loss was "
    "on answers alone never learnt to predict the other parts."
)

SCORES = (
    Score("overall_accuracy", "likelihood", _percent),
    Score("constrained_greedy", "constrained\ngreedy", _percent, _GREEDY),
    Score("free_greedy", "free\ngreedy", _percent, _GREEDY),
    Score("trie_mass", "mass", _digits, "Mass: the mean probability of all candidates together."),
    Score("ece", "ECE", _digits, _ECE),
    Score("brier", "Brier", _digits, _BRIER),
    Score("bits_image", "bits/byte\nimage", _digits, _BITS),
    Score("bits_question", "bits/byte\nquestion", _digits, _BITS),
    Score("bits_answer", "bits/byte\nanswer", _digits, _BITS),
    Score("image_bytes", "bytes\na picture", lambda value: f"{value:,.0f}", narrow=False),
    Score("train_flops", "training\nFLOPs", _power, _FLOPS, narrow=False),
)


def scored(test_set: pd.DataFrame) -> pd.DataFrame:
    """The rows of a test set that have scores: cells, and means over seeds."""
    return test_set[test_set["row"].isin(["cell", "mean"])]


def scores_of(test_set: pd.DataFrame) -> list[Score]:
    """The columns in which any cell of a test set has a number; none where there is nothing but accuracies."""
    rows = scored(test_set)
    shown = [score for score in SCORES if rows[score.column].notna().any()]
    return [] if [score.column for score in shown] == ["overall_accuracy"] else shown


def entry(row: pd.Series, score: Score) -> str:
    """A number as its column writes it; a dash where there is none."""
    value = row[score.column]
    return MISSING if pd.isna(value) else score.write(float(value))


def score_notes(scores: list[Score]) -> list[str]:
    """What a reader has to know to read those columns."""
    return list(dict.fromkeys(score.note for score in scores if score.note))
