"""Shards: the encoded images of a dataset, each stored once, with their questions beside them. One writer, one reader.

    <shard>/manifest.json   <shard>/<split>/images.arrow   <shard>/<split>/questions.arrow

The tables are Arrow streams as `datasets.Dataset.from_file` reads them; they are memory-mapped, so opening a shard
costs nothing and image bytes are never copied. This file knows nothing of encodings, CLEVR's JSON or torch.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vqa_bench.data.answers import CLEVR_ANSWERS, Answers
from vqa_bench.data.manifest import Manifest, file_info, read_manifest
from vqa_bench.errors import UserError

# Rows and image bytes of one record batch at most (a larger image is a batch of its own). Fixed, because the bytes of a
# file depend on them; small, because a batch is held in memory while it is written, and Arrow allows it 2 GiB.
BATCH_ROWS = 256
BATCH_BYTES = 128 << 20
IMAGE_SCHEMA = pa.schema(
    [
        pa.field("image_filename", pa.string(), nullable=False),
        pa.field("image_index", pa.int64(), nullable=False),
        pa.field("bytes", pa.binary(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
)
QUESTION_SCHEMA = pa.schema(
    [
        pa.field("question_index", pa.int64(), nullable=False),
        pa.field("image", pa.int64(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("question_type", pa.string(), nullable=False),
        pa.field("family_index", pa.int64()),
        pa.field("program", pa.string(), nullable=False),
        pa.field("num_objects", pa.int64()),
    ]
)


class ImageRow(NamedTuple):
    """A row of `images.arrow`; width and height (pixels) are those of the source image."""

    image_filename: str
    image_index: int
    bytes: bytes
    width: int
    height: int


class QuestionRow(NamedTuple):
    """A row of `questions.arrow`; `image` is a row of `images.arrow`, `program` JSON, None what is not known."""

    question_index: int
    image: int
    question: str
    answer: str
    question_type: str
    family_index: int | None
    program: str
    num_objects: int | None


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[Sequence[Any]]) -> None:
    """Writes rows (tuples in the order of the schema) as an Arrow stream; holds one batch of them at a time."""
    binary = [column for column, field in enumerate(schema) if field.type == pa.binary()]
    with _stream(path, schema) as writer:
        for batch in _batches(rows, binary):
            columns = [
                arrow_column(column, field.type) for column, field in zip(zip(*batch, strict=True), schema, strict=True)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))


def arrow_column(values: Any, kind: pa.DataType) -> pa.Array:
    """Integers, texts or bytes (None for null) as an Arrow array, the one that `pa.array` makes.

    That would first import pandas, half a second of work, to see whether the values are pandas'.
    """
    present = [value is not None for value in values]
    nulls = present.count(False)
    validity = pa.py_buffer(np.packbits(present, bitorder="little")) if nulls else None
    if kind in (pa.string(), pa.binary()):
        data = [value if isinstance(value, bytes) else (value or "").encode() for value in values]
        offsets = np.zeros(len(data) + 1, np.int32)
        np.cumsum([len(item) for item in data], out=offsets[1:])
        buffers = [validity, pa.py_buffer(offsets), pa.py_buffer(b"".join(data))]
    else:
        numbers = [0 if value is None else value for value in values] if nulls else values
        buffers = [validity, pa.py_buffer(np.array(numbers, kind.to_pandas_dtype()))]
    return pa.Array.from_buffers(kind, len(present), buffers, null_count=nulls)


def _batches(rows: Iterable[Sequence[Any]], binary: Sequence[int]) -> Iterator[list[Sequence[Any]]]:
    """The rows in lists of `BATCH_ROWS`, or of fewer where the columns `binary` have more than `BATCH_BYTES`."""
    batch: list[Sequence[Any]] = []
    held = 0
    for row in rows:
        size = sum(len(row[column]) for column in binary)
        if len(batch) == BATCH_ROWS or (batch and held + size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(row)
        held += size
    if batch:
        yield batch


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of an Arrow stream, one at a time; read, not mapped, so that no more is held."""
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as reader:
        yield from reader


@contextmanager
def _stream(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        yield writer


def open_shard(path: Path) -> "Shard":
    """Opens a shard for reading.

    Raises:
        UserError: `path` is not a shard, or one of another version.
    """
    return Shard(path, read_manifest(path))


class Shard:
    """An open shard. It can be pickled: the copy opens the same folder again.

    Attributes:
        path: the folder.
        manifest: what it says about itself.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @cached_property
    def answers(self) -> Answers:
        """The candidates of all its questions."""
        names = self.manifest.answers
        return CLEVR_ANSWERS if names is None else Answers(tuple(names))

    def split(self, name: str) -> "SplitReader":
        """The reader of a split.

        Raises:
            UserError: no such split, or its files are missing or hold more or less than the manifest says.
        """
        if name not in self.manifest.splits:
            raise UserError(f"expected a split of {self.path} ({', '.join(self.manifest.splits)}), got '{name}'")
        reader, info = SplitReader(self.path / name, self.answers), self.manifest.splits[name]
        got = (reader.images.num_rows, reader.questions.num_rows)
        if got != (info.images, info.questions):
            raise UserError(
                f"expected {info.images:,} images and {info.questions:,} questions in split {name} of {self.path}, as "
                f"its manifest says, got {got[0]:,} and {got[1]:,}; serialize again"
            )
        return reader

    def verify(self) -> None:
        """Hashes all files again.

        Raises:
            UserError: a file is missing or is not what was written; names it.
        """
        for name, info in self.manifest.files.items():
            path = self.path / name
            if not path.is_file():
                raise UserError(f"expected {path} as the manifest says, got no such file; serialize again")
            if file_info(path) != info:
                raise UserError(f"expected {path} with SHA-256 {info.sha256:.12}…, got a changed file; serialize again")


class SplitReader:
    """The images and questions of one split; `len()` is the number of images. It can be pickled.

    Attributes:
        images: Arrow table, a row an image; its columns are those of `ImageRow`.
        questions: Arrow table, a row a question; its columns are those of `QuestionRow`.
        answers: the candidates of the questions.
    """

    answers: Answers = CLEVR_ANSWERS

    def __init__(self, folder: Path, answers: Answers = CLEVR_ANSWERS) -> None:
        self._folder, self.answers = folder, answers
        self._file, self.images = _map_table(folder / "images.arrow")
        _, self.questions = _map_table(folder / "questions.arrow")
        self._begin, self._end = _byte_ranges(self._file, self.images.column("bytes"))

    def __reduce__(self) -> tuple[type["SplitReader"], tuple[Path, Answers]]:
        return SplitReader, (self._folder, self.answers)

    def __len__(self) -> int:
        return len(self._begin)

    def image_bytes(self, row: int) -> np.ndarray:
        """The encoded bytes of an image, (length,) uint8: a read-only view of the file, not a copy."""
        return self._file[self._begin[row] : self._end[row]]

    @property
    def image_lengths(self) -> np.ndarray:
        """(images,) int64: how many bytes each image has."""
        return self._end - self._begin

    @cached_property
    def image_of_question(self) -> np.ndarray:
        """(questions,) int64: the row of each question's image."""
        return self.questions.column("image").to_numpy()

    @cached_property
    def question_index(self) -> np.ndarray:
        """(questions,) int64: the source's own number of each question."""
        return self.questions.column("question_index").to_numpy()

    @cached_property
    def question(self) -> list[str]:
        """The text of each question."""
        return self.questions.column("question").to_pylist()

    @cached_property
    def answer(self) -> list[str]:
        """The right answer of each question."""
        return self.questions.column("answer").to_pylist()

    @cached_property
    def question_type(self) -> list[str]:
        """The type of each question: one of `vocab.QUESTION_TYPES`, or in another data set a text of its own."""
        return self.questions.column("question_type").to_pylist()

    @cached_property
    def family_index(self) -> list[int | None]:
        """The template that each question was made from, None where the source does not say."""
        return self.questions.column("family_index").to_pylist()

    @cached_property
    def num_objects(self) -> list[int | None]:
        """The number of objects in each question's scene, None where there is no scene."""
        return self.questions.column("num_objects").to_pylist()

    @cached_property
    def questions_of_image(self) -> list[np.ndarray]:
        """For each image the rows of its questions, int64, rising."""
        order = np.argsort(self.image_of_question, kind="stable")
        counts = np.bincount(self.image_of_question, minlength=len(self))
        return np.split(order, np.cumsum(counts)[:-1]) if len(self) else []

    def program(self, row: int) -> list[dict[str, Any]]:
        """The program of a question: nodes with `function`, `inputs` and `value_inputs`; empty if it has none."""
        return json.loads(self.questions.column("program")[row].as_py())


def _map_table(path: Path) -> tuple[np.ndarray, pa.Table]:
    """The bytes of a file as a (size,) uint8 view, and its Arrow table, whose buffers lie in those bytes."""
    if not path.is_file():
        raise UserError(f"expected a table of the shard at {path}, got no such file; serialize again")
    try:
        mapped = pa.memory_map(str(path)).read_buffer()
        return np.frombuffer(mapped, np.uint8), pa.ipc.open_stream(mapped).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"expected an Arrow stream, got {path} with: {error}; serialize again") from error


def _byte_ranges(file: np.ndarray, column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Where in the file each value of a binary column begins and ends, two arrays (rows,) int64.

    Arrow keeps a chunk of n values as n + 1 offsets (int32) into one buffer of their bytes.
    """
    begin, end = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for chunk in column.chunks:
        _, offsets_buffer, data = chunk.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int32, len(chunk) + 1, chunk.offset * 4).astype(np.int64)
        offsets += data.address - file.ctypes.data
        begin.append(offsets[:-1])
        end.append(offsets[1:])
    return np.concatenate(begin), np.concatenate(end)
