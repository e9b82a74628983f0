"""Samples as compressed blocks of a page: what is chosen, how it is packed, and how many bytes that may take.

A block holds everything about some whole images; the blocks of a test set hold its images in a seeded random order, so
that the first blocks are a fair choice when not all fit. A pack is a JSON head and the bytes of arrays, compressed with
gzip and written in base64: what `unpack` in assets/data.js reads. Knows samples, not what a page looks like.
"""

import base64
import gzip
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqa_bench.data.encodings import JpegSpec, PngSpec, Spec, WebpSpec, parse_spec
from vqa_bench.errors import UserError
from vqa_bench.report.page.samples import Source, TestSet, smallest_type

IMAGES_OF_A_BLOCK = 50
SEED = 0
HEAD, TAIL = 64, 16  # bytes of an image that are shown of its sequence, where it has more

_JS_TYPES = {"uint8": "Uint8Array", "uint16": "Uint16Array", "uint32": "Uint32Array", "float64": "Float64Array"}


@dataclass
class Packed:
    """What was packed of a test set: the images (places in `TestSet.images`), block by block.

    index: packed, a row for every question of those images in the order of question_index.
    """

    blocks: list[NDArray[np.int64]] = field(default_factory=list)
    index: str = ""

    @property
    def images(self) -> int:
        return sum(len(block) for block in self.blocks)


def pack(head: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> str:
    """A JSON-able head with arrays of numbers, in base64.

    Before compression: the length of the head (4 bytes, little-endian), the head with the place and type of every
    array, the arrays.
    """
    places, parts, offset = {}, [], 0
    for name, array in (arrays or {}).items():
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        places[name] = [_JS_TYPES[array.dtype.name], offset, len(data)]
        parts.append(data)
        offset += len(data)
    text = json.dumps({**head, "arrays": places}, ensure_ascii=False, separators=(",", ":")).encode()
    raw = len(text).to_bytes(4, "little") + text + b"".join(parts)
    return base64.b64encode(gzip.compress(raw, 9, mtime=0)).decode("ascii")


def index_bound(test_set: TestSet) -> int:
    """Bytes that the packed index of any choice of images will not exceed.

    The columns that are known beforehand take no more for some of the rows than for all; where a question will lie is
    counted uncompressed, four bytes in four thirds as many characters.
    """
    everything = np.arange(len(test_set.question_index))
    nowhere = np.zeros(len(everything), np.uint8)
    known = len(pack({}, _index_arrays(test_set, everything, nowhere, nowhere)))
    return int(1.02 * known) + len(everything) * 4 * 4 // 3 + 4096


def pack_test_set(
    test_set: TestSet,
    budget: int,
    write: Callable[[int, str, str], None],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Pack whole images until `budget` bytes are used or all are packed.

    write: is given each block's number, its texts and its details, both packed. Nothing is written for a test set
    without a readable source, if the budget does not hold one block, or after the budget is used up.
    """
    order = np.random.default_rng(SEED).permutation(len(test_set.images))
    by_image = np.argsort(test_set.image, kind="stable")
    borders = np.searchsorted(test_set.image[by_image], np.arange(len(test_set.images) + 1))
    packed = Packed()
    block_of, place_of = (np.zeros(len(test_set.image), np.uint32) for _ in range(2))
    left = budget - index_bound(test_set)
    for number, first in enumerate(range(0, len(order), IMAGES_OF_A_BLOCK)):
        images = np.sort(order[first : first + IMAGES_OF_A_BLOCK])
        questions = np.concatenate([by_image[borders[image] : borders[image + 1]] for image in images])
        texts, details = _pack_texts(test_set, questions), _pack_details(test_set, images, questions)
        left -= len(texts) + len(details) + 200  # of markup around them
        if left < 0:
            break
        write(number, texts, details)
        block_of[questions], place_of[questions] = number, np.arange(len(questions))
        packed.blocks.append(images)
        if progress is not None:
            progress(first + len(images), len(order))
    chosen = np.flatnonzero(np.isin(test_set.image, np.concatenate([np.empty(0, np.int64), *packed.blocks])))
    packed.index = pack({}, _index_arrays(test_set, chosen, block_of[chosen], place_of[chosen]))
    return packed


def _index_arrays(
    test_set: TestSet, chosen: NDArray[Any], block: NDArray[Any], place: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Columns for filters: where a question is, what it is, and each cell's answer with its probability."""
    largest = int(test_set.question_index.max())
    numbers = np.float64 if largest >= 2**32 else np.uint32
    arrays: dict[str, NDArray[Any]] = {
        "question_index": test_set.question_index[chosen].astype(numbers),
        "block": block.astype(smallest_type(int(block.max(initial=0)) + 1)),
        "place": place.astype(smallest_type(int(place.max(initial=0)) + 1)),
        "type": test_set.kind[chosen],
        "answer": test_set.answer[chosen],
    }
    for number, cell in enumerate(test_set.cells):
        given = cell.given[chosen]
        arrays[f"given{number}"] = given
        arrays[f"sure{number}"] = cell.scores[chosen, given]
    return arrays


def _pack_texts(test_set: TestSet, questions: NDArray[np.int64]) -> str:
    """The questions of a block as text; nothing without a source to read them from."""
    return pack({"texts": _column(test_set.readable, "question", questions)})


def _pack_details(test_set: TestSet, images: NDArray[np.int64], questions: NDArray[np.int64]) -> str:
    """All else of a block: programs, scores of every cell, pictures and their bytes."""
    head: dict[str, Any] = {
        "images": [test_set.images[image] for image in images],
        "image": np.searchsorted(images, test_set.image[questions]).tolist(),
        "programs": [_program(text) for text in _column(test_set.readable, "program", questions)],
        "written": [
            {
                place: cell.written[question]
                for place, question in enumerate(questions.tolist())
                if question in cell.written
            }
            for cell in test_set.cells
        ],
    }
    arrays = {f"scores{number}": cell.scores[questions] for number, cell in enumerate(test_set.cells)}
    firsts = questions[np.searchsorted(test_set.image[questions], images)]  # a question of every image
    for number, source in enumerate(test_set.sources):
        if source.split is not None and source.rows is not None:
            rows = source.split.image_of_question[source.rows[firsts]]
            head[f"pictures{number}"], arrays[f"pictures{number}"] = _pictures(source, rows)
            head[f"bytes{number}"], arrays[f"bytes{number}"] = _ends(source, rows)
    return pack(head, arrays)


def _column(source: Source | None, name: str, questions: NDArray[np.int64]) -> list[str]:
    """A column of the questions' table, row by row: taking rows at once would first copy the whole column."""
    if source is None or source.split is None or source.rows is None:
        return []
    column = source.split.questions.column(name)
    return [column[row].as_py() for row in source.rows[questions].tolist()]


def _program(text: str) -> list[list[Any]]:
    """The nodes of a program as [function, inputs, words]; empty for none."""
    return [
        [str(node.get("function", node.get("type"))), node.get("inputs", []), node.get("value_inputs", [])]
        for node in json.loads(text or "[]")
    ]


def _pictures(source: Source, rows: NDArray[np.int64]) -> tuple[list[int], NDArray[np.uint8]]:
    """Files that a browser shows, one after the other, and the length of each; nothing where they cannot be made."""
    assert source.split is not None
    try:
        spec = parse_spec(source.spec)
        files = [_shown(spec, source.split.image_bytes(row).tobytes()) for row in rows.tolist()]
    except UserError:  # of an encoding whose module is not loaded here; its bytes can be shown all the same
        files = []
    return [len(file) for file in files], np.frombuffer(b"".join(files), np.uint8)


def _shown(spec: Spec, data: bytes) -> bytes:
    """The encoded picture as a file that every browser shows: the very bytes where they are one, else PNG."""
    if isinstance(spec, JpegSpec):
        return spec.file_bytes(data)
    if isinstance(spec, PngSpec | WebpSpec):
        return data
    buffer = io.BytesIO()
    spec.decode(data).save(buffer, format="png")
    return buffer.getvalue()


def _ends(source: Source, rows: NDArray[np.int64]) -> tuple[list[int], NDArray[np.uint8]]:
    """The lengths of encoded images, and the bytes of each: all of them, or the `HEAD` first and the `TAIL` last."""
    assert source.split is not None
    data = [source.split.image_bytes(row) for row in rows.tolist()]
    kept = [each if len(each) <= HEAD + TAIL else np.concatenate((each[:HEAD], each[-TAIL:])) for each in data]
    return [len(each) for each in data], np.concatenate(kept)
