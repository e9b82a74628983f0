"""Image encodings: exact bytes, round trips, scan orders, and specs as text."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from tests.vqa_bench.data.clevr_folder import noise_image
from vqa_bench.data.encodings import (
    KINDS,
    BmpSpec,
    JpegSpec,
    PixelSpec,
    PngSpec,
    WebpSpec,
    parse_spec,
)
from vqa_bench.data.scan import scan_order
from vqa_bench.data.spec import quantise
from vqa_bench.errors import UserError

sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))
crops = st.none() | st.integers(1, 49)
depths = st.none() | st.integers(1, 8)
blocks = st.one_of(
    st.integers(1, 9).map("block{}".format),
    st.tuples(st.integers(1, 9), st.integers(1, 9))
    .filter(lambda block: block[0] != block[1])
    .map("block%dx%d".__mod__),
)
codes = depths.flatmap(
    lambda bits: st.tuples(st.just(bits), st.none() if bits is None else st.none() | st.integers(0, 256 - 2**bits))
)
pixel_specs = st.builds(
    lambda depth, **options: PixelSpec(bits=depth[0], codes=depth[1], **options),
    codes,
    size=sizes,
    crop=crops,
    order=st.sampled_from(["raster", "planar", "hilbert"]) | blocks,
    color=st.sampled_from(["rgb", "gray", "ycbcr"]),
)
jpeg_specs = st.builds(
    JpegSpec,
    size=sizes,
    crop=crops,
    bits=depths,
    q=st.integers(0, 100),
    color=st.sampled_from(["ycbcr", "rgb"]),
    tables=st.sampled_from(["keep", "drop"]),
)
png_specs = st.builds(PngSpec, size=st.none() | sizes, crop=crops, bits=depths, level=st.integers(0, 9))
webp_specs = st.builds(
    WebpSpec, size=st.none() | sizes, crop=crops, bits=depths, q=st.just("lossless") | st.integers(0, 100)
)
bmp_specs = st.builds(BmpSpec, size=st.none() | sizes, crop=crops, bits=depths)
images = st.builds(
    lambda size, seed, mode: noise_image(size, seed).convert(mode),
    st.tuples(st.integers(3, 40), st.integers(3, 40)),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV"]),
)


def pillow_file(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


# ---- pixels


@given(pixel_specs, images)
def test_pixels_round_trip_exactly(spec: PixelSpec, image: Image.Image):
    data = spec.encode(image)
    assert len(data) == spec.max_bytes()
    mode = {"rgb": "RGB", "gray": "L", "ycbcr": "YCbCr"}[spec.color]
    assert spec.decode(data).tobytes() == spec.picture(image, mode).convert("RGB").tobytes()
    assert spec.encode(image) == data


@pytest.mark.parametrize("order", ["raster", "planar", "block4", "block3x5", "hilbert"])
def test_all_256_byte_values_survive(order: str):
    values = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    image = Image.fromarray(values)
    spec = PixelSpec(size=(16, 16), order=order)
    assert sorted(set(spec.encode(image))) == list(range(256))
    assert np.array_equal(np.asarray(spec.decode(spec.encode(image))), values)


def test_the_papers_pixels_are_the_middle_resized_and_written_channel_by_channel():
    spec = parse_spec("pixels:62x41,crop=10%,order=planar")
    image = noise_image((24, 16), seed=1, mode="RGBA").resize((480, 320), Image.Resampling.NEAREST)
    middle = image.convert("RGB").crop((48, 32, 432, 288))  # 384 × 256
    resized = np.asarray(middle.resize((62, 41), Image.Resampling.LANCZOS))
    assert spec.encode(image) == np.moveaxis(resized, 2, 0).tobytes()
    assert spec.max_bytes() == 3 * 62 * 41 == 7626
    eight_levels = parse_spec("pixels:62x41,crop=10%,order=planar,bits=3").encode(image)
    assert sorted(set(eight_levels)) == [15, 47, 79, 111, 143, 175, 207, 239]
    assert [value // 32 for value in eight_levels] == [value // 32 for value in spec.encode(image)]


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantised_values_are_the_centres_of_their_bins(bits: int):
    levels = quantise(np.arange(256, dtype=np.uint8), bits)
    bins = np.arange(256).reshape(2**bits, -1)  # each row the values of one bin
    assert np.array_equal(levels.reshape(bins.shape), np.floor(bins.mean(axis=1, keepdims=True)) + np.zeros_like(bins))


@given(images, st.integers(1, 8), st.integers(0, 255), st.sampled_from(["raster", "planar", "block3", "hilbert"]))
def test_codes_number_the_bins_from_their_start(image: Image.Image, bits: int, start: int, order: str):
    start = min(start, 256 - 2**bits)
    centres = PixelSpec(size=(9, 7), bits=bits, order=order).encode(image)
    coded = PixelSpec(size=(9, 7), bits=bits, order=order, codes=start)
    assert list(coded.encode(image)) == [start + value * 2**bits // 256 for value in centres]
    assert coded.decode(coded.encode(image)).tobytes() == parse_spec(f"pixels:9x7,bits={bits}").encode(image)


@pytest.mark.parametrize("value", [9, 18])
def test_a_byte_that_is_no_code_is_an_error(value: int):
    with pytest.raises(UserError, match=rf"expected bytes 10\.\.17, got {min(value, 10)}\.\.{max(value, 10)}"):
        parse_spec("pixels:2x1,bits=3,codes=10,color=gray").decode(bytes([value, 10]))


@pytest.mark.parametrize(("size", "block"), [((16, 12), 4), ((16, 12), 2), ((15, 9), 3)])
def test_each_run_of_a_block_is_one_tile(size: tuple[int, int], block: int):
    image = noise_image(size, seed=3)
    data = PixelSpec(size=size, order=f"block{block}").encode(image)
    run = block * block * 3
    tiles = [
        image.crop((left, top, left + block, top + block)).tobytes()
        for top in range(0, size[1], block)
        for left in range(0, size[0], block)
    ]
    assert [data[start : start + run] for start in range(0, len(data), run)] == tiles


def test_ragged_and_rectangular_blocks_are_tiles_cut_at_the_edges():
    image = noise_image((7, 5), seed=4)
    data = PixelSpec(size=(7, 5), order="block4x3").encode(image)
    corners = [(0, 0, 4, 3), (4, 0, 7, 3), (0, 3, 4, 5), (4, 3, 7, 5)]
    assert data == b"".join(image.crop(corner).tobytes() for corner in corners)


def hilbert_points(order: int) -> list[tuple[int, int]]:
    """The curve by its recursive definition: four copies of the smaller curve, the first and last mirrored."""
    if order == 0:
        return [(0, 0)]
    small, side = hilbert_points(order - 1), 2 ** (order - 1)
    return [
        *((y, x) for x, y in small),
        *((x, y + side) for x, y in small),
        *((x + side, y + side) for x, y in small),
        *((2 * side - 1 - y, side - 1 - x) for x, y in small),
    ]


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_hilbert_is_the_recursive_curve_and_its_neighbours_touch(order: int):
    side = 2**order
    y, x = np.divmod(scan_order("hilbert", side, side), side)
    assert list(zip(x.tolist(), y.tolist(), strict=True)) == hilbert_points(order)
    assert np.all(np.abs(np.diff(x)) + np.abs(np.diff(y)) == 1)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["raster", "hilbert"]) | blocks)
def test_every_order_visits_each_pixel_once(width: int, height: int, order: str):
    assert sorted(scan_order(order, width, height).tolist()) == list(range(width * height))


def test_hilbert_of_a_rectangle_is_the_squares_curve_without_the_pixels_outside():
    points = [y * 6 + x for x, y in hilbert_points(3) if x < 6 and y < 5]
    assert scan_order("hilbert", 6, 5).tolist() == points


def test_an_unknown_scan_order_is_an_error():
    with pytest.raises(ValueError, match="got 'spiral'"):
        scan_order("spiral", 4, 4)


# ---- files


@given(png_specs, images)
@settings(max_examples=50)
def test_png_is_lossless_and_what_pillow_writes(spec: PngSpec, image: Image.Image):
    data = spec.encode(image)
    assert data == pillow_file(spec.picture(image), format="PNG", compress_level=spec.level)
    assert spec.decode(data).tobytes() == spec.picture(image).tobytes()


def test_png_level_0_is_stored_and_not_the_default():
    image = Image.new("RGB", (64, 64), (10, 20, 30))
    lengths = [len(parse_spec(f"png:native,level={level}").encode(image)) for level in (0, 1, 6, 9)]
    assert lengths[0] > 64 * 64 * 3 > max(lengths[1:])


@given(jpeg_specs, images)
@settings(max_examples=50)
def test_jpeg_is_what_pillow_writes_and_dropped_tables_come_back(spec: JpegSpec, image: Image.Image):
    picture = spec.picture(image)
    file = pillow_file(picture, format="JPEG", quality=spec.q, keep_rgb=spec.color == "rgb")
    data = spec.encode(image)
    assert spec.file_bytes(data) == file
    with Image.open(io.BytesIO(file)) as seen:
        assert spec.decode(data).tobytes() == seen.convert("RGB").tobytes()
    if spec.tables == "keep":
        assert data == file
    else:
        assert len(file) - len(data) > 300  # a colour stored as RGB has one set of tables, YCbCr two


def test_jpeg_quality_0_is_not_the_default_quality():
    image = noise_image((32, 24), seed=5)
    lowest, default = parse_spec("jpeg:native,q=0").encode(image), parse_spec("jpeg:native,q=75").encode(image)
    assert default == pillow_file(image, format="JPEG")
    assert len(lowest) < len(default)


def test_dropped_tables_are_the_same_for_every_picture():
    kept, dropped = parse_spec("jpeg:16x12,q=80"), parse_spec("jpeg:16x12,q=80,tables=drop")
    heads = {
        kept.encode(image).removesuffix(dropped.encode(image) + b"\xff\xd9")
        for image in [*(noise_image((16, 12), seed) for seed in range(20)), Image.new("RGB", (16, 12))]
    }
    assert len(heads) == 1
    assert heads.pop().startswith(b"\xff\xd8")


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow was built without WebP")
@given(webp_specs, images)
@settings(max_examples=30, deadline=None)
def test_webp_is_what_pillow_writes_and_lossless_is_lossless(spec: WebpSpec, image: Image.Image):
    options = {"lossless": True} if spec.q == "lossless" else {"quality": spec.q}
    data = spec.encode(image)
    assert data == pillow_file(spec.picture(image), format="WEBP", **options)
    with Image.open(io.BytesIO(data)) as seen:
        assert spec.decode(data).tobytes() == seen.convert("RGB").tobytes()
    if spec.q == "lossless":
        assert spec.decode(data).tobytes() == spec.picture(image).tobytes()


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow was built without WebP")
def test_webp_quality_0_is_not_the_default_quality():
    image = noise_image((16, 12), seed=6)
    assert parse_spec("webp:native,q=0").encode(image) == pillow_file(image, format="WEBP", quality=0)
    assert parse_spec("webp:native,q=0").encode(image) != pillow_file(image, format="WEBP")


@given(bmp_specs, images)
@settings(max_examples=30)
def test_bmp_is_what_pillow_writes_and_has_an_exact_size(spec: BmpSpec, image: Image.Image):
    data = spec.encode(image)
    assert data == pillow_file(spec.picture(image), format="BMP")
    assert spec.max_bytes() == (None if spec.size is None else len(data))
    assert spec.decode(data).tobytes() == spec.picture(image).tobytes()


ONE_OF_EACH = ("pixels:8x6", "png:8x6,level=6", "jpeg:8x6,q=50", "webp:8x6,q=50", "bmp:8x6")


def test_one_spec_of_each_kind_stands_in_the_list_of_these_tests():
    assert {parse_spec(text).kind for text in ONE_OF_EACH} == set(KINDS)


@pytest.mark.parametrize("text", ONE_OF_EACH)
def test_every_encoding_reads_any_mode_drops_alpha_and_metadata_and_is_viewable(text: str):
    spec = parse_spec(text)
    image = noise_image((40, 30), seed=7, mode="RGBA")
    image.info.update(comment=b"a comment", icc_profile=b"a profile", transparency=3, dpi=(300, 300))
    opaque = Image.merge("RGB", image.split()[:3])
    assert spec.encode(image) == spec.encode(opaque)
    assert image.info["comment"] == b"a comment"  # the caller's image is left as it was
    seen = spec.decode(spec.encode(image.convert("P")))
    assert (seen.mode, seen.size) == ("RGB", (8, 6))


@pytest.mark.parametrize("text", ONE_OF_EACH)
@pytest.mark.parametrize("damage", [b"", b"not a picture", None])
def test_bytes_that_are_no_picture_are_an_error(text: str, damage: bytes | None):
    spec = parse_spec(text)
    whole = spec.encode(noise_image((8, 6), seed=8))
    data = whole[: len(whole) // 2] if damage is None else damage
    with pytest.raises(UserError, match="expected"):
        spec.decode(data)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_sixteen_bit_pictures_are_refused_not_clipped(mode: str):
    with pytest.raises(UserError, match=f"8 bits a channel, got Pillow's mode {mode}"):
        parse_spec("pixels:4x4").encode(Image.new(mode, (4, 4)))


def test_a_palette_with_transparency_loses_it():
    image = noise_image((8, 6), seed=3).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert parse_spec("pixels:8x6").encode(image) == image.convert("RGBA").convert("RGB").tobytes()


@given(pixel_specs, images)
def test_the_picture_is_converted_cropped_and_resized(spec: PixelSpec, image: Image.Image):
    picture = image.convert("RGB")
    if spec.crop is not None:
        left, top = image.width * spec.crop // 100, image.height * spec.crop // 100
        picture = picture.crop((left, top, image.width - left, image.height - top))
    assert spec.size is not None
    picture = picture.resize(spec.size, Image.Resampling.LANCZOS)
    expected = np.asarray(picture) if spec.bits is None else quantise(np.asarray(picture), spec.bits)
    assert spec.picture(image).tobytes() == expected.tobytes()


def test_a_real_image_or_one_like_it_encodes_as_pillow_would(real_clevr: Path | None):
    pictures = [noise_image((480, 320), seed=9, mode="RGBA")]
    if real_clevr is not None:
        with Image.open(sorted((real_clevr / "images" / "val").iterdir())[0]) as image:
            image.load()
        pictures.append(image)
    for picture in pictures:
        assert (picture.mode, picture.size) == ("RGBA", (480, 320))
        rgb = picture.convert("RGB")
        rgb.info = {}
        assert parse_spec("png:native,level=6").encode(picture) == pillow_file(rgb, format="PNG", compress_level=6)
        assert parse_spec("jpeg:480x320,q=30").encode(picture) == pillow_file(rgb, format="JPEG", quality=30)
        assert parse_spec("pixels:480x320").encode(picture) == rgb.tobytes()
