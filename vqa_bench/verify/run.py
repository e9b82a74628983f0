"""The checks of one run folder: everything in its result that follows from its other files, made again.

A number is made anew by the very functions that made it first, from files whose hashes are in the result; two values
are the same only to the last bit. Knows the folder of a run, not where runs lie together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vqa_bench.data.answers import Answers
from vqa_bench.data.manifest import file_info
from vqa_bench.data.shards import Shard
from vqa_bench.errors import UserError
from vqa_bench.matrix.cells import Cell
from vqa_bench.matrix.folder import KEY
from vqa_bench.models import ByteModel, VQAModel
from vqa_bench.runs import (
    CONFIG,
    DONE,
    METRICS,
    PREDICTIONS,
    PROVENANCE,
    RESULT,
    SHUFFLED,
    TRAINED,
    WEIGHTS,
    is_done,
    load_model,
    read_json,
)
from vqa_bench.scoring.controls import controls
from vqa_bench.scoring.damage import DAMAGE, DAMAGED_ANSWERS
from vqa_bench.scoring.describe import cost, describe
from vqa_bench.scoring.metrics import summarise
from vqa_bench.scoring.parts import answer_bits
from vqa_bench.scoring.predictions import Prediction, correct_of, images_of, read_predictions
from vqa_bench.scoring.statistics import paired_difference
from vqa_bench.verify.checks import AGAIN, Check, Checker, compare, parsed
from vqa_bench.verify.damage import damage_faults
from vqa_bench.verify.shards import Shards, prediction_faults

MEASURED = "bits of image and question, invariance, batches"
LOGS = f"{METRICS}, {PROVENANCE}"


class _Shard(BaseModel):
    """What a result says of its shard."""

    path: str
    split: str
    spec: str
    manifest: str


class _Result(BaseModel):
    """What must be in a result before anything of it can be checked."""

    model_config = ConfigDict(extra="allow")

    format: Literal[2]
    cell: str
    answers: list[str]
    shard: _Shard
    hashes: dict[str, str]
    training: dict[str, Any]


@dataclass(frozen=True)
class _Step:
    """A check, and the checks without which it would only repeat their faults, or read what is known to be damaged."""

    what: str
    file: str
    work: Callable[[], Sequence[str]]
    needs: tuple[str, ...] = ()


def run_checks(run: Path, name: str, shards: Shards, *, cell: str | None = None) -> Iterator[Check]:
    """The checks of a cell's run, called `name` in what is found. cell: what its cell must be called, if that is known.

    Faults are found, not raised, and what can be checked beside them is.
    """
    checker = Checker(name)
    if not is_done(run):
        yield checker.check(DONE, "end", lambda: [f"expected {run / DONE}, got none; run the cell to its end"])
        return
    verifier = _Verifier(run, cell, shards)
    result = checker.check(RESULT, "result", verifier.readable)
    yield result
    if result.faults:
        return
    faulty: set[str] = set()
    for step in verifier.steps():
        missing = [need for need in step.needs if need in faulty]
        if missing:
            yield checker.unchecked(step.file, step.what, f"{' and '.join(missing)} must hold first")
            continue
        check = checker.check(step.file, step.what, step.work)
        if check.faults:
            faulty.add(step.what)
        yield check
    if not (run / KEY).is_file():
        yield checker.unchecked(KEY, "key", "there is none, as it was evaluated apart from its training")
    yield checker.unchecked(RESULT, MEASURED, "a model measured them; evaluate the cell again to compare")
    yield checker.unchecked(METRICS, LOGS, "they say how and when it trained, and nothing else says so")


@dataclass(frozen=True)
class _Verifier:
    """A run and what is checked of it: every check returns faults, or raises UserError for one."""

    run: Path
    cell: str | None
    shards: Shards

    def steps(self) -> Iterator[_Step]:
        """What is checked of a run whose result can be read."""
        yield _Step("hashes", RESULT, self.hashes)
        yield _Step("predictions", PREDICTIONS, lambda: [] if self.predictions else ["expected predictions, got none"])
        yield _Step("numbers", RESULT, self.numbers, ("predictions",))
        if self.raw.get("shuffled") is not None:
            yield _Step("numbers with images shuffled", SHUFFLED, self.shuffled_numbers, ("predictions",))
        if (self.run / DAMAGE).is_file() or (self.run / DAMAGED_ANSWERS).is_file():
            yield _Step("numbers with images damaged", DAMAGE, self.damage, ("predictions",))
        yield _Step("weights", WEIGHTS, lambda: [] if self.model is not None else ["expected a model, got none"])
        yield _Step("bits of the answers", RESULT, self.bits, ("predictions", "weights"))
        yield _Step("shard", "shard", lambda: self.shards.faults(self.shard))
        yield _Step("questions", PREDICTIONS, self.questions, ("predictions", "shard"))
        yield _Step("majority", RESULT, self.controls, ("predictions", "shard"))
        yield _Step("facts", RESULT, self.facts, ("weights", "shard"))
        if (self.run / KEY).is_file():
            yield _Step("key", KEY, self.key, ("weights", "shard"))

    def readable(self) -> list[str]:
        """`result.json` is one of this version, and that of this folder's cell."""
        got = self.result.cell
        if self.cell is None or got == self.cell:
            return []
        return [f"cell: expected {self.cell!r} in a folder of that name, got {got!r}; move the folder back"]

    def hashes(self) -> list[str]:
        """Every file has the SHA-256 that the result says, and none that it must say is missing."""
        stated = self.result.hashes
        needed = [CONFIG, WEIGHTS, PREDICTIONS, *([] if self.raw.get("shuffled") is None else [SHUFFLED])]
        needed += [name for name in (DAMAGE, DAMAGED_ANSWERS) if (self.run / name).is_file()]
        names = {Path(path).name for path in stated}
        faults = [f"hashes: expected that of {name}, got none; {AGAIN}" for name in needed if name not in names]
        for path, expected in stated.items():
            file = self.run / path
            got = file_info(file).sha256 if file.is_file() else None
            if got != expected:
                found = "no such file" if got is None else f"{got:.12}…"
                faults.append(f"{path}: expected SHA-256 {expected:.12}…, got {found}; {AGAIN}")
        return faults

    def numbers(self) -> list[str]:
        """What follows from the predictions alone."""
        return self._compare({"metrics": summarise(self.predictions, answers=self.answers)})

    def bits(self) -> list[str]:
        """Those of the answers follow from the predictions and how answers are written."""
        stated = self.raw.get("bits")
        if not isinstance(self.model, ByteModel):
            return compare(None, stated, "bits", again=AGAIN)
        expected = _plain(answer_bits(self.predictions, self.answers, self.model.cell.sequence.answer))
        return compare(expected, stated.get("answer") if isinstance(stated, dict) else None, "bits.answer", again=AGAIN)

    def controls(self) -> list[str]:
        """What the commonest answers of the train split are worth."""
        return self._compare({"controls": controls(self.shard, self.predictions, self.answers)})

    def shuffled_numbers(self) -> list[str]:
        """What follows from the predictions with images shuffled, and how much images gain."""
        shuffled = read_predictions(self.run / SHUFFLED, self.answers)
        asked, again = ([(p.question_index, p.answer) for p in given] for given in (self.predictions, shuffled))
        if asked != again:
            raise UserError(f"expected the questions and answers of {PREDICTIONS} in {SHUFFLED}, got others; {AGAIN}")
        gain = paired_difference(correct_of(self.predictions), correct_of(shuffled), images_of(self.predictions))
        return self._compare({"shuffled": summarise(shuffled, answers=self.answers), "vision_gain": asdict(gain)})

    def damage(self) -> list[str]:
        """Every accuracy in `damage.json` follows from the answers in `damage.jsonl`."""
        return damage_faults(self.run, self.predictions, self.answers)

    def questions(self) -> list[str]:
        """The predictions are those of all questions of the split."""
        name = self.result.shard.split
        return prediction_faults(self.predictions, self.shard.split(name), where=f"{self.shard.path}, split {name}")

    def facts(self) -> list[str]:
        """The rest of the result that configuration, weights, training and shard say."""
        model, shard, training = self.model, self.shard, self._training
        split = self.result.shard.split
        facts = describe(model, shard, split, answers=self.answers, out=self.run, training=training)
        facts["cost"] = cost(model, shard, shard.split(split), run=self.home, out=self.run, training=training)
        facts["shard"]["path"] = self.result.shard.path  # it may have been moved
        del facts["title"]  # a run is given the title that its matrix has now
        return self._compare(facts)

    def key(self) -> list[str]:
        """The key is that of the configuration and the data; which weights it began from is only in the key."""
        stated = read_json(self.run / KEY)
        initial = stated.get("initial") if isinstance(stated, dict) else None
        expected = Cell(self.model.cell, self.shard, self.run, initial_key=initial).key
        return compare(expected, stated, "", again="train the cell again")

    def _compare(self, expected: dict[str, Any]) -> list[str]:
        """The values of `expected` against those in `result.json`."""
        return compare(_plain(expected), {k: v for k, v in self.raw.items() if k in expected}, "", again=AGAIN)

    @cached_property
    def raw(self) -> dict[str, Any]:
        """`result.json` as it is."""
        content = read_json(self.run / RESULT)
        if not isinstance(content, dict):
            raise UserError(f"expected an object in {self.run / RESULT}, got something else; {AGAIN}")
        return content

    @cached_property
    def result(self) -> _Result:
        return parsed(_Result, self.raw, RESULT)

    @cached_property
    def answers(self) -> Answers:
        return Answers(tuple(self.result.answers))

    @cached_property
    def predictions(self) -> list[Prediction]:
        return read_predictions(self.run / PREDICTIONS, self.answers)

    @cached_property
    def home(self) -> Path:
        """The folder of the model's configuration and weights."""
        paths = [path for path in self.result.hashes if Path(path).name == CONFIG]
        return (self.run / paths[0]).parent if paths else self.run

    @cached_property
    def model(self) -> VQAModel:
        return load_model(self.home)

    @cached_property
    def shard(self) -> Shard:
        stated = self.result.shard
        return self.shards.find(self.run / stated.path, stated.manifest)

    @cached_property
    def _training(self) -> dict[str, Any]:
        """How the training went: as it was written down at its end, where that is there."""
        path = self.home / TRAINED
        return read_json(path) if path.is_file() else self.result.training


def _plain(value: Any) -> Any:
    """As it is read back from JSON."""
    return json.loads(json.dumps(value))
