"""An HTTP server on 127.0.0.1 that serves one file well, except where a test tells it to do something wrong.

Without faults it knows ranges and `If-Range`. A fault answers one request in place of that; they are used up in order.
"""

import gzip
import hashlib
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self

Fault = Callable[["Handler"], None]


class FaultServer:
    """Serves `content` under every path; a context manager.

    Attributes:
        content, etag, last_modified: of the file; they may be changed between requests. None leaves the header out.
        faults: what the next requests meet.
        requests: the headers of every request so far.
        connections: how many there were so far.
        pace: seconds of sleep after each piece of 16 KiB.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag: str | None = '"1"'
        self.last_modified: str | None = formatdate(1e9, usegmt=True)
        self.faults: deque[Fault] = deque()
        self.requests: list[dict[str, str]] = []
        self.connections = 0
        self.pace = 0.0
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.owner = self
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/file.zip"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def ranges(self) -> list[str | None]:
        """The `Range` header of each request."""
        return [request.get("range") for request in self.requests]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    owner: FaultServer
    block_on_close = False

    def process_request(self, request: Any, client_address: Any) -> None:
        self.owner.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


class Handler(BaseHTTPRequestHandler):
    """One connection; faults use `start`, `send_piece` and `answer`."""

    protocol_version = "HTTP/1.1"
    server: _Server

    @property
    def owner(self) -> FaultServer:
        return self.server.owner

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.owner.requests.append({name.lower(): value for name, value in self.headers.items()})
        if self.owner.faults:
            self.owner.faults.popleft()(self)
        else:
            self.answer()

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_piece(self, data: bytes) -> None:
        for first in range(0, len(data), 1 << 14):
            self.wfile.write(data[first : first + (1 << 14)])
            if self.owner.pace > 0:
                time.sleep(self.owner.pace)

    def validators(self) -> dict[str, str]:
        pairs = {"ETag": self.owner.etag, "Last-Modified": self.owner.last_modified}
        return {name: value for name, value in pairs.items() if value is not None}

    def wanted(self) -> int | None:
        """The first byte asked for, if a range is to be sent."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        fits = condition is None or condition in (self.owner.etag, self.owner.last_modified)
        return int(match[1]) if match is not None and fits else None

    def answer(self, *, upto: int | None = None, shift: int = 0) -> None:
        """The right answer; or cut off after `upto` bytes of the body, or with a range that is `shift` bytes off."""
        content, first = self.owner.content, self.wanted()
        if first is not None and first >= len(content):
            self.start(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        headers = self.validators() | {"Content-Length": str(len(content) - (first or 0))}
        if first is None:
            self.start(200, headers)
        else:
            last = len(content) - 1
            headers["Content-Range"] = f"bytes {first + shift}-{last + shift}/{len(content)}"
            self.start(206, headers)
        body = content[(first or 0) + shift :][: len(content) - (first or 0)]
        self.send_piece(body[:upto])
        if upto is not None and upto < len(body):
            self.close_connection = True


def cut(upto: int) -> Fault:
    """The connection drops after so many bytes of the body."""
    return lambda handler: handler.answer(upto=upto)


def stall(upto: int, seconds: float) -> Fault:
    """Nothing more comes after so many bytes, though the connection stays."""

    def fault(handler: Handler) -> None:
        handler.answer(upto=upto)
        handler.wfile.flush()
        time.sleep(seconds)

    return fault


def status(code: int, **headers: str) -> Fault:
    """Only a status; underscores in header names become hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.start(code, named | {"Content-Length": "0"})


def full(handler: Handler) -> None:
    """Ranges are ignored: the whole file, 200."""
    del handler.headers["Range"]
    handler.answer()


def full_then_cut(upto: int) -> Fault:
    """Ranges are ignored, and the connection drops."""

    def fault(handler: Handler) -> None:
        del handler.headers["Range"]
        handler.answer(upto=upto)

    return fault


def shifted(handler: Handler) -> None:
    """Another range than the one asked for."""
    handler.answer(shift=7)


def gzipped(handler: Handler) -> None:
    """Compressed, though it was asked not to be."""
    body = gzip.compress(handler.owner.content)
    handler.start(200, handler.validators() | {"Content-Encoding": "gzip", "Content-Length": str(len(body))})
    handler.send_piece(body)


def chunked(handler: Handler) -> None:
    """Without a length, but with an end."""
    handler.start(200, handler.validators() | {"Transfer-Encoding": "chunked"})
    for first in range(0, len(handler.owner.content), 10_000):
        piece = handler.owner.content[first : first + 10_000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    handler.wfile.write(b"0\r\n\r\n")


def endless(upto: int | None = None) -> Fault:
    """Without length or end: the connection closes, after the file or in the middle of it."""

    def fault(handler: Handler) -> None:
        handler.start(200, handler.validators() | {"Connection": "close"})
        handler.send_piece(handler.owner.content[:upto])
        handler.close_connection = True

    return fault


@dataclass
class Reports:
    """A progress callback that remembers."""

    calls: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))
