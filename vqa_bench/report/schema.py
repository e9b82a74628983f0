"""What a report reads of a run's `result.json`: of a cell, of a pretraining run. Knows fields, compares nothing.

Keys that are not named here are kept and not looked at. Fractions throughout, never percent.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from vqa_bench.data.answers import Answers
from vqa_bench.errors import UserError

AGAIN = "delete the run and run the cell again"

Whole = TypeVar("Whole", bound=BaseModel)


class Part(BaseModel):
    """A part of `result.json`: the keys a report needs."""

    model_config = ConfigDict(extra="allow")


class Accuracy(Part):
    """A line of `scoring.metrics.summarise`."""

    n: int
    correct: int
    accuracy: float
    low: float
    high: float
    chance: float


class Share(Part):
    """How often one way to read an answer from the model is right."""

    n: int
    correct: int
    accuracy: float


class Decoding(Part):
    """The three ways to read an answer; one that a model does not have is None."""

    likelihood: Share | None = None
    constrained_greedy: Share | None = None
    free_greedy: Share | None = None


class Mass(Part):
    """The mean probability of all candidates together."""

    n: int
    mean: float


class Bin(Part):
    """The predictions whose confidence lies between `low` and `high`, and their means."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class Calibration(Part):
    """Expected calibration error and Brier score of n predictions; bins without a prediction are left out."""

    n: int
    ece: float
    brier: float
    bins: list[Bin]


class Metrics(Part):
    """The output of `scoring.metrics.summarise`; a group, type, … without a question is not in its mapping."""

    overall: Accuracy
    groups: dict[str, Accuracy]
    types: dict[str, Accuracy] = {}
    program_lengths: dict[str, Accuracy] = {}
    num_objects: dict[str, Accuracy] = {}
    answers: dict[str, Accuracy] = {}
    decoding: Decoding = Decoding()
    trie_mass: Mass | None = None
    calibration: Calibration | None = None

    def column(self, name: str) -> Accuracy | None:
        return self.overall if name == "overall" else self.groups.get(name)


class Controls(Part):
    """What needs no model. majority: each type's most frequent answer on the training split."""

    majority: Metrics | None = None


class CellModel(Part):
    """config: the model's resolved configuration."""

    kind: str
    parameters: int
    blind: bool
    config: dict[str, Any] | None = None


class Dataset(Part):
    """The data of a cell, by the name of its source."""

    name: str
    missing_images: int


class ShardFacts(Part):
    """The shard that a cell was trained or tested on; manifest: the SHA-256 of its `manifest.json`."""

    manifest: str | None = None


class Training(Part):
    """How the training went: steps done of those planned, and what ended it (`steps` where all were done).

    A model that is not trained by steps has none of these.
    """

    steps: int | None = None
    of_steps: int | None = None
    stopped: str | None = None

    @property
    def remark(self) -> str:
        """What a reader must know of a training that did not come to its end; empty for one that did."""
        if self.stopped in (None, "steps") or self.steps is None:
            return ""
        planned = "" if self.of_steps is None else f" of {self.of_steps:,}"
        return f"Training was stopped by {self.stopped} after {self.steps:,}{planned} steps."


class Initial(Part):
    """The weights that a cell began from; notes: what was done to them so that they fit."""

    source: str
    notes: list[str] = []


class PartBits(Part):
    """How well a model predicts one part of its sequences."""

    bits_per_byte: float
    bytes: int


class Cost(Part):
    """image_bytes: mean of an encoded picture, None for a model without one; train_flops: None where not counted."""

    image_bytes: float | None = None
    train_flops: float | None = None


class CellResult(Part):
    """A cell's `result.json`. `shuffled` are the metrics with images exchanged, None for a model without images.

    answers: the candidates, in the order of every prediction's scores; bits: by part of a sequence.
    """

    format: Literal[2]
    cell: str
    title: str
    model: CellModel
    encoding: str | None
    layout: str | None
    init: str | None
    seed: int
    dataset: Dataset
    shard: ShardFacts | None = None
    answers: list[str]
    metrics: Metrics
    shuffled: Metrics | None
    controls: Controls | None = None
    bits: dict[str, PartBits | None] | None = None
    cost: Cost = Cost()
    sequence: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    training: Training | None = None
    initial: Initial | None = None

    @property
    def candidates(self) -> Answers:
        """The answers that the run chose among: what its predictions files are read with."""
        return Answers(tuple(self.answers))


class DamageLevel(Part):
    """Accuracy with so much damage of one kind. undecodable: share of the pictures that no decoder reads any more."""

    damage: str
    level: float
    label: str
    undecodable: float
    n: int
    accuracy: float
    low: float
    high: float


class Damage(Part):
    """A run's `damage.json`: level 0 of a kind is the undamaged picture."""

    images: int
    questions: int
    levels: list[DamageLevel]


class TextModel(Part):
    """A pretrained model."""

    kind: str
    parameters: int


class TextDataset(Part):
    """The text of a pretraining run, by the name of its source."""

    name: str


class Bits(Part):
    """Bits for each predicted byte of a split, and how many those are: with the masked objective the hidden ones."""

    bits: float = Field(validation_alias=AliasChoices("bits_per_byte", "bits_per_masked_byte"))
    bytes: int = Field(validation_alias=AliasChoices("masked_bytes", "bytes"))


class PretrainResult(Part):
    """A pretraining run's `result.json`. context: bytes of a window; metrics: by split."""

    format: Literal[1]
    kind: Literal["pretrain"]
    name: str
    title: str
    model: TextModel
    objective: Literal["next_byte", "masked"]
    context: int
    dataset: TextDataset
    training: Training
    metrics: dict[str, Bits]


def read_result(folder: Path, kind: type[Whole], *, name: str = "result.json") -> Whole:
    """A JSON file of a finished run; UserError in one line where it is missing or not of that kind."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"expected {path} in a run that is marked DONE, got no such file; {AGAIN}")
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.get("kind") == "pretrain" and kind is CellResult:
            raise UserError(f"expected the run of a cell, got {folder}, a pretraining run, which answers no questions")
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])
        got = f", got {str(fault['input'])[:60]!r}" if where and fault["type"] != "missing" else ""
        raise UserError(f"{path}: {where or 'content'}: {fault['msg']}{got}; {AGAIN}") from None
    except ValueError as error:
        raise UserError(f"expected JSON in {path}, got: {error}; {AGAIN}") from None
