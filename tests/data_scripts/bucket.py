"""A bucket of books on 127.0.0.1 for tests: lists its objects in pages of XML, and has faults on demand."""

import contextlib
import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

PAGE = 3


class Bucket(ThreadingHTTPServer):
    """Serves `objects` (path -> bytes) under /bucket.

    lists: whether it lists its objects. missing: listed but 404. cut: path -> how often its body breaks off half way.
    busy: path -> how often it answers 503. hang: paths whose body stops half way until the test ends.
    """

    daemon_threads = True

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.lists = dict(objects), True
        self.missing: set[str] = set()
        self.hang: set[str] = set()
        self.cut: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.hanging, self.ended = threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/bucket"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name = parts.path.removeprefix("/bucket").removeprefix("/")
        self.server.asked[name] += 1
        if self.server.busy[name] > 0:
            self.server.busy[name] -= 1
            self._send(503, b"busy")
        elif not name:
            self._list({key: values[0] for key, values in parse_qs(parts.query).items()})
        elif name in self.server.missing or name not in self.server.objects:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._send(200, self.server.objects[name], name)

    def _list(self, query: dict[str, str]) -> None:
        if not self.server.lists:
            return self._send(403, b"<Error><Code>AccessDenied</Code></Error>")
        prefix, marker = query.get("prefix", ""), query.get("marker", "")
        keys = [key for key in sorted(self.server.objects) if key.startswith(prefix) and key > marker]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.objects[key])}</Size>"
            f"<ETag>&quot;{hashlib.md5(self.server.objects[key]).hexdigest()}&quot;</ETag></Contents>"
            for key in keys[:PAGE]
        )
        more = f"<IsTruncated>{str(len(keys) > PAGE).lower()}</IsTruncated>"
        return self._send(
            200,
            f'<ListBucketResult xmlns="http://doc.s3.amazonaws.com/2006-03-01">{entries}{more}</ListBucketResult>'.encode(),
        )

    def _send(self, status: int, body: bytes, name: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if name and (self.server.cut[name] > 0 or name in self.server.hang):
            self.server.cut[name] -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if name in self.server.hang:
                self.server.hanging.set()
                self.server.ended.wait(30)
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Be silent."""


@contextlib.contextmanager
def serve(objects: dict[str, bytes]) -> Iterator[Bucket]:
    """A running bucket."""
    bucket = Bucket(objects)
    thread = threading.Thread(target=bucket.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        bucket.ended.set()
        bucket.shutdown()
        thread.join()
        bucket.server_close()
