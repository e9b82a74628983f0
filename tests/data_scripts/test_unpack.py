"""Unpacking: what is asked for comes out byte for byte, and nothing that an archive says is believed."""

import os
import random
import resource
import stat
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from unicodedata import normalize
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_scripts import disk
from data_scripts.errors import DataError
from data_scripts.unpack import MAX_RATIO, Unpacked, unpack
from tests.data_scripts.fault_server import Reports

FILES = {
    "top/README.txt": b"read me",
    "top/images/val/a.png": random.Random(0).randbytes(70_000),
    "top/images/train/b.png": random.Random(1).randbytes(50_000),
    "top/questions/val.json": b'{"question": "How many?"}' * 10_000,
    "top/empty": b"",
}


def make_zip(path: Path, files: dict[str, bytes], *, change: Callable[[list[ZipInfo]], None] | None = None) -> Path:
    """A zip archive; `change` may falsify its directory, which is written after it."""
    with ZipFile(path, "w", ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(ZipInfo(name), data, ZIP_STORED if name.endswith(".png") else ZIP_DEFLATED)
        if change is not None:
            change(file.filelist)
    return path


def everything(name: str) -> bool:
    return True


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(archive: Path, out: Path, **changes: str) -> str:
    """The one line of an archive that must be refused without a file being written."""
    with pytest.raises(DataError) as caught:
        unpack(archive, out, select=everything, **changes)
    assert "\n" not in str(caught.value)
    assert contents(out) == {}
    return str(caught.value)


def test_what_is_chosen_comes_out_without_the_top_folder(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", FILES)
    reports = Reports()
    out = tmp_path / "out"
    unpacked = unpack(archive, out, select=lambda n: "train" not in n, strip="top", progress=reports)
    expected = {n.removeprefix("top/"): data for n, data in FILES.items() if "train" not in n}
    assert contents(out) == expected
    assert unpacked == Unpacked({name: len(expected[name]) for name in sorted(expected)}, written=4)
    total = sum(map(len, expected.values()))
    assert reports.calls[-1] == (total, total)
    assert not (out / "images/train").exists()


def test_what_is_there_is_kept_and_what_is_damaged_is_mended(tmp_path: Path) -> None:
    archive, out = make_zip(tmp_path / "a.zip", FILES), tmp_path / "out"
    unpack(archive, out, select=everything)
    before = {path: path.stat().st_ino for path in out.rglob("*") if path.is_file()}
    damaged = out / "top/images/val/a.png"
    damaged.write_bytes(bytes(70_000))  # the right size, other bytes
    (out / "top/README.txt").write_bytes(b"short")
    (out / "top/empty").unlink()
    (out / "top/empty").symlink_to(damaged)  # a link is not the file
    assert unpack(archive, out, select=everything).written == 3
    assert contents(out) == FILES
    assert not (out / "top/empty").is_symlink()
    assert (out / "top/images/train/b.png").stat().st_ino == before[out / "top/images/train/b.png"]
    assert unpack(archive, out, select=everything).written == 0


def test_a_killed_run_leaves_one_temporary_file_that_the_next_removes(tmp_path: Path) -> None:
    archive, out = make_zip(tmp_path / "a.zip", FILES), tmp_path / "out"
    out.mkdir()
    (out / ".unpacking").write_bytes(b"half")
    unpack(archive, out, select=everything)
    assert contents(out) == FILES


SAFE = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)


def is_ambiguous(names: Iterable[str]) -> bool:
    """Whether two of the names, or a name and a folder, are the same up to case and Unicode form."""
    plain = [normalize("NFC", name).casefold() for name in names]
    return len(set(plain)) < len(plain) or any(a.startswith(f"{b}/") for a in plain for b in plain)


@given(
    st.dictionaries(st.lists(SAFE, min_size=1, max_size=3).map("/".join), st.binary(max_size=3_000), max_size=6),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("zip")
    archive, out = make_zip(folder / "a.zip", files), folder / "out"
    try:
        unpack(archive, out, select=everything)
    except DataError:  # names that differ in case only, or a file that is another's folder
        assert contents(out) == {}
        assert is_ambiguous(files)
    else:
        assert contents(out) == files


@given(st.lists(st.text("ab./\\:\x00C~", min_size=1, max_size=8), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_name_leads_out(tmp_path_factory: pytest.TempPathFactory, entries: list[str]) -> None:
    folder = tmp_path_factory.mktemp("zip") / "deep" / "deeper"
    folder.mkdir(parents=True)

    def rename(infos: list[ZipInfo]) -> None:
        for info, name in zip(infos, entries, strict=True):
            info.filename = info.orig_filename = name

    harmless = {f"{number}": b"x" for number in range(len(entries))}
    archive = make_zip(folder / "a.zip", harmless, change=rename)
    # The local headers still have other names, so nothing at all may come out, whether refused early or late.
    with pytest.raises(DataError):
        unpack(archive, folder / "out", select=everything)
    root = folder.parent.parent
    assert set(contents(root)) == {"deep/deeper/a.zip"}


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "a/..",
        "/etc/evil",
        "//evil",
        "a//b",
        "./a",
        "a/./b",
        "C:evil",
        "C:/evil",
        "..\\evil",
        "a\\b",
        "a\x00.png",
        "line\nbreak",
        "x" * 256,
    ],
)
def test_names_that_lead_out_or_hide_are_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    with ZipFile(archive, "w") as file:
        file.writestr("fine", b"fine")
        info = ZipInfo("placeholder")
        info.filename = info.orig_filename = name
        file.writestr(info, b"evil")
    assert "relative file names" in refused(archive, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    def change(infos: list[ZipInfo]) -> None:
        infos[1].external_attr = (kind | 0o777) << 16

    archive = make_zip(tmp_path / "a.zip", {"fine": b"", "link": b"/etc/passwd"}, change=change)
    message = refused(archive, tmp_path / "out")
    assert "symbolic link" in message if kind == stat.S_IFLNK else "special file" in message


@pytest.mark.parametrize("bit", [0x1, 0x40, 0x2000])
def test_encrypted_members_are_refused(tmp_path: Path, bit: int) -> None:
    def change(infos: list[ZipInfo]) -> None:
        infos[1].flag_bits |= bit

    archive = make_zip(tmp_path / "a.zip", {"fine": b"", "secret": b"secret"}, change=change)
    assert "encrypted" in refused(archive, tmp_path / "out")


@pytest.mark.parametrize(
    "pair", [("a", "a"), ("a/B", "A/b"), ("é", "e\u0301"), ("a", "a/b"), ("a/b", "a"), ("a/", "a")]
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_for_one_file_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    archive = tmp_path / "a.zip"
    with ZipFile(archive, "w") as file:
        for name in pair:
            file.writestr(name, b"")
    assert "refused" in refused(archive, tmp_path / "out")


def test_the_top_folder_does_not_hide_a_second_entry(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"top/a": b"1", "a": b"2"})
    assert "once" in refused(archive, tmp_path / "out", strip="top")
    archive = make_zip(tmp_path / "b.zip", {"top": b"1"})
    assert "expected a folder 'top'" in refused(archive, tmp_path / "out", strip="top")


def test_folders_may_be_listed_and_a_name_may_begin_like_the_top_folder(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"top/": b"", "top/a/": b"", "top/a/b": b"1", "topping": b"2"})
    unpack(archive, tmp_path / "out", select=everything, strip="top")
    assert contents(tmp_path / "out") == {"a/b": b"1", "topping": b"2"}


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "a.zip", "w", ZIP_BZIP2) as file:
        file.writestr("a", b"a")
    assert "deflate" in refused(tmp_path / "a.zip", tmp_path / "out")


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    archive, out, elsewhere = make_zip(tmp_path / "a.zip", FILES), tmp_path / "out", tmp_path / "elsewhere"
    (out / "top").mkdir(parents=True)
    elsewhere.mkdir()
    (out / "top" / "images").symlink_to(elsewhere)
    assert "symbolic link" in refused(archive, out)
    assert contents(elsewhere) == {}
    link = tmp_path / "link"  # `out` itself may be one: the user named it
    link.symlink_to(elsewhere)
    unpack(archive, link, select=everything)
    assert contents(elsewhere) == FILES


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    archive, out = make_zip(tmp_path / "a.zip", FILES), tmp_path / "out"
    (out / "top/empty").mkdir(parents=True)
    with pytest.raises(DataError, match=r"expected no folder at .*empty"):
        unpack(archive, out, select=everything)
    (out / "other").mkdir()
    (out / "other/top").write_bytes(b"a file")
    with pytest.raises(DataError, match=r"expected a folder at .*top, got a file"):
        unpack(archive, out / "other", select=everything)


def test_a_member_that_grows_too_much_is_a_bomb(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"bomb": bytes(20_000_000)})
    message = refused(archive, tmp_path / "out")
    assert "zip bomb" in message
    assert "20,000,000" in message


def test_how_much_a_member_may_grow(tmp_path: Path) -> None:
    for ratio, allowed in ((MAX_RATIO * 0.9, True), (MAX_RATIO * 1.1, False)):
        noise = random.Random(0).randbytes(30_000)
        # Noise does not compress, and the zeros behind it take about a thousandth of their size.
        content = noise + bytes(int(len(noise) * ratio / (1 - ratio / 1030)) - len(noise))
        packed = make_zip(tmp_path / "a.zip", {"member": content, "rest": random.Random(1).randbytes(3_000_000)})
        with ZipFile(packed) as file:
            member = file.getinfo("member")
            assert (member.file_size / member.compress_size <= MAX_RATIO) == allowed
            assert member.file_size / member.compress_size == pytest.approx(ratio, rel=0.05)
        if allowed:
            unpack(packed, tmp_path / "out", select=everything)
        else:
            assert "zip bomb" in refused(packed, tmp_path / "other")


def test_many_small_members_that_grow_too_much_are_a_bomb(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {str(number): bytes(1_000_000) for number in range(30)})
    assert "zip bomb" in refused(archive, tmp_path / "out")


def test_questions_that_compress_well_are_none(tmp_path: Path) -> None:
    text = "".join(f'{{"question_index": {n}, "program": "filter_size"}}, ' for n in range(60_000)).encode()
    text = text * 2
    ratio = len(text) / len(zlib.compress(text))
    assert 10 < ratio < MAX_RATIO
    archive = make_zip(tmp_path / "a.zip", {"questions.json": text})
    unpack(archive, tmp_path / "out", select=everything)
    assert contents(tmp_path / "out") == {"questions.json": text}


def test_members_that_share_bytes_are_a_bomb(tmp_path: Path) -> None:
    kernel = random.Random(0).randbytes(10_000)

    def quote(infos: list[ZipInfo]) -> None:  # every header is quoted as data of the member before it
        for info in infos[:-1]:
            info.compress_size = info.file_size = infos[-1].header_offset + 10_000 - info.header_offset

    def repeat(infos: list[ZipInfo]) -> None:
        infos[1].header_offset = infos[0].header_offset

    for change in (quote, repeat):
        archive = make_zip(tmp_path / "a.zip", {"a.png": kernel, "b.png": kernel, "c.png": kernel}, change=change)
        assert "inside another" in refused(archive, tmp_path / "out")


def test_a_member_may_not_run_into_the_directory(tmp_path: Path) -> None:
    def lengthen(infos: list[ZipInfo]) -> None:
        infos[-1].compress_size += 50
        infos[-1].file_size += 50

    archive = make_zip(tmp_path / "a.zip", {"a.png": bytes(100)}, change=lengthen)
    assert "whole zip archive" in refused(archive, tmp_path / "out")


@pytest.mark.parametrize("name", ["a.png", "a.json"])
@pytest.mark.parametrize("field", ["CRC", "less", "more"])
def test_what_comes_out_must_be_what_was_declared(tmp_path: Path, name: str, field: str) -> None:
    data = random.Random(0).randbytes(5_000)

    def change(infos: list[ZipInfo]) -> None:
        if field == "CRC":
            infos[0].CRC ^= 1
        elif field == "less":
            infos[0].file_size -= 10
        else:
            infos[0].file_size += 10

    archive = make_zip(tmp_path / "a.zip", {name: data}, change=change)
    assert "whole zip archive" in refused(archive, tmp_path / "out")


def test_more_than_declared_is_never_written(tmp_path: Path) -> None:
    """A directory that declares ten bytes with their right CRC over a member of many more."""
    data = bytes(500_000)

    def change(infos: list[ZipInfo]) -> None:
        infos[0].file_size, infos[0].CRC = 10, zlib.crc32(data[:10])

    archive = make_zip(tmp_path / "a.zip", {"a.json": data}, change=change)
    unpack(archive, tmp_path / "out", select=everything)
    assert contents(tmp_path / "out") == {"a.json": data[:10]}


def test_no_zip_a_cut_zip_and_flipped_bits(tmp_path: Path) -> None:
    whole = make_zip(tmp_path / "whole.zip", FILES).read_bytes()
    broken = tmp_path / "broken.zip"
    for data in (b"", b"no zip", whole[: len(whole) // 2], whole[:-10], whole[1_000:]):
        broken.write_bytes(data)
        assert "whole zip archive" in refused(broken, tmp_path / "out")
    rng = random.Random(5)
    for number in range(100):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        broken.write_bytes(flipped)
        out = tmp_path / f"out{number}"
        try:
            unpack(broken, out, select=everything)
        except DataError:
            pass
        else:  # a bit that carries nothing: a date, an attribute, the "made by" version, or a name
            assert sorted(contents(out).values()) == sorted(FILES.values())
    with pytest.raises(DataError, match=r"expected to read .*absent"):
        unpack(tmp_path / "absent", tmp_path / "out", select=everything)


def test_too_little_space_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, out = make_zip(tmp_path / "a.zip", FILES), tmp_path / "out"
    total = sum(map(len, FILES.values()))
    free = type("Usage", (), {"free": total - 1})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: free)
    assert f"{total:,} bytes free" in refused(archive, out)
    (out / "top").mkdir()
    (out / "top/README.txt").write_bytes(FILES["top/README.txt"])  # counted as there
    unpack(archive, out, select=everything)
    assert contents(out) == FILES


def test_a_full_disk_is_one_line_and_the_same_call_continues(tmp_path: Path) -> None:
    archive, out = make_zip(tmp_path / "a.zip", FILES), tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        with pytest.raises(DataError, match=r"expected room to write .*a.png"):
            unpack(archive, out, select=everything)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(out) == {"top/README.txt": FILES["top/README.txt"]}
    assert unpack(archive, out, select=everything).written == len(FILES) - 1
    assert contents(out) == FILES
    assert os.listdir(out) == ["top"]
