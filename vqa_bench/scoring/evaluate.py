"""Answer a test set and write down what came out: predictions, the controls, the numbers of the run.

Knows what is measured and where it is written, not how; nor what kind of model answers, save where only a byte model
can be measured. Every process of a launch takes part, the main one writes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqa_bench import launch
from vqa_bench.config import EvaluateConfig
from vqa_bench.data.answers import Answers
from vqa_bench.data.loading import evaluation_groups, shuffled_pictures
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.errors import UserError
from vqa_bench.models import ByteModel, VQAModel, check_answers
from vqa_bench.progress import Progress, silent
from vqa_bench.runs import CONFIG, DONE, PREDICTIONS, RESULT, SHUFFLED, TRAINED, WEIGHTS, read_json, write_json, writing
from vqa_bench.scoring.answering import answer
from vqa_bench.scoring.batches import BatchSize
from vqa_bench.scoring.controls import controls
from vqa_bench.scoring.describe import cost, describe, hashes
from vqa_bench.scoring.metrics import summarise
from vqa_bench.scoring.parts import answer_bits, part_bits
from vqa_bench.scoring.predictions import Prediction, correct_of, images_of, write_predictions
from vqa_bench.scoring.statistics import paired_difference

SHUFFLE_SEED = 0


@dataclass(frozen=True)
class _Test:
    """What is asked of which model, and where the answers go. size: of all batches; shrinks where memory is short."""

    model: VQAModel
    reader: SplitReader
    answers: Answers
    out: Path
    size: BatchSize
    report: Progress

    def answer(self, name: str, pictures: Any = None) -> list[Prediction]:
        """The predictions of all questions, written under that name; `pictures` as in `evaluation_groups`."""
        groups = evaluation_groups(self.reader, pictures)
        predictions = answer(self.model, self.reader, groups, answers=self.answers, size=self.size, report=self.report)
        if launch.is_main():
            with writing(self.out / name):
                write_predictions(self.out / name, predictions)
        return predictions


def evaluate(
    model: VQAModel,
    shard: Shard,
    out: Path,
    *,
    split: str = "test",
    training: dict[str, Any] | None = None,
    run: Path | None = None,
    answers: Answers | None = None,
    settings: EvaluateConfig | None = None,
    report: Progress = silent,
) -> dict[str, Any]:
    """Score a split and write predictions, `result.json` and, last, `DONE` into `out`; returns the result.

    training: how training went; None takes it from the run. run: the folder of the model's configuration and weights;
    None where that is `out`. answers: the candidates, None for the shard's. settings: None for the cell's own.

    Raises UserError where the shard's encoding or answers are not those of the model, and where scores depend more on
    the batches than the settings tolerate.
    """
    check_encoding(model, shard)
    asked = check_answers(model, shard, answers)
    settings = model.cell.evaluate if settings is None else settings
    run = out if run is None else run
    if training is None:
        training = launch.broadcast(read_json(run / TRAINED) if launch.is_main() else {})
    test = _Test(model, shard.split(split), asked, out, BatchSize.of(settings.images_per_batch), report)
    predictions = test.answer(PREDICTIONS)
    shuffled = None
    if not model.blind and settings.shuffled:
        shuffled = test.answer(SHUFFLED, shuffled_pictures(len(test.reader), SHUFFLE_SEED))
    measured = {"bits": _bits(test, predictions, settings), "invariance": _invariance(test, predictions, settings)}
    damaged = _damage(test, predictions, settings)
    measured["batches"] = _batches(test.size)
    result: dict[str, Any] = {}
    if launch.is_main():  # the rest needs no model
        with writing(out / RESULT):
            result = describe(model, shard, split, answers=asked, out=out, training=training)
            result |= _numbers(shard, predictions, shuffled, asked) | measured
            result["cost"] = cost(model, shard, test.reader, run=run, out=out, training=training)
            written = [PREDICTIONS, *([] if shuffled is None else [SHUFFLED]), *damaged]
            result["hashes"] = hashes(out, [run / CONFIG, run / WEIGHTS, *(out / name for name in written)])
            write_json(out / RESULT, result)
            (out / DONE).touch()
    launch.barrier()
    return launch.broadcast(result)


def check_encoding(model: VQAModel, shard: Shard) -> None:
    """UserError unless a model that sees images gets them in the encoding it was trained on."""
    if not model.blind and model.cell.encoding != shard.manifest.spec:
        raise UserError(
            f"expected a shard with the encoding of the run, {model.cell.encoding}, got {shard.path} with "
            f"{shard.manifest.spec}; serialize the images with the run's encoding"
        )


def _numbers(
    shard: Shard, predictions: list[Prediction], shuffled: list[Prediction] | None, answers: Answers
) -> dict[str, Any]:
    """What follows from the predictions alone."""
    gain = None
    if shuffled is not None:
        images = images_of(predictions)
        gain = asdict(paired_difference(correct_of(predictions), correct_of(shuffled), images))
    return {
        "metrics": summarise(predictions, answers=answers),
        "shuffled": None if shuffled is None else summarise(shuffled, answers=answers),
        "vision_gain": gain,
        "controls": controls(shard, predictions, answers),
    }


def _bits(test: _Test, predictions: list[Prediction], settings: EvaluateConfig) -> dict[str, Any] | None:
    """Bits per byte of each part, None for a model that writes no bytes."""
    if not isinstance(test.model, ByteModel):
        return None
    groups = evaluation_groups(test.reader)
    read = part_bits(test.model, test.reader, groups, images=settings.bits, size=test.size, report=test.report)
    return read | {"answer": answer_bits(predictions, test.answers, test.model.cell.sequence.answer)}


def _invariance(test: _Test, predictions: list[Prediction], settings: EvaluateConfig) -> dict[str, Any] | None:
    """How far scores depend on what else is in a batch, where that is asked for."""
    if settings.check_invariance == 0:
        return None
    from vqa_bench.scoring import invariance

    return invariance.check(
        test.model,
        test.reader,
        predictions,
        questions=settings.check_invariance,
        tolerance=settings.tolerance,
        answers=test.answers,
        size=test.size,
    )


def _damage(test: _Test, predictions: list[Prediction], settings: EvaluateConfig) -> list[str]:
    """Write down what a model that sees images makes of damaged ones, where that is asked for; the files' names."""
    if settings.damage == 0 or test.model.blind:
        return []
    from vqa_bench.scoring import damage

    damage.measure(
        test.model,
        test.reader,
        test.out,
        images=settings.damage,
        answers=test.answers,
        undamaged=predictions,
        size=test.size,
        report=test.report,
    )
    return [damage.DAMAGE, damage.DAMAGED_ANSWERS]


def _batches(size: BatchSize) -> dict[str, Any]:
    """Images of a batch that were asked for, and the fewest that any process came down to; the same of questions."""
    sizes = launch.gather([(size.images, size.questions)])
    questions = [asked for _, asked in sizes if asked is not None]
    return {
        "images_per_batch": size.asked,
        "used": min(images for images, _ in sizes),
        "questions_per_image": min(questions, default=None),
    }
