"""The official CLEVR and CLEVR-CoGenT archives, fetched, verified and unpacked in the release's layout.

    <out>/images/<split>/*.png   <out>/scenes/*.json   <out>/questions/*.json   <out>/*.txt   <out>/source.json
    <out>/CLEVR_v1.0.zip         until everything in it is unpacked: other splits then need no second download

`source.json` is written last and says what is there; what it says is held against the folder when the command is run
again. Only an archive with the expected hash is unpacked, wherever it comes from: the published one, or that given as
`sha256` for an archive of one's own. Must not know how questions or pictures are used.
"""

import json
import os
import platform
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_scripts.clevr_release import IMAGE_BYTES, RELEASES, TEXTS, Release, belongs, files_on_disk
from data_scripts.disk import Report, hash_file, locked, require_free_space, write_json
from data_scripts.errors import DataError
from data_scripts.fetch import NoConnectionError, Retry, fetch
from data_scripts.part import Part, part_path
from data_scripts.unpack import unpack

SOURCE = "source.json"
FORMAT_VERSION = 1

Phases = Callable[[str, str], AbstractContextManager[Report]]
"""Called with a label and a unit, gives the report of one phase: `vqa_bench.progress.progress` is one."""


@dataclass(frozen=True)
class ClevrDownload:
    """What is in the folder now.

    Attributes:
        splits: all that are there, also from earlier runs, and whether with pictures.
        sha256: of the archive they come from.
        verified: whether that was known beforehand; if not, a notice says what was.
        written: files that this run added; 0: there was nothing to do.
        notices: what the user should know, a line each.
    """

    path: Path
    variant: str
    splits: dict[str, bool]
    sha256: str
    verified: bool
    written: int
    notices: tuple[str, ...]


def download_clevr(
    out: Path,
    *,
    variant: str = "clevr",
    url: str | None = None,
    archive: Path | None = None,
    sha256: str | None = None,
    splits: Sequence[str] | None = None,
    images: bool = True,
    keep_archive: bool = False,
    progress: Phases | None = None,
    retry: Retry | None = None,
) -> ClevrDownload:
    """Put CLEVR into `out`, or add what is missing there; the same call continues after any interruption.

    Args:
        out: the folder; the release's top-level folder is left out.
        variant: a name out of `clevr_release.RELEASES`.
        url: another address of the same archive, or of one's own (then give its `sha256`).
        archive: a zip file that is there already; it is left where it is.
        sha256: the hash the archive must have, instead of the published one.
        splits: which of the release's; None is all.
        images: False leaves the pictures out.
        keep_archive: keep what was fetched even when everything in it is unpacked.
        progress: opens the report of each phase: "download", "check", "unpack", all in bytes.
        retry: patience with the network.

    Raises:
        DataError: bad arguments, another archive than expected, no network (then it says which file to copy here and
            how to use it), a full disk, or a folder that holds something else.
    """
    release = _find_release(variant)
    order = _Order(
        out=out,
        release=release,
        expected=_expected_digest(release, sha256),
        url=url if url is not None else release.url,
        archive=archive,
        splits=_find_splits(release, splits),
        images=images,
        keep_archive=keep_archive,
        phases=progress if progress is not None else _silent,
        retry=retry,
    )
    if url is not None and archive is not None:
        raise DataError("expected an address or a zip file, got both; leave --url or --zip out")
    if out.exists() and not out.is_dir():
        raise DataError(f"expected a folder for --out, got the file {out}; choose another")
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".clevr.lock", what=f"the folder {out}"):
        source, written = _read_source(order), 0
        missing = [split for split in order.splits if not _is_there(order, split, source["splits"].get(split))]
        if missing:
            path, got = _fetch(order, missing) if archive is None else _take(order, archive)
            entries, written = _unpack(order, path, missing)
            source = _source(order, path, got, {**source["splits"], **entries})
            os.sync()  # a power cut must not leave the promise without the files
            write_json(out / SOURCE, source)
        return _result(order, source, written)


@dataclass(frozen=True)
class _Order:
    """What was asked for, checked: the arguments of `download_clevr`."""

    out: Path
    release: Release
    expected: str
    url: str
    archive: Path | None
    splits: tuple[str, ...]
    images: bool
    keep_archive: bool
    phases: Phases
    retry: Retry | None

    @property
    def fetched(self) -> Path:
        """Where a fetched archive lies."""
        return self.out / self.release.file_name


def _find_release(variant: str) -> Release:
    if variant not in RELEASES:
        raise DataError(f"expected a variant out of {', '.join(RELEASES)}, got {variant!r}; choose one of them")
    return RELEASES[variant]


def _find_splits(release: Release, splits: Sequence[str] | None) -> tuple[str, ...]:
    if splits is None:
        return tuple(release.images)
    unknown = [split for split in splits if split not in release.images]
    if unknown or not splits:
        raise DataError(
            f"expected splits out of {', '.join(release.images)} for {release.variant}, "
            f"got {', '.join(unknown) or 'none'}; choose from these"
        )
    return tuple(split for split in release.images if split in splits)


def _expected_digest(release: Release, sha256: str | None) -> str:
    if sha256 is None:
        return release.digest
    if re.fullmatch(r"[0-9a-fA-F]{64}", sha256) is None:
        raise DataError(f"expected a SHA-256 of 64 hexadecimal digits, got {sha256!r}; see `sha256sum FILE`")
    return f"sha256:{sha256.lower()}"


def _read_source(order: _Order) -> dict[str, Any]:
    """What an earlier run said; refuses a folder with another variant or another archive in it."""
    path = order.out / SOURCE
    if not path.exists():
        return {"splits": {}}
    try:
        source: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, variant = source["format_version"], source["variant"]
        digests = (source["checked_against"], f"sha256:{source['sha256']}")
        complete = all(entry.keys() >= {"images", "files", "bytes"} for entry in source["splits"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise DataError(f"expected {path} as this command writes it, got another; delete it to check the folder anew")
    if (version, variant) != (FORMAT_VERSION, order.release.variant):
        raise DataError(
            f"expected {order.release.variant} (format {FORMAT_VERSION}) in {order.out}, got {variant} "
            f"(format {version}); choose another --out"
        )
    if order.expected not in digests:
        raise DataError(
            f"expected {order.out} to come from the archive {order.expected}, got one with {digests[1]}; "
            "choose another --out, or give that one as --sha256"
        )
    return source


def _is_there(order: _Order, split: str, entry: Mapping[str, Any] | None) -> bool:
    """Whether a split is there as asked for, and still as `source.json` says."""
    if entry is None or (order.images and not entry["images"]):
        return False
    files = dict(files_on_disk(order.out, split, images=entry["images"]))
    return (len(files), sum(files.values())) == (entry["files"], entry["bytes"])


def _fetch(order: _Order, missing: Sequence[str]) -> tuple[Path, str]:
    release, path = order.release, order.fetched
    algorithm, _, digest = order.expected.partition(":")
    published = order.expected == release.digest
    if published:
        _require_space(order, missing)
    try:
        with order.phases("download", "bytes") as report:
            result = fetch(
                order.url,
                path,
                sha256=digest if algorithm == "sha256" else None,
                size=release.bytes if published else None,
                progress=report,
                retry=order.retry,
            )
    except NoConnectionError as error:
        length = f", {release.bytes:,} bytes" if published and release.bytes is not None else ""
        raise DataError(
            f"{error}; on a machine without network: fetch {order.url} elsewhere, copy the file "
            f"{release.file_name} ({order.expected}{length}) here and run the same command with --zip FILE"
        ) from error
    if algorithm != "sha256":
        _compare(order, path, result.sha256)
    return path, result.sha256


def _require_space(order: _Order, missing: Sequence[str]) -> None:
    """For the archive and its pictures at once, so that nobody waits for a download that cannot be unpacked."""
    pictures = order.release.images
    archive = order.release.bytes or sum(pictures.values()) * IMAGE_BYTES
    there = sum(path.stat().st_size for path in (order.fetched, part_path(order.fetched)) if path.exists())
    unpacked = sum(pictures[split] for split in missing) * IMAGE_BYTES if order.images else 0
    require_free_space(
        order.out, max(0, archive - there) + unpacked, what=f"{order.fetched.name} and what it unpacks to"
    )


def _take(order: _Order, archive: Path) -> tuple[Path, str]:
    """The user's own file: it must be the archive that was meant just as a fetched one."""
    if not archive.is_file():
        raise DataError(f"expected a zip file, got {archive}, which is none; check --zip")
    with order.phases("check", "bytes") as report:
        got = hash_file(archive, progress=report)
    _compare(order, archive, got)
    return archive, got


def _compare(order: _Order, path: Path, sha256: str) -> None:
    algorithm, _, digest = order.expected.partition(":")
    if algorithm == "sha256":
        got = sha256
    else:
        with order.phases("check", "bytes") as report:
            got = hash_file(path, algorithm=algorithm, progress=report)
    if got != digest:
        raise DataError(
            f"expected {path} to be {order.expected}, got {algorithm}:{got}; delete it if it was meant to be "
            f"{order.release.file_name}, or say that this very archive is meant: --sha256 {sha256}"
        )


def _unpack(order: _Order, archive: Path, splits: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Unpack some splits and hold the folder against the archive; their entries for `source.json`, files written."""

    def is_wanted(name: str) -> bool:
        return name in TEXTS or any(belongs(name, split, images=order.images) for split in splits)

    with order.phases("unpack", "bytes") as report:
        unpacked = unpack(archive, order.out, select=is_wanted, strip=order.release.folder, progress=report)
    entries = {}
    for split in splits:
        files = {n: size for n, size in unpacked.files.items() if belongs(n, split, images=order.images)}
        questions = f"questions/CLEVR_{split}_questions.json"
        pictures = any(name.startswith("images/") for name in files)
        if questions not in files or (order.images and not pictures):
            what = questions if questions not in files else f"images/{split}/*.png"
            raise DataError(f"expected {what} in {archive}, got none; choose other --splits, or --no-images")
        foreign = sorted(set(dict(files_on_disk(order.out, split, images=order.images))) - set(files))
        if foreign:
            raise DataError(
                f"expected only files of {archive.name} in {order.out}, got {len(foreign):,} others, the first: "
                f"{foreign[0]}; remove them or choose another --out"
            )
        entries[split] = {"images": order.images, "files": len(files), "bytes": sum(files.values())}
    return entries, unpacked.written


def _source(order: _Order, archive: Path, sha256: str, splits: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "variant": order.release.variant,
        "url": order.url if order.archive is None else None,
        "bytes": archive.stat().st_size,
        "sha256": sha256,
        "verified": order.expected.startswith("sha256:"),
        "checked_against": order.expected,
        "splits": splits,
        "archive_kept": order.keep_archive or not _is_complete(order.release, splits),
        "versions": {"python": platform.python_version(), "zlib": zlib.ZLIB_RUNTIME_VERSION},
    }


def _is_complete(release: Release, splits: Mapping[str, Any]) -> bool:
    return all(split in splits and splits[split]["images"] for split in release.images)


def _result(order: _Order, source: Mapping[str, Any], written: int) -> ClevrDownload:
    """Tidy up, also what a kill right after `source.json` left, and say how things stand."""
    notices = []
    if not source["archive_kept"]:
        Part.remove_leftovers(order.fetched)
        if source["url"] is not None:  # else the user may have put the archive there, and it is not ours to delete
            order.fetched.unlink(missing_ok=True)
    elif order.fetched.exists() and not order.keep_archive:
        notices.append(
            f"{order.fetched} is kept for what is not unpacked yet; delete it if you want nothing more of it"
        )
    if not source["verified"]:
        notices.append(
            f"no SHA-256 of {order.release.file_name} is published; it has the published {source['checked_against']} "
            f"and the SHA-256 {source['sha256']}"
        )
    return ClevrDownload(
        order.out,
        order.release.variant,
        {split: entry["images"] for split, entry in source["splits"].items()},
        source["sha256"],
        source["verified"],
        written,
        tuple(notices),
    )


@contextmanager
def _silent(label: str, unit: str) -> Iterator[Report]:
    yield lambda done, total: None
