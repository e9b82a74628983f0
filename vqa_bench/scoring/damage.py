"""How well a model answers when the bytes of its pictures are damaged, and whether a decoder could still read them.

A split with damaged pictures is a split like any other, so the one way of answering serves here too. Knows splits and
predictions, not how a model reads; what a damage does is in data/damage.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from vqa_bench import launch
from vqa_bench.data.answers import Answers
from vqa_bench.data.damage import UNDAMAGED, Damage, damages_of, strictly_decoded
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.folders import whole_file
from vqa_bench.data.loading import evaluation_groups, spread
from vqa_bench.data.shards import SplitReader
from vqa_bench.data.spec import Size, Spec
from vqa_bench.errors import UserError
from vqa_bench.models import ByteModel, VQAModel
from vqa_bench.progress import Progress, silent
from vqa_bench.runs import write_json, writing
from vqa_bench.scoring.answering import answer
from vqa_bench.scoring.batches import BatchSize
from vqa_bench.scoring.predictions import Prediction, correct_of, images_of
from vqa_bench.scoring.statistics import accuracy_interval

DAMAGE, DAMAGED_ANSWERS = "damage.json", "damage.jsonl"
MID_GRAY = (128, 128, 128)
AS_GRAY = "this model sees decoded pictures: those that do not decode are shown to it as mid-gray"
KEPT_PICTURES = 256  # damaged ones that stay in memory, so that an image is not damaged anew for each of its questions


@dataclass(frozen=True)
class Eyes:
    """What a model makes of an image's bytes.

    spec: the encoding they are in. room: the most bytes it reads of an image; None where it sees the decoded picture.
    size: (W, H) that a decoded picture must have; None where any will do.
    """

    spec: Spec
    room: int | None
    size: Size | None

    @classmethod
    def of(cls, model: VQAModel) -> Eyes:
        """Those of a model that sees images.

        Raises UserError for one that reads features, which were extracted of undamaged pictures.
        """
        assert model.cell.encoding is not None, "a model that sees images has an encoding"
        spec = parse_spec(model.cell.encoding)
        if isinstance(model, ByteModel):
            room = model.cell.sequence.image_bytes
            return cls(spec, model.built["image_bytes"] if room is None else room, spec.size)
        if "image_size" not in model.built:
            raise UserError(
                f"expected a model that reads pictures, got {model.cell.name}, which reads features of them that were "
                "extracted before; leave evaluate.damage (--damage) out for it"
            )
        height, width = model.built["image_size"]
        return cls(spec, None, (width, height))

    def shown(self, data: bytes) -> bytes:
        """The bytes that are given to the model in place of these, so that it can take them.

        What does not fit into its room is cut off; a picture that does not decode becomes a gray one.
        """
        if self.room is not None:
            return data[: self.room]
        return data if self.can_decode(data) else self._gray

    def can_decode(self, data: bytes) -> bool:
        """Whether the encoding's own decoder makes a picture of the right size of them."""
        return strictly_decoded(self.spec, data, self.size) is not None

    @property
    def _gray(self) -> bytes:
        assert self.size is not None, "a model that sees decoded pictures sees one size of them"
        return replace(self.spec, crop=None).encode(Image.new("RGB", self.size, MID_GRAY))


class DamagedSplit(SplitReader):
    """The questions of a split about its pictures after a damage. Lives in one process only.

    seed: with the row of an image it is the seed of that image's damage.
    """

    def __init__(self, split: SplitReader, damage: Damage, eyes: Eyes, seed: int) -> None:
        vars(self).update(vars(split))  # the same tables, and what was read of them: nothing but the pictures differs
        self._eyes = eyes
        self.damaged = lru_cache(KEPT_PICTURES)(lambda row: damage.apply(split.image_bytes(row).tobytes(), (seed, row)))

    def __reduce__(self) -> NoReturn:
        raise TypeError("expected a damaged split to stay in its process, got a copy of it: that would be undamaged")

    def image_bytes(self, row: int) -> np.ndarray:
        """What the model is shown of an image, (length,) uint8."""
        return np.frombuffer(self._eyes.shown(self.damaged(row)), np.uint8)


def measure(
    model: VQAModel,
    split: SplitReader,
    out: Path,
    *,
    images: int,
    seed: int = 0,
    answers: Answers | None = None,
    undamaged: Sequence[Prediction] | None = None,
    size: BatchSize | None = None,
    report: Progress = silent,
) -> dict[str, Any]:
    """Answer the questions about some images under every damage and level; writes `damage.json` and `damage.jsonl`.

    Returns what is in `damage.json`: `images`, `questions`, `seed`, a `note` or None, and `levels`, those of one damage
    after another from 0 on. Each has its `damage`, `level` and `label`; `undecodable`, the share of the pictures of
    which the encoding's own decoder makes no picture of the right size; `cut`, the share that became longer than the
    model has room for, of which it reads the beginning; `n`, `correct`, `accuracy`, and its 95 % interval `low` to
    `high` (resampling images). `damage.jsonl` has the question_index of all questions in its first line, then a line a
    level with the answers given, each as its place among the candidates.

    Every process of a launch calls this, each does its share and gets the result, the main one writes. model: one that
    sees images. images: so many, spread evenly over the split; all where it has fewer. answers: the candidates, None
    for the model's own. undamaged: the answers to all questions of the split as it is, where they are known: given
    again in other batches, one that is hardly ahead of another might not be the same. size: of batches, as in
    `answering.answer`.

    Raises UserError as `answering.answer` does, and where the files cannot be written.
    """
    groups, eyes = evaluation_groups(split), Eyes.of(model)
    groups = [groups[place] for place in spread(len(groups), images)]
    rows = [group.image for group in groups]
    damages = damages_of(eyes.spec)

    def at(damage: Damage, known: list[Prediction] | None = None) -> _Level:
        def told(done: int, total: int, note: str = "") -> None:
            report(done, total, f"{damage.name}, {damage.label}")

        view = DamagedSplit(split, damage, eyes, seed)
        found = answer(model, view, groups, answers=answers, size=size, report=told) if known is None else known
        return _Level(damage, found, *_shares(view, eyes, rows))

    asked = {int(split.question_index[row]) for group in groups for row in group.questions}
    known = None if undamaged is None else [p for p in undamaged if p.question_index in asked]
    beginning = at(Damage(UNDAMAGED, 0.0, UNDAMAGED, lambda data, seed: data), known)
    levels: list[_Level] = []
    for number, damage in enumerate(damages):
        if number == 0 or damage.name != damages[number - 1].name:
            levels.append(replace(beginning, damage=replace(beginning.damage, name=damage.name)))
        levels.append(at(damage))
    result = {
        "images": len(groups),
        "questions": len(beginning.predictions),
        "seed": seed,
        "note": AS_GRAY if eyes.room is None else None,
        "levels": [level.entry() for level in levels],
    }
    if launch.is_main():
        _write_answers(out / DAMAGED_ANSWERS, levels, model.answers if answers is None else answers)
        with writing(out / DAMAGE):
            write_json(out / DAMAGE, result)
    return result


@dataclass(frozen=True)
class _Level:
    """What came of a damage at one level; `refused` and `cut` are shares of the pictures."""

    damage: Damage
    predictions: list[Prediction]
    refused: float
    cut: float

    def entry(self) -> dict[str, Any]:
        """A level of `damage.json`."""
        correct = correct_of(self.predictions)
        interval = accuracy_interval(correct, images_of(self.predictions))
        return {
            "damage": self.damage.name,
            "level": self.damage.level,
            "label": self.damage.label,
            "undecodable": self.refused,
            "cut": self.cut,
            "n": len(correct),
            "correct": int(correct.sum()),
            "accuracy": interval.estimate,
            "low": interval.low,
            "high": interval.high,
        }


def _shares(view: DamagedSplit, eyes: Eyes, rows: Sequence[int]) -> tuple[float, float]:
    """Of the images in the given rows: the share that does not decode, and the share that is too long."""
    mine = [view.damaged(row) for row in rows[launch.rank() :: launch.world()]]
    found = [(not eyes.can_decode(data), eyes.room is not None and len(data) > eyes.room) for data in mine]
    refused, cut = np.mean(launch.gather(found), axis=0)
    return float(refused), float(cut)


def _write_answers(path: Path, levels: Sequence[_Level], answers: Answers) -> None:
    """The questions, then every level's answers to them, a JSON object a line; whole or not there."""
    lines: list[dict[str, Any]] = [{"questions": [p.question_index for p in levels[0].predictions]}]
    for level in levels:
        given = [answers.index[p.prediction] for p in level.predictions]
        lines.append({"damage": level.damage.name, "level": level.damage.level, "predictions": given})
    with writing(path), whole_file(path) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
