"""Image encodings: how a picture becomes the bytes that a model reads, and how those become a picture again.

Pure functions of a picture and a spec. A new encoding is one class under `@register`, here or in a user's module; what
all of them share (options, cropping, resizing) is in spec.py. This file knows nothing of datasets, folders or models.

Glossary: W, H the picture's width and height, C its channels.
"""

import io
import re
from dataclasses import dataclass, field, is_dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from PIL import Image, features

from vqa_bench.data.scan import parse_block, scan_order
from vqa_bench.data.spec import Option, Spec, choice, integer, parse_integer, quantise
from vqa_bench.errors import UserError

__all__ = [
    *("KINDS", "PRESETS", "BmpSpec", "JpegSpec", "PixelSpec", "PngSpec", "Spec", "WebpSpec"),
    *("codec_versions", "parse_spec", "register"),
]

SpecType = TypeVar("SpecType", bound=Spec)

KINDS: dict[str, type[Spec]] = {}
"""Kind → its class; filled by `register`."""

PRESETS: dict[str, str] = {
    "paper": "pixels:62x41,crop=10%,order=planar",
    "paper-3bit": "pixels:62x41,crop=10%,bits=3,order=planar",
    "paper-3bit-codes": "pixels:62x41,crop=10%,bits=3,order=planar,codes=0",
    "paper-500k": "pixels:480x320,order=planar",
}
"""Name → spec: what the byte-level paper (arXiv 2502.14553) trained on, and the full pixels of its 500K context. Its
JPEG streams have no name here, because their quality is not published."""

_CODECS = ("pil", "zlib", "zlib_ng", "libjpeg_turbo", "webp")


def register(kind: type[SpecType]) -> type[SpecType]:
    """Adds an encoding to `KINDS`, so that `parse_spec` reads it; a class decorator, also for modules outside.

    The class is a frozen dataclass derived from `Spec` with a `kind` of its own. It must be importable by its module's
    name, as worker processes import it anew.

    Raises:
        ValueError: not such a class, or its kind is taken.
    """
    name = getattr(kind, "kind", None)
    if not (issubclass(kind, Spec) and is_dataclass(kind)):
        raise ValueError(f"expected a dataclass derived from Spec, got {kind.__name__}")
    if not isinstance(name, str) or re.fullmatch("[a-z][a-z0-9_]*", name) is None:
        raise ValueError(f"expected {kind.__name__}.kind of small letters, digits and _, got {name!r}")
    if name in KINDS and _origin(KINDS[name]) != _origin(kind):
        raise ValueError(f"expected a kind other than {', '.join(KINDS)}, got {kind.__name__}.kind = {name!r}")
    KINDS[name] = kind
    return kind


def _origin(kind: type[Spec]) -> tuple[str, str]:
    """Where a class is written. A worker process knows the main module by another name than its parent."""
    return kind.__module__.replace("__mp_main__", "__main__"), kind.__qualname__


def codec_versions() -> dict[str, str]:
    """The versions of Pillow and of the libraries behind it that write image files, those that this Pillow has."""
    return {name: version for name in _CODECS if (version := features.version(name)) is not None}


def _parse_order(text: str) -> str:
    block = parse_block(text)
    if block is not None:
        width, height = block
        return f"block{width}" if width == height else f"block{width}x{height}"
    if text not in ("raster", "planar", "hilbert"):
        raise ValueError(text)
    return text


def _parse_webp_quality(text: str) -> int | str:
    return text if text == "lossless" else parse_integer(text, 0, 100)


_ORDER = {"option": Option("raster|planar|blockN|blockWxH|hilbert", _parse_order)}
_WEBP_QUALITY = {"option": Option("0..100|lossless", _parse_webp_quality)}


@register
@dataclass(frozen=True, kw_only=True)
class PixelSpec(Spec):
    """Uncompressed channel values, W·H·C bytes, in a scan order.

    Attributes:
        order: `planar` writes one channel after the other (the paper's); all others keep a pixel's channels together:
            `raster` row by row, `blockN`/`blockWxH` tile by tile, `hilbert` along a space-filling curve.
        color: `rgb`, `ycbcr` (both C = 3) or `gray` (C = 1).
        codes: with `bits`, writes the number of each value's bin, counted from this one, instead of the bin's centre:
            3 bits with codes=0 are the bytes 0..7. None for the centres.
    """

    kind = "pixels"
    host_dependent = False
    host_reason = "Pillow's own resizing and colour conversion, in integers"

    order: str = field(default="raster", metadata=_ORDER)
    color: Literal["rgb", "gray", "ycbcr"] = field(default="rgb", metadata=choice("rgb", "gray", "ycbcr"))
    codes: int | None = field(default=None, metadata=integer(0, 255))

    _MODES: ClassVar[dict[str, str]] = {"rgb": "RGB", "gray": "L", "ycbcr": "YCbCr"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is None:
            raise self._error("size=WxH", "native; pixels do not carry their size with them")
        if self.codes is not None and (self.bits is None or self.codes + 2**self.bits > 256):
            bits = "no bits" if self.bits is None else f"bits={self.bits}"
            raise self._error("bits with codes, and codes + 2^bits at most 256", f"{bits},codes={self.codes}")

    def encode(self, image: Image.Image) -> bytes:
        picture = self.picture(image, self.lossless_mode())
        values = np.asarray(picture).reshape(picture.width * picture.height, -1)  # (H·W, C)
        if self.codes is not None and self.bits is not None:
            values = (values >> (8 - self.bits)) + np.uint8(self.codes)
        if self.order == "planar":
            return values.T.tobytes()  # (C, H·W)
        if self.order == "raster":
            return values.tobytes()
        return values[scan_order(self.order, *picture.size)].tobytes()

    def decode(self, data: bytes) -> Image.Image:
        assert self.size is not None
        if len(data) != self.max_bytes():
            raise UserError(f"image encoding {self}: expected {self.max_bytes()} bytes, got {len(data)}")
        width, height = self.size
        values = np.frombuffer(data, np.uint8)
        if self.codes is not None and self.bits is not None:
            values = self._centres_of_codes(values)
        if self.order == "planar":
            pixels = values.reshape(-1, width * height).T  # (H·W, C)
        else:
            written = values.reshape(width * height, -1)  # (H·W, C)
            pixels = np.empty_like(written)
            pixels[scan_order(self.order, width, height)] = written
        return Image.frombytes(self.lossless_mode(), self.size, pixels.tobytes()).convert("RGB")

    def _centres_of_codes(self, values: np.ndarray) -> np.ndarray:
        """The inverse of writing codes: each code's bin centre, the same shape."""
        assert self.codes is not None
        assert self.bits is not None
        codes = values.astype(np.int64) - self.codes
        if codes.min() < 0 or codes.max() >= 2**self.bits:
            written = f"{self.codes}..{self.codes + 2**self.bits - 1}"
            raise self._error(f"bytes {written}", f"{values.min()}..{values.max()}")
        return quantise((codes << (8 - self.bits)).astype(np.uint8), self.bits)

    def lossless_mode(self) -> str:
        return self._MODES[self.color]

    def max_bytes(self) -> int:
        assert self.size is not None
        width, height = self.size
        return width * height * (1 if self.color == "gray" else 3)


class FileSpec(Spec):
    """An encoding whose bytes are a whole image file, exactly as Pillow writes it."""

    def _save_options(self) -> dict[str, Any]:
        return {}

    def _file(self, picture: Image.Image) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, format=self.kind, **self._save_options())
        return buffer.getvalue()

    def encode(self, image: Image.Image) -> bytes:
        return self._file(self.picture(image))

    def decode(self, data: bytes) -> Image.Image:
        try:
            with Image.open(io.BytesIO(data), formats=[self.kind]) as picture:
                return picture.convert("RGB")
        except (OSError, SyntaxError) as error:  # SyntaxError is how Pillow reports a broken PNG
            raise self._error(f"a whole {self.kind} file", f"bytes that do not decode: {error}") from error


@register
@dataclass(frozen=True, kw_only=True)
class PngSpec(FileSpec):
    """A PNG file. The bytes depend on the zlib behind Pillow; `level` is zlib's, 0 (stored) to 9."""

    kind = "png"
    host_reason = "the zlib (or zlib-ng) behind Pillow; the pixels stay the same"

    level: int = field(metadata=integer(0, 9))

    def lossless_mode(self) -> str:
        return "RGB"

    def _save_options(self) -> dict[str, Any]:
        return {"compress_level": self.level}


@register
@dataclass(frozen=True, kw_only=True)
class JpegSpec(FileSpec):
    """A baseline JPEG file.

    Attributes:
        q: libjpeg's quality 0..100 (which takes 0 for 1).
        color: `ycbcr` as nearly all JPEG files, chroma at half resolution; `rgb` stores the channels themselves.
        tables: `drop` leaves out all that is the same for every picture of this size and quality: the header with
            the quantisation and Huffman tables, and the end marker. What remains is the entropy-coded picture.
    """

    kind = "jpeg"
    host_reason = "the libjpeg behind Pillow"

    q: int = field(metadata=integer(0, 100))
    color: Literal["ycbcr", "rgb"] = field(default="ycbcr", metadata=choice("ycbcr", "rgb"))
    tables: Literal["keep", "drop"] = field(default="keep", metadata=choice("keep", "drop"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tables == "drop" and self.size is None:
            raise self._error("size=WxH with tables=drop", "native; the dropped header holds the size")

    def _save_options(self) -> dict[str, Any]:
        return {"quality": self.q, "keep_rgb": self.color == "rgb"}

    def encode(self, image: Image.Image) -> bytes:
        file = super().encode(image)
        if self.tables == "keep":
            return file
        header, end = _constant_ends(self)
        if not (file.startswith(header) and file.endswith(end)):
            raise RuntimeError(f"image encoding {self}: this Pillow's JPEG header depends on the picture")
        return file[len(header) : -len(end)]

    def file_bytes(self, data: bytes) -> bytes:
        """The whole JPEG file that the encoded bytes stand for, exactly as Pillow wrote it."""
        if self.tables == "keep":
            return data
        header, end = _constant_ends(self)
        return header + data + end

    def decode(self, data: bytes) -> Image.Image:
        return super().decode(self.file_bytes(data))


@lru_cache(maxsize=64)
def _constant_ends(spec: JpegSpec) -> tuple[bytes, bytes]:
    """What every file of a spec begins and ends with: all up to the scan's data, and the end-of-image marker."""
    assert spec.size is not None
    file = spec._file(Image.new("RGB", spec.size))
    position, marker = 2, 0  # after the two bytes of the start-of-image marker
    while marker != 0xDA:  # start of scan. A segment is FF, its marker, and a length that counts itself too
        marker = file[position + 1]
        position += 2 + int.from_bytes(file[position + 2 : position + 4], "big")
    return file[:position], file[-2:]


@register
@dataclass(frozen=True, kw_only=True)
class WebpSpec(FileSpec):
    """A WebP file: `q` is a quality 0..100, or `lossless`."""

    kind = "webp"
    host_reason = "the libwebp behind Pillow"

    q: int | Literal["lossless"] = field(metadata=_WEBP_QUALITY)

    def lossless_mode(self) -> str | None:
        return "RGB" if self.q == "lossless" else None

    def _save_options(self) -> dict[str, Any]:
        return {"lossless": True} if self.q == "lossless" else {"quality": self.q}


@register
@dataclass(frozen=True, kw_only=True)
class BmpSpec(FileSpec):
    """A 24-bit BMP file: a header of 54 bytes, then the rows from the lowest up, channels as blue, green, red."""

    kind = "bmp"
    host_dependent = False
    host_reason = "Pillow's own resizing, in integers"

    def lossless_mode(self) -> str:
        return "RGB"

    def max_bytes(self) -> int | None:
        if self.size is None:
            return None
        width, height = self.size
        return 54 + (3 * width + 3) // 4 * 4 * height  # rows are padded to multiples of four bytes


def parse_spec(text: str) -> Spec:
    """Reads a spec such as `pixels:62x41,bits=3,order=block4`, `png:62x41,level=6` or `jpeg:480x320,q=30`, or the name
    of one out of `PRESETS`; what it returns prints as the full spec.

    Raises:
        UserError: an unknown kind, option or value; the message lists what is allowed.
    """
    kind, colon, rest = PRESETS.get(text, text).partition(":")
    if not colon or kind not in KINDS:
        kinds, names = "|".join(KINDS), "|".join(PRESETS)
        raise UserError(f"expected an image encoding KIND:WxH,OPTION=VALUE with KIND {kinds}, or {names}, got '{text}'")
    return KINDS[kind].parse(rest)
