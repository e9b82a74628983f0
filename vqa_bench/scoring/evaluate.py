"""Answer a test set and write down what came out: predictions, the shuffled control, the numbers of the run.

Knows batches and scores, not what kind of model answers. Of several processes each answers its share of the
batches, which are those that one process makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vqa_bench import launch
from vqa_bench.data.loading import Group, batches, evaluation_groups, shuffled_pictures
from vqa_bench.data.shards import Shard, SplitReader
from vqa_bench.data.vocab import ANSWERS, GROUP_OF_TYPE, LETTERS
from vqa_bench.errors import UserError
from vqa_bench.models import VQAModel
from vqa_bench.progress import Progress, silent
from vqa_bench.runs import DONE, PREDICTIONS, RESULT, SHUFFLED, TRAINED, read_json, write_json, writing
from vqa_bench.scoring.metrics import Prediction, summarise, write_predictions
from vqa_bench.scoring.score import Scores, score

DECIMALS = 6  # of the log-probabilities in predictions.jsonl; float32 models have no more to say
SHUFFLE_SEED = 0


def evaluate(
    model: VQAModel,
    shard: Shard,
    out: Path,
    *,
    split: str = "test",
    training: dict[str, Any] | None = None,
    report: Progress = silent,
) -> dict[str, Any]:
    """Score a split and write predictions, `result.json` and, last, `DONE` into `out`; returns the result.

    training: how training went; None takes it from `out`, the run's own folder. Every process of a launch calls this,
    the main one writes. Raises UserError where the shard's encoding is not the one the model was trained on.
    """
    check_encoding(model, shard)
    reader = shard.split(split)
    predictions = _answer(model, reader, evaluation_groups(reader), report)
    _keep(out / PREDICTIONS, predictions)
    shuffled = None
    if not model.blind and model.cell.evaluate.shuffled:
        exchanged = shuffled_pictures(len(reader), SHUFFLE_SEED)
        control = _answer(model, reader, evaluation_groups(reader, exchanged), report)
        _keep(out / SHUFFLED, control)
        shuffled = summarise(control)
    if training is None:
        training = launch.broadcast(read_json(out / TRAINED) if launch.is_main() else {})
    result = _describe(model, shard, split, training) | {"metrics": summarise(predictions), "shuffled": shuffled}
    if launch.is_main():
        with writing(out / RESULT):
            write_json(out / RESULT, result)
            (out / DONE).touch()
    launch.barrier()
    return result


def _keep(path: Path, predictions: list[Prediction]) -> None:
    """Write predictions, on the main process."""
    if launch.is_main():
        with writing(path):
            write_predictions(path, predictions)


def _describe(model: VQAModel, shard: Shard, split: str, training: dict[str, Any]) -> dict[str, Any]:
    """What a result says of the model, how it was trained, and what it was asked."""
    cell, info = model.cell, shard.manifest.splits[split]
    reads_bytes = cell.model.kind == "mblm"
    return {
        "format": 1,
        "cell": cell.name,
        "title": cell.title,
        "model": {
            "kind": cell.model.kind,
            "parameters": model.parameters_count,
            "blind": model.blind,
            "config": cell.model.model_dump(mode="json"),
        },
        "encoding": cell.encoding,
        "layout": cell.sequence.layout if reads_bytes else None,
        "sequence": cell.sequence.model_dump(mode="json") if reads_bytes else None,
        "init": cell.init,
        "initial": training.get("initial"),
        "seed": cell.seed,
        "dataset": {
            "name": shard.manifest.source.name,
            "fingerprint": shard.manifest.source.fingerprint,
            "questions": info.questions,
            "images": info.images,
            "missing_images": info.missing_images,
            "missing_questions": info.missing_questions,
        },
        "train": None if cell.train is None else cell.train.model_dump(mode="json"),
        "training": training,
    }


def check_encoding(model: VQAModel, shard: Shard) -> None:
    """UserError unless a model that sees images gets them in the encoding it was trained on."""
    if not model.blind and model.cell.encoding != shard.manifest.spec:
        raise UserError(
            f"expected a shard with the encoding of the run, {model.cell.encoding}, got {shard.path} with "
            f"{shard.manifest.spec}; serialize the images with the run's encoding"
        )


def _answer(model: VQAModel, split: SplitReader, groups: list[Group], report: Progress) -> list[Prediction]:
    """Predictions for the questions of the groups, by the names of their own images; on every process all of them."""
    size = model.cell.evaluate.images_per_batch
    parts = [groups[first : first + size] for first in range(0, len(groups), size)][launch.rank() :: launch.world()]
    predictions: list[Prediction] = []
    names = split.images.column("image_filename").to_pylist()
    device = launch.device()
    model.to(device).eval()
    for place, batch in enumerate(batches(parts.__getitem__, partial(model.collate, split), range(len(parts)))):
        with torch.inference_mode():
            scores = score(model, batch.to(device)).cpu()
        present = batch.present.flatten()
        predictions += _records(split, names, batch.rows.flatten()[present].tolist(), scores, present, model)
        report(place + 1, len(parts))
    return launch.gather(predictions)


def _records(
    split: SplitReader, names: list[str], rows: list[int], scores: Scores, present: torch.Tensor, model: VQAModel
) -> Iterator[Prediction]:
    log_probs = scores.log_probs[present].tolist()
    greedy = scores.greedy[present].tolist()
    mass = None if scores.mass is None else scores.mass[present].tolist()
    free = None if scores.free is None else [f for f, there in zip(scores.free, present.tolist(), strict=True) if there]
    spelled = {letter: answer for answer, letter in LETTERS.items()} if model.cell.sequence.answer == "letter" else {}
    for i, row in enumerate(rows):
        rounded = [round(value, DECIMALS) for value in log_probs[i]]
        yield Prediction(
            question_index=int(split.question_index[row]),
            image=names[split.image_of_question[row]],
            question_type=split.question_type[row],
            group=GROUP_OF_TYPE[split.question_type[row]],
            answer=split.answer[row],
            prediction=ANSWERS[max(range(len(ANSWERS)), key=rounded.__getitem__)],
            log_probs=tuple(rounded),
            constrained_greedy=ANSWERS[greedy[i]],
            free_greedy=None if free is None else _text(free[i], spelled),
            trie_mass=None if mass is None else mass[i],
        )


def _text(answer: bytes | None, spelled: dict[str, str]) -> str | None:
    """Free greedy decoding as text: its letter's answer, else what was written; None without an end."""
    if answer is None:
        return None
    text = answer.decode("utf-8", errors="replace")
    return spelled.get(text, text)
