"""Bits of every part against whole sequences' forwards, summed over the part's own bytes and end by hand."""

import math

import numpy as np
import pytest
import torch

from tests.vqa_bench.cells import make_shard
from tests.vqa_bench.scoring.full_forward import FullForward, byte_model
from vqa_bench.data.answers import CLEVR_ANSWERS
from vqa_bench.data.loading import Group, evaluation_groups
from vqa_bench.data.shards import Shard
from vqa_bench.data.vocab import END_PART, START_IMAGE, START_TEXT
from vqa_bench.models import ByteModel
from vqa_bench.scoring.answering import answer
from vqa_bench.scoring.parts import answer_bits, part_bits


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Shard:
    return make_shard(tmp_path_factory.mktemp("parts"))


def spans(ids: np.ndarray) -> list[tuple[int, slice]]:
    """Start id, and the bytes and end id behind it, of every part of a sequence."""
    starts = [t for t, id_ in enumerate(ids) if id_ in (START_TEXT, START_IMAGE)]
    ends = [t for t, id_ in enumerate(ids) if id_ == END_PART]
    return [(int(ids[a]), slice(a + 1, b + 1)) for a, b in zip(starts, ends, strict=True)]


def by_hand(shard: Shard, layout: str, model: ByteModel, rows: list[int]) -> dict[str, tuple[float, int]]:
    """Nats and ids of each part: bytes and ends, padding inside the image part's patch passed over."""
    sums = {"image": [0.0, 0], "question": [0.0, 0], "answer": [0.0, 0]}
    for place, row in enumerate(rows):
        full = FullForward(model, shard, row)
        sample = full.sample(full.split.answer[row])
        ids = np.concatenate((sample.prefix, sample.suffix))
        log_probs = full.id_log_probs([ids])[0]
        parts = spans(ids)
        for number, (start, span) in enumerate(parts):
            name = "image" if start == START_IMAGE else "answer" if number == len(parts) - 1 else "question"
            if name == "image" and layout == "iqa" and place % 5:
                continue  # read once for its five questions
            counted = ids[span] != 256
            sums[name][0] -= float(log_probs[span][torch.from_numpy(counted)].sum())
            sums[name][1] += int(counted.sum())
    return {name: (nats, count) for name, (nats, count) in sums.items()}


@pytest.mark.parametrize("layout", ["iqa", "qia", "qiqa"])
@pytest.mark.parametrize("form", ["text", "letter"])
def test_equals_sums_over_whole_sequences(shard: Shard, layout: str, form: str) -> None:
    model, split = byte_model(shard, "T/T, crossing", layout=layout, answer=form), shard.split("test")
    groups = evaluation_groups(split)[:2]
    rows = [int(row) for group in groups for row in group.questions]
    expected = by_hand(shard, layout, model, rows)
    found = part_bits(model, split, groups) | {"answer": answer_bits(answer(model, split, groups), CLEVR_ANSWERS, form)}
    assert list(found) == ["image", "question", "answer"]
    for name, (nats, count) in expected.items():
        assert found[name]["bytes"] == count, name
        assert found[name]["bits_per_byte"] == pytest.approx(nats / math.log(2) / count, abs=1e-5), name


def test_some_images_stand_for_all(shard: Shard) -> None:
    model, split = byte_model(shard, "T/T, crossing"), shard.split("test")
    groups = evaluation_groups(split)
    assert part_bits(model, split, groups, images=0) == {}
    spread: list[Group] = [groups[0], groups[3]]
    assert part_bits(model, split, groups, images=2) == part_bits(model, split, spread)
    assert part_bits(model, split, groups, images=99) == part_bits(model, split, groups)


def test_sums_do_not_depend_on_who_measured_what(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process gives its batches one after another; the sum is that of one process, to the last bit."""
    model, groups = byte_model(shard, "T/T, crossing"), evaluation_groups(shard.split("test"))
    sizes = [(0.1, 1), (1e16, 1), (0.3, 1), (-1e16, 1)]
    found = []
    for order in (sizes, sizes[::-1], sizes[::2] + sizes[1::2]):
        monkeypatch.setattr("vqa_bench.scoring.parts.launch.gather", lambda own, order=order: order)
        found.append(part_bits(model, shard.split("test"), groups[:1]))
    assert found[0] == found[1] == found[2]
    assert found[0]["question"]["bits_per_byte"] == pytest.approx(0.4 / math.log(2) / 4)
