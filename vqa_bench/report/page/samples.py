"""What the sample browser of a report shows, gathered: all cells' answers to one test set, and where its questions and
pictures are.

Predictions are read run by run into a few bytes a question; texts, programs and pictures stay in the shards that the
runs name until a block of the page needs them. Knows run folders and shards, not how a page looks or is packed.

Shapes: N questions in the order of question_index, A candidates.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vqa_bench.data.answers import Answers
from vqa_bench.data.manifest import MANIFEST_NAME
from vqa_bench.data.shards import Shard, SplitReader, open_shard
from vqa_bench.errors import UserError
from vqa_bench.report.collect import Run
from vqa_bench.scoring.predictions import Prediction, iterate_predictions

SCALE = 255  # a probability p is kept as round(255 · sqrt(p)): exact to half a point, far finer for small ones
ROWS_AT_ONCE = 4096

Item = TypeVar("Item")


@dataclass(frozen=True)
class Source:
    """The shard that cells were tested on.

    `split` reads it, and `rows` (N,) are its rows of the questions; both None where there is a `problem`, a sentence.
    """

    path: str
    spec: str
    problem: str | None
    split: SplitReader | None = None
    rows: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class CellAnswers:
    """A cell's answers: given (N,) places of candidates, scores (N, A) probabilities on the scale of `SCALE`.

    Probabilities are normalised over the candidates. written: what the model wrote without constraint where that is
    not `given`, by question. source: the place of its shard. sequence: how its sequences are built, None for a model
    that reads none.
    """

    cell: str
    title: str
    blind: bool
    given: NDArray[np.integer[Any]]
    scores: NDArray[np.uint8]
    written: dict[int, str]
    source: int
    sequence: dict[str, Any] | None


@dataclass(frozen=True)
class TestSet:
    """One test set as all of its cells answered it.

    question_index, answer (places of candidates), kind (places in `types`), image (places in `images`): (N,) each.
    """

    dataset: str
    answers: Answers
    types: list[str]
    images: list[str]
    question_index: NDArray[np.int64]
    answer: NDArray[np.integer[Any]]
    kind: NDArray[np.integer[Any]]
    image: NDArray[np.int64]
    cells: list[CellAnswers]
    sources: list[Source]

    @property
    def readable(self) -> Source | None:
        """A source that has the questions' texts, None without one."""
        return next((source for source in self.sources if source.split is not None), None)


def gather(runs: Sequence[Run]) -> TestSet:
    """Runs on the same questions with the same candidates, in the order in which they are given.

    A shard that is not where a run says, or not as it was, is a `problem` of its source and no error.

    Raises UserError where predictions cannot be read.
    """
    answers = runs[0].result.candidates
    questions = _read_questions(runs[0], answers)
    sources: dict[tuple[str, str], Source] = {}
    cells = []
    for run in runs:
        key = _shard_key(run)
        if key not in sources:
            sources[key] = _open_source(run, questions.index, [answers.names[place] for place in questions.answer])
        cells.append(_read_cell(run, answers, list(sources).index(key), sources[key]))
    return TestSet(
        dataset=runs[0].result.dataset.name,
        answers=answers,
        types=questions.types,
        images=questions.images,
        question_index=questions.index,
        answer=questions.answer,
        kind=questions.kind,
        image=questions.image,
        cells=cells,
        sources=list(sources.values()),
    )


def facts_of(run: Run) -> dict[str, Any]:
    """All that a run's `result.json` says, also what the tables do not need."""
    return run.result.model_dump()


def smallest_type(values: int) -> Any:
    """The smallest unsigned type that holds 0 to `values` - 1."""
    return np.min_scalar_type(max(values - 1, 0))


@dataclass(frozen=True)
class _Questions:
    """What the first run's predictions say of the questions; fields as in `TestSet`."""

    index: NDArray[np.int64]
    answer: NDArray[np.integer[Any]]
    kind: NDArray[np.integer[Any]]
    image: NDArray[np.int64]
    types: list[str]
    images: list[str]


def _predictions(run: Run, answers: Answers) -> Iterator[Prediction]:
    return iterate_predictions(run.folder / "predictions.jsonl", answers)


def _read_questions(run: Run, answers: Answers) -> _Questions:
    types: dict[str, int] = {}
    images: dict[str, int] = {}
    rows = [
        (
            prediction.question_index,
            answers.index[prediction.answer],
            types.setdefault(prediction.question_type, len(types)),
            images.setdefault(prediction.image, len(images)),
        )
        for prediction in _predictions(run, answers)
    ]
    index, answer, kind, image = np.array(rows, np.int64).T
    return _Questions(
        index=index,
        answer=answer.astype(smallest_type(len(answers))),
        kind=kind.astype(smallest_type(len(types))),
        image=image,
        types=list(types),
        images=list(images),
    )


def _read_cell(run: Run, answers: Answers, place: int, source: Source) -> CellAnswers:
    count = len(run.answers.correct)
    given = np.empty(count, smallest_type(len(answers)))
    scores = np.empty((count, len(answers)), np.uint8)
    written: dict[int, str] = {}
    done = 0
    for rows in _chunks(_predictions(run, answers), ROWS_AT_ONCE):
        part = slice(done, done + len(rows))
        given[part] = [answers.index[row.prediction] for row in rows]
        scores[part] = _quantised(np.array([row.log_probs for row in rows]))
        for number, row in enumerate(rows, start=done):
            if row.free_greedy not in (None, row.prediction):
                written[number] = str(row.free_greedy)
        done += len(rows)
    return CellAnswers(
        cell=run.result.cell,
        title=run.result.title,
        blind=run.result.model.blind,
        given=given,
        scores=scores,
        written=written,
        source=place,
        sequence=_sequence(run, source),
    )


def _quantised(log_probs: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Scores (n, A) in nats as probabilities among the candidates, on the scale of `SCALE`."""
    shares = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return np.rint(SCALE * np.sqrt(shares)).astype(np.uint8)


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _shard_key(run: Run) -> tuple[str, str]:
    """What tells shards apart: the hash of the manifest, and where it was."""
    shard = facts_of(run).get("shard") or {}
    return str(shard.get("manifest")), str(shard.get("path"))


def _open_source(run: Run, question_index: NDArray[np.int64], right: list[str]) -> Source:
    """The shard that a run names, held against the run's questions and right answers."""
    shard = facts_of(run).get("shard")
    if not isinstance(shard, dict):
        return Source("", run.result.encoding or "", "The runs do not say which shard they were tested on.")
    path, spec = str(shard["path"]), str(shard["spec"])
    try:
        opened = _open_unchanged(run.folder / path, str(shard["manifest"]))
        split = opened.split(str(shard["split"]))
        rows = _rows_of(split, question_index, right)
    except (UserError, OSError) as error:
        return Source(path, spec, f"The shard {path} is not shown: {error}.")
    return Source(path, spec, None, split, rows)


def _open_unchanged(path: Path, manifest: str) -> Shard:
    opened = open_shard(path)
    if hashlib.sha256((path / MANIFEST_NAME).read_bytes()).hexdigest() != manifest:
        raise UserError("its manifest is not the one of the test; it was serialized again since")
    return opened


def _rows_of(split: SplitReader, question_index: NDArray[np.int64], right: list[str]) -> NDArray[np.int64]:
    """The row of every question; UserError where one is not there or has another answer."""
    order = np.argsort(split.question_index, kind="stable")
    found = np.searchsorted(split.question_index, question_index, sorter=order)
    rows = order[np.minimum(found, len(order) - 1)] if len(order) else np.empty(0, np.int64)
    if len(rows) == 0 or not np.array_equal(split.question_index[rows], question_index):
        raise UserError("it has not all of the questions")
    stated = split.answer
    if any(stated[row] != answer for row, answer in zip(rows.tolist(), right, strict=True)):
        raise UserError("it has other answers to the questions")
    return rows


def _sequence(run: Run, source: Source) -> dict[str, Any] | None:
    """How a byte model reads a question: layout, answer form, patch and room for the image, as `Sequencer` has them."""
    sequence, config = run.result.sequence, run.result.model.config or {}
    if sequence is None or "seq_lens" not in config:
        return None
    room = sequence.get("image_bytes") or _built_room(run.folder) or _longest_image(run.folder / source.path, source)
    return {
        "layout": sequence["layout"],
        "answer": sequence["answer"],
        "align": sequence["align"],
        "patch": math.prod(config["seq_lens"][1:]),
        "room": room,
    }


def _built_room(folder: Path) -> int | None:
    """The bytes that the model was built to take as an image; None where the folder has no config of the run."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    built = json.loads(path.read_bytes()).get("built") or {}
    return built.get("image_bytes")


def _longest_image(path: Path, source: Source) -> int | None:
    if source.split is None:
        return None
    return max(info.image_bytes.max for info in open_shard(path).manifest.splits.values())
