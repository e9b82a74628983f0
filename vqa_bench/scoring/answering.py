"""From questions to predictions: batches are scored, and every score becomes a record of its question.

Knows batches and scores, not what kind of model answers. Of several processes each answers its share of the batches,
which are those that one process makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from vqa_bench import launch
from vqa_bench.data.answers import Answers
from vqa_bench.data.loading import Group
from vqa_bench.data.shards import SplitReader
from vqa_bench.data.vocab import group_of
from vqa_bench.errors import UserError
from vqa_bench.models import VQAModel
from vqa_bench.progress import Progress, silent
from vqa_bench.scoring.batches import BatchSize, in_batches
from vqa_bench.scoring.predictions import Prediction
from vqa_bench.scoring.score import Scores, score

DECIMALS = 6  # of the log-probabilities in predictions.jsonl; float32 models have no more to say


def answer(
    model: VQAModel,
    split: SplitReader,
    groups: list[Group],
    *,
    answers: Answers | None = None,
    images_per_batch: int | None = None,
    size: BatchSize | None = None,
    report: Progress = silent,
) -> list[Prediction]:
    """Predictions for the questions of the groups, by question_index, on every process all of them.

    They go by the names of the questions' own images, whichever the groups show. answers: the candidates, None for the
    model's own. images_per_batch: None takes what the model's cell says. size: instead, to be shared with what is
    answered before and after: it is halved where memory does not suffice.

    Raises UserError for a right answer that is no candidate, for other candidates than a classifier's own, and where a
    single question does not fit into memory.
    """
    answers = _candidates(model, split, groups, answers)
    if size is None:
        size = BatchSize.of(model.cell.evaluate.images_per_batch if images_per_batch is None else images_per_batch)
    device = launch.device()
    model.to(device).eval()
    record = _Recorder(model, split, answers)

    def work(batch: list[Group]) -> list[Prediction]:
        return record(*_scored(model, split, batch, answers, device))

    predictions: list[Prediction] = []
    with launch.alone():
        for found in in_batches(
            model, split, groups, size, work, rank=launch.rank(), world=launch.world(), report=report
        ):
            predictions += found
    return sorted(launch.gather(predictions), key=lambda prediction: prediction.question_index)


def score_in_batches(
    model: VQAModel,
    split: SplitReader,
    batches: Iterable[list[Group]],
    *,
    device: torch.device,
    answers: Answers | None = None,
) -> Iterator[tuple[np.ndarray, Scores]]:
    """The rows (n,) of each batch's questions and their scores, in main memory; in this process alone, as given.

    model: in evaluation mode, on `device`. answers: the candidates, None for the model's own.
    """
    for groups in batches:
        yield _scored(model, split, groups, answers, device)


def _scored(
    model: VQAModel, split: SplitReader, groups: list[Group], answers: Answers | None, device: torch.device
) -> tuple[np.ndarray, Scores]:
    batch = model.collate(split, groups)
    with torch.inference_mode():
        scores = score(model, batch.to(device), answers).cpu()
    present = batch.present.flatten()
    return batch.rows.flatten()[present].numpy(), scores.where(present)


def _candidates(model: VQAModel, split: SplitReader, groups: list[Group], answers: Answers | None) -> Answers:
    """The candidates, which every right answer must be among."""
    if answers is None:
        answers = model.answers
    elif answers != model.answers and not model.takes_any_answers:
        raise UserError(
            f"expected the {len(model.answers)} answers that {model.cell.name} was trained on, got {len(answers)} "
            "others; ask a byte model with sequence.answer text"
        )
    given = {split.answer[row] for group in groups for row in group.questions.tolist()}
    unknown = sorted(given - answers.index.keys())
    if unknown:
        raise UserError(
            f"expected every right answer among the {len(answers)} candidates, got {unknown[0]!r}"
            f"{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}; give all of them with --answers FILE"
        )
    return answers


class _Recorder:
    """Scores to records, with what a split says of its questions."""

    def __init__(self, model: VQAModel, split: SplitReader, answers: Answers) -> None:
        self._split, self._answers = split, answers
        self._images = split.images.column("image_filename").to_pylist()
        # What a model writes in full, and the answer that it stands for.
        self._spelled = {answers.written(name, model.cell.sequence.answer): name for name in answers.names}

    def __call__(self, rows: np.ndarray, scores: Scores) -> list[Prediction]:
        """rows (n,): the rows of the questions that were scored."""
        finite = scores.log_probs.isfinite().all(-1)
        if not finite.all():
            row = rows[int(finite.int().argmin())]
            raise UserError(
                f"expected finite log-probabilities, got others for question_index {self._split.question_index[row]}; "
                "train the cell again"
            )
        programs = self._split.questions.column("program").take(rows).to_pylist()
        rounded = np.round(scores.log_probs.double().numpy(), DECIMALS)  # (n, A)
        best, log_probs, greedy = rounded.argmax(-1).tolist(), rounded.tolist(), scores.greedy.tolist()
        mass = [None] * len(rows) if scores.mass is None else scores.mass.tolist()
        free = [None] * len(rows) if scores.free is None else scores.free
        every = zip(rows.tolist(), programs, log_probs, best, greedy, free, mass, strict=True)
        return [self._record(*values) for values in every]

    def _record(
        self,
        row: int,
        program: str,
        log_probs: list[float],
        best: int,
        greedy: int,
        free: bytes | None,
        mass: float | None,
    ) -> Prediction:
        split, names = self._split, self._answers.names
        return Prediction.among(
            self._answers,
            question_index=int(split.question_index[row]),
            image=self._images[split.image_of_question[row]],
            question_type=split.question_type[row],
            group=group_of(split.question_type[row]),
            program_length=len(json.loads(program)) or None,
            num_objects=split.num_objects[row],
            answer=split.answer[row],
            prediction=names[best],
            log_probs=tuple(log_probs),
            constrained_greedy=names[greedy],
            free_greedy=None if free is None else self._text(free),
            trie_mass=mass,
        )

    def _text(self, written: bytes) -> str:
        """The answer that was written, or what was written in its place."""
        return self._spelled.get(written, written.decode("utf-8", errors="replace"))
