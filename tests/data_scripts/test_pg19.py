"""Books from a bucket with faults, from a data set and from folders: the same bytes, or one clear line."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest

from data_scripts import gutenberg, pg19
from data_scripts.errors import DataError
from data_scripts.fetch import Retry
from data_scripts.pg19 import pack_pg19
from tests.data_scripts.bucket import Bucket, serve
from tests.data_scripts.test_books import unpack

QUICK = Retry(tries=3, first_wait=0.0, longest_wait=0.0, silence=5.0)
BOOKS = {
    "train/9.txt": b"nine\r\n\0",
    "train/10.txt": "ten é".encode(),
    "train/100.txt": b"\xff no UTF-8",
    "train/2.txt": b"two" * 5000,
    "train/31.txt": b"",
    "validation/7.txt": b"seven",
    "test/8.txt": b"eight",
}
OTHERS = {
    "metadata.csv": b"9,Nine,1900,http://example.org/9\n",
    "train/": b"",
    "train/notes.md": b"no book",
    "training/1.txt": b"no",
}
TRAIN = {"2": b"two" * 5000, "9": b"nine\r\n\0", "10": "ten é".encode(), "31": b"", "100": b"\xff no UTF-8"}


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serve(BOOKS | OTHERS) as running:
        yield running


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("expected ")
    return text


# ---- the bucket


def test_a_bucket_is_packed_in_the_order_of_numbers(tmp_path: Path, bucket: Bucket) -> None:
    steps: list[tuple[int, int]] = []
    manifest = pack_pg19(
        tmp_path / "out", url=bucket.url + "/", retry=QUICK, progress=lambda done, total: steps.append((done, total))
    )
    assert list(unpack(tmp_path / "out").items()) == list(TRAIN.items())
    assert unpack(tmp_path / "out", "validation") == {"7": b"seven"}
    assert unpack(tmp_path / "out", "test") == {"8": b"eight"}
    assert (tmp_path / "out" / "metadata.csv").read_bytes() == OTHERS["metadata.csv"]
    assert manifest["source"] == {"kind": "url", "url": bucket.url, "splits": None}
    assert manifest["splits"]["train"]["invalid_utf8_bytes"] == 1
    assert (manifest["verified"], manifest["complete"]) == (False, False)
    assert steps == [(done, 14) for done in range(1, 15)]
    assert names(tmp_path) == ["out"]
    assert all(count == 1 for name, count in bucket.asked.items() if name)
    assert bucket.asked[""] == 5  # train has three pages of up to three


def test_done_twice_asks_nothing(tmp_path: Path, bucket: Bucket) -> None:
    first = pack_pg19(tmp_path / "out", url=bucket.url, splits=["test", "validation"], retry=QUICK)
    assert list(first["splits"]) == ["validation", "test"]
    asked = bucket.asked.total()
    assert pack_pg19(tmp_path / "out", url=bucket.url, splits=["validation", "test"], retry=QUICK) == first
    assert bucket.asked.total() == asked
    with pytest.raises(DataError, match="name another folder") as error:
        pack_pg19(tmp_path / "out", url=bucket.url, retry=QUICK)
    one_line(error)


def test_faults_are_retried(tmp_path: Path, bucket: Bucket) -> None:
    bucket.cut["train/2.txt"], bucket.busy["test/8.txt"], bucket.busy[""] = 2, 2, 1
    pack_pg19(tmp_path / "out", url=bucket.url, retry=QUICK, connections=2)
    assert unpack(tmp_path / "out") == TRAIN


def test_a_missing_book_is_named_and_the_others_are_kept(tmp_path: Path, bucket: Bucket) -> None:
    bucket.missing.add("train/100.txt")
    with pytest.raises(DataError, match=r"train/100\.txt, got HTTP 404") as error:
        pack_pg19(tmp_path / "out", url=bucket.url, retry=QUICK, connections=1)
    one_line(error)
    assert names(tmp_path) == [".out.fetched"]
    bucket.missing.clear()
    bucket.asked.clear()
    pack_pg19(tmp_path / "out", url=bucket.url, retry=QUICK)
    assert unpack(tmp_path / "out") == TRAIN
    assert bucket.asked["train/2.txt"] == bucket.asked["train/9.txt"] == 0


KILLED = "import sys; from pathlib import Path; from data_scripts.pg19 import pack_pg19; \
pack_pg19(Path(sys.argv[1]), url=sys.argv[2], connections=1)"


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, bucket: Bucket) -> None:
    bucket.hang.add("train/31.txt")
    bucket.objects["train/31.txt"] = b"long enough to be cut"
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "out"), bucket.url])
    assert bucket.hanging.wait(60)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists()
    bucket.hang.clear()
    before = dict(bucket.asked)
    pack_pg19(tmp_path / "out", url=bucket.url, retry=QUICK)
    assert unpack(tmp_path / "out") == TRAIN | {"31": b"long enough to be cut"}
    for name in ("train/2.txt", "train/9.txt", "train/10.txt", "metadata.csv"):
        assert (before[name], bucket.asked[name]) == (1, 1)
    assert bucket.asked["train/31.txt"] == 2
    assert names(tmp_path) == ["out"]


def test_a_cache_of_ones_own_is_kept_and_is_a_folder_of_books(tmp_path: Path, bucket: Bucket) -> None:
    cache = tmp_path / "cache"
    pack_pg19(tmp_path / "out", url=bucket.url, cache=cache, retry=QUICK)
    asked = bucket.asked["train/9.txt"]
    pack_pg19(tmp_path / "again", url=bucket.url, cache=cache, splits=["train"], retry=QUICK)
    assert bucket.asked["train/9.txt"] == asked
    pack_pg19(tmp_path / "folder", folder=cache)
    assert unpack(tmp_path / "out") == unpack(tmp_path / "again") == unpack(tmp_path / "folder") == TRAIN
    with (
        serve(BOOKS) as other,
        pytest.raises(DataError, match=r"to have books of http.*, got those of http.*: remove it"),
    ):
        pack_pg19(tmp_path / "other", url=other.url, cache=cache, retry=QUICK)


def test_a_book_that_has_changed_since_is_fetched_again(tmp_path: Path, bucket: Bucket) -> None:
    bucket.missing.add("test/8.txt")
    with pytest.raises(DataError, match="404"):
        pack_pg19(tmp_path / "out", url=bucket.url, retry=QUICK, connections=1)
    bucket.missing.clear()
    bucket.objects["train/9.txt"] = b"longer than it was"
    pack_pg19(tmp_path / "out", url=bucket.url, retry=QUICK)
    assert unpack(tmp_path / "out") == TRAIN | {"9": b"longer than it was"}


@pytest.mark.parametrize("place", ["", "data/"])
def test_a_plain_server_with_lists(tmp_path: Path, bucket: Bucket, place: str) -> None:
    bucket.lists = False
    del bucket.objects["metadata.csv"]
    bucket.objects[f"{place}train_files.txt"] = b"train/9.txt\r\ntrain/2.txt\n\n"
    pack_pg19(tmp_path / "out", url=bucket.url, splits=["train"], retry=QUICK)
    assert unpack(tmp_path / "out") == {"2": b"two" * 5000, "9": b"nine\r\n\0"}
    with pytest.raises(DataError, match=r"a list of the books of test at http.*got HTTP 404.*use --folder") as error:
        pack_pg19(tmp_path / "none", url=bucket.url, splits=["test"], retry=QUICK)
    one_line(error)


def test_the_official_books_are_counted_and_their_bytes_compared(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (gutenberg, pg19):
        monkeypatch.setattr(module, "OFFICIAL", bucket.url)
    with pytest.raises(DataError, match=r"expected 28,602 books in train of PG19, got 5 listed at") as error:
        pack_pg19(tmp_path / "out", retry=QUICK)
    one_line(error)
    for module in (gutenberg, pg19):
        monkeypatch.setattr(module, "PUBLISHED", {"train": 5, "validation": 1, "test": 1})
    right = bucket.objects["train/9.txt"]
    manifest = pack_pg19(tmp_path / "right", retry=QUICK)
    assert (manifest["verified"], manifest["complete"]) == (True, True)
    manifest = pack_pg19(tmp_path / "part", splits=["train"], retry=QUICK)
    assert (manifest["verified"], manifest["complete"]) == (True, False)
    fetch = gutenberg.fetch

    def change_on_the_way(url: str, target: Path, **options: object) -> object:
        result = fetch(url, target, **options)
        if url.endswith("train/9.txt"):
            target.write_bytes(bytes(len(right)))
        return result

    monkeypatch.setattr(gutenberg, "fetch", change_on_the_way)
    with pytest.raises(DataError, match=r"expected train/9.txt with MD5 .*, got .*: run the same command again"):
        pack_pg19(tmp_path / "wrong", retry=QUICK)
    monkeypatch.setattr(gutenberg, "fetch", fetch)
    pack_pg19(tmp_path / "wrong", retry=QUICK)
    assert unpack(tmp_path / "wrong") == TRAIN


def test_without_a_network_the_other_ways_are_named(tmp_path: Path) -> None:
    with serve({}) as gone:
        url = gone.url
    with pytest.raises(DataError, match=r"expected to reach .*--folder.*--dataset") as error:
        pack_pg19(tmp_path / "out", url=url, retry=QUICK)
    one_line(error)


def test_the_disk_must_hold_the_books_twice(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 2 * sum(map(len, BOOKS.values()))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(DataError, match=f"expected {needed:,} bytes free in .* got {needed - 1:,}") as error:
        pack_pg19(tmp_path / "out", url=bucket.url, retry=QUICK)
    one_line(error)
    assert set(bucket.asked) == {""}


def test_a_server_that_lists_in_circles_is_no_bucket(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = gutenberg._list_page

    def first_page(url: str, *rest: object, first: bool) -> object:
        return page(url.partition("&")[0], *rest, first=first)

    monkeypatch.setattr(gutenberg, "_list_page", first_page)
    with pytest.raises(DataError, match=r"to list what comes after 'train/100\.txt'"):
        pack_pg19(tmp_path / "out", url=bucket.url, retry=QUICK)


# ---- folders


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_a_folder_in_the_layout_of_pg19(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", BOOKS | {"metadata.csv": OTHERS["metadata.csv"]})
    manifest = pack_pg19(tmp_path / "out", folder=folder)
    assert list(unpack(tmp_path / "out").items()) == list(TRAIN.items())
    assert unpack(tmp_path / "out", "test") == {"8": b"eight"}
    assert "metadata.csv" in manifest["files"]
    assert manifest["source"]["folder"] == "mine"
    assert pack_pg19(tmp_path / "out", folder=folder) == manifest
    write(folder, {"train/11.txt": b"eleven"})
    with pytest.raises(DataError, match="name another folder"):
        pack_pg19(tmp_path / "out", folder=folder)
    pack_pg19(tmp_path / "test", folder=folder, splits=["test"])
    assert not (tmp_path / "test" / "train.bytes").exists()
    with pytest.raises(DataError, match="expected splits out of train, validation, test, got 'val'"):
        pack_pg19(tmp_path / "val", folder=folder, splits=["val"])


def test_plain_files_are_train_and_others_are_carved_out_by_name(tmp_path: Path) -> None:
    files = {f"book {number}.txt": f"text {number}".encode() for number in range(60)}
    folder = write(tmp_path / "mine", {**files, "cover.png": b"no book"})
    pack_pg19(tmp_path / "whole", folder=folder)
    assert unpack(tmp_path / "whole") == {name.removesuffix(".txt"): content for name, content in files.items()}
    carve = {"validation_fraction": 0.2, "test_fraction": 0.1}
    pack_pg19(tmp_path / "carved", folder=folder, **carve)
    parts = {split: unpack(tmp_path / "carved", split) for split in ("train", "validation", "test")}
    assert parts["train"] | parts["validation"] | parts["test"] == unpack(tmp_path / "whole")
    assert sum(map(len, parts.values())) == 60
    assert 5 <= len(parts["validation"]) <= 20
    # A book's split hangs on its name only, not on the others.
    for name in list(files)[::2]:
        (folder / name).unlink()
    pack_pg19(tmp_path / "half", folder=folder, **carve)
    for split, books in parts.items():
        assert set(unpack(tmp_path / "half", split)) <= set(books)
    pack_pg19(tmp_path / "seed", folder=folder, seed=1, **carve)
    assert unpack(tmp_path / "seed") != unpack(tmp_path / "half")


@pytest.mark.parametrize(
    ("files", "options", "said"),
    [
        ({}, {}, "expected a folder with .txt files, got .*: no such folder"),
        ({"a.md": b"x"}, {}, r"expected \*.txt or train/\*.txt in .*, got none"),
        ({"train/a.md": b"x"}, {}, r"expected \*.txt or train/\*.txt in .*, got none"),
        ({"a.txt": b"x", "train/b.txt": b"y"}, {}, "got both: move a.txt away"),
        ({"a.txt": b""}, {}, "expected text in the books of train, got 1 books of 0 bytes"),
        ({"a.txt/b": b"x"}, {}, "expected a readable book, got .*a.txt: Is a directory"),
        ({"train/b.txt": b"y"}, {"validation_fraction": 0.5}, "with splits of its own"),
        ({"a.txt": b"x"}, {"validation_fraction": 1.0}, "expected fractions above 0"),
        ({"a.txt": b"x"}, {"test_fraction": 0.0}, "expected fractions above 0"),
        ({"a.txt": b"x"}, {"validation_fraction": 0.5}, "expected books in every split, got none of 1 in"),
    ],
)
def test_folders_that_will_not_do(tmp_path: Path, files: dict, options: dict, said: str) -> None:
    folder = write(tmp_path / "mine", files)
    with pytest.raises(DataError, match=said) as error:
        pack_pg19(tmp_path / "out", folder=folder, **options)
    one_line(error)
    assert not (tmp_path / "out").exists()


def test_a_book_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", {"a.txt": b"x"})
    (folder / "b.txt").symlink_to(folder / "nowhere")
    with pytest.raises(DataError, match=r"expected a readable book, got .*b\.txt: No such file"):
        pack_pg19(tmp_path / "out", folder=folder)


def test_sources_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected one source of books, got several"):
        pack_pg19(tmp_path / "out", folder=tmp_path, url="http://127.0.0.1")
    with pytest.raises(DataError, match=r"expected --validation-fraction .* with --folder"):
        pack_pg19(tmp_path / "out", dataset="x", validation_fraction=0.1)
    with pytest.raises(DataError, match="expected at least one connection, got 0"):
        pack_pg19(tmp_path / "out", connections=0)
    with pytest.raises(DataError, match="expected splits out of train, validation, test, got 'dev'"):
        pack_pg19(tmp_path / "out", url="http://127.0.0.1:1", splits=["dev"])
    assert list(tmp_path.iterdir()) == []


# ---- data sets


def write_dataset(folder: Path) -> Path:
    folder.mkdir(parents=True)
    pandas.DataFrame({"text": ["a\r\nb\0", "é" * 1000], "year": [1, 2]}).to_parquet(folder / "train-0.parquet")
    pandas.DataFrame({"text": ["t"], "year": [3]}).to_parquet(folder / "test-0.parquet")
    return folder


def test_a_data_set_of_parquet_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    dataset = str(write_dataset(tmp_path / "mine"))
    manifest = pack_pg19(tmp_path / "out", dataset=dataset)
    assert unpack(tmp_path / "out") == {"0": b"a\r\nb\0", "1": "é".encode() * 1000}
    assert unpack(tmp_path / "out", "test") == {"0": b"t"}
    assert manifest["source"] == {"kind": "datasets", "dataset": "mine", "column": "text", "splits": None}
    pack_pg19(tmp_path / "test", dataset=dataset, splits=["test"])
    assert not (tmp_path / "test" / "train.bytes").exists()
    for options, said in (
        ({"splits": ["validation"]}, "expected splits out of test, train|train, test, got 'validation'"),
        ({"column": "book"}, "expected a column 'book' in .*, got text, year"),
        ({"column": "year"}, "expected text in column 'year' of .*, got int"),
    ):
        with pytest.raises(DataError, match=said) as error:
            pack_pg19(tmp_path / "wrong", dataset=dataset, **options)
        one_line(error)
    texts = write(tmp_path / "texts", {"train.txt": b"one\ntwo\n"})
    with pytest.raises(DataError, match="got text files, whose lines would be the rows"):
        pack_pg19(tmp_path / "wrong", dataset=str(texts))
    with pytest.raises(DataError, match=r"expected a data set that can be loaded, got .*use --folder") as error:
        pack_pg19(tmp_path / "wrong", dataset=str(write(tmp_path / "no", {"x.bin": b"1"})))
    one_line(error)


def cached_by_the_hub(hub: Path) -> None:
    repository = hub / "datasets--someone--books"
    write_dataset(repository / "snapshots" / "abc")
    write(repository, {"refs/main": b"abc"})


def test_offline_a_data_set_comes_from_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    with pytest.raises(DataError, match="as HF_HUB_OFFLINE is set, got nothing: run `hf download") as error:
        pack_pg19(tmp_path / "out", dataset="someone/books")
    said = one_line(error)
    assert f"expected someone/books in {hub}" in said
    assert "datasets--someone--books" in said
    assert "--folder" in said
    cached_by_the_hub(hub)
    pack_pg19(tmp_path / "out", dataset="someone/books")
    assert unpack(tmp_path / "out", "test") == {"0": b"t"}


OFFLINE = "import sys; from pathlib import Path; from data_scripts.pg19 import pack_pg19; \
pack_pg19(Path(sys.argv[1]), dataset='someone/books')"


@pytest.mark.slow
def test_offline_is_what_the_environment_says(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    cached_by_the_hub(hub)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "HF_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", OFFLINE, str(tmp_path / "out")], env=environment, check=True)
    assert unpack(tmp_path / "out", "test") == {"0": b"t"}
