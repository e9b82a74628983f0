"""A split that is in memory: pictures and questions that no shard holds, read as if one did. Knows no models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.shards import IMAGE_SCHEMA, QUESTION_SCHEMA, ImageRow, QuestionRow, SplitReader, arrow_column


class MemorySplit(SplitReader):
    """Encoded images and questions about them, with everything that a `SplitReader` has. It can be pickled.

    images: their rows, in order. questions: their rows; each `image` is the place of one of the images. answers: the
    candidates of the questions.
    """

    def __init__(
        self, images: Sequence[ImageRow], questions: Sequence[QuestionRow], answers: Answers = CLEVR_ANSWERS
    ) -> None:
        self._rows, self.answers = (tuple(images), tuple(questions)), answers
        self.images = _table(IMAGE_SCHEMA, images)
        self.questions = _table(QUESTION_SCHEMA, questions)

    def __reduce__(self) -> Any:
        return MemorySplit, (*self._rows, self.answers)

    def __len__(self) -> int:
        return len(self._rows[0])

    def image_bytes(self, row: int) -> np.ndarray:
        """The encoded bytes of an image, (length,) uint8, read-only."""
        return np.frombuffer(self._rows[0][row].bytes, np.uint8)

    @property
    def image_lengths(self) -> np.ndarray:
        """(images,) int64: how many bytes each image has."""
        return np.array([len(image.bytes) for image in self._rows[0]], np.int64)


def _table(schema: pa.Schema, rows: Sequence[Sequence[object]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [() for _ in schema]
    return pa.table(
        [arrow_column(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )
