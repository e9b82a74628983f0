"""What the head of an HTTP answer says about a file. Must not ask the network anything."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from data_scripts.part import Version

if TYPE_CHECKING:
    import httpx2

CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-(?P<last>\d+)|\*)/(?P<total>\d+|\*)")
"""Of a part: its first and last byte, or `*`, and the bytes of the whole, or `*` (RFC 9110 section 14.4)."""


def version_of(url: str, response: "httpx2.Response", length: int | None) -> Version:
    """Which version of the file at `url` the answer sends; of an encoded form nothing is known."""
    if is_encoded(response):
        return Version(url)
    return Version(url, response.headers.get("ETag"), response.headers.get("Last-Modified"), length)


def is_encoded(response: "httpx2.Response") -> bool:
    """Whether the body is compressed, though it was asked not to be."""
    return response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")


def content_length(response: "httpx2.Response") -> int | None:
    """Bytes of a full answer's body; None if it does not say, or says it of an encoded form."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and not is_encoded(response) else None


def retry_after(response: "httpx2.Response") -> float | None:
    """Seconds the server asks to wait, which it may also say as a date (RFC 9110 section 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
