"""Both workers on one device, started when they are first asked, or ours alone where there is no reference.

They take turns with one model each at a time. Knows who answers, not what is asked or what it is good for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.common import alternate
from benchmarks.peer.client import Side, WorkerError, WorkerMemoryError
from benchmarks.peer.match import SEED, Answer, Question

OUT_OF_MEMORY = "out_of_memory"
OURS, REFERENCE = "ours", "reference"
MAMBA_1 = "mambapy."  # the module of what the reference takes for S stages where it cannot import mamba-ssm


class ReferenceFailedError(Exception):
    """The reference could not do what was asked, for another reason than the GPU's memory; one line."""


@dataclass
class Pair:
    """Two workers. Use it as a context manager: their processes end with the block.

    start: how to start each by its name, "ours" first and perhaps "reference". same_library: whether it is well that
    both have the same one, as in a dry run. trims: whether memory is handed back at all, which takes a while; for a
    GPU, which both need all of. sides: those that are started.
    """

    start: Mapping[str, Callable[[], Side]]
    same_library: bool = False
    trims: bool = True
    sides: dict[str, Side] = field(default_factory=dict)
    _built: tuple[Any, dict[str, Any]] | None = None

    @property
    def names(self) -> list[str]:
        return list(self.start)

    def build(self, specification: dict[str, Any]) -> dict[str, Any]:
        """The model on both sides, unless it is there: facts about both, and whether they have the same weights.

        They have them unless the reference fell back to Mamba-1, which its stages' names tell.
        """
        self._start()
        if self._built is not None and self._built[0] == specification:
            return self._built[1]
        self._built = None
        facts: dict[str, Any] = {"hello": {name: self.ask(name, ("hello", {})) for name in self.names}}
        facts["kernel"] = self.ask(OURS, ("kernel", {}))["kernel"]
        with tempfile.TemporaryDirectory() as folder:
            weights = str(Path(folder) / "weights.pth")
            arguments = {"specification": specification, "seed": SEED, "load": None}
            facts[OURS] = self.ask(OURS, ("build", {**arguments, "save": weights if REFERENCE in self.names else None}))
            if REFERENCE in self.names:
                facts[REFERENCE] = self.ask(REFERENCE, ("build", {**arguments, "save": None}))
                facts["exact"] = not any(stage.startswith(MAMBA_1) for stage in facts[REFERENCE]["stages"])
                if facts["exact"]:
                    self.ask(REFERENCE, ("load", {"path": weights}))
        self._built = (specification, facts)
        return facts

    def turns(
        self, questions: Mapping[str, Sequence[Question]], repeats: int, *, warmup: int = 1, trim: bool
    ) -> dict[str, list[list[Answer]] | dict[str, str]]:
        """Each side's answers to its questions, round by round, the sides in turn.

        trim: a side hands the GPU's free memory back before the other's turn. In the place of the answers of a side
        that ran out of memory in any round: {"out_of_memory": its message}.
        """

        def turn(name: str) -> Callable[[], list[Answer] | str]:
            def ask() -> list[Answer] | str:
                answers: list[Answer] | str
                try:
                    answers = [self.ask(name, question) for question in questions[name]]
                except WorkerMemoryError as error:
                    answers = str(error)
                if trim and self.trims:
                    self.ask(name, ("trim", {}))
                return answers

            return ask

        answers = alternate({name: turn(name) for name in self.names}, repeats, warmup)
        for name in self.names if self.trims else ():
            self.ask(name, ("trim", {}))
        found: dict[str, list[list[Answer]] | dict[str, str]] = {}
        for name, rounds in answers.items():
            too_much = [answer for answer in rounds if isinstance(answer, str)]
            good = [answer for answer in rounds if not isinstance(answer, str)]
            found[name] = {OUT_OF_MEMORY: too_much[0]} if too_much else good
        return found

    def ask(self, name: str, question: Question) -> Answer:
        """One side's answer. Raises ReferenceFailedError where the reference fails, WorkerError where ours does."""
        command, arguments = question
        try:
            return self.sides[name].ask(command, **arguments)
        except WorkerMemoryError:
            raise
        except WorkerError as error:
            if name == REFERENCE:
                raise ReferenceFailedError(str(error)) from error
            raise

    def close(self, error: BaseException | None = None) -> None:
        """End the processes; what is asked next starts new ones."""
        kind, trace = (None, None) if error is None else (type(error), error.__traceback__)
        for side in self.sides.values():
            side.__exit__(kind, error, trace)
        self.sides, self._built = {}, None

    def _start(self) -> None:
        if self.sides:
            return
        for name, start in self.start.items():  # one by one, so that what was started is ended in any case
            self.sides[name] = start()
        if REFERENCE in self.names and not self.same_library:
            libraries = [self.ask(name, ("hello", {}))["library"] for name in (OURS, REFERENCE)]
            if libraries[0] == libraries[1]:
                raise ReferenceFailedError(f"expected the reference's library, got {libraries[1]}, which is ours")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)
