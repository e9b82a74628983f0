"""What may happen to an encoded picture on its way to a model: bits flip, the end or the header is lost, and the like.

Every damage is a pure function of a picture's bytes, a level and a seed. A level is a number that rises with the damage
and is 0 where there is none. Knows encodings; knows no shards, questions or models.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from PIL import Image, ImageFile

from vqa_bench.data.encodings import JpegSpec, PixelSpec
from vqa_bench.data.spec import Size, Spec, quantise

FLIPPED = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # probabilities, each of one bit
KEPT_PERCENT = (90, 75, 50, 25, 10, 0)
QUALITIES = (90, 75, 50, 30, 20, 10, 5, 1)
KEPT_BITS = (7, 6, 5, 4, 3, 2, 1)
UNDAMAGED = "undamaged"  # the label of level 0

Seed = Sequence[int]


@dataclass(frozen=True)
class Damage:
    """A kind of damage at one level.

    name: of the kind. level: above 0, comparable within the kind only. label: the level in words. apply: the damaged
    bytes of a picture, for its own bytes and a seed that is its own too.
    """

    name: str
    level: float
    label: str
    apply: Callable[[bytes, Seed], bytes]


def damages_of(spec: Spec) -> list[Damage]:
    """Every damage that makes sense for an encoding, kind by kind, levels rising."""
    return [*_flips(), *_cuts(), *_headers(spec), *_qualities(spec), *_low_bits(spec)]


def _flips() -> Iterator[Damage]:
    for rate in FLIPPED:
        yield Damage("bits flipped", rate, f"1 bit in {round(1 / rate):,}", partial(flip_bits, rate=rate))


def _cuts() -> Iterator[Damage]:
    for kept in KEPT_PERCENT:
        label = f"first {kept} %" if kept else "nothing left"
        yield Damage("end cut off", (100 - kept) / 100, label, _any_seed(partial(keep_first, percent=kept)))


def _headers(spec: Spec) -> Iterator[Damage]:
    if spec.kind in HEADERS and not _without_tables(spec):
        yield Damage("header removed", 1.0, "no header", _any_seed(partial(without_header, kind=spec.kind)))


def _qualities(spec: Spec) -> Iterator[Damage]:
    """Only below the pictures' own quality: above it nothing more is lost. A file without tables cannot say its own."""
    if isinstance(spec, JpegSpec) and not _without_tables(spec):
        for q in (q for q in QUALITIES if q < spec.q):
            change = partial(at_quality, spec=spec, quality=q)
            yield Damage("JPEG quality", 100.0 - q, f"quality {q}", _any_seed(change))


def _low_bits(spec: Spec) -> Iterator[Damage]:
    """Where bytes are the values themselves: `codes` are numbers of bins, whose low bits mean something else."""
    if isinstance(spec, PixelSpec) and spec.codes is None:
        for bits in (bits for bits in KEPT_BITS if spec.bits is None or bits < spec.bits):
            label = f"{bits} bits" if bits > 1 else "1 bit"
            yield Damage("low bits dropped", 8.0 - bits, label, _any_seed(partial(keep_bits, bits=bits)))


def _any_seed(change: Callable[[bytes], bytes]) -> Callable[[bytes, Seed], bytes]:
    """A damage that leaves nothing to chance."""
    return lambda data, seed: change(data)


def _without_tables(spec: Spec) -> bool:
    return isinstance(spec, JpegSpec) and spec.tables == "drop"


def flip_bits(data: bytes, seed: Seed, *, rate: float) -> bytes:
    """Every bit flipped with probability `rate`, independently.

    Drawn as how many, then which: the same distribution as a draw for every bit.
    """
    random, bits = np.random.default_rng(seed), 8 * len(data)
    flipped = np.zeros(bits, np.uint8)
    flipped[random.choice(bits, random.binomial(bits, rate), replace=False, shuffle=False)] = 1
    return (np.frombuffer(data, np.uint8) ^ np.packbits(flipped)).tobytes()


def keep_first(data: bytes, *, percent: int) -> bytes:
    """The first `percent` of the bytes, rounded down."""
    return data[: len(data) * percent // 100]


def without_header(data: bytes, *, kind: str) -> bytes:
    """What follows the header: of a PNG the data of its first IDAT chunk on (PNG specification, 5.3), of a JPEG the
    entropy-coded data of its scan (ITU-T T.81, B.2.3), of a BMP the pixels.

    kind: one of `HEADERS`. data: as the encoding wrote it.
    """
    return data[HEADERS[kind](data) :]


def at_quality(data: bytes, *, spec: JpegSpec, quality: int) -> bytes:
    """The picture that the bytes show, written again with another quality and the spec's other settings.

    It is cropped already.
    """
    return replace(spec, q=quality, crop=None).encode(spec.decode(data))


def keep_bits(data: bytes, *, bits: int) -> bytes:
    """Every byte at the centre of its bin, 2^bits bins over 0..255, as an encoding with `bits` writes it."""
    return quantise(np.frombuffer(data, np.uint8), bits).tobytes()


def _png_header(data: bytes) -> int:
    position = 8  # behind the signature. A chunk is the length of its data, its type, the data, and a checksum
    while data[position + 4 : position + 8] != b"IDAT":
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return position + 8


def _jpeg_header(data: bytes) -> int:
    position, marker = 2, 0  # behind the start of the image. A segment is FF, its marker, and a length with itself
    while marker != 0xDA:  # start of scan
        marker = data[position + 1]
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return position


def _bmp_header(data: bytes) -> int:
    return int.from_bytes(data[10:14], "little")  # bfOffBits: where the pixels begin


HEADERS: dict[str, Callable[[bytes], int]] = {"png": _png_header, "jpeg": _jpeg_header, "bmp": _bmp_header}
"""Kind of file → how many bytes its header has."""


def strictly_decoded(spec: Spec, data: bytes, size: Size | None = None) -> Image.Image | None:
    """The picture that bytes stand for; None where the encoding's decoder refuses them.

    Any exception of the decoder is a refusal, and any warning. size: (W, H) that the picture must have (a damaged
    header can ask for another); None for any.
    """
    with warnings.catch_warnings(), _no_truncated_files():
        warnings.simplefilter("error")
        try:
            picture = spec.decode(data)
        except MemoryError:
            raise  # says nothing of the bytes
        except Exception:  # what a decoder raises for damaged bytes is its own affair: struct.error, IndexError, …
            return None
    return picture if size is None or picture.size == size else None


@contextmanager
def _no_truncated_files() -> Iterator[None]:
    """Pillow can be told to show what there is of a file; here a file is whole or refused."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
