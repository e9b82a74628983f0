"""Damages of encoded pictures: what each leaves of the bytes, by other means, and what a strict decoder refuses."""

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from tests.vqa_bench.data.clevr_folder import noise_image
from vqa_bench.data.damage import (
    Damage,
    at_quality,
    damages_of,
    flip_bits,
    keep_bits,
    keep_first,
    strictly_decoded,
    without_header,
)
from vqa_bench.data.encodings import JpegSpec, PixelSpec, parse_spec

SIZE = (32, 24)
FILES = ["png:32x24,level=6", "jpeg:32x24,q=80", "bmp:32x24", "webp:32x24,q=80"]


def encoded(text: str, size: tuple[int, int] = SIZE, seed: int = 0) -> bytes:
    return parse_spec(text).encode(noise_image(size, seed))


def flipped_bits(before: bytes, after: bytes) -> np.ndarray:
    """(bits,) 0 or 1."""
    assert len(before) == len(after)
    return np.unpackbits(np.frombuffer(before, np.uint8) ^ np.frombuffer(after, np.uint8))


def test_each_bit_flips_with_the_given_probability() -> None:
    data = np.random.default_rng(0).bytes(500)
    counts = np.zeros(4000)
    for seed in range(400):
        counts += flipped_bits(data, flip_bits(data, (7, seed), rate=0.02))
    expected, deviation = 400 * 0.02, (400 * 0.02 * 0.98) ** 0.5
    assert abs(counts.mean() - expected) < 5 * deviation / 4000**0.5
    assert abs(counts.var() - deviation**2) < 0.1 * deviation**2  # as many independent draws have
    eighths = counts.reshape(-1, 8).sum(0)  # no place in a byte is preferred
    assert np.abs(eighths / 500 - expected).max() < 5 * deviation / 500**0.5


def test_flips_are_a_function_of_the_seed() -> None:
    data = bytes(1000)
    assert flip_bits(data, (1, 2), rate=0.1) == flip_bits(data, (1, 2), rate=0.1)
    assert flip_bits(data, (1, 2), rate=0.1) != flip_bits(data, (1, 3), rate=0.1)
    assert flip_bits(data, (1, 2), rate=0.1) != flip_bits(data, (2, 2), rate=0.1)
    assert flip_bits(data, (1, 2), rate=1.0) == b"\xff" * 1000
    assert flip_bits(data, (1, 2), rate=0.0) == data


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=300), percent=st.integers(0, 100))
def test_a_cut_picture_is_its_own_beginning(data: bytes, percent: int) -> None:
    kept = keep_first(data, percent=percent)
    assert data.startswith(kept)
    assert len(kept) <= len(data) * percent / 100 < len(kept) + 1


def test_a_png_without_its_header_begins_with_the_compressed_rows() -> None:
    for text, size in (("png:32x24,level=6", SIZE), ("png:200x200,level=0", (200, 200))):
        data = encoded(text, size)
        rest = without_header(data, kind="png")
        before = data[: len(data) - len(rest)]
        assert data == before + rest
        assert before.startswith(b"\x89PNG")
        assert before.endswith(b"IDAT")
        assert before.count(b"IDAT") == 1
        rows = zlib.decompressobj().decompress(rest, 1 + 3 * size[0])  # a filter's number, and the first row
        assert len(rows) == 1 + 3 * size[0]
    assert encoded("png:200x200,level=0", (200, 200)).count(b"IDAT") > 1, "the case of several chunks is not tested"


@pytest.mark.parametrize("options", ["q=80", "q=15,color=rgb"])
def test_a_jpeg_without_its_header_is_the_scan(options: str) -> None:
    data = encoded(f"jpeg:32x24,{options}")
    assert without_header(data, kind="jpeg") == encoded(f"jpeg:32x24,{options},tables=drop") + b"\xff\xd9"


def test_a_bmp_without_its_header_is_the_pixels_from_the_lowest_row_up() -> None:
    picture = noise_image((31, 5), 3)
    pixels = np.asarray(picture)[::-1, :, ::-1]
    expected = b"".join(row.tobytes() + bytes(-len(row.tobytes()) % 4) for row in pixels)
    assert without_header(parse_spec("bmp:native").encode(picture), kind="bmp") == expected


def test_another_quality_is_that_of_the_picture_that_the_bytes_show() -> None:
    spec = cast(JpegSpec, parse_spec("jpeg:native,q=80,crop=10%,color=rgb"))
    data = spec.encode(noise_image((40, 30), 0))
    again = at_quality(data, spec=spec, quality=5)
    assert len(again) < len(data) / 2
    shown = spec.decode(again)
    assert shown.size == spec.decode(data).size == (32, 24), "it is not cropped a second time"
    assert again == replace(spec, q=5, crop=None).encode(spec.decode(data))


@pytest.mark.parametrize("bits", [1, 3, 7])
def test_dropped_bits_are_those_of_an_encoding_with_fewer(bits: int) -> None:
    plain, coarse = parse_spec("pixels:32x24,order=block4"), parse_spec(f"pixels:32x24,bits={bits},order=block4")
    picture = noise_image(SIZE, 1)
    kept = keep_bits(plain.encode(picture), bits=bits)
    assert kept == coarse.encode(picture)
    assert keep_bits(kept, bits=bits) == kept
    assert len(set(kept)) == 2**bits


NAMES = {
    "pixels:32x24": {"bits flipped": 5, "end cut off": 6, "low bits dropped": 7},
    "pixels:32x24,bits=3": {"bits flipped": 5, "end cut off": 6, "low bits dropped": 2},
    "pixels:32x24,bits=3,codes=0": {"bits flipped": 5, "end cut off": 6},
    "png:32x24,level=6": {"bits flipped": 5, "end cut off": 6, "header removed": 1},
    "bmp:32x24": {"bits flipped": 5, "end cut off": 6, "header removed": 1},
    "jpeg:32x24,q=80": {"bits flipped": 5, "end cut off": 6, "header removed": 1, "JPEG quality": 7},
    "jpeg:32x24,q=10": {"bits flipped": 5, "end cut off": 6, "header removed": 1, "JPEG quality": 2},
    "jpeg:32x24,q=80,tables=drop": {"bits flipped": 5, "end cut off": 6},
    "webp:32x24,q=80": {"bits flipped": 5, "end cut off": 6},
}


@pytest.mark.parametrize("text", NAMES)
def test_every_encoding_has_the_damages_that_make_sense_for_it(text: str) -> None:
    damages = damages_of(parse_spec(text))
    by_name: dict[str, list[Damage]] = {}
    for damage in damages:
        by_name.setdefault(damage.name, []).append(damage)
    assert {name: len(found) for name, found in by_name.items()} == NAMES[text]
    assert [damage.name for damage in damages] == sorted((d.name for d in damages), key=list(by_name).index)
    data = encoded(text)
    for found in by_name.values():
        levels = [damage.level for damage in found]
        assert levels == sorted(set(levels))
        assert min(levels) > 0
        assert len({damage.label for damage in found}) == len(found)
        for damage in found:
            damaged = damage.apply(data, (0, 5))
            assert damaged == damage.apply(data, (0, 5))
            assert damaged != data or damage.level < 1e-3, damage


# -- what a decoder makes of it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", FILES)
def test_whole_files_decode_and_broken_ones_are_refused(text: str) -> None:
    spec, data = parse_spec(text), encoded(text)
    picture = strictly_decoded(spec, data, SIZE)
    assert picture is not None
    assert picture.tobytes() == spec.decode(data).tobytes()
    assert strictly_decoded(spec, data, (24, 32)) is None
    for broken in (b"", data[:20], data[: len(data) // 2], b"\0" * len(data)):
        assert strictly_decoded(spec, broken) is None
    if spec.kind != "webp":
        assert strictly_decoded(spec, without_header(data, kind=spec.kind)) is None


def test_a_decoder_is_strict_whatever_pillow_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    spec, data = parse_spec("png:32x24,level=0"), encoded("png:32x24,level=0")
    spec.decode(data[:1000])  # shows half a picture
    assert strictly_decoded(spec, data[:1000]) is None
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.filterwarnings("default")
def test_a_header_that_asks_for_gigabytes_is_refused() -> None:
    """A JPEG's size lies in it unprotected."""
    spec, data = parse_spec("jpeg:native,q=80"), bytearray(encoded("jpeg:32x24,q=80"))
    start = data.index(b"\xff\xc0")
    assert data[start + 5 : start + 9] == bytes([0, 24, 0, 32])
    for side in (10_000, 30_000):  # a warning of Pillow's, an error of Pillow's
        data[start + 5 : start + 9] = side.to_bytes(2, "big") * 2
        assert strictly_decoded(spec, bytes(data)) is None


def test_pixels_decode_whatever_is_in_them_and_codes_do_not() -> None:
    damaged = flip_bits(encoded("pixels:32x24"), (0, 0), rate=0.1)
    assert strictly_decoded(parse_spec("pixels:32x24"), damaged, SIZE) is not None
    assert strictly_decoded(parse_spec("pixels:32x24"), damaged[:-1], SIZE) is None
    codes = encoded("pixels:32x24,bits=3,codes=0")
    assert strictly_decoded(parse_spec("pixels:32x24,bits=3,codes=0"), codes) is not None
    damaged = flip_bits(codes, (0, 0), rate=0.1)
    assert strictly_decoded(parse_spec("pixels:32x24,bits=3,codes=0"), damaged) is None


def test_a_machine_without_memory_is_no_refusal() -> None:
    class Exhausted(PixelSpec):
        def decode(self, data: bytes) -> Image.Image:
            raise MemoryError

    with pytest.raises(MemoryError):
        strictly_decoded(Exhausted(size=SIZE), b"")


def test_real_pictures(real_clevr: Path | None) -> None:
    """Without the real pictures the same is held against made ones."""
    folder = None if real_clevr is None else real_clevr / "images" / "val"
    pictures: list[Any] = [noise_image((480, 320), seed) for seed in range(2)]
    if folder is not None and folder.is_dir():
        pictures = [Image.open(path) for path in sorted(folder.iterdir())[:2]]
    for picture in pictures:
        for text in ("png:native,level=6", "jpeg:native,q=80"):
            spec = parse_spec(text)
            data = spec.encode(picture)
            undamaged = strictly_decoded(spec, data, (480, 320))
            assert undamaged is not None
            for damage in damages_of(spec):
                if damage.name == "header removed" or damage.label == "nothing left":
                    assert strictly_decoded(spec, damage.apply(data, (0, 0)), (480, 320)) is None
                if damage.name == "JPEG quality":
                    assert strictly_decoded(spec, damage.apply(data, (0, 0)), (480, 320)) is not None
