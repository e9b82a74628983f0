"""CLEVR from an address or a zip file: the release's layout, and only from the archive that was meant."""

import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from data_scripts import clevr, disk
from data_scripts.clevr import ClevrDownload, download_clevr
from data_scripts.clevr_release import RELEASES
from data_scripts.disk import Report, locked
from data_scripts.errors import DataError
from data_scripts.fetch import Retry
from tests.data_scripts.fault_server import FaultServer, cut, status
from tests.vqa_bench.data.clevr_folder import make_clevr_folder
from vqa_bench.data.clevr import ClevrFolder
from vqa_bench.progress import progress

QUICK = Retry(first_wait=0.001, longest_wait=0.01)
IMAGES = {"train": 12, "val": 5, "test": 4}
TEXTS = ("COPYRIGHT.txt", "LICENSE.txt", "README.txt")


def zip_folder(folder: Path, archive: Path, top: str) -> bytes:
    with ZipFile(archive, "w", ZIP_DEFLATED) as file:
        file.mkdir(top)
        for path in sorted(folder.rglob("*")):
            file.write(path, f"{top}/{path.relative_to(folder).as_posix()}")
        file.writestr("__MACOSX/._junk", b"not part of the release")
    return archive.read_bytes()


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the release's layout; its test split has no scenes, as in the release."""
    folder = make_clevr_folder(tmp_path_factory.mktemp("mini") / "clevr", IMAGES)
    (folder / "scenes" / "CLEVR_test_scenes.json").unlink()
    for name in TEXTS:
        (folder / name).write_text(f"{name} of the mini release", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def mini_zip(mini: Path) -> bytes:
    return zip_folder(mini, mini.parent / "mini.zip", "CLEVR_v1.0")


@pytest.fixture
def server(mini_zip: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """Serves the mini release, which takes the place of the real one."""
    with FaultServer(mini_zip) as running:
        release = replace(
            RELEASES["clevr"],
            url=running.url.replace("file.zip", "CLEVR_v1.0.zip"),
            digest=f"sha256:{running.sha256}",
            bytes=len(mini_zip),
            images=IMAGES,
        )
        monkeypatch.setitem(RELEASES, "clevr", release)
        yield running


def download(out: Path, **changes: Any) -> ClevrDownload:
    return download_clevr(out, **({"retry": QUICK} | changes))


def refused(out: Path, **changes: Any) -> str:
    """The one line of a call that must fail."""
    with pytest.raises(DataError) as caught:
        download(out, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def split_of(name: str) -> str | None:
    """Which split a file of the mini release belongs to, by its name."""
    return next((split for split in IMAGES if f"/{split}/" in name or f"_{split}_" in name), None)


def expected(mini: Path, *splits: str, images: bool = True) -> dict[str, bytes]:
    """What must be in the folder besides `source.json`."""
    return {
        name: data
        for name, data in contents(mini).items()
        if split_of(name) in (None, *splits) and (images or not name.startswith("images/"))
    }


def got(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(out).items() if name != "source.json"}


def source(out: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((out / "source.json").read_text())
    return read


def test_the_whole_release(server: FaultServer, mini: Path, tmp_path: Path) -> None:
    server.faults.extend([cut(3_000), status(503), cut(2_000)])
    out = tmp_path / "deep" / "clevr"
    result = download(out)
    assert got(out) == expected(mini, *IMAGES)
    assert result == ClevrDownload(
        path=out,
        variant="clevr",
        splits=dict.fromkeys(IMAGES, True),
        sha256=server.sha256,
        verified=True,
        written=len(expected(mini, *IMAGES)),
        notices=(),
    )
    said = source(out)
    assert (said["url"], said["sha256"]) == (RELEASES["clevr"].url, server.sha256)
    assert (said["verified"], said["checked_against"]) == (True, f"sha256:{server.sha256}")
    assert said["splits"]["val"]["files"] == IMAGES["val"] + 2
    assert ClevrFolder(out).splits == tuple(sorted(IMAGES))


def test_done_twice_asks_nothing_and_changes_nothing(server: FaultServer, tmp_path: Path) -> None:
    first = download(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    for options in ({}, {"splits": ["val"]}, {"images": False}, {"keep_archive": True}):
        assert download(tmp_path, **options) == replace(first, written=0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert len(server.requests) == 1


def test_other_options_add_what_is_missing_from_the_same_archive(
    server: FaultServer, mini: Path, tmp_path: Path
) -> None:
    result = download(tmp_path, splits=["val"], images=False)
    archive = tmp_path / "CLEVR_v1.0.zip"
    assert got(tmp_path) == expected(mini, "val", images=False) | {archive.name: server.content}
    assert result.splits == {"val": False}
    assert len(result.notices) == 1
    assert str(archive) in result.notices[0]

    assert download(tmp_path, splits=["val"]).written == IMAGES["val"]
    assert got(tmp_path) == expected(mini, "val") | {archive.name: server.content}
    result = download(tmp_path, splits=["train", "val"])
    assert result.splits == {"train": True, "val": True}
    result = download(tmp_path)
    assert result.splits == dict.fromkeys(IMAGES, True)
    assert got(tmp_path) == expected(mini, *IMAGES)  # all is unpacked: the archive is gone
    assert result.notices == ()
    assert len(server.requests) == 1


def test_the_archive_is_kept_if_asked(server: FaultServer, tmp_path: Path) -> None:
    download(tmp_path, keep_archive=True)
    download(tmp_path)
    assert (tmp_path / "CLEVR_v1.0.zip").read_bytes() == server.content


def test_a_zip_file_that_is_there(server: FaultServer, mini: Path, mini_zip: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "brought.zip"
    archive.write_bytes(mini_zip)
    result = download(tmp_path / "out", archive=archive)
    assert got(tmp_path / "out") == expected(mini, *IMAGES)
    assert (result.verified, source(tmp_path / "out")["url"]) == (True, None)
    inside = tmp_path / "other" / "CLEVR_v1.0.zip"  # under the name that a fetched one would have
    inside.parent.mkdir()
    archive.rename(inside)
    for _ in range(2):
        download(inside.parent, archive=inside)
        assert inside.read_bytes() == mini_zip
    assert server.requests == []


def test_another_archive_is_unpacked_only_if_it_is_named_by_its_hash(
    server: FaultServer, mini: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "own.zip"
    (mini / "README.txt").rename(tmp_path / "README.txt")
    try:
        own = zip_folder(mini, archive, "CLEVR_v1.0")
    finally:
        (tmp_path / "README.txt").rename(mini / "README.txt")
    sha256 = hashlib.sha256(own).hexdigest()
    message = refused(tmp_path / "out", archive=archive)
    assert f"--sha256 {sha256}" in message
    assert server.sha256 in message
    assert got(tmp_path / "out") == {}
    result = download(tmp_path / "out", archive=archive, sha256=sha256.upper())
    assert (result.sha256, result.verified) == (sha256, True)
    assert "choose another --out" in refused(tmp_path / "out")  # the folder now is that of another archive

    server.content, server.etag = own, '"own"'
    assert "it is another file" in refused(tmp_path / "fetched", url=server.url)
    download(tmp_path / "fetched", url=server.url, sha256=sha256)
    assert source(tmp_path / "fetched")["url"] == server.url
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RELEASES, "clevr", replace(RELEASES["clevr"], bytes=None))
        assert "begins anew" in refused(tmp_path / "wrong", url=server.url)


def test_an_archive_without_the_split_that_is_wanted(mini: Path, tmp_path: Path) -> None:
    archive = tmp_path / "own.zip"
    with ZipFile(archive, "w") as file:
        file.write(mini / "questions/CLEVR_val_questions.json", "questions/CLEVR_val_questions.json")  # no top folder
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    for options, missing in (
        ({}, "questions/CLEVR_train_questions.json"),
        ({"splits": ["val"]}, "images/val/*.png"),
    ):
        assert missing in refused(tmp_path / "out", archive=archive, sha256=sha256, **options)
        assert not (tmp_path / "out" / "source.json").exists()
    download(tmp_path / "out", archive=archive, sha256=sha256, splits=["val"], images=False)


COGENT = ("trainA", "valA", "valB", "testA", "testB")


def test_cogent_has_an_md5_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_clevr_folder(tmp_path / "cogent", dict.fromkeys(COGENT, 2))
    content = zip_folder(folder, tmp_path / "cogent.zip", "CLEVR_CoGenT_v1.0")
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    with FaultServer(content) as server:
        release = replace(RELEASES["cogent"], url=server.url, digest=f"md5:{md5}", images=dict.fromkeys(COGENT, 2))
        monkeypatch.setitem(RELEASES, "cogent", release)
        result = download(tmp_path / "out", variant="cogent")
        assert got(tmp_path / "out") == contents(folder)
        assert (result.verified, source(tmp_path / "out")["verified"]) == (False, False)
        assert len(result.notices) == 1
        assert md5 in result.notices[0]
        assert server.sha256 in result.notices[0]
        assert download(tmp_path / "out", variant="cogent", sha256=server.sha256).written == 0

        monkeypatch.setitem(RELEASES, "cogent", replace(release, digest=f"md5:{'0' * 32}"))
        message = refused(tmp_path / "other", variant="cogent")
        assert f"--sha256 {server.sha256}" in message
        assert got(tmp_path / "other") == {"file.zip": content}  # 24 GB are not thrown away for an MD5
        asked = len(server.requests)
        result = download(tmp_path / "other", variant="cogent", sha256=server.sha256)
        assert (result.verified, result.notices) == (True, ())
        assert len(server.requests) == asked


def test_without_network_it_says_which_file_to_copy(server: FaultServer, tmp_path: Path) -> None:
    with FaultServer(b"") as gone:
        url = gone.url
    message = refused(tmp_path, url=url)
    for word in (url, "CLEVR_v1.0.zip", f"{len(server.content):,} bytes", server.sha256, "--zip FILE"):
        assert word in message


def test_the_space_for_archive_and_pictures_is_asked_for_at_once(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = len(server.content) + sum(IMAGES.values()) * clevr.IMAGE_BYTES
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": most - 1}))
    assert f"{most:,} bytes free" in refused(tmp_path)
    assert server.requests == []
    download(tmp_path, splits=["train", "val"])


def test_a_damaged_folder_is_mended_from_the_archive(
    server: FaultServer, mini: Path, mini_zip: bytes, tmp_path: Path
) -> None:
    archive = tmp_path / "brought.zip"
    archive.write_bytes(mini_zip)
    out = tmp_path / "out"
    download(out, archive=archive)
    lost, short = sorted((out / "images" / "train").iterdir())[:2]
    lost.unlink()
    short.write_bytes(b"short")
    assert download(out, archive=archive).written == 2
    assert got(out) == expected(mini, *IMAGES)
    short.write_bytes(b"short")  # as many files as there should be
    assert download(out, archive=archive).written == 1
    assert got(out) == expected(mini, *IMAGES)
    (out / "images" / "val" / "holiday.png").write_bytes(b"beach")
    assert "images/val/holiday.png" in refused(out, archive=archive)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}', '{"splits": {"val": 1}}'])
def test_a_source_file_that_is_not_ours(server: FaultServer, tmp_path: Path, text: str) -> None:
    (tmp_path / "source.json").write_text(text)
    assert "source.json" in refused(tmp_path)


def test_a_folder_of_another_variant(server: FaultServer, tmp_path: Path) -> None:
    download(tmp_path)
    assert "got clevr" in refused(tmp_path, variant="cogent")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"variant": "clever"}, "clevr, cogent"),
        ({"splits": ["valid"]}, "train, val, test"),
        ({"splits": []}, "none"),
        ({"variant": "cogent", "splits": ["val"]}, "valA"),
        ({"sha256": "5cd6"}, "64 hexadecimal"),
        ({"url": "http://127.0.0.1/x", "archive": Path("x.zip")}, "--url or --zip"),
        ({"archive": Path("absent.zip")}, "absent.zip"),
    ],
)
def test_arguments_that_cannot_be(tmp_path: Path, options: dict[str, Any], word: str) -> None:
    assert word in refused(tmp_path / "out", **options)
    (tmp_path / "file").touch()
    assert "expected a folder" in refused(tmp_path / "file")


def test_two_at_once(server: FaultServer, tmp_path: Path) -> None:
    with locked(tmp_path / ".clevr.lock", what="a test"):
        assert "another process" in refused(tmp_path)


def test_each_phase_has_a_report(server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends: dict[str, tuple[int, int]] = {}

    @contextmanager
    def phases(label: str, unit: str) -> Iterator[Report]:
        assert unit == "bytes"
        yield lambda done, total: ends.update({label: (done, total)})

    download(tmp_path / "a", progress=phases)
    assert set(ends) == {"download", "unpack"}
    assert all(done == total > 0 for done, total in ends.values())
    download(tmp_path / "b", progress=progress)
    assert "unpack: done" in capsys.readouterr().err


PROGRAM = """
import os, signal, sys, threading, time
from pathlib import Path
import httpx2
from data_scripts.clevr import download_clevr
url, out, sha256, after = sys.argv[1:]
if after != "never":
    threading.Timer(float(after), os.kill, (os.getpid(), signal.SIGKILL)).start()
began = time.monotonic()
download_clevr(Path(out), url=url, sha256=sha256)
print(time.monotonic() - began)
"""


def run(server: FaultServer, out: Path, after: str) -> str:
    command = [sys.executable, "-c", PROGRAM, server.url, str(out), server.sha256, after]
    return subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_instants_the_same_call_finishes(
    server: FaultServer, mini: Path, tmp_path: Path, kills: int
) -> None:
    server.pace = 0.02
    seconds = float(run(server, tmp_path / "whole", "never"))
    rng = random.Random(kills)
    for number in range(kills):
        out = tmp_path / str(number)
        run(server, out, str(rng.uniform(0.0, seconds)))
        server.pace = 0.0
        download(out, url=server.url, sha256=server.sha256)
        server.pace = 0.02
        assert got(out) == expected(mini, *IMAGES)
        assert source(out)["sha256"] == server.sha256
