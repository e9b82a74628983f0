"""Encodings from outside, and the bytes that other hosts should make too."""

from dataclasses import dataclass

import pytest
from PIL import Image

from vqa_bench.data import encodings
from vqa_bench.data.encodings import KINDS, Spec, codec_versions, parse_spec, register
from vqa_bench.data.golden import GOLDEN, GOLDEN_VERSIONS, golden_hash, golden_picture
from vqa_bench.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ToySpec(Spec):
    """The picture's mean colour: three bytes."""

    kind = "toy"

    def encode(self, image: Image.Image) -> bytes:
        return self.picture(image).resize((1, 1), Image.Resampling.BOX).tobytes()

    def decode(self, data: bytes) -> Image.Image:
        return Image.frombytes("RGB", (1, 1), data)


def test_a_users_own_encoding_is_one_class(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encodings, "KINDS", dict(KINDS))
    assert register(ToySpec) is ToySpec
    spec = parse_spec("toy:4x4,crop=10%")
    assert (type(spec), str(spec), spec.host_dependent) == (ToySpec, "toy:4x4,crop=10%", True)
    assert spec.encode(Image.new("RGB", (9, 9), (1, 2, 3))) == b"\x01\x02\x03"
    assert spec.decode(b"\x01\x02\x03").getpixel((0, 0)) == (1, 2, 3)
    register(ToySpec)  # a module that is run again
    with pytest.raises(UserError, match=r"KIND pixels\|png\|jpeg\|webp\|bmp\|toy"):
        parse_spec("gif:4x4")


def test_what_cannot_be_registered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encodings, "KINDS", dict(KINDS))
    with pytest.raises(ValueError, match="dataclass derived from Spec, got Image"):
        register(Image.Image)  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"kind other than .*, got Other\.kind = 'png'"):
        register(dataclass(frozen=True)(type("Other", (ToySpec,), {"kind": "png"})))
    with pytest.raises(ValueError, match=r"small letters, digits and _, got 'A:B'"):
        register(dataclass(frozen=True)(type("Other", (ToySpec,), {"kind": "A:B"})))
    assert encodings.KINDS == KINDS


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_bytes_are_those_of_this_host(text: str):
    """Where a library behind Pillow is another, only encodings that depend on none must still agree."""
    if golden_hash(text) != GOLDEN[text]:
        assert parse_spec(text).host_dependent
        assert codec_versions() != GOLDEN_VERSIONS


def test_golden_specs_are_canonical_and_cover_every_kind():
    assert all(str(parse_spec(text)) == text for text in GOLDEN)
    assert {parse_spec(text).kind for text in GOLDEN} == set(KINDS)
    assert (golden_picture().mode, golden_picture().size) == ("RGB", (48, 32))


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_kind_says_what_its_bytes_depend_on(kind: type[Spec]):
    assert kind.host_reason != Spec.host_reason
