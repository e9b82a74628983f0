"""Packed books as the harness reads them: what was written, without a copy; windows that cover exactly."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_scripts.books import pack_books
from vqa_bench.data.books import WindowPlan, evaluation_windows, open_books
from vqa_bench.errors import UserError

TRAIN = {"2": b"two\r\n\0", "10": b"", "11": b"\xff\xfe" * 50, "a b": b"last"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with pack_books(tmp_path / "books") as writer:
        for split, books in (("train", TRAIN), ("test", {"1": b"one"})):
            with writer.split(split) as packed:
                for name, content in books.items():
                    packed.add(name, [content])
        writer.finish({"kind": "test"}, verified=False, complete=False)
    return tmp_path / "books"


def stream(size: int) -> Any:
    """A split of so many bytes, for plans."""
    return SimpleNamespace(data=np.empty(size, np.uint8))


# ---- reading


def test_books_come_back_as_views_of_the_file(folder: Path) -> None:
    books = open_books(folder)
    assert books.manifest.splits["train"].books == 4
    assert books.manifest.splits["train"].invalid_utf8_bytes == 100
    split = books.split("train")
    assert split.names == list(TRAIN)
    assert len(split) == 4
    assert [split.book(index).tobytes() for index in range(4)] == list(TRAIN.values())
    assert split.data.tobytes() == b"".join(TRAIN.values())
    assert split.offsets.dtype == np.int64
    assert split.offsets.tolist() == [0, 6, 6, 106, 110]
    for view in (split.book(2), split.window(3, 90), split.data):
        assert view.dtype == np.uint8
        assert type(view) is np.ndarray
        assert np.shares_memory(view, split.data)
        assert not view.flags.writeable
    assert split.window(4, 4).tobytes() == b"\n\0\xff\xfe"
    assert split.window(110, 0).tobytes() == b""


def test_nothing_outside_is_read(folder: Path) -> None:
    split = open_books(folder).split("train")
    for index in (-1, 4):
        with pytest.raises(IndexError, match=r"expected a book 0\.\.3"):
            split.book(index)
    for start, length in ((-1, 2), (0, 111), (110, 1), (5, -1)):
        with pytest.raises(IndexError, match="expected a window inside 110 bytes"):
            split.window(start, length)


def test_readers_can_be_sent_to_other_processes(folder: Path) -> None:
    books = pickle.loads(pickle.dumps(open_books(folder)))
    plan = WindowPlan(books.split("train"), length=8, seed=1, batch=2)
    sent = pickle.dumps(plan)
    assert len(sent) < 1000  # the path, not the data
    for ours, theirs in zip(plan.windows(3), pickle.loads(sent).windows(3), strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_what_is_no_packed_books_is_an_error(folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere", folder / "train.bytes"):
        with pytest.raises(UserError, match=r"expected packed books \(a folder with manifest.json\)"):
            open_books(path)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for change, said in (
        ({"version": 2}, "with version: Input should be 1"),
        ({"format": "a shard"}, "with format"),
        ({"more": 1}, "with more"),
        ({"splits": []}, "with splits"),
    ):
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=said) as error:
            open_books(folder)
        assert "\n" not in str(error.value)


def test_changed_files_are_errors(folder: Path) -> None:
    books = open_books(folder)
    books.verify()
    with pytest.raises(UserError, match=r"expected a split of .* \(train, test\), got 'validation'"):
        books.split("validation")
    path = folder / "test.bytes"
    path.write_bytes(b"two")
    books.split("test")
    with pytest.raises(UserError, match=r"test\.bytes with SHA-256 .*changed file; pack the books again"):
        books.verify()
    path.write_bytes(b"four")
    for use in (books.verify, lambda: books.split("test")):
        with pytest.raises(UserError, match=r"test\.bytes to have 3 bytes as the manifest says, got 4"):
            use()
    path.unlink()
    with pytest.raises(UserError, match=r"test\.bytes as the manifest says, got no such file"):
        books.split("test")
    books.split("train")


# ---- windows


@given(size=st.integers(1, 300), length=st.integers(1, 60), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_covers_the_stream_once_from_its_phase_on(size: int, length: int, seed: int, epoch: int) -> None:
    length = min(length, size)
    plan = WindowPlan(stream(size), length=length, seed=seed, batch=1)
    windows = plan.windows_per_epoch
    starts = [plan.start(epoch * windows + place) for place in range(windows)]
    covered = np.zeros(size, int)
    for start in starts:
        assert 0 <= start <= size - length
        covered[start : start + length] += 1
    phase = min(starts)
    assert phase < length
    assert covered.tolist() == [0] * phase + [1] * (windows * length) + [0] * (size - phase - windows * length)
    assert size - windows * length < 2 * length


@given(
    size=st.integers(40, 200),
    length=st.integers(1, 20),
    world=st.integers(1, 4),
    more=st.integers(0, 8),
    step=st.integers(0, 50),
)
def test_processes_share_a_step_and_any_step_stands_alone(
    size: int, length: int, world: int, more: int, step: int
) -> None:
    batch = world + more
    ranks = [
        WindowPlan(stream(size), length=length, seed=3, batch=batch, rank=rank, world=world) for rank in range(world)
    ]
    alone = WindowPlan(stream(size), length=length, seed=3, batch=1)
    shares = [plan.starts(step).tolist() for plan in ranks]
    assert [len(share) for share in shares] == [len(range(rank, batch, world)) for rank in range(world)]
    assert [shares[number % world][number // world] for number in range(batch)] == [
        alone.start(sample) for sample in range(step * batch, (step + 1) * batch)
    ]


def test_epochs_differ_in_phase_and_order_and_seeds_in_both() -> None:
    plans = [WindowPlan(stream(10_000), length=100, seed=seed, batch=1) for seed in (1, 2)]
    assert plans[0].windows_per_epoch == 99
    epochs = [tuple(plan.start(epoch * 99 + place) for place in range(99)) for plan in plans for epoch in range(20)]
    assert len(set(epochs)) == 40
    assert len({min(starts) for starts in epochs}) > 25
    assert len({tuple(np.argsort(starts)) for starts in epochs}) == 40


def test_every_phase_comes() -> None:
    plan = WindowPlan(stream(103), length=4, seed=0, batch=1)
    starts = np.array([plan.start(sample) for sample in range(400 * plan.windows_per_epoch)])
    assert set(starts % 4) == {0, 1, 2, 3}
    assert starts.max() == 103 - 4, "the last window may end with the stream"


@given(size=st.integers(0, 100), length=st.integers(1, 30))
def test_evaluation_windows_cover_each_byte_once(size: int, length: int) -> None:
    windows = evaluation_windows(stream(size), length)
    assert windows.shape == (-(-size // length), 2)
    assert windows.dtype == np.int64
    assert [byte for start, count in windows for byte in range(start, start + count)] == list(range(size))
    assert all(count == length for _, count in windows[:-1])


def test_plans_that_cannot_be_met_are_errors() -> None:
    for length in (0, 101):
        with pytest.raises(UserError, match=f"expected windows of 1 to 100 bytes, .* got {length}"):
            WindowPlan(stream(100), length=length, seed=0, batch=1)
    for batch, world in ((0, 1), (2, 3)):
        with pytest.raises(UserError, match=f"expected at least one window a batch for each of {world} .* {batch}"):
            WindowPlan(stream(100), length=10, seed=0, batch=batch, world=world)
    with pytest.raises(UserError, match="expected windows of at least 1 byte, got 0"):
        evaluation_windows(stream(10), 0)
