"""Two workers with one model each, asked in turn. Knows who answers and how alike they must be, not what is asked."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Samples, alternate, say
from benchmarks.peer.client import Side
from benchmarks.peer.sizes import Sizes

TOLERANCE = 1e-4  # between two float32 implementations of one arithmetic, in nats or logits
SEED = 0
Question = tuple[str, dict[str, Any]]  # a worker's command and its arguments
Answer = dict[str, Any]


class DisagreementError(Exception):
    """The two sides were to give the same numbers and did not: their times are not comparable."""


@dataclass(frozen=True)
class Turns:
    """What both sides answered, round by round."""

    ours: list[Answer]
    reference: list[Answer]


@dataclass(frozen=True, kw_only=True)
class Match:
    """One family of models on both sides. `exact`: both have the same weights, so their numbers must agree."""

    family: str
    ours: Side
    reference: Side
    sizes: Sizes
    repeats: int
    reference_bytes: int
    exact: bool
    notes: tuple[str, ...]
    parameters: dict[str, int]

    def turns(self, title: str, ours: Question, reference: Question) -> Turns:
        """Ask both sides in turn; afterwards both hand their free memory back."""

        def ask_ours() -> Answer:
            answer = self._ask(self.ours, ours)
            if not self.exact:  # the reference's S takes 20 GiB for a training step: leave it what is free
                self.ours.ask("trim")
            return answer

        answers = alternate(
            {"ours": ask_ours, "reference": lambda: self._ask(self.reference, reference)},
            self.repeats,
        )
        self.ours.ask("trim")
        self.reference.ask("trim")
        turns = Turns(answers["ours"], answers["reference"])
        say(f"{self.family}, {title}: ours {seconds(turns.ours)}, reference {seconds(turns.reference)}")
        return turns

    @staticmethod
    def _ask(side: Side, question: Question) -> Answer:
        command, arguments = question
        return side.ask(command, **arguments)

    def same(self, what: str, ours: Sequence[float], other: Sequence[float], *, tolerance: float = TOLERANCE) -> None:
        """Raises DisagreementError unless the two are the same numbers."""
        apart = max((abs(a - b) for a, b in zip(ours, other, strict=True)), default=math.nan)
        if not apart <= tolerance:
            raise DisagreementError(
                f"{self.family}: expected the same {what} within {tolerance:g}, got {apart:g} apart; "
                "times of different arithmetic are not comparable"
            )


def start_match(
    family: str, ours: Side, reference: Side, *, sizes: Sizes, repeats: int, reference_bytes: int, folder: Path
) -> Match:
    """Build the family's model on both sides, with the same weights where both have the same stages.

    Only the reference's transformer stages have our weights: without a GPU its S is Mamba-1.
    """
    shape = sizes.specification(family)
    exact = "S" not in family.split("/")
    weights = str(folder / "weights.pth") if exact else None
    built = {
        "ours": ours.ask("build", specification=shape, seed=SEED, load=None, save=weights),
        "reference": reference.ask("build", specification=shape, seed=SEED, load=weights, save=None),
    }
    parameters = {side: answer["parameters"] for side, answer in built.items()}
    notes: tuple[str, ...] = ()
    if not exact:
        notes = (
            f"Different models: the reference's S stage is `{built['reference']['stages'][0]}`, which it falls back to "
            f"without a GPU, {parameters['reference']:,} parameters; ours is Mamba-2, {parameters['ours']:,}.",
        )
    return Match(
        family=family,
        ours=ours,
        reference=reference,
        sizes=sizes,
        repeats=repeats,
        reference_bytes=reference_bytes,
        exact=exact,
        notes=notes,
        parameters=parameters,
    )


def random_ids(length: int) -> list[int]:
    """The same bytes for both sides and in every run."""
    return list(random.Random(length).randbytes(length))


def seconds(answers: Sequence[Answer], count: int | None = None) -> Samples:
    """Wall-clock seconds of each answer, or seconds for each of `count` bytes."""
    if count is None:
        return Samples(tuple(answer["seconds"] for answer in answers), "s")
    return Samples(tuple(answer["seconds"] / count for answer in answers), "s/byte")
