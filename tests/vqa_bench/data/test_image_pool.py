"""What a source image may be: any still picture that Pillow reads whole; everything else is an error with its name."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.vqa_bench.data.clevr_folder import make_clevr_folder, noise_image
from vqa_bench.data import image_pool
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import open_shard
from vqa_bench.errors import UserError

PIXELS = parse_spec("pixels:8x6")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_clevr_folder(tmp_path / "clevr", {"train": 10, "val": 3})


def file_of(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def written(folder: Path, tmp_path: Path, data: bytes) -> bytes:
    """The bytes in the shard of a source image with these contents."""
    (folder / "images" / "val" / "CLEVR_val_000001.png").write_bytes(data)
    serialize(folder, PIXELS, tmp_path / "shard", workers=1, splits=["test"])
    return open_shard(tmp_path / "shard").split("test").image_bytes(1).tobytes()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "BMP"), ("L", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("1", "TIFF"), ("CMYK", "TIFF"), ("RGBA", "PNG")],
)
def test_pictures_of_any_mode_and_format(folder: Path, tmp_path: Path, mode: str, kind: str):
    image = noise_image((8, 6), seed=4).convert(mode)
    assert written(folder, tmp_path, file_of(image, format=kind)) == image.convert("RGB").tobytes()


def test_photographs_are_turned_upright(folder: Path, tmp_path: Path):
    image = noise_image((6, 8), seed=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation tag: to be turned by 90° clockwise for viewing
    data = file_of(image, format="PNG", exif=exif)
    assert written(folder, tmp_path, data) == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    row = open_shard(tmp_path / "shard").split("test").images.to_pylist()[1]
    assert (row["width"], row["height"]) == (8, 6)


def test_pictures_of_cameras_with_previews_are_taken(folder: Path, tmp_path: Path):
    image = noise_image((8, 6), seed=4)
    data = file_of(image, format="MPO", save_all=True, append_images=[noise_image((8, 6), seed=5)])
    with Image.open(io.BytesIO(data)) as first:
        assert written(folder, tmp_path, data) == first.convert("RGB").tobytes()


def animation() -> bytes:
    frames = [noise_image((8, 6), seed=seed) for seed in range(3)]
    return file_of(frames[0], format="PNG", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected a whole image file, .* no format that Pillow reads"),
        (b"<svg></svg>", "no format that Pillow reads"),
        (file_of(noise_image((8, 6), seed=1), format="JPEG")[:-30], "expected a whole image file"),
        (file_of(noise_image((8, 6), seed=1), format="GIF")[:-30], "expected a whole image file"),
        (file_of(Image.new("I;16", (8, 6)), format="PNG"), "expected a picture with 8 bits a channel"),
        (animation(), "expected a still image, .* with 3 frames"),
    ],
)
def test_files_that_are_no_still_picture_are_named(folder: Path, tmp_path: Path, data: bytes, said: str):
    path = folder / "images" / "val" / "CLEVR_val_000001.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=said) as error:
        serialize(folder, PIXELS, tmp_path / "shard", workers=1, splits=["test"])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def chunk_places(data: bytes) -> list[tuple[int, int]]:
    """Where each chunk of a PNG begins and ends."""
    places, start = [], 8
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4])
        places.append((start, end))
        start = end
    return places


def test_every_chunk_of_a_png_is_checked(folder: Path, tmp_path: Path):
    # A picture that loads all the same: what is broken are the checksums, and a comment.
    comments = PngInfo()
    comments.add_text("comment", "of no consequence")
    whole = file_of(noise_image((8, 6), seed=1), format="PNG", pnginfo=comments)
    assert len(chunk_places(whole)) == 4
    assert written(folder, tmp_path, whole + b"after the end") == noise_image((8, 6), seed=1).tobytes()
    for start, end in chunk_places(whole):
        for place in (end - 1, start + 8 if end - start > 12 else end - 2):
            broken = bytearray(whole)
            broken[place] ^= 1
            with pytest.raises(UserError, match=r"expected a whole image file, .*CLEVR_val_000001"):
                written(folder, tmp_path / "other", bytes(broken))
        with pytest.raises(UserError, match=r"expected a whole image file, .*CLEVR_val_000001"):
            written(folder, tmp_path / "other", whole[: end - 1])


@pytest.mark.parametrize("part", [4, 1.5])  # more than twice as many pixels as are allowed; fewer: Pillow only warns
def test_pictures_of_too_many_pixels_are_named(
    folder: Path, tmp_path: Path, part: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(32 * 24 / part))
    with pytest.raises(UserError, match=r"ordinary size, got .*CLEVR_val_000000\.png with: Image size \(768 pixels\)"):
        serialize(folder, PIXELS, tmp_path / "shard", workers=1, splits=["test"])


def test_large_results_are_waited_for_in_small_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(image_pool, "_BYTES_PER_TASK", 32 * 24 * 3 * 2)
    monkeypatch.setattr(image_pool, "_TASKS_PER_WORKER", 1)
    drawn: list[int] = []

    def paths() -> Iterator[Path]:
        for index in range(10):
            drawn.append(index)
            yield folder / "images" / "train" / f"CLEVR_train_{index:06d}.png"

    with image_pool.ImagePool(2) as pool:
        results = pool.encode(parse_spec("pixels:32x24"), paths())
        next(results)
        assert len(drawn) == 4  # two tasks of two
        assert len(list(results)) == 9
