"""What two servers might read in two ways is no request to the server that agents ask, and nothing is without end."""

from __future__ import annotations

import logging
from functools import partial

import pytest

from gateway_svc.http.app import Application
from mesh.telemetry import metrics
from tests.services.http1_running import LOOPS, Play, play_on
from tests.services.http_server_running import CHUNKED, GET, HEAD_END, POST, Rooms, scenario, statuses, told


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest) -> Play:
    return partial(play_on, request.param)


def unreadable() -> float:
    return sum(sample.value for sample in next(iter(metrics.UNREADABLE.collect())).samples if "_total" in sample.name)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="length, chunks"),
        pytest.param(POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", id="chunks, length"),
        pytest.param(POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello", id="one length twice"),
        pytest.param(POST + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello", id="two lengths"),
        pytest.param(POST + b"content-length: +5\r\n\r\nhello", id="a length with a sign"),
        pytest.param(POST + b"content-length: 5 5\r\n\r\nhello", id="a length with a space"),
        pytest.param(POST + b"content-length: 0x5\r\n\r\nhello", id="a length in hexadecimals"),
        pytest.param(POST + b"content-length:\r\n\r\nhello", id="an empty length"),
        pytest.param(POST + b"content-length: 99999999999999999999999\r\n\r\n", id="a length beyond 64 bits"),
        pytest.param(POST + b"content-length : 5\r\n\r\nhello", id="a space before a colon"),
        pytest.param(POST + b"transfer-encoding: gzip\r\n\r\n", id="a coding without chunks"),
        pytest.param(POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="a coding and chunks"),
        pytest.param(POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", id="chunks and a coding"),
        pytest.param(POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", id="almost chunks"),
        pytest.param(POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n", id="chunks twice"),
        pytest.param(POST + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n", id="chunks behind a control character"),
        pytest.param(b"POST /echo HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="chunks in HTTP/1.0"),
        pytest.param(GET + b"a: b\r\n c: d\r\n\r\n", id="a folded line"),
        pytest.param(b"GET /path HTTP/1.1\r\n host: x\r\n\r\n", id="a folded first line"),
        pytest.param(b"GET /path HTTP/1.1\nhost: x\n\n", id="line feeds alone"),
        pytest.param(GET + b"a: b\n\r\n", id="a line feed alone"),
        pytest.param(GET + b"a: b\rc: d\r\n\r\n", id="a carriage return alone"),
        pytest.param(GET + b"a: \0\r\n\r\n", id="a NUL in a value"),
        pytest.param(GET + b"a\0: b\r\n\r\n", id="a NUL in a name"),
        pytest.param(GET + b": b\r\n\r\n", id="no name"),
        pytest.param(GET + b"host: y\r\n\r\n", id="two hosts"),
        pytest.param(b"GET /path HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"GET /pa\0th HTTP/1.1\r\nhost: x\r\n\r\n", id="a NUL in the path"),
        pytest.param(b"GET /p\xc3\xa4th HTTP/1.1\r\nhost: x\r\n\r\n", id="a bare umlaut in the path"),
        pytest.param(b"GET /pa th HTTP/1.1\r\nhost: x\r\n\r\n", id="a space in the path"),
        pytest.param(b"GET path HTTP/1.1\r\nhost: x\r\n\r\n", id="no path"),
        pytest.param(b"GET http://[ HTTP/1.1\r\nhost: x\r\n\r\n", id="no host in a URL"),
        pytest.param(b"GET /path\r\n\r\n", id="HTTP/0.9"),
        pytest.param(b"GET /path HTTP/2.0\r\nhost: x\r\n\r\n", id="HTTP/2 in lines"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2 itself"),
        pytest.param(b"get /path HTTP/1.1\r\nhost: x\r\n\r\n", id="a method in small letters"),
        pytest.param(GET + b"x: y\r\n" * 128 + b"\r\n", id="too many headers"),
        pytest.param(bytes(range(255, 0, -1)), id="garbage"),
    ],
)
def test_what_might_be_read_in_two_ways_is_no_request(
    play: Play, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        said, has_ended = await told(port, GET + b"\r\n" + sent + GET + b"\r\n")
        assert (statuses(said), has_ended) == ([200, 400], True)
        assert rooms.seen == ["/path"]
        assert b"\r\nconnection: close\r\n" in said

    caplog.set_level(logging.DEBUG)
    before = unreadable()
    scenario(play, act)
    assert unreadable() == before + 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]  # anybody could fill the log


@pytest.mark.parametrize(
    "bad", [b"zz\r\n", b"-1\r\n", b"0x1\r\na\r\n", b"1 \r\na\r\n", b"f" * 17, b"1\r\nabc", b"1\na\n"]
)
def test_a_body_whose_chunks_are_none_is_told_and_what_follows_is_not_read(play: Play, bad: bytes) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        for parts in ((CHUNKED + bad,), (CHUNKED + b"2\r\nab\r\n", bad)):
            said, has_ended = await told(port, *parts, GET + b"\r\n")
            assert (statuses(said), has_ended) == ([400], True)
            assert b"the body is not what its headers say" in said
        assert not rooms.seen

    scenario(play, act)


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        pytest.param(431, b"GET /" + b"y" * 16_385, id="a long target"),
        pytest.param(431, GET + b"x: " + b"y" * 16_385, id="a long value"),
        pytest.param(431, GET + b"y" * 16_385 + b": x", id="a long name"),
        pytest.param(431, GET + (b"x: " + b"y" * 8_000 + b"\r\n") * 9, id="many long values"),
        pytest.param(200, GET + b"x: " + b"y" * 16_384 + b"\r\nz: " + b"y" * 16_384, id="as long as may be"),
        pytest.param(200, GET + b"x: y\r\n" * 126 + b"x: y", id="as many lines as may be"),
    ],
)
def test_a_head_has_a_length_at_most(play: Play, status: int, sent: bytes) -> None:
    sent += b" HTTP/1.1\r\nhost: x\r\n\r\n" if sent.startswith(b"GET /y") else HEAD_END

    async def act(port: int, _rooms: Rooms, _app: Application) -> None:
        said, _ended = await told(port, sent, until=b"" if status == 431 else b"/path")
        assert statuses(said) == [status]

    scenario(play, act)


@pytest.mark.parametrize(
    "endless",
    [
        pytest.param((GET + b"x: ", b"y" * 8_000), id="a head"),
        pytest.param((GET, b"a:\r\n" * 100), id="headers"),
        pytest.param((b"", b"\r\n" * 4_000), id="empty lines"),
        pytest.param((CHUNKED + b"1;", b"y" * 8_000), id="an extension of a chunk"),
        pytest.param((CHUNKED + b"0\r\nx: ", b"y" * 8_000), id="a trailer"),
    ],
)
def test_what_never_ends_is_given_up_before_it_takes_much_memory(play: Play, endless: tuple[bytes, bytes]) -> None:
    async def act(port: int, _rooms: Rooms, _app: Application) -> None:
        first, more = endless
        said, has_ended = await told(port, first, *[more] * 12)
        assert has_ended
        assert statuses(said) in ([431], [400])

    scenario(play, act)
