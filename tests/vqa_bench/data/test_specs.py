"""Image encodings as text: they print and parse into each other, and what is wrong is said in one line."""

import pytest
from hypothesis import given

from tests.vqa_bench.data.test_encodings import bmp_specs, jpeg_specs, pixel_specs, png_specs, webp_specs
from vqa_bench.data.encodings import PRESETS, PixelSpec, Spec, parse_spec
from vqa_bench.errors import UserError


@given(pixel_specs | jpeg_specs | png_specs | webp_specs | bmp_specs)
def test_specs_print_and_parse_into_each_other(spec: Spec):
    assert parse_spec(str(spec)) == spec
    assert str(parse_spec(str(spec))) == str(spec)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("pixels:62x41", "pixels:62x41"),
        ("pixels:62x41,order=block4x4,bits=3", "pixels:62x41,bits=3,order=block4"),
        ("pixels:62x41,order=block4x2", "pixels:62x41,order=block4x2"),
        ("pixels:62x41,order=raster,color=rgb,crop=10%", "pixels:62x41,crop=10%"),
        ("png:native,level=0", "png:native,level=0"),
        ("jpeg:480x320,q=30,color=ycbcr", "jpeg:480x320,q=30"),
        ("jpeg:16x12,tables=drop,q=0,color=rgb", "jpeg:16x12,q=0,color=rgb,tables=drop"),
        ("webp:16x12,q=lossless", "webp:16x12,q=lossless"),
        ("bmp:16x12", "bmp:16x12"),
        ("pixels:16x12,codes=0,bits=3", "pixels:16x12,bits=3,codes=0"),
        ("paper", "pixels:62x41,crop=10%,order=planar"),
        ("paper-3bit", "pixels:62x41,crop=10%,bits=3,order=planar"),
        ("paper-3bit-codes", "pixels:62x41,crop=10%,bits=3,order=planar,codes=0"),
        ("paper-500k", "pixels:480x320,order=planar"),
    ],
)
def test_a_spec_has_one_canonical_text(text: str, canonical: str):
    assert str(parse_spec(text)) == canonical
    assert parse_spec(canonical) == parse_spec(text)


def test_presets_are_written_canonically_and_listed_in_errors():
    assert all(str(parse_spec(name)) == text for name, text in PRESETS.items())
    with pytest.raises(UserError) as error:
        parse_spec("paper-4bit")
    assert all(name in str(error.value) for name in PRESETS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "KIND pixels|png|jpeg|webp|bmp"),
        ("pixels", "KIND pixels|png|jpeg|webp|bmp"),
        ("gif:16x12", "got 'gif:16x12'"),
        ("pixels:native", "expected size=WxH"),
        ("pixels:16", "expected size=WxH|native, got '16'"),
        ("pixels:16x0", "expected size=WxH|native"),
        ("pixels:-1x4", "expected size=WxH|native"),
        ("pixels:16x12,bits=0", "expected bits=1..8, got '0'"),
        ("pixels:16x12,bits=9", "expected bits=1..8, got '9'"),
        ("pixels:16x12,bits", "expected bits=1..8, got ''"),
        ("pixels:16x12,crop=10", "expected crop=1%..49%, got '10'"),
        ("pixels:16x12,crop=50%", "expected crop=1%..49%"),
        ("pixels:16x12,order=zigzag", "order=raster|planar|blockN|blockWxH|hilbert, got 'zigzag'"),
        ("pixels:16x12,order=block0", "got 'block0'"),
        ("pixels:16x12,order=block2x", "got 'block2x'"),
        ("pixels:16x12,order=block1x2x3", "got 'block1x2x3'"),
        ("pixels:16x12,q=3", "color=rgb|gray|ycbcr, codes=0..255, got 'q=3'"),
        ("pixels:16x12,codes=0", "expected bits with codes, and codes + 2^bits at most 256, got no bits,codes=0"),
        ("pixels:16x12,bits=3,codes=249", "got bits=3,codes=249"),
        ("pixels:16x12,bits=3,codes=256", "expected codes=0..255, got '256'"),
        ("paper,bits=3", "or paper|paper-3bit|"),
        ("pixels:16x12,size=3x3", "got 'size=3x3'"),
        ("pixels:16x12,", "got ''"),
        ("pixels:16x12,bits=3,bits=3", "expected each option once, got bits twice"),
        ("png:16x12", "expected level=0..9, got no such option"),
        ("png:16x12,level=10", "expected level=0..9, got '10'"),
        ("jpeg:16x12,q=101", "expected q=0..100, got '101'"),
        ("jpeg:native,q=30,tables=drop", "size=WxH with tables=drop"),
        ("webp:16x12,q=best", "expected q=0..100|lossless, got 'best'"),
    ],
)
def test_bad_specs_say_what_is_allowed_in_one_line(text: str, said: str):
    with pytest.raises(UserError) as error:
        parse_spec(text)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"bits": 0},
        {"bits": True},
        {"bits": "3"},
        {"crop": 10.5},
        {"order": "block2x2"},
        {"order": None},
        {"size": 4},
        {"size": (4,)},
        {"size": (4.0, 3.0)},
    ],
)
def test_specs_built_in_code_are_held_to_the_same_rules(values: dict[str, object]):
    with pytest.raises(UserError, match="image encoding pixels: expected"):
        PixelSpec(**{"size": (4, 4), **values})  # type: ignore[arg-type]
