"""What `inspect` shows: everything of a shard and of a sample, complete without colour, and what it refuses."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from rich.text import Text

from tests.vqa_bench.cells import PIXELS, make_shard
from vqa_bench.data.encodings import parse_spec
from vqa_bench.data.look import (
    Gap,
    IdRow,
    SampleView,
    look_at_sample,
    look_at_shard,
    program_lines,
    save_picture,
    sequence_rows,
)
from vqa_bench.data.sequences import PARTS_OF, SequenceConfig, Sequencer
from vqa_bench.data.serialize import serialize
from vqa_bench.data.shards import open_shard
from vqa_bench.data.show import MARKS, picture_text, sample_text, sequence_text, shard_text
from vqa_bench.data.vocab import END_PART, PAD
from vqa_bench.errors import UserError


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard(tmp_path_factory.mktemp("look")).path


def printed(text: Text, **options: object) -> str:
    console = Console(width=100, record=True, **options)  # type: ignore[arg-type]
    with console.capture() as capture:
        console.print(text, soft_wrap=True)
    return capture.get()


def test_the_manifest_and_the_lengths(shard: Path) -> None:
    view = look_at_shard(shard)
    manifest = open_shard(shard).manifest
    shown = printed(shard_text(view))
    for fact in (PIXELS, manifest.source.name, manifest.source.fingerprint, "0.1 of the training images, seed 0"):
        assert fact in shown
    for name, info in manifest.splits.items():
        assert re.search(rf"^{name} +{info.source_split} +{info.images} +{info.questions} ", shown, re.MULTILINE)
    assert "--verify" in shown
    assert "same" in shown
    sample = look_at_sample(shard, 0).sample
    assert view.sequences["train"].min <= len(sample.prefix) + len(sample.suffix) <= view.sequences["train"].max


@pytest.mark.parametrize("layout", PARTS_OF)
@pytest.mark.parametrize("answer", ["letter", "text"])
def test_lengths_of_whole_sequences(shard: Path, layout: str, answer: str) -> None:
    config = SequenceConfig.model_validate({"layout": layout, "answer": answer})
    view = look_at_shard(shard, config=config, patch=12)
    samples = [look_at_sample(shard, row, config=config, patch=12, split="test").sample for row in range(30)]
    lengths = [len(sample.prefix) + len(sample.suffix) for sample in samples]
    found = view.sequences["test"]
    assert (found.min, found.max) == (min(lengths), max(lengths))


def test_verification_finds_a_changed_file(shard: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shard, copy)
    assert "every file hashed again" in printed(shard_text(look_at_shard(copy, verify=True)))
    table = copy / "test" / "images.arrow"
    data = bytearray(table.read_bytes())
    data[-100] ^= 1
    table.write_bytes(data)
    look_at_shard(copy)  # of the same size
    with pytest.raises(UserError, match="got a changed file"):
        look_at_shard(copy, verify=True)
    table.write_bytes(data[:-8])
    with pytest.raises(UserError, match=r"images\.arrow with .* bytes as the manifest says"):
        look_at_shard(copy)


def test_a_sample_in_plain_text(shard: Path) -> None:
    view = look_at_sample(shard, 3, split="test")
    split = open_shard(shard).split("test")
    shown = printed(sample_text(view))
    assert "\x1b" not in shown
    for fact in ("Sample 3 of 30 in test", split.question[3], "purple, written as 'L'", "query_color, group query"):
        assert fact in shown
    assert "  2. query_color (1)\n" in shown
    assert "6×4 pixels from 72 bytes" in shown
    picture = parse_spec(PIXELS).decode(split.image_bytes(0).tobytes())
    assert np.array_equal(np.asarray(view.picture), np.asarray(picture))
    # The answer's line: its start, its letter and its end, the last two with a weight.
    assert re.search(r"answer   T> 4c\*<<\*(·· )+ *\|\.L\. +\|", shown)
    assert "shown with --full" not in shown  # nothing is long enough


@settings(deadline=None, max_examples=50)
@given(
    image=st.binary(min_size=1, max_size=700),
    layout=st.sampled_from(sorted(PARTS_OF)),
    patch=st.sampled_from([1, 8, 12]),
    width=st.sampled_from([16, 32]),
    full=st.booleans(),
    weight=st.sampled_from([0.0, 0.5]),
)
def test_lines_of_a_sequence(image: bytes, layout: str, patch: int, width: int, full: bool, weight: float) -> None:
    config = SequenceConfig.model_validate({"layout": layout, "weights": {"image": weight, "question": 1.0}})
    sample = Sequencer(config, patch, 5000, 700).sample(image, "What is there, above it?", "cylinder")
    parts = PARTS_OF[layout]
    ids = np.concatenate((sample.prefix, sample.suffix))
    weights = np.concatenate((sample.prefix_weights, sample.suffix_weights))
    rows = sequence_rows(sample, parts, width=width, full=full)
    offset, order = 0, []
    for row in rows:
        assert row.offset == offset
        order += [row.part] if order[-1:] != [row.part] else []
        if isinstance(row, IdRow):
            assert 1 <= len(row.ids) <= width
            assert np.array_equal(row.ids, ids[offset : offset + len(row.ids)])
            assert np.array_equal(row.weights, weights[offset : offset + len(row.ids)])
            assert END_PART not in row.ids or (row.ids[np.flatnonzero(row.ids == END_PART)[0] + 1 :] == PAD).all()
        offset += row.left_out if isinstance(row, Gap) else len(row.ids)
    assert offset == len(ids)
    assert tuple(order) == parts
    assert not (full and any(isinstance(row, Gap) for row in rows))
    assert len(rows) <= 9 * len(parts) or full
    # Read back from the text as a stranger would: every id and every star.
    if full:
        lines = sequence_text(rows, width).plain.splitlines()
        cells = [line[18 : 18 + 3 * width] for line in lines]
        tokens = [cell[i : i + 3] for cell in cells for i in range(0, len(cell), 3) if cell[i : i + 3].strip()]
        names = {mark: id_ for id_, mark in MARKS.items()}
        assert [names[t[:2]] if t[:2] in names else int(t[:2], 16) for t in tokens] == ids.tolist()
        assert [t[2] == "*" for t in tokens] == (weights > 0).tolist()


def test_a_picture_in_half_blocks() -> None:
    picture = Image.new("RGB", (3, 5), (1, 2, 3))
    picture.putpixel((1, 0), (255, 0, 7))
    shown = printed(picture_text(picture, 80), force_terminal=True, color_system="truecolor")
    assert shown.count("▀") == 9
    assert "38;2;255;0;7;48;2;1;2;3" in shown
    assert "38;2;1;2;3;48;2;0;0;0" in shown  # below the last row there is nothing
    assert printed(picture_text(Image.new("RGB", (100, 50)), 20)).count("▀") == 20 * 5


def test_colour_and_underlined_weights(shard: Path) -> None:
    text = sample_text(look_at_sample(shard, 0), columns=40)
    shown = printed(text, force_terminal=True, color_system="truecolor")
    assert "▀" in shown
    assert re.search("\x1b\\[1;4;35m[0-9a-f]{2}\x1b", shown)  # the answer's letter: bold, underlined, magenta
    assert re.sub("\x1b\\[[0-9;]*m", "", shown) == printed(text)


def test_every_encoding_is_decoded(tmp_path: Path) -> None:
    folder = make_shard(tmp_path, train=4, val=1).path.parent / "clevr"
    serialize(folder, parse_spec("jpeg:16x12,q=90,tables=drop"), tmp_path / "jpeg", workers=1, splits=["test"])
    view = look_at_sample(tmp_path / "jpeg", 0)
    assert view.picture.size == (16, 12)
    save_picture(view, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as saved:
        assert np.array_equal(np.asarray(saved), np.asarray(view.picture))
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_long_parts_are_abbreviated(shard: Path) -> None:
    view = look_at_sample(shard, 0, config=SequenceConfig(image_bytes=2000))
    assert isinstance(view, SampleView)
    assert re.search(r"64 image    … [0-9,]+ ids, shown with --full …", printed(sample_text(view)))
    assert "--full" not in printed(sample_text(view, full=True))


def test_programs_of_both_dialects() -> None:
    release = [{"function": "scene", "inputs": [], "value_inputs": []}]
    generator = [{"type": "filter_size", "inputs": [0], "value_inputs": ["large"]}, {"type": "union", "inputs": [1, 0]}]
    assert program_lines(release + generator) == ["0. scene", "1. filter_size large (0)", "2. union (1, 0)"]


def test_what_cannot_be_shown(shard: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a shard"):
        look_at_shard(tmp_path)
    for row in (-1, 30):
        with pytest.raises(UserError, match=rf"a sample of split test of .* \(0 to 29\), got {row}"):
            look_at_sample(shard, row, split="test")
    with pytest.raises(UserError, match=r"expected a split of .* got 'tset'"):
        look_at_sample(shard, 0, split="tset")
    with pytest.raises(UserError, match="a patch of at least 1 byte, got 0"):
        look_at_sample(shard, 0, patch=0)
