"""What all image encodings share: a spec's text form with its options, and the preparation of the picture.

A spec is a typed object and a short text, `kind:size,option=value,…`, that print and parse into each other. The kinds
themselves are in encodings.py. This file knows nothing of datasets, folders or models.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np
from PIL import Image

from vqa_bench.errors import UserError

Size = tuple[int, int]
"""Width and height in pixels."""

MAX_SIDE = 16_383  # the most that every format here can hold (WebP's limit)

# Pillow's modes whose conversion to RGB keeps eight bits a channel as they are (alpha is dropped, not blended). Others
# (I;16, I, F) hold numbers whose range only their maker knows; Pillow would clip them to 0..255. (A PNG with three
# channels of 16 bits is none of them: Pillow's reader itself keeps the high byte of each and calls it RGB.)
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")


@dataclass(frozen=True)
class Option:
    """One option of a spec: `parse` reads its text (ValueError if it can't), `show` prints its value."""

    allowed: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str


def parse_integer(text: str, low: int, high: int) -> int:
    """A decimal integer in low..high; raises ValueError for any other text."""
    if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
        raise ValueError(text)
    return int(text)


def integer(low: int, high: int) -> dict[str, Option]:
    """Field metadata of an option that is an integer in low..high."""
    return {"option": Option(f"{low}..{high}", lambda text: parse_integer(text, low, high))}


def choice(*names: str) -> dict[str, Option]:
    """Field metadata of an option that is one of some names."""
    return {"option": Option("|".join(names), lambda text: names[names.index(text)])}


def _parse_size(text: str) -> Size | None:
    if text == "native":
        return None
    width, height = (parse_integer(side, 1, MAX_SIDE) for side in text.split("x"))
    return width, height


def _show_size(size: Size | None) -> str:
    return "native" if size is None else f"{size[0]}x{size[1]}"


def _parse_crop(text: str) -> int:
    if not text.endswith("%"):
        raise ValueError(text)
    return parse_integer(text.removesuffix("%"), 1, 49)


_SIZE = {"option": Option("WxH|native", _parse_size, _show_size)}
_CROP = {"option": Option("1%..49%", _parse_crop, lambda percent: f"{percent}%")}


def quantise(values: np.ndarray, bits: int) -> np.ndarray:
    """Replaces each uint8 value by the centre of its bin, 2^bits bins over 0..255: 8 bins give 15, 47, … 239.

    The centres are the byte-level paper's; each is the floor of the mean of its bin.
    """
    width = 256 >> bits
    return (values // width * width + (width - 1) // 2).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Spec(ABC):
    """An image encoding. Every kind crops, resizes and quantises the picture before it writes it as bytes.

    Attributes:
        size: (W, H) to resize to with Lanczos; None leaves the picture's own size (`native`).
        crop: percent of width and of height cut off each of the four sides before resizing; None for no crop.
        bits: bits kept of each channel, each value at its bin's centre; None for no quantisation.

    Raises:
        UserError: on construction, if a value is not allowed; the message lists what is.
    """

    kind: ClassVar[str]

    host_dependent: ClassVar[bool] = True
    """Whether one picture may give other bytes on another installation; the pixels they stand for may move too."""
    host_reason: ClassVar[str] = "this encoding does not say what its bytes depend on"
    """What the bytes depend on beside the picture, as half a sentence."""

    size: Size | None = field(metadata=_SIZE)
    crop: int | None = field(default=None, metadata=_CROP)
    bits: int | None = field(default=None, metadata=integer(1, 8))

    def __post_init__(self) -> None:
        for name, option, default in self._options():
            value = getattr(self, name)
            if value is None and default is None:
                continue
            try:  # a value is right if it is what its own text would be read as
                accepted = option.parse(option.show(value)) == value
            except (ValueError, TypeError, IndexError):
                accepted = False
            if not accepted:
                raise self._error(f"{name}={option.allowed}", repr(value))

    def __str__(self) -> str:
        """The spec as text: the size, then the options that are not at their default, in a fixed order."""
        (_, size, _), *options = self._options()
        parts = [f"{self.kind}:{size.show(self.size)}"]
        for name, option, default in options:
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={option.show(value)}")
        return ",".join(parts)

    @classmethod
    def _options(cls) -> list[tuple[str, Option, Any]]:
        """Name, option and default (MISSING if it must be given) of the size and each option, in printing order."""
        return [(entry.name, entry.metadata["option"], entry.default) for entry in fields(cls)]

    @classmethod
    def _error(cls, expected: str, got: str) -> UserError:
        return UserError(f"image encoding {cls.kind}: expected {expected}, got {got}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads the part of a spec's text that follows the colon.

        Raises:
            UserError: an unknown, repeated or missing option, or a value that is not allowed.
        """
        options = {name: option for name, option, _ in cls._options()}
        size, *assignments = text.split(",")
        values = {"size": cls._parse_value("size", options["size"], size)}
        for assignment in assignments:
            name, _, value = assignment.partition("=")
            if name not in options or name == "size":
                known = ", ".join(f"{key}={option.allowed}" for key, option in options.items() if key != "size")
                raise cls._error(f"options {known}", f"'{assignment}'")
            if name in values:
                raise cls._error("each option once", f"{name} twice")
            values[name] = cls._parse_value(name, options[name], value)
        for name, option, default in cls._options():
            if default is MISSING and name not in values:
                raise cls._error(f"{name}={option.allowed}", "no such option; add it")
        return cls(**values)

    @classmethod
    def _parse_value(cls, name: str, option: Option, text: str) -> Any:
        try:
            return option.parse(text)
        except ValueError:
            raise cls._error(f"{name}={option.allowed}", f"'{text}'") from None

    def picture(self, image: Image.Image, mode: str = "RGB") -> Image.Image:
        """The picture that is encoded: cropped, resized, in Pillow's `mode`, quantised, without any metadata.

        Pictures of any mode with eight bits a channel or fewer are taken: palettes are looked up, grey and CMYK become
        RGB, alpha is dropped (CLEVR's is 255 everywhere). Rotation tags are the business of who opens the file.

        Raises:
            UserError: a picture with more than eight bits a channel.
        """
        if image.mode not in _EIGHT_BIT_MODES:
            raise UserError(f"expected a picture with 8 bits a channel, got Pillow's mode {image.mode}; convert it")
        picture = image
        if self.crop is not None:  # first, so that what is cut off is not converted
            left, top = picture.width * self.crop // 100, picture.height * self.crop // 100
            picture = picture.crop((left, top, picture.width - left, picture.height - top))
        if "transparency" in picture.info:  # alpha in a palette, which is dropped as any other; Pillow would warn of it
            picture = picture.copy()
            del picture.info["transparency"]
        picture = picture.convert("RGB")
        if self.size is not None:
            picture = picture.resize(self.size, Image.Resampling.LANCZOS)
        picture = picture.convert(mode)
        if self.bits is not None:
            levels = quantise(np.asarray(picture), self.bits)
            picture = Image.frombytes(mode, picture.size, levels.tobytes())
        picture.info = {}  # else Pillow would copy comments and profiles of the source file into ours
        return picture

    @abstractmethod
    def encode(self, image: Image.Image) -> bytes:
        """The bytes of the picture; the same bytes every time on one installation of Pillow."""

    @abstractmethod
    def decode(self, data: bytes) -> Image.Image:
        """The picture (RGB) that the bytes stand for, for viewing.

        Raises:
            UserError: bytes that this encoding can't have written.
        """

    def lossless_mode(self) -> str | None:
        """Pillow's mode of the `picture` that the bytes keep exactly; None for an encoding that loses something."""
        return None

    def max_bytes(self) -> int | None:
        """The exact number of bytes where it follows from the spec alone, None where it depends on the picture."""
        return None
