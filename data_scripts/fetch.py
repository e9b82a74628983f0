"""Fetches one large file over HTTP: resumed, retried, hashed while it streams. Must not know what is in the file.

    <target>             the whole file; it gets this name last, so it is whole whenever it is there
    <target>.part        what has come so far
    <target>.part.json   which version of which address that is the start of
    <target>.lock        held while a process works on it

Killed at any instant, the same call goes on from `.part`. A range is only ever added to the version it belongs to:
the request is conditional (`If-Range`, RFC 9110 section 13.1.5), and the answer's `Content-Range`, length and ETag
must fit.
"""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data_scripts.answers import CONTENT_RANGE, content_length, is_encoded, retry_after, version_of
from data_scripts.disk import Report, explain_full_disk, hash_file, locked, require_free_space
from data_scripts.errors import DataError
from data_scripts.part import Part

if TYPE_CHECKING:
    import httpx2

_TRY_LATER = frozenset({408, 425, 429})  # the 4xx that say so; every 5xx is taken to
_MAX_REDIRECTS = 10


class NoConnectionError(DataError):
    """No server was ever reached: there is no network here, or it lets nothing through."""


class RefusedError(DataError):
    """The server was reached and will not give it: there is no such file, or not for us."""


@dataclass(frozen=True)
class Retry:
    """How patient to be. Times in seconds.

    Attributes:
        tries: in a row without one new byte.
        connects: tries before any server has answered; fewer, because a machine without network stays without.
        first_wait, longest_wait: the wait doubles from the first to the longest, less a random part of it.
        longest_asked: a server that asks (`Retry-After`) for more than this is not waited for.
        silence: how long a connection may say nothing.
    """

    tries: int = 8
    connects: int = 3
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_asked: float = 600.0
    silence: float = 60.0

    def wait(self, failures: int, asked: float | None) -> float:
        """Seconds to wait after so many tries without a new byte; never less than the server asked for."""
        own = min(self.longest_wait, self.first_wait * 2 ** max(failures - 1, 0)) * random.uniform(0.5, 1.0)
        return own if asked is None else max(own, asked)


@dataclass(frozen=True)
class FetchResult:
    """A file that is there, whole.

    Attributes:
        bytes: its length.
        sha256: its hash in hexadecimal.
        verified: whether that was compared with a hash known beforehand.
    """

    path: Path
    bytes: int
    sha256: str
    verified: bool


def new_client(retry: Retry | None = None) -> "httpx2.Client":
    """For many small files: a client keeps connections open, and any number of threads may use it. To be closed."""
    import httpx2

    silence = (retry or Retry()).silence
    timeout = httpx2.Timeout(silence, connect=min(20.0, silence))
    return httpx2.Client(timeout=timeout, follow_redirects=True, max_redirects=_MAX_REDIRECTS)


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: Report | None = None,
    retry: Retry | None = None,
    client: "httpx2.Client | None" = None,
) -> FetchResult:
    """Get `url` into `target`. A `target` that exists is not fetched again, but hashed and compared.

    Args:
        url: an http or https address; redirects are followed, but never from https to http.
        target: the file to make; its folder is made as well.
        sha256: the hash it must have, in hexadecimal; None: unknown, then `verified` is False.
        size: the bytes it must have; None: unknown.
        progress: called with the bytes done and the bytes in all (the bytes done, where the server does not say).
            What is there already is reported while it is hashed.
        retry: patience; None is the default one.
        client: one of `new_client`, which stays open; None: one for this call only.

    Raises:
        NoConnectionError: no server could be reached at all.
        DataError: the file is not what was expected, the disk is full, another process fetches it, the server refuses,
            or it failed too often. Except after a wrong hash, the same call continues.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    report = progress if progress is not None else (lambda done, total: None)
    with locked(target.with_name(f"{target.name}.lock"), what=f"the download of {target.name}"):
        if target.exists():
            return _existing(target, sha256, size, report)
        with explain_full_disk(target), Part(target, url) as part:
            part.resume(report)
            job = _Fetch(url, part, sha256, size, report, retry or Retry())
            if client is not None:
                job.run(client)
            else:
                with new_client(retry) as own:
                    job.run(own)
            return _finish(part, target, sha256)


def _existing(target: Path, sha256: str | None, size: int | None, report: Report) -> FetchResult:
    Part.remove_leftovers(target)
    got_size = target.stat().st_size
    if size is not None and got_size != size:
        raise DataError(f"expected {target} to have {size:,} bytes, got {got_size:,}; delete or move it to fetch it")
    got = hash_file(target, progress=report)
    if sha256 is not None and got != sha256.lower():
        raise DataError(f"expected {target} to have the SHA-256 {sha256}, got {got}; delete or move it to fetch it")
    return FetchResult(target, got_size, got, sha256 is not None)


def _finish(part: Part, target: Path, sha256: str | None) -> FetchResult:
    got = part.sha256
    if sha256 is not None and got != sha256.lower():
        part.remove()
        raise DataError(
            f"expected {target.name} to have the SHA-256 {sha256}, got {got}; "
            "what came was deleted, the same command begins anew"
        )
    part.become(target)
    return FetchResult(target, part.size, got, sha256 is not None)


class _TransientError(Exception):
    """Worth another try, after `asked` seconds if the server said so."""

    def __init__(self, message: str, asked: float | None = None) -> None:
        super().__init__(message)
        self.asked = asked


class _Fetch:
    """One run: requests until the part is whole."""

    def __init__(
        self, url: str, part: Part, sha256: str | None, size: int | None, report: Report, retry: Retry
    ) -> None:
        self.url, self.part, self.sha256, self.size, self.report, self.retry = url, part, sha256, size, report, retry
        self.reached = False  # whether any server ever answered

    def run(self, client: "httpx2.Client") -> None:
        """Returns when the part is whole; raises DataError when that is out of reach."""
        if self.size is not None:
            self._require_space(self.size)
        failures, furthest = 0, self.part.size
        while not self._is_whole():
            try:
                with _transport_errors(self.url):
                    self._request(client)
                return
            except _TransientError as error:
                # Against the furthest ever: a server that starts over and breaks off again gets no endless tries.
                failures = 0 if self.part.size > furthest else failures + 1
                furthest = max(furthest, self.part.size)
                self._give_up(failures, error)
                time.sleep(self.retry.wait(failures, error.asked))

    def _is_whole(self) -> bool:
        return self.part.version is not None and self.part.size == self.part.version.length

    def _give_up(self, failures: int, error: _TransientError) -> None:
        if not self.reached and failures >= self.retry.connects:
            raise NoConnectionError(
                f"expected to reach {self.url}, got: {error}; check the address, the network and HTTPS_PROXY, "
                "then run the same command again"
            ) from error
        if failures >= self.retry.tries:
            raise DataError(
                f"expected {self.url}, got {failures} failures in a row, the last: {error}; "
                f"run the same command later: it continues at byte {self.part.size:,}"
            ) from error
        if error.asked is not None and error.asked > self.retry.longest_asked:
            raise DataError(
                f"expected {self.url}, but the server asks to wait {error.asked:.0f} s; "
                "run the same command after that: it continues"
            ) from error

    def _request(self, client: "httpx2.Client") -> None:
        # Ranges count the bytes of the encoded form, so the file must come as it is.
        headers = {"Accept-Encoding": "identity"}
        if not self._may_resume():
            self.part.restart(None)
        if self.part.version is not None and self.part.size > 0:
            headers["Range"] = f"bytes={self.part.size}-"
            if self.part.version.validator is not None:
                headers["If-Range"] = self.part.version.validator
        with client.stream("GET", self.url, headers=headers) as response:
            self.reached = True
            if self.url.lower().startswith("https:") and response.url.scheme != "https":
                raise DataError(f"expected https all the way, got a redirect from {self.url} to {response.url}")
            if self._accept(response):
                self._receive(response)

    def _may_resume(self) -> bool:
        """Without a validator only a hash known beforehand can tell whether two halves belong together."""
        version = self.part.version
        return version is not None and (
            version.validator is not None or (version.length is not None and self.sha256 is not None)
        )

    def _accept(self, response: "httpx2.Response") -> bool:
        """Judge an answer by its head. True: its body goes to the end of the part. False: the part is whole."""
        status = response.status_code
        if status == 200:  # a first start, the version has changed, or the server knows no ranges
            self._accept_start(response, content_length(response))
        elif status == 206:
            self._accept_range(response)
        elif status == 416 and self.part.size > 0:
            match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if match is None or match["total"] != str(self.part.size):
                self._start_over(f"the server has nothing at byte {self.part.size:,}")
            return False
        elif status in _TRY_LATER or status >= 500:
            raise _TransientError(f"HTTP {status} {response.reason_phrase}", retry_after(response))
        else:
            raise RefusedError(f"expected {self.url}, got HTTP {status} {response.reason_phrase}; check the address")
        return True

    def _accept_start(self, response: "httpx2.Response", length: int | None) -> None:
        self._check_length(length)
        says_its_end = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
        if not says_its_end and self.size is None and self.sha256 is None:
            raise DataError(f"expected {self.url} to say how long it is, got nothing; give its SHA-256 to fetch it")
        self.part.restart(version_of(self.url, response, length))

    def _accept_range(self, response: "httpx2.Response") -> None:
        header = response.headers.get("Content-Range", "")
        match = CONTENT_RANGE.fullmatch(header)
        if match is None or match["first"] != str(self.part.size) or is_encoded(response):
            self._start_over(f"asked for the bytes from {self.part.size:,}, got Content-Range {header!r}")
        length = None if match["total"] == "*" else int(match["total"])
        known = self.part.version.length if self.part.version is not None else None
        if length is None and known is None and self.size is None and self.sha256 is None:
            # A part of something of unknown length: nothing would tell its end from the file's.
            raise DataError(f"expected {self.url} to say how long it is, got {header!r}; give its SHA-256 to fetch it")
        if self.part.size == 0:
            return self._accept_start(response, length)
        version = self.part.version
        if version is None or not version.agrees(version_of(self.url, response, length)):
            self._start_over("the file on the server changed")
        return self._check_length(length)

    def _check_length(self, length: int | None) -> None:
        if length is not None and self.size is not None and length != self.size:
            raise DataError(
                f"expected {self.size:,} bytes, but {self.url} has {length:,}: it is another file; "
                "check the address, or give the hash of the one that is meant"
            )
        if length is not None:
            self._require_space(length)

    def _require_space(self, length: int) -> None:
        # Also right for a new start: the bytes that are there make room for as many.
        require_free_space(self.part.path.parent, length - self.part.size, what=self.part.name)

    def _start_over(self, why: str) -> NoReturn:
        self.part.restart(None)
        raise _TransientError(f"{why}; starting over")

    def _receive(self, response: "httpx2.Response") -> None:
        known = self.part.version.length if self.part.version is not None else None
        total = self.size if known is None else known
        # A server that compresses all the same is decoded; what it says about its bytes is not about ours.
        for chunk in response.iter_bytes() if is_encoded(response) else response.iter_raw():
            self.part.append(chunk)
            self.report(self.part.size, self.part.size if total is None else total)
            if total is not None and self.part.size > total:
                self._start_over(f"expected {total:,} bytes, got more")
        if total is not None and self.part.size < total:
            raise _TransientError(f"expected {total:,} bytes, the answer ended after {self.part.size:,}")


@contextmanager
def _transport_errors(url: str) -> Iterator[None]:
    """httpx2's errors as ours: another try may help, or none will."""
    import httpx2

    try:
        yield
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise DataError(f"expected an http or https address, got {url!r}: {error}") from error
    except httpx2.TooManyRedirects as error:
        raise DataError(f"expected {url}, got more than {_MAX_REDIRECTS} redirects; check the address") from error
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise _TransientError(str(error) or type(error).__name__) from error
