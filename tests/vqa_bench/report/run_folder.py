"""Makes run folders like those of an evaluation and of a pretraining run, from made-up predictions."""

import json
from copy import deepcopy
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from tests.vqa_bench.scoring.predictions import make_prediction
from vqa_bench.config import MBLMConfig, TrainConfig, overlay
from vqa_bench.data.sequences import SequenceConfig
from vqa_bench.data.vocab import ANSWERS, GROUP_OF_TYPE, QUESTION_TYPES
from vqa_bench.scoring.metrics import summarise
from vqa_bench.scoring.predictions import Prediction, correct_of, images_of, write_predictions
from vqa_bench.scoring.statistics import paired_difference

PARTS = ("image", "question", "answer")


def answers_of(
    questions: int, *, accuracy: float | dict[str, float], seed: int, writes: bool = False
) -> list[Prediction]:
    """Predictions whose chance to be right depends on the group and, a little, on the image.

    writes: of a model that writes bytes, so that they have a mass and are sometimes written otherwise.
    """
    generator, of_scores = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    of_image = np.random.default_rng(0).normal(0, 0.08, size=questions)  # the same images are hard for every model
    records = []
    for index in range(questions):
        group = GROUP_OF_TYPE[QUESTION_TYPES[index % len(QUESTION_TYPES)]]
        level = accuracy if isinstance(accuracy, float) else accuracy[group]
        is_right = generator.random() < np.clip(level + of_image[index // 10], 0, 1)
        answer = ANSWERS[index * 7 % len(ANSWERS)]
        wrong = ANSWERS[(index * 7 + 1) % len(ANSWERS)]
        prediction = answer if is_right else wrong
        changes = _scores(prediction, of_scores, writes=writes)
        records.append(make_prediction(index, answer=answer, prediction=prediction, **changes))
    return records


def _scores(prediction: str, generator: np.random.Generator, *, writes: bool) -> dict[str, Any]:
    """Log-probabilities of a confidence between 0.3 and 1, and what a model that writes bytes has beside them."""
    confidence, mass = generator.uniform(0.3, 1.0), generator.uniform(0.9, 1.0) if writes else 1.0
    log_probs = np.full(len(ANSWERS), np.log(mass * (1 - confidence) / (len(ANSWERS) - 1)))
    log_probs[ANSWERS.index(prediction)] = np.log(mass * confidence)
    changes: dict[str, Any] = {"log_probs": log_probs.round(6).tolist()}
    if writes:
        changes |= {"trie_mass": mass, "free_greedy": prediction if generator.random() < 0.9 else None}
    return changes


_SUMMARIES: dict[str, dict[str, Any]] = {}


def summary_of(predictions: list[Prediction]) -> dict[str, Any]:
    """`summarise`, once for the same predictions: its bootstraps are most of what a made-up run costs."""
    key = "".join(f"{p.answer}/{p.prediction}/{p.trie_mass} " for p in predictions)
    if key not in _SUMMARIES:
        _SUMMARIES[key] = summarise(predictions)
    return deepcopy(_SUMMARIES[key])


def majority_control(questions: int, *, accuracy: float = 0.3) -> dict[str, Any]:
    """What `controls` holds where the shard has a train split."""
    summary = summary_of(answers_of(questions, accuracy=accuracy, seed=99))
    return {"majority": {name: summary[name] for name in ("overall", "groups", "types")}}


def make_run(
    folder: Path,
    *,
    accuracy: float | dict[str, float],
    shuffled_accuracy: float | dict[str, float] | None = None,
    title: str | None = None,
    questions: int = 260,
    seed: int = 0,
    done: bool = True,
    facts: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run folder with result.json and predictions; blind if there is no `shuffled_accuracy`.

    `facts`, then `changes`, are laid over result.json.
    """
    folder.mkdir(parents=True)
    blind = shuffled_accuracy is None
    predictions = answers_of(questions, accuracy=accuracy, seed=seed, writes=not blind)
    write_predictions(folder / "predictions.jsonl", predictions)
    (folder / "config.json").write_text("{}\n")
    (folder / "model.safetensors").write_bytes(folder.name.encode())
    shuffled = vision_gain = None
    if shuffled_accuracy is not None:
        exchanged = answers_of(questions, accuracy=shuffled_accuracy, seed=seed + 1, writes=True)
        write_predictions(folder / "predictions-shuffled.jsonl", exchanged)
        shuffled = summary_of(exchanged)
        vision_gain = asdict(paired_difference(correct_of(predictions), correct_of(exchanged), images_of(predictions)))
    result = {
        "format": 2,
        "cell": folder.name,
        "title": folder.name if title is None else title,
        "model": {"kind": "lstm" if blind else "mblm", "parameters": 1_234_567, "blind": blind},
        "encoding": None if blind else "pixels:16x12,order=block4",
        "layout": None if blind else "iqa",
        "init": None,
        "seed": seed,
        "dataset": {"name": "mini", "questions": questions, "images": -(-questions // 10), "missing_images": 0},
        "answers": list(ANSWERS),
        "shard": {"path": "../shard", "split": "test", "spec": "pixels:16x12,order=block4", "manifest": "0" * 64},
        "hashes": {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())},
        "train": {"seconds": 12.5},
        "metrics": summary_of(predictions),
        "shuffled": shuffled,
        "vision_gain": vision_gain,
        "controls": None,
        "bits": None if blind else {part: {"bits_per_byte": 2.5, "bytes": 5_000} for part in PARTS},
        "cost": {"image_bytes": None if blind else 576.0, "train_flops": 1.5e12},
        "invariance": None,
    }
    (folder / "result.json").write_text(json.dumps(overlay(overlay(result, facts or {}), changes)))
    if done:
        (folder / "DONE").touch()
    return folder


BYTE_MODEL: dict[str, Any] = MBLMConfig.model_validate(
    {
        "hidden_dims": [96, 64],
        "seq_lens": [44, 24],
        "num_layers": [3, 1],
        "stages": [{"kind": "mamba"}, {"heads": 2, "head_dim": 32}],
    }
).model_dump(mode="json")
TRAINING = TrainConfig(steps=2100, learning_rate=4e-3, images_per_batch=32).model_dump(mode="json")


def byte_facts(init: str = "scratch", **changes: Any) -> dict[str, Any]:
    """What a byte model's result.json says beside its answers; `changes`, nested ones too, are laid over it."""
    facts = {
        "model": {"kind": "mblm", "parameters": 612_552, "blind": False, "config": BYTE_MODEL},
        "encoding": "pixels:16x12,order=block4",
        "layout": "iqa",
        "sequence": SequenceConfig().model_dump(mode="json"),
        "init": init,
        "initial": {"source": "text", "sha256": "0" * 64, "notes": []} if init == "pretrained" else None,
        "seed": 0,
        "train": TRAINING,
        "training": {"steps": 2100, "of_steps": 2100, "stopped": "steps"},
    }
    return overlay(facts, changes)


def make_byte_run(
    folder: Path, *, accuracy: float, draw: int, init: str = "scratch", done: bool = True, **changes: Any
) -> Path:
    """A run folder of a byte model with everything that a report compares; `draw` seeds its answers."""
    facts = byte_facts(init, **changes)
    return make_run(folder, accuracy=accuracy, shuffled_accuracy=0.4, seed=draw, done=done, facts=facts)


def make_pretraining(folder: Path, metrics: dict[str, dict[str, float]], *, done: bool = True, **changes: Any) -> Path:
    """The folder of a pretraining run; `changes` are laid over result.json."""
    folder.mkdir(parents=True)
    result = {
        "format": 1,
        "kind": "pretrain",
        "name": folder.name,
        "title": f"Narrated scenes, {folder.name}",
        "model": {"kind": "mblm", "parameters": 612_552, "config": BYTE_MODEL},
        "objective": "next_byte",
        "context": 256,
        "dataset": {"name": "synth-text", "splits": {}},
        "training": {"steps": 600, "of_steps": 600, "stopped": "steps"},
        "metrics": metrics,
    }
    (folder / "result.json").write_text(json.dumps(overlay(result, changes)))
    if done:
        (folder / "DONE").touch()
    return folder
