"""Batches of byte sequences against the same samples made one by one; what moves, widens and is sent to a worker."""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqa_bench.data.collate import ByteBatch, ByteCollate, prefix_weights, suffix_weights
from vqa_bench.data.loading import Group, batches
from vqa_bench.data.questions import questions_of
from vqa_bench.data.sequences import PARTS_OF, SequenceConfig, Sequencer
from vqa_bench.data.shards import IMAGE_SCHEMA, QUESTION_SCHEMA, SplitReader, write_rows
from vqa_bench.data.vocab import ANSWERS, PAD
from vqa_bench.errors import UserError

IMAGES, ROOM = 300, 40  # more images than one record batch of the tables holds


def write_split(folder: Path, answers: tuple[str, ...] = ANSWERS) -> SplitReader:
    """Pictures of random bytes and lengths, 0 to 4 questions each, in an order that jumps between the images."""
    random = np.random.default_rng(0)
    texts = [f"Héllo {'x' * int(random.integers(0, 120))}?" for _ in range(50)]
    order = random.permutation(np.repeat(np.arange(IMAGES), random.integers(0, 5, IMAGES)))
    pictures = [(f"{i}.png", i, random.bytes(int(random.integers(1, ROOM + 1))), 1, 1) for i in range(IMAGES)]
    asked = [
        (row, int(image), texts[row % len(texts)], answers[row % len(answers)], "exist", None, "[]", None)
        for row, image in enumerate(order)
    ]
    write_rows(folder / "images.arrow", IMAGE_SCHEMA, pictures)
    write_rows(folder / "questions.arrow", QUESTION_SCHEMA, asked)
    return SplitReader(folder)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> SplitReader:
    return write_split(tmp_path_factory.mktemp("collate"))


def one_by_one(batch: ByteBatch, sequencer: Sequencer, split: SplitReader, groups: list[Group]) -> None:
    """Every place of a batch holds the sample that `Sequencer.sample` makes, and padding behind it."""
    weights, before = suffix_weights(batch, sequencer), prefix_weights(batch, sequencer)
    assert weights.dtype == before.dtype == torch.float32
    for b, group in enumerate(groups):
        for k, row in enumerate(group.questions):
            sample = sequencer.sample(split.image_bytes(group.image), split.question[row], split.answer[row])
            length = len(sample.suffix)
            assert torch.equal(batch.prefix[b].long(), torch.from_numpy(sample.prefix))
            assert torch.equal(batch.suffixes[b, k, :length].long(), torch.from_numpy(sample.suffix))
            assert (batch.suffixes[b, k, length:] == PAD).all()
            assert torch.equal(weights[b, k, :length], torch.from_numpy(sample.suffix_weights))
            assert torch.equal(before[b, k], torch.from_numpy(sample.prefix_weights))
            assert batch.answer_patches[b, k] * sequencer.patch_size == sample.answer_start
            assert (batch.rows[b, k], batch.targets[b, k]) == (row, ANSWERS.index(split.answer[row]))
        absent = slice(len(group.questions), None)
        assert not batch.present[b, absent].any()
        assert batch.present[b, : len(group.questions)].all()
        assert (batch.suffixes[b, absent] == PAD).all()
        assert (weights[b, absent] == 0).all()
        assert (before[b, absent] == 0).all()
        assert (batch.answer_patches[b, absent] == 1).all()


@settings(deadline=None, max_examples=60)
@given(
    layout=st.sampled_from(sorted(PARTS_OF)),
    answer=st.sampled_from(["text", "letter"]),
    align=st.booleans(),
    patch=st.sampled_from([1, 8, 12]),
    weights=st.fixed_dictionaries(
        {part: st.sampled_from([0.0, 0.1, 1.0]) for part in ("question", "image", "answer")}
    ).filter(lambda weights: any(weights.values())),
    images=st.lists(st.integers(0, IMAGES - 1), min_size=1, max_size=4),
    data=st.data(),
)
def test_a_batch_is_its_samples(
    split: SplitReader,
    layout: str,
    answer: str,
    align: bool,
    patch: int,
    weights: dict,
    images: list,
    data: st.DataObject,
) -> None:
    given_config = {"layout": layout, "answer": answer, "align": align, "weights": weights}
    sequencer = Sequencer(SequenceConfig.model_validate(given_config), patch, 900, ROOM)
    questions = st.lists(st.integers(0, len(split.question) - 1), max_size=4, unique=True).map(
        lambda q: np.array(q, int)
    )
    groups = [Group(image, data.draw(questions)) for image in images]
    groups[0] = groups[0]._replace(questions=np.array([data.draw(st.integers(0, 9)), 11]))  # at least one is asked
    one_by_one(ByteCollate(sequencer)(split, groups), sequencer, split, groups)


def test_ids_are_narrow_until_they_are_moved(split: SplitReader) -> None:
    sequencer = Sequencer(SequenceConfig(), 8, 900, ROOM)
    groups = [Group(0, np.array([3, 1])), Group(5, np.array([2]))]
    batch = ByteCollate(sequencer)(split, groups)
    assert batch.prefix.dtype == batch.suffixes.dtype == torch.int16
    moved = batch.to(torch.device("cpu"))
    assert moved.prefix.dtype == moved.suffixes.dtype == torch.int64
    assert torch.equal(moved.suffixes, batch.suffixes.long())
    assert torch.equal(moved.rows, batch.rows)
    one_by_one(moved, sequencer, split, groups)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_make_the_same_batches(split: SplitReader, workers: int) -> None:
    collate = ByteCollate(Sequencer(SequenceConfig(layout="qia"), 8, 900, ROOM))
    groups = [Group(int(split.image_of_question[row]), np.array([row])) for row in range(7)]
    made = list(batches(lambda step: groups[step:], partial(collate, split), range(7), workers=workers))
    assert len(made) == 7
    for step, batch in enumerate(made):
        expected = collate(split, groups[step:])
        for name, tensor in expected.__dict__.items():
            assert torch.equal(getattr(batch, name), tensor), name


def test_what_a_worker_is_sent_is_small_and_opens_the_shard_again(split: SplitReader) -> None:
    bound = partial(ByteCollate(Sequencer(SequenceConfig(), 8, 900, ROOM)), split)
    groups = [Group(3, np.array([2, 9]))]
    batch = bound(groups)
    sent = pickle.dumps(bound)
    assert len(sent) < 5_000
    again = pickle.loads(sent)(groups)
    assert all(torch.equal(getattr(again, name), tensor) for name, tensor in batch.__dict__.items())


def test_questions_as_arrays(split: SplitReader) -> None:
    questions = questions_of(split)
    assert questions_of(split) is questions
    spans = zip(questions.begin, questions.lengths, strict=True)
    assert [questions.text[b : b + n].tobytes().decode() for b, n in spans] == split.question
    assert [ANSWERS[place] for place in questions.answers] == split.answer
    assert not questions.text.flags.writeable
    few = questions.take(np.array([4, 2]))
    assert few.text is questions.text
    assert few.lengths.tolist() == [len(split.question[row].encode()) for row in (4, 2)]


def test_an_answer_out_of_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one of the shard's 28 answers, got 'maybe'"):
        questions_of(write_split(tmp_path, ("yes", "maybe")))


def test_what_does_not_fit_is_named(split: SplitReader) -> None:
    tight = Sequencer(SequenceConfig(image_bytes=3), 8, 900, ROOM)
    with pytest.raises(UserError, match=r"an image of at most 3 bytes, got \d+"):
        ByteCollate(tight)(split, [Group(int(split.image_lengths.argmax()), np.array([0]))])
    short = Sequencer(SequenceConfig(layout="qia"), 8, 900, ROOM)
    short.context = 100
    longest = int(np.argmax([len(text) for text in split.question]))
    with pytest.raises(UserError, match=r"sequence of at most 100 bytes .* with the question 'Héllo xxx"):
        ByteCollate(short)(split, [Group(0, np.array([longest, 1]))])
