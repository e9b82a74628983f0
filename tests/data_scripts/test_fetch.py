"""Fetching: whatever the server does, the file ends whole, or the call fails in one line and continues later."""

import hashlib
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest

from data_scripts import fetch as fetch_module
from data_scripts.disk import locked, write_json
from data_scripts.errors import DataError
from data_scripts.fetch import FetchResult, NoConnectionError, Retry, fetch, new_client
from tests.data_scripts import fault_server
from tests.data_scripts.fault_server import FaultServer, Reports, cut, status

QUICK = Retry(first_wait=0.001, longest_wait=0.01, silence=5.0)
CONTENT = random.Random(0).randbytes(300_000)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(CONTENT) as running:
        yield running


def get(server: FaultServer, target: Path, **changes: Any) -> FetchResult:
    return fetch(server.url, target, **({"sha256": server.sha256, "retry": QUICK} | changes))


def refused(server: FaultServer, target: Path, **changes: Any) -> str:
    """The one line of a call that must fail."""
    with pytest.raises(DataError) as caught:
        get(server, target, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_leaves_nothing_beside_it(server: FaultServer, tmp_path: Path) -> None:
    reports = Reports()
    target = tmp_path / "deep" / "file.zip"
    result = get(server, target, size=len(CONTENT), progress=reports)
    assert result == FetchResult(target, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), True)
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == ["file.zip"]
    assert reports.calls[-1] == (len(CONTENT), len(CONTENT))
    assert reports.calls == sorted(reports.calls)
    assert server.requests[0]["accept-encoding"] == "identity"


def test_done_twice_asks_nothing(server: FaultServer, tmp_path: Path) -> None:
    first = get(server, tmp_path / "file")
    assert get(server, tmp_path / "file") == first
    assert len(server.requests) == 1


def test_many_files_share_a_connection(server: FaultServer, tmp_path: Path) -> None:
    with new_client(QUICK) as client:
        for number in range(5):
            get(server, tmp_path / str(number), client=client)
        assert not client.is_closed
    assert server.connections == 1
    assert all((tmp_path / str(number)).read_bytes() == CONTENT for number in range(5))


def test_without_a_hash_the_result_says_that_nothing_was_verified(server: FaultServer, tmp_path: Path) -> None:
    result = get(server, tmp_path / "file", sha256=None)
    assert (result.verified, result.sha256) == (False, server.sha256)


def test_cut_at_ten_random_places(server: FaultServer, tmp_path: Path) -> None:
    places = sorted(random.Random(1).sample(range(1, len(CONTENT)), 10))
    starts = [0, *places]
    server.faults.extend(cut(end - start) for start, end in zip(starts, places, strict=False))
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges() == [None, *(f"bytes={place}-" for place in places)]
    assert {request.get("if-range") for request in server.requests[1:]} == {server.etag}


def test_a_silent_connection_is_given_up_and_resumed(server: FaultServer, tmp_path: Path) -> None:
    server.faults.append(fault_server.stall(1_000, seconds=1.0))
    get(server, tmp_path / "file", retry=Retry(first_wait=0.001, silence=0.2))
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=1000-"]


def test_failures_in_a_row_are_counted_anew_after_progress(server: FaultServer, tmp_path: Path) -> None:
    patience = Retry(tries=3, first_wait=0.001)
    for _ in range(4):
        server.faults.extend([status(503), status(500), cut(1_000)])
    get(server, tmp_path / "file", retry=patience)
    server.faults.extend([status(503)] * 3)
    message = refused(server, tmp_path / "other", retry=patience)
    assert "3 failures in a row, the last: HTTP 503" in message


def test_a_server_that_starts_over_and_breaks_off_is_given_up(server: FaultServer, tmp_path: Path) -> None:
    server.faults.extend([fault_server.full_then_cut(50_000)] * 20)
    assert "failures in a row" in refused(server, tmp_path / "file")
    assert len(server.requests) == 1 + QUICK.tries
    server.faults.clear()
    get(server, tmp_path / "file")  # the same call continues
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges()[-1] == "bytes=50000-"


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_obeyed(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, form: str
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(fetch_module.time, "sleep", waits.append)
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    server.faults.append(status(code, Retry_After="90" if form == "seconds" else moment))
    get(server, tmp_path / "file")
    assert len(waits) == 1
    assert 80 < waits[0] <= 91


def test_a_server_that_asks_for_hours_is_not_waited_for(server: FaultServer, tmp_path: Path) -> None:
    server.faults.append(status(429, Retry_After="7200"))
    assert "asks to wait 7200 s" in refused(server, tmp_path / "file")
    assert len(server.requests) == 1


def test_the_wait_doubles_up_to_a_limit_and_varies() -> None:
    retry = Retry(first_wait=1.0, longest_wait=5.0)
    for failures, most in ((1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0), (30, 5.0)):
        waits = [retry.wait(failures, None) for _ in range(50)]
        assert most / 2 <= min(waits) < max(waits) <= most
    assert retry.wait(1, 30.0) == 30.0


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_other_refusals_fail_at_once(server: FaultServer, tmp_path: Path, code: int) -> None:
    server.faults.append(status(code))
    assert f"HTTP {code}" in refused(server, tmp_path / "file")
    assert len(server.requests) == 1


def test_redirects_are_followed_also_when_resuming(server: FaultServer, tmp_path: Path) -> None:
    there = status(302, Location=server.url.replace("file.zip", "elsewhere/file.zip"))
    server.faults.extend([there, status(307, Location="/again"), cut(5_000), there])
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges()[-1] == "bytes=5000-"
    server.faults.extend([status(302, Location=server.url)] * 20)
    assert "redirects" in refused(server, tmp_path / "round")


def test_no_redirect_leads_from_https_to_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        plain = request.url.scheme == "http"
        return httpx2.Response(200, content=b"x") if plain else httpx2.Response(302, headers={"Location": "http://b/x"})

    client = partial(httpx2.Client, transport=httpx2.MockTransport(answer))
    monkeypatch.setattr(httpx2, "Client", client)
    with pytest.raises(DataError, match="https all the way"):
        fetch("https://a/x", tmp_path / "file", retry=QUICK)
    assert not (tmp_path / "file").exists()


def test_a_server_that_ignores_ranges_starts_over(server: FaultServer, tmp_path: Path) -> None:
    server.faults.extend([cut(100_000), fault_server.full])
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("hash_known", [True, False])
def test_a_file_that_changes_on_the_server_is_not_glued_to_its_old_start(
    server: FaultServer, tmp_path: Path, hash_known: bool
) -> None:
    server.faults.extend([cut(100_000), *[status(404)]])
    refused(server, tmp_path / "file", sha256=None)
    server.content, server.etag = random.Random(2).randbytes(250_000), '"2"'
    result = get(server, tmp_path / "file", sha256=server.sha256 if hash_known else None)
    assert server.ranges()[-1] == "bytes=100000-"
    assert result.sha256 == server.sha256
    assert (tmp_path / "file").read_bytes() == server.content


def test_a_server_without_if_range_is_caught_by_its_etag(server: FaultServer, tmp_path: Path) -> None:
    server.faults.extend([cut(100_000), status(404)])
    refused(server, tmp_path / "file")
    new = random.Random(2).randbytes(len(CONTENT))
    server.content, server.etag = new, '"2"'

    def ignores_condition(handler: fault_server.Handler) -> None:
        del handler.headers["If-Range"]
        handler.answer()

    server.faults.append(ignores_condition)
    assert get(server, tmp_path / "file").sha256 == hashlib.sha256(new).hexdigest()
    assert server.ranges()[-2:] == ["bytes=100000-", None]


def test_a_weak_etag_is_no_condition(server: FaultServer, tmp_path: Path) -> None:
    server.etag = 'W/"1"'
    server.faults.append(cut(100_000))
    get(server, tmp_path / "file")
    assert server.requests[-1]["if-range"] == server.last_modified


def test_without_a_validator_only_a_known_hash_allows_a_range(server: FaultServer, tmp_path: Path) -> None:
    server.etag = server.last_modified = None
    server.faults.append(cut(100_000))
    get(server, tmp_path / "known")
    assert server.ranges() == [None, "bytes=100000-"]
    server.faults.append(cut(100_000))
    get(server, tmp_path / "unknown", sha256=None)
    assert server.ranges()[2:] == [None, None]
    assert (tmp_path / "unknown").read_bytes() == CONTENT


def test_a_start_from_another_address_is_not_used(server: FaultServer, tmp_path: Path) -> None:
    server.faults.extend([cut(100_000), status(404)])
    refused(server, tmp_path / "file")
    fetch(server.url + "?mirror", tmp_path / "file", sha256=server.sha256, retry=QUICK)
    assert server.ranges()[-1] is None


@pytest.mark.parametrize("side", [None, b"", b"[1]", b'{"url": 1, "other": 2}', b"\xff"])
def test_bytes_without_a_readable_version_are_not_used(server: FaultServer, tmp_path: Path, side: bytes | None) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 1_000)
    if side is not None:
        (tmp_path / "file.part.json").write_bytes(side)
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert names(tmp_path) == ["file"]


def test_a_wrong_content_range_is_not_written(server: FaultServer, tmp_path: Path) -> None:
    server.faults.extend([cut(100_000), fault_server.shifted])
    get(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges()[-1] is None, "what was not the range asked for is dropped, and so is the start"
    server.faults.extend([cut(100_000), *[status(206, Content_Range="pages 1-2/3")] * 2])
    get(server, tmp_path / "other")
    assert (tmp_path / "other").read_bytes() == CONTENT


def test_a_range_of_something_without_length_is_no_file(server: FaultServer, tmp_path: Path) -> None:
    server.faults.append(status(206, Content_Range="bytes 0-99/*", Content_Length="0"))
    assert "to say how long it is" in refused(server, tmp_path / "file", sha256=None)
    assert not (tmp_path / "file").exists()


def test_a_server_that_always_changes_and_breaks_off_is_given_up(server: FaultServer, tmp_path: Path) -> None:
    def changed(handler: fault_server.Handler) -> None:
        handler.owner.etag = f'"{len(handler.owner.requests)}"'
        handler.answer(upto=50_000)

    server.faults.extend([changed] * 100)
    assert "failures in a row" in refused(server, tmp_path / "file")
    assert len(server.requests) <= QUICK.tries + 2


def test_416_for_a_part_that_is_whole_and_for_one_that_is_too_long(server: FaultServer, tmp_path: Path) -> None:
    for extra in (b"", b"surplus"):
        target = tmp_path / f"file{len(extra)}"
        (tmp_path / f"{target.name}.part").write_bytes(CONTENT + extra)
        write_json(tmp_path / f"{target.name}.part.json", {"url": server.url, "etag": server.etag})
        get(server, target)
        assert target.read_bytes() == CONTENT
    assert server.ranges() == ["bytes=300000-", "bytes=300007-", None]


def test_a_part_that_is_whole_needs_no_request(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT)
    write_json(tmp_path / "file.part.json", {"url": server.url, "etag": server.etag, "length": len(CONTENT)})
    get(server, tmp_path / "file")
    assert server.requests == []
    assert names(tmp_path) == ["file"]


def test_a_body_compressed_against_our_wish_is_decoded(server: FaultServer, tmp_path: Path) -> None:
    server.faults.append(fault_server.gzipped)
    get(server, tmp_path / "file", size=len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_compressed_body_that_was_cut_is_never_resumed(server: FaultServer, tmp_path: Path) -> None:
    server.content = bytes(200_000) + CONTENT

    def broken(handler: fault_server.Handler) -> None:
        handler.send_piece, send = (lambda data: send(data[: len(data) // 2])), handler.send_piece  # type: ignore[method-assign]
        fault_server.gzipped(handler)
        handler.close_connection = True

    server.faults.append(broken)
    get(server, tmp_path / "file")
    assert server.ranges() == [None, None]
    assert (tmp_path / "file").read_bytes() == server.content


def test_no_length_is_fine_with_an_end_or_a_hash(server: FaultServer, tmp_path: Path) -> None:
    reports = Reports()
    server.faults.extend([fault_server.chunked, fault_server.endless()])
    get(server, tmp_path / "chunked", sha256=None, progress=reports)
    get(server, tmp_path / "endless")
    assert (tmp_path / "chunked").read_bytes() == (tmp_path / "endless").read_bytes() == CONTENT
    assert reports.calls[-1] == (len(CONTENT), len(CONTENT))


def test_no_length_no_end_and_no_hash_is_refused(server: FaultServer, tmp_path: Path) -> None:
    server.faults.append(fault_server.endless(upto=1_000))
    assert "say how long it is" in refused(server, tmp_path / "file", sha256=None)
    server.faults.append(fault_server.endless(upto=1_000))
    get(server, tmp_path / "file", sha256=None, size=len(CONTENT))
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_another_length_than_expected_is_refused_before_anything_is_written(
    server: FaultServer, tmp_path: Path
) -> None:
    message = refused(server, tmp_path / "file", size=len(CONTENT) + 1)
    assert "300,001 bytes" in message
    assert "300,000" in message
    assert (tmp_path / "file.part").stat().st_size == 0
    server.faults.extend([fault_server.chunked] * QUICK.tries)
    assert "more" in refused(server, tmp_path / "longer", size=1_000)


def test_a_wrong_hash_names_both_and_the_same_call_begins_anew(server: FaultServer, tmp_path: Path) -> None:
    right, wrong = server.sha256, random.Random(3).randbytes(len(CONTENT))
    server.content = wrong
    message = refused(server, tmp_path / "file", sha256=right)
    assert right in message
    assert hashlib.sha256(wrong).hexdigest() in message
    assert "begins anew" in message
    assert names(tmp_path) == []
    server.content = CONTENT
    get(server, tmp_path / "file")
    assert server.ranges() == [None, None]


def test_an_existing_file_that_is_another_is_not_touched(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    assert "SHA-256" in refused(server, tmp_path / "file")
    assert "4" in refused(server, tmp_path / "file", size=5)
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert server.requests == []


def test_no_server_at_all(tmp_path: Path) -> None:
    with FaultServer(b"") as gone:
        url = gone.url
    with pytest.raises(NoConnectionError, match=r"expected to reach .*HTTPS_PROXY"):
        fetch(url, tmp_path / "file", retry=QUICK)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "file:///etc/hosts", "no address", "http://127.0.0.1:port/x"])
def test_what_is_no_address(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected an http or https address"):
        fetch(url, tmp_path / "file", retry=QUICK)


def test_two_at_once(server: FaultServer, tmp_path: Path) -> None:
    with locked(tmp_path / "file.lock", what="a test"):
        assert "another process" in refused(server, tmp_path / "file")
    get(server, tmp_path / "file")
