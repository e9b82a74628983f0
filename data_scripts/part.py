"""The unfinished half of a download: the bytes so far, and which version of the file they are the start of.

Must not ask the network anything: `fetch` does, and tells.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

from data_scripts.disk import CHUNK, Report, write_json


@dataclass(frozen=True)
class Version:
    """What a server says about the file it sends; None is what it does not say.

    Attributes:
        etag, last_modified: the answer's headers.
        length: bytes of the whole file.
    """

    url: str
    etag: str | None = None
    last_modified: str | None = None
    length: int | None = None

    @property
    def validator(self) -> str | None:
        """What `If-Range` may hold: a strong ETag, else the date (RFC 9110 section 13.1.5 forbids weak ETags)."""
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified

    def agrees(self, other: "Version") -> bool:
        """Whether nothing that both know differs."""
        pairs = ((getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return all(mine is None or its is None or mine == its for mine, its in pairs)


class Part:
    """`<target>.part`, open for appending, with its running SHA-256.

    The version is on disk before the first byte of it is, so after a kill the two belong together; bytes without a
    version, or with one of another address, are not used.

    Attributes:
        size: bytes so far.
        version: of which file; None: of none, then there are no bytes either.
    """

    def __init__(self, target: Path, url: str) -> None:
        self.name, self.url = target.name, url
        self.path, self._side = _paths(target)
        self._file = self.path.open("ab", buffering=0)
        self.version: Version | None = None
        self.size = 0
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of the bytes so far, in hexadecimal."""
        return self._digest.hexdigest()

    def resume(self, report: Report) -> None:
        """Take up what an earlier run left, hashing it once; begin anew if it is not a start of this address."""
        version = self._read_side()
        if version is None or version.url != self.url:
            return self.restart(None)
        self.version = version
        total = self.path.stat().st_size if version.length is None else version.length
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                self._digest.update(chunk)
                self.size += len(chunk)
                report(min(self.size, total), total)
        if version.length is not None and self.size > version.length:
            self.restart(None)
        return None

    def restart(self, version: Version | None) -> None:
        """Drop the bytes; those that come next are of `version`."""
        self._file.truncate(0)
        self.size, self._digest, self.version = 0, hashlib.sha256(), version
        if version is not None:
            write_json(self._side, asdict(version))

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end. A full disk raises OSError; what fitted is kept, and counted."""
        rest = memoryview(chunk)
        while rest:
            written = self._file.write(rest)
            self._digest.update(rest[:written])
            self.size += written
            rest = rest[written:]

    def become(self, target: Path) -> None:
        """Give the bytes their final name."""
        os.fsync(self._file.fileno())
        os.replace(self.path, target)
        self._side.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the bytes and their version."""
        self.path.unlink()
        self._side.unlink(missing_ok=True)

    @staticmethod
    def remove_leftovers(target: Path) -> None:
        """After a kill between the rename and the end of `become`."""
        for path in _paths(target):
            path.unlink(missing_ok=True)

    def _read_side(self) -> Version | None:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return Version(**json.loads(self._side.read_text(encoding="utf-8")))
        return None


def part_path(target: Path) -> Path:
    """Where the bytes of `target` are until it is whole."""
    return target.with_name(f"{target.name}.part")


def _paths(target: Path) -> tuple[Path, Path]:
    return part_path(target), target.with_name(f"{target.name}.part.json")
