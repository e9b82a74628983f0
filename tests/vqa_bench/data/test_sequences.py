"""Parts to ids: every byte value, the longest question, patch borders, weights, and what does not fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqa_bench.data.sequences import PARTS_OF, SequenceConfig, Sequencer
from vqa_bench.data.vocab import ANSWERS, END_PART, LETTERS, PAD, START_IMAGE, START_TEXT
from vqa_bench.errors import UserError

EVERY_BYTE = bytes(range(256))
LONGEST = "Are" + " there the same number of things" * 6 + " as balls?"


def sequencer(patch: int = 12, image_bytes: int = 256, context: int = 5_000, **config: object) -> Sequencer:
    return Sequencer(SequenceConfig.model_validate(config), patch, context, image_bytes)


def parts_of(ids: np.ndarray) -> list[tuple[int, bytes]]:
    """(start id, bytes) of every part, read back from the ids as a stranger would."""
    parts: list[tuple[int, bytes]] = []
    for piece in np.split(ids, np.flatnonzero(ids == END_PART) + 1):
        piece = piece[piece != PAD]
        if len(piece):
            assert piece[-1] == END_PART
            parts.append((int(piece[0]), bytes(piece[1:-1].astype(np.uint8))))
    return parts


@pytest.mark.parametrize("layout", PARTS_OF)
@pytest.mark.parametrize("answer", ["text", "letter"])
@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("patch", [1, 8, 12])
def test_every_byte_and_the_longest_question_come_back(layout: str, answer: str, align: bool, patch: int) -> None:
    assert len(LONGEST.encode()) == 205
    sample = sequencer(patch, layout=layout, answer=answer, align=align).sample(EVERY_BYTE, LONGEST, "cylinder")
    written = {"question": (START_TEXT, LONGEST.encode()), "image": (START_IMAGE, EVERY_BYTE)}
    written["answer"] = (START_TEXT, b"cylinder" if answer == "text" else LETTERS["cylinder"].encode())
    ids = np.concatenate((sample.prefix, sample.suffix))
    assert parts_of(ids) == [written[part] for part in PARTS_OF[layout]]
    assert (len(sample.prefix) > 0) == (layout == "iqa")
    for length in (len(sample.prefix), len(sample.suffix), sample.answer_start):
        assert length % patch == 0


def test_aligned_images_begin_a_patch() -> None:
    prefix = sequencer(12, align=True).sample(EVERY_BYTE, "A?", "no").prefix
    assert prefix[0] == START_IMAGE
    assert (prefix[1:12] == PAD).all()
    assert bytes(prefix[12:268].astype(np.uint8)) == EVERY_BYTE
    tight = sequencer(12, align=False).sample(EVERY_BYTE, "A?", "no").prefix
    assert bytes(tight[1:257].astype(np.uint8)) == EVERY_BYTE


def test_shorter_images_take_the_same_room() -> None:
    make = sequencer(12, image_bytes=100)
    assert {len(make.image(bytes(n))) for n in (1, 50, 100)} == {make.image_length}


@given(st.binary(min_size=1, max_size=60), st.sampled_from(ANSWERS), st.sampled_from(["text", "letter"]))
def test_weights_cover_bytes_and_end_of_the_answer(image: bytes, answer: str, form: str) -> None:
    make = sequencer(8, image_bytes=60, answer=form)
    sample = make.sample(image, "What is it?", answer)
    weighted = sample.suffix[sample.suffix_weights > 0]
    assert tuple(weighted) == make.answers.ids(form)[ANSWERS.index(answer)]
    assert sample.prefix_weights.sum() == 0
    assert sample.suffix[sample.answer_start] == START_TEXT


def test_every_part_has_a_weight_of_its_own() -> None:
    weights = {"question": 0.5, "image": 0.25, "answer": 2.0}
    sample = sequencer(8, layout="qiqa", image_bytes=3, weights=weights).sample(b"\x00\x01\xff", "Why?", "no")
    assert sample.suffix_weights.sum() == pytest.approx(2 * 5 * 0.5 + 4 * 0.25 + 2 * 2.0)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(UserError, match=r"at most 300 bytes \(the model's context\), got 504: 276 for an image of 256"):
        sequencer(12, context=300)
    with pytest.raises(UserError, match="an image of at most 10 bytes, got 11"):
        sequencer(image_bytes=10).image(bytes(11))
    roomy = sequencer(12, context=530)
    with pytest.raises(UserError, match=r"sequence of at most 530 bytes .* got 696 with the question 'xxxx"):
        roomy.sample(EVERY_BYTE, "x" * 400, "no")
