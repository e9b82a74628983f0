"""Unpacks chosen members of a zip archive into a folder, trusting nothing that the archive says. Knows no data set.

The whole directory of the archive is judged before the first byte is written, and one bad member refuses the archive:

* a name may not leave the folder, hide (NUL, backslash, drive letter) or occur twice, also not after Unicode
  normalisation and without regard to case, because some file systems do not tell such names apart;
* only plain files and folders, stored or deflated, not encrypted;
* a bomb needs either a member far smaller than what it becomes (`MAX_RATIO`), or many members that share the same
  compressed bytes (quoted overlaps), so extents may not overlap; what is left to be written must fit on the disk.

While writing, what comes out is held against the declared size and CRC-32. A file gets its name only when it is whole
and right, and one that is there already is not written again, so that a killed run continues.
"""

import os
import re
import stat
import struct
import unicodedata
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from data_scripts.disk import CHUNK, Report, explain_full_disk, require_free_space
from data_scripts.errors import DataError

MAX_RATIO = 100
"""Bytes out for a byte in. CLEVR's pictures are near 1, its questions up to about 40; deflate's limit is 1,032."""
_SMALL = 1 << 20  # a member this small may have any ratio
_LOCAL_HEADER = 30  # bytes before the name, APPNOTE.TXT section 4.3.7
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # APPNOTE.TXT section 4.4.4: encrypted, strongly, masked headers
_TEMPORARY = ".unpacking"  # in the folder unpacked into: one, so a killed run leaves at most one behind
_BROKEN = (BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, ValueError, struct.error, zlib.error)


@dataclass(frozen=True)
class Unpacked:
    """What was asked for, and is there now.

    Attributes:
        files: names in the folder and their sizes in bytes, sorted.
        written: how many of them were not there before.
    """

    files: dict[str, int]
    written: int


@dataclass(frozen=True)
class _Member:
    """A file to unpack: `name` is where it goes, relative to the folder."""

    name: str
    info: ZipInfo


def unpack(
    archive: Path,
    out: Path,
    *,
    select: Callable[[str], bool],
    strip: str | None = None,
    progress: Report | None = None,
) -> Unpacked:
    """Unpack what `select` chooses. The caller sees to it that only one process does so in `out`.

    Args:
        archive: a zip file.
        out: the folder, made if need be.
        select: told the name of every file (after `strip`), says whether it is wanted.
        strip: a top-level folder of the archive that is left out of the names; what is not in it keeps its name.
        progress: called with the bytes done and the bytes in all, of what `select` chose.

    Raises:
        DataError: not a zip, cut short, damaged, dangerous, or too large for the disk.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / _TEMPORARY).unlink(missing_ok=True)
    try:
        with ZipFile(archive) as file:
            members = [member for member in _check(file, strip) if select(member.name)]
            _refuse_ways_out(out, members)
            missing = sum(member.info.file_size for member in members if not _has_size(out, member))
            require_free_space(out, missing, what=f"what {archive.name} unpacks to")
            written = _write_all(file, members, out, progress)
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(f"expected {archive} to be a whole zip archive, got: {error}; fetch it again") from error
    except OSError as error:
        if error.filename is not None and Path(error.filename) == archive:
            raise DataError(f"expected to read {archive}, got: {error.strerror}; check the path") from error
        raise
    files = sorted((member.name, member.info.file_size) for member in members)
    return Unpacked(dict(files), written)


def _write_all(file: ZipFile, members: Sequence[_Member], out: Path, progress: Report | None) -> int:
    done, total, written = 0, sum(member.info.file_size for member in members), 0
    for member in members:
        if not (_has_size(out, member) and _crc(out / member.name) == member.info.CRC):
            _write(file, member, out)
            written += 1
        done += member.info.file_size
        if progress is not None:
            progress(done, total)
    return written


def _write(file: ZipFile, member: _Member, out: Path) -> None:
    target, temporary = out / member.name, out / _TEMPORARY
    size, crc = 0, 0
    try:
        with explain_full_disk(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            # "x": a file or link somebody put there is never written through.
            with file.open(member.info) as source, temporary.open("xb") as sink:
                while chunk := source.read(CHUNK):
                    size, crc = size + len(chunk), zlib.crc32(chunk, crc)
                    if size > member.info.file_size:
                        break
                    sink.write(chunk)
        # zipfile compares the CRC at the end of the data only, so a member that ends early would pass.
        if (size, crc) != (member.info.file_size, member.info.CRC):
            raise BadZipFile(f"{member.name!r} is not the {member.info.file_size:,} bytes that were declared")
        os.replace(temporary, target)
    except IsADirectoryError as error:
        raise DataError(f"expected no folder at {target}, where a file goes; remove it") from error
    finally:
        temporary.unlink(missing_ok=True)


def _has_size(out: Path, member: _Member) -> bool:
    try:
        status = (out / member.name).lstat()  # a link is not the file, wherever it leads
    except (FileNotFoundError, NotADirectoryError):
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == member.info.file_size


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _check(file: ZipFile, strip: str | None) -> list[_Member]:
    """The files of an archive, if every single entry of it is harmless."""
    seen: dict[str, bool] = {}  # name without regard to case → whether it is a folder
    members = []
    for info in file.infolist():
        _refuse_name(info.orig_filename)
        _refuse_kind(info)
        _refuse_ratio(info)
        name = info.filename.rstrip("/")
        if strip is not None:
            name = "" if name == strip else name.removeprefix(f"{strip}/")
        if name:
            _refuse_twice(seen, name, folder=info.is_dir())
        if not info.is_dir():
            if not name:
                raise DataError(f"expected a folder {strip!r} in the archive, got a file; refused")
            members.append(_Member(name, info))
    _refuse_overlap(file)
    growth, size = sum(info.file_size for info in file.infolist()), file.start_dir
    if growth > max(_SMALL, MAX_RATIO * size):
        raise DataError(
            f"expected an archive to grow at most {MAX_RATIO} times, got {size:,} bytes that become {growth:,}; "
            "refused as a zip bomb, nothing was unpacked"
        )
    return members


def _refuse_name(name: str) -> None:
    parts = name.removesuffix("/").split("/")
    if (
        any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts)
        or re.search(r"[\\\x00-\x1f\x7f]", name)
        or re.match(r"[A-Za-z]:", name)
    ):
        raise DataError(f"expected relative file names in the archive, got {name!r}; refused, nothing was unpacked")


def _refuse_kind(info: ZipInfo) -> None:
    mode = stat.S_IFMT(info.external_attr >> 16)  # the upper half is Unix's mode; 0 where another system wrote it
    if mode not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        what = "a symbolic link" if mode == stat.S_IFLNK else f"a special file (mode {mode:o})"
        raise DataError(f"expected files and folders in the archive, got {what}, {info.filename!r}; refused")
    if info.flag_bits & _ENCRYPTED:
        raise DataError(f"expected nothing encrypted in the archive, got {info.filename!r}; refused")
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise DataError(
            f"expected stored or deflated members, got compression {info.compress_type} of {info.filename!r}; "
            "pack the archive again with deflate"
        )


def _refuse_ratio(info: ZipInfo) -> None:
    stored = info.compress_type == ZIP_STORED
    if stored and info.file_size != info.compress_size:
        raise BadZipFile(f"{info.filename!r} is stored, but its two sizes differ")
    if info.file_size > max(_SMALL, MAX_RATIO * info.compress_size):
        raise DataError(
            f"expected members to grow at most {MAX_RATIO} times, got {info.filename!r} with {info.compress_size:,} "
            f"bytes that become {info.file_size:,}; refused as a zip bomb, nothing was unpacked"
        )


def _refuse_twice(seen: dict[str, bool], name: str, *, folder: bool) -> None:
    """Take note of a name and of the folders it is in; two entries for one file, or a file as a folder, are refused."""
    parts = unicodedata.normalize("NFC", name).casefold().split("/")
    places = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    for place in places[:-1]:
        if not seen.setdefault(place, True):
            raise DataError(f"expected {name!r} to be in a folder, got a file of that folder's name; refused")
    if places[-1] in seen and not (folder and seen[places[-1]]):
        raise DataError(f"expected every name once in the archive, got {name!r} again; refused, nothing was unpacked")
    seen[places[-1]] = folder


def _refuse_overlap(file: ZipFile) -> None:
    """No two members may use the same bytes of the archive, nor any use its directory."""
    end = 0
    for info in sorted(file.infolist(), key=lambda info: info.header_offset):
        if info.header_offset < 0:
            raise BadZipFile("its beginning is missing")
        if info.header_offset < end:
            raise DataError(
                f"expected members one after another, got {info.filename!r} inside another; refused as a zip bomb"
            )
        # At least: the local header may hold more "extra" bytes than the directory says.
        end = info.header_offset + _LOCAL_HEADER + len(info.orig_filename) + info.compress_size
    if end > file.start_dir:
        raise BadZipFile("its last member runs into its directory")


def _refuse_ways_out(out: Path, members: Sequence[_Member]) -> None:
    """No folder on the way to a member may be a link, however harmless: it could leave `out`."""
    for folder in sorted({member.name.rpartition("/")[0] for member in members}):
        place = out
        for part in folder.split("/"):
            place = place / part
            if place != out and place.is_symlink():
                raise DataError(
                    f"expected a real folder at {place}, got a symbolic link; remove it or choose another --out"
                )
            if place.exists() and not place.is_dir():
                raise DataError(f"expected a folder at {place}, got a file; remove it or choose another --out")
