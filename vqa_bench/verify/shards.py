"""The shards that runs were tested on: found, hashed once however many runs share one, and held against predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqa_bench.data.manifest import MANIFEST_NAME, file_info
from vqa_bench.data.shards import Shard, SplitReader, open_shard
from vqa_bench.errors import UserError
from vqa_bench.scoring.predictions import Prediction

SHOWN = 3  # predictions of one kind of fault that are told


class Shards:
    """Where shards may lie beside where a result says. folders: shards, or folders of shards.

    Raises UserError for a folder that is neither.
    """

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._given = [shard for folder in folders for shard in _shards_in(folder)]
        self._faults: dict[Path, list[str]] = {}

    def find(self, stated: Path, manifest: str) -> Shard:
        """The shard whose manifest has that SHA-256, at its stated path or among those given.

        Raises UserError where there is none.
        """
        got = {path: _manifest_hash(path) for path in (*self._given, stated)}
        for path, found in got.items():
            if found == manifest:
                return open_shard(path)
        listed = ", ".join(f"{path} with {'none' if found is None else f'{found:.12}…'}" for path, found in got.items())
        raise UserError(
            f"expected a shard whose {MANIFEST_NAME} has SHA-256 {manifest:.12}…, got {listed}; name it with --shard "
            "DIR, or serialize it again"
        )

    def faults(self, shard: Shard) -> list[str]:
        """What is wrong with a shard's files; each shard is hashed once."""
        path = shard.path.resolve()
        if path not in self._faults:
            try:
                shard.verify()
                self._faults[path] = []
            except UserError as error:
                self._faults[path] = [str(error)]
        return self._faults[path]


def prediction_faults(predictions: Sequence[Prediction], split: SplitReader, *, where: str) -> list[str]:
    """Where predictions are not those of all questions of a split: a question, its image, type, answer or size."""
    rows = {int(index): row for row, index in enumerate(split.question_index)}
    names = split.images.column("image_filename").to_pylist()
    faults = []
    for prediction in predictions:
        row = rows.pop(prediction.question_index, None)
        if row is None:
            faults.append(f"expected a question of {where}, got question_index {prediction.question_index}")
            continue
        expected = {
            "image": names[split.image_of_question[row]],
            "question_type": split.question_type[row],
            "answer": split.answer[row],
            "num_objects": split.num_objects[row],
            "program_length": len(split.program(row)) or None,
        }
        faults += [
            f"question_index {prediction.question_index}, {name}: expected {value!r} as in {where}, "
            f"got {getattr(prediction, name)!r}"
            for name, value in expected.items()
            if getattr(prediction, name) != value
        ]
    if rows:
        total = len(split.question_index)
        faults.append(
            f"expected a prediction for each of {total:,} questions of {where}, got none for {len(rows):,}, the first "
            f"with question_index {min(rows)}"
        )
    more = [f"{len(faults) - SHOWN:,} more such faults"] if len(faults) > SHOWN else []
    return [f"{fault}; evaluate the cell again" for fault in faults[:SHOWN] + more]


def _shards_in(folder: Path) -> list[Path]:
    if (folder / MANIFEST_NAME).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    if not found:
        raise UserError(f"expected a shard, or a folder of shards, got {folder} without any; name another --shard")
    return found


def _manifest_hash(shard: Path) -> str | None:
    path = shard / MANIFEST_NAME
    return file_info(path).sha256 if path.is_file() else None
