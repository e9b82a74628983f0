"""The questions of a split as arrays: where each one's bytes lie, and which answer it has.

No Python object a question: 16 bytes each, beside the table's own memory-mapped text. What reads many of them at once
uses this; the lists of `SplitReader` are for looking at single ones. Knows neither ids nor torch.
"""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vqa_bench.data.answers import Answers
from vqa_bench.data.shards import SplitReader
from vqa_bench.errors import UserError


class Questions(NamedTuple):
    """n questions: the i-th is `text[begin[i] : begin[i] + lengths[i]]`.

    text: (bytes,) uint8, read-only memory in which the texts lie, with other things between them. begin: (n,) int64.
    lengths: (n,) int32, in bytes. answers: (n,) int32, each right answer as its place in the split's `answers`.
    """

    text: np.ndarray
    begin: np.ndarray
    lengths: np.ndarray
    answers: np.ndarray

    def take(self, rows: np.ndarray) -> "Questions":
        """The questions of the given rows; their text is not copied."""
        return Questions(self.text, self.begin[rows], self.lengths[rows], self.answers[rows])


_MADE: "WeakKeyDictionary[SplitReader, Questions]" = WeakKeyDictionary()


def questions_of(split: SplitReader) -> Questions:
    """The questions of a split, row by row, made once for as long as its reader lives.

    Raises:
        UserError: an answer that is not among the split's `answers`.
    """
    made = _MADE.get(split)
    if made is None:
        answers = _places(split.questions.column("answer"), split.answers)
        made = _MADE[split] = Questions(*_strings(split.questions.column("question")), answers)
    return made


def _strings(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One view of the memory that holds all strings of a column, where each begins in it, and their lengths.

    Arrow keeps a chunk of n strings as n + 1 offsets (int32) into one buffer of their bytes; the buffers of all chunks
    lie in one mapped file. What lies between them is never looked at.
    """
    chunks = [(chunk, *chunk.buffers()[1:]) for chunk in column.chunks if len(chunk)]
    if not chunks:
        return np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int32)
    first = min(data.address for _, _, data in chunks)
    size = max(data.address + data.size for _, _, data in chunks) - first
    text = np.frombuffer(pa.foreign_buffer(first, size, base=column), np.uint8)
    begin, lengths = [], []
    for chunk, offsets_buffer, data in chunks:
        offsets = np.frombuffer(offsets_buffer, np.int32, len(chunk) + 1, chunk.offset * 4)
        begin.append(offsets[:-1].astype(np.int64) + (data.address - first))
        lengths.append(np.diff(offsets))
    return text, np.concatenate(begin), np.concatenate(lengths)


def _places(column: pa.ChunkedArray, answers: Answers) -> np.ndarray:
    """(questions,) int32; UserError for an answer that is none of `answers`."""
    places = pc.index_in(column, value_set=pa.array(answers.names))
    if places.null_count:
        unknown = column.filter(pc.is_null(places))[0].as_py()
        raise UserError(f"expected one of the shard's {len(answers)} answers, got {unknown!r}; serialize again")
    return places.to_numpy()
