"""Encodes image files in worker processes: results in order, few of them waiting at any time.

What a file may be is decided here: any still picture that Pillow reads whole. Kept apart from serialize.py because
workers import this file anew, and it is light. Knows nothing of datasets.
"""

import contextlib
import hashlib
import io
import multiprocessing
import os
import signal
import struct
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image, ImageOps

from vqa_bench.data.spec import Spec
from vqa_bench.errors import UserError

_IMAGES_PER_TASK = 16  # a tenth of a second for the release's, so that at the end no worker waits long for another
_BYTES_PER_TASK = 4 << 20  # of encoded images, as far as can be told from those before
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TASKS_PER_WORKER = 4  # handed out ahead: enough to keep workers busy while the rows before are written

Result = TypeVar("Result")


class EncodedImage(NamedTuple):
    """An encoded image; width and height (pixels, upright), size (bytes) and SHA-256 are those of the source file."""

    bytes: bytes
    width: int
    height: int
    file_size: int
    sha256: bytes


class ImagePool:
    """Worker processes that encode images; a context manager.

    Args:
        workers: number of processes; 1 works in this process.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._others = set(multiprocessing.active_children())
        if workers > 1:
            # Spawned, not forked: a fork of a process with threads (torch's, Arrow's) may hang.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
            for _ in range(workers):
                self._submit(int)  # starts the processes while the caller still reads its questions

    def __enter__(self) -> "ImagePool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for worker in set(multiprocessing.active_children()) - self._others:
                worker.terminate()  # else what they are at would be waited for
        self._pool.shutdown(cancel_futures=True)

    @property
    def workers(self) -> int:
        """The number of processes that work; 1 is this one."""
        return self._workers

    def in_order(self, function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Result]:
        """Calls a function with each tuple of arguments; results in order, and the tuples are drawn as needed.

        What the function raises is raised here, in its turn.
        """
        if self._pool is None:
            for task in tasks:
                yield function(*task)
            return
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            waiting.append(self._submit(function, *task))
            if len(waiting) == self._workers * _TASKS_PER_WORKER:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def _submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        assert self._pool is not None
        with _dead_workers_named(), _interrupts_held():
            return self._pool.submit(function, *arguments)

    @staticmethod
    def _result(future: Future[Result]) -> Result:
        with _dead_workers_named():
            return future.result()

    def encode(self, spec: Spec, paths: Iterable[Path]) -> Iterator[EncodedImage]:
        """Encodes image files; yields one result for each path, in the order of `paths`, which are drawn as needed.

        Raises:
            UserError: a file that is not a whole still image, or one that `spec` does not take; names it.
        """
        remaining, largest = iter(paths), spec.max_bytes()

        def tasks() -> Iterator[tuple[Spec, list[Path]]]:
            while True:
                # Small tasks while nothing is known of the size of what comes back, and single ones without a pool.
                fitting = 4 if largest is None else max(1, _BYTES_PER_TASK // max(1, largest))
                task = list(islice(remaining, 1 if self._pool is None else min(_IMAGES_PER_TASK, fitting)))
                if not task:
                    return
                yield spec, task

        for results in self.in_order(_encode_task, tasks()):
            largest = max(largest or 0, *(len(result.bytes) for result in results))
            yield from results


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits, and processes started in this block never get it: their parent does, and ends them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _dead_workers_named() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            "expected all worker processes to live, got one that was ended from outside, perhaps for want of memory; "
            "run the same command again with fewer --workers"
        ) from error


def _end_with_parent() -> None:
    """Watches the parent from a thread: workers of a killed process would otherwise wait for tasks for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _encode_task(spec: Spec, paths: Sequence[Path]) -> list[EncodedImage]:
    # Pillow refuses pictures of more than 180 million pixels, and only warns of those of more than half as many.
    with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
        return [_encode_file(spec, path) for path in paths]


def _encode_file(spec: Spec, path: Path) -> EncodedImage:
    data = path.read_bytes()
    image = _open(path, data)
    try:
        encoded = spec.encode(image)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return EncodedImage(encoded, image.width, image.height, len(data), hashlib.sha256(data).digest())


def _verify_png(data: bytes) -> None:
    """Raises what Pillow does for a PNG whose checksums are wrong: loading the picture does not look at them.

    Pillow checks no other format. Its own check of a PNG takes six times as long as this, a twentieth of all that is
    done for a picture of the release.
    """
    # Chunk by chunk as PNG's specification has it: length, kind, content, CRC of kind and content.
    view, start, kind = memoryview(data), len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        if len(data) < start + 12:
            raise SyntaxError(f"a PNG that ends at byte {len(data):,} without its last chunk")
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data) or zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise SyntaxError(f"a broken PNG: the chunk at byte {start:,} is cut off or has another checksum")
        start = end


def _open(path: Path, data: bytes) -> Image.Image:
    """The picture in a file, upright: turned as its EXIF orientation says, as every viewer shows it.

    Raises:
        UserError: no whole image; an animation, of which no frame is more right than another; too many pixels.
    """
    try:
        if data.startswith(_PNG_SIGNATURE):
            _verify_png(data)
        with Image.open(io.BytesIO(data)) as image:
            frames = getattr(image, "n_frames", 1)
            image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"expected an image of an ordinary size, got {path} with: {error}; make it smaller") from error
    except (
        Exception
    ) as error:  # Pillow's readers raise whatever broken bytes lead them to: SyntaxError, struct.error, …
        fault = "no format that Pillow reads" if isinstance(error, Image.UnidentifiedImageError) else error
        fault = " ".join(str(fault).split()) or type(error).__name__
        raise UserError(f"expected a whole image file, got {path} with: {fault}; download or make it again") from error
    if frames > 1 and image.format != "MPO":  # cameras' MPO files hold the picture first, then previews of it
        raise UserError(
            f"expected a still image, got {path} with {frames} frames; save one of them as a file of its own"
        )
    return image
