"""Encodes image files in worker processes: results in order, few of them waiting at any time.

Kept apart from serialize.py because workers import this file anew, and it is light. Knows nothing of datasets.
"""

import hashlib
import io
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vqa_bench.data.spec import Spec
from vqa_bench.errors import UserError

_IMAGES_PER_TASK = 64
_TASKS_PER_WORKER = 4  # handed out ahead: enough to keep workers busy while the rows before are written


class EncodedImage(NamedTuple):
    """An encoded image; width and height (pixels), size (bytes) and hash are those of the source file."""

    bytes: bytes
    width: int
    height: int
    file_size: int
    sha256: str


class ImagePool:
    """Worker processes that encode images; a context manager.

    Args:
        workers: number of processes; 1 works in this process.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            # Spawned, not forked: a fork of a process with threads (torch's, Arrow's) may hang.
            self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
            self._pool.submit(int)  # starts the processes while the caller still reads its questions

    def __enter__(self) -> "ImagePool":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def encode(self, spec: Spec, paths: Sequence[Path]) -> Iterator[EncodedImage]:
        """Encodes image files; yields one result for each path, in the order of `paths`.

        Raises:
            UserError: a file that is not a whole image; names it.
        """
        tasks = (paths[start : start + _IMAGES_PER_TASK] for start in range(0, len(paths), _IMAGES_PER_TASK))
        if self._pool is None:
            for task in tasks:
                yield from _encode_task(spec, task)
            return
        waiting: deque[Future[list[EncodedImage]]] = deque()
        for task in tasks:
            waiting.append(self._pool.submit(_encode_task, spec, task))
            if len(waiting) == self._workers * _TASKS_PER_WORKER:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _encode_task(spec: Spec, paths: Sequence[Path]) -> list[EncodedImage]:
    return [_encode_file(spec, path) for path in paths]


def _encode_file(spec: Spec, path: Path) -> EncodedImage:
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.verify()  # the checksums, which loading a PNG does not look at
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"expected a whole image file, got {path} with: {error}; download or make it again") from error
    digest = hashlib.sha256(data).hexdigest()
    return EncodedImage(spec.encode(image), image.width, image.height, len(data), digest)
