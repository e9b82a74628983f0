"""Windows become batches: bytes come back, padding is told apart, and what is hidden hangs on the window alone."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vqa_bench.texts import make_books, noise
from vqa_bench.data.books import BookSplit, WindowPlan
from vqa_bench.data.loading import batches
from vqa_bench.data.vocab import PAD
from vqa_bench.data.windows import Masking, Window, collate_windows, training_windows


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> BookSplit:
    return make_books(tmp_path_factory.mktemp("windows") / "books", {"train": noise(5000)}).split("train")


@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=5), st.sampled_from([None, 0.01, 0.5, 0.99]))
def test_a_batch_is_the_bytes_of_its_windows(contents: list[bytes], rate: float | None) -> None:
    windows = [Window(10 + row, np.frombuffer(content, np.uint8)) for row, content in enumerate(contents)]
    masking = None if rate is None else Masking(rate, 3, "training")
    batch = collate_windows(windows, masking=masking)
    longest = max(map(len, contents))
    assert batch.ids.dtype == torch.int16, "a loader's worker should not send eight bytes for one"
    assert batch.padded == (min(map(len, contents)) < longest)
    moved = batch.to(torch.device("cpu"))
    assert moved.ids.dtype == torch.int64
    for row, content in enumerate(contents):
        assert moved.ids[row].tolist() == list(content) + [PAD] * (longest - len(content))
    if masking is None:
        assert moved.hidden is None
    else:
        assert moved.hidden is not None
        assert not moved.hidden[moved.ids == PAD].any()
        for row, window in enumerate(windows):
            assert moved.hidden[row, : len(window.content)].tolist() == masking.hidden(window).tolist()


def test_what_is_hidden_is_a_function_of_the_window_alone() -> None:
    content = np.zeros(20_000, np.uint8)
    masking = Masking(0.15, 0, "training")
    first = masking.hidden(Window(5, content))
    assert abs(first.mean() - 0.15) < 0.01
    assert np.array_equal(first, Masking(0.15, 0, "training").hidden(Window(5, content + 1)))
    for other in (
        masking.hidden(Window(6, content)),
        Masking(0.15, 1, "training").hidden(Window(5, content)),
        Masking(0.15, 0, "evaluation").hidden(Window(5, content)),
    ):
        assert abs((first & other).mean() - 0.15**2) < 0.005, "drawn independently"


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_start_anywhere(split: BookSplit, workers: int) -> None:
    plan = WindowPlan(split, length=64, seed=1, batch=5)
    collate = partial(collate_windows, masking=Masking(0.3, 1, "training"))
    found = list(batches(partial(training_windows, plan), collate, range(14, 18), workers=workers))
    for step, batch in zip(range(14, 18), found, strict=True):
        assert batch.hidden is not None
        assert batch.ids.numpy().astype(np.uint8).tolist() == [window.tolist() for window in plan.windows(step)]
        again = collate(training_windows(plan, step))
        assert torch.equal(batch.hidden, again.hidden)


def test_processes_hide_the_same_bytes_as_one(split: BookSplit) -> None:
    masking = Masking(0.3, 1, "training")
    whole = collate_windows(training_windows(WindowPlan(split, 64, 1, 5), 3), masking=masking)
    for rank in (0, 1):
        share = collate_windows(training_windows(WindowPlan(split, 64, 1, 5, rank, 2), 3), masking=masking)
        assert whole.hidden is not None
        assert share.hidden is not None
        assert torch.equal(share.ids, whole.ids[rank::2])
        assert torch.equal(share.hidden, whole.hidden[rank::2])


def test_windows_are_views_and_workers_are_sent_no_bytes(split: BookSplit) -> None:
    plan = WindowPlan(split, length=1000, seed=1, batch=3)
    assert all(np.shares_memory(window.content, split.data) for window in training_windows(plan, 0))
    assert len(pickle.dumps(partial(training_windows, plan))) < 1000
