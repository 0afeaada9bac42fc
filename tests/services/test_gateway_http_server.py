"""The server that agents ask, by raw sockets: requests, their order, their ends."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import socket
from functools import partial

import pytest

from gateway_svc.http import answers, connection
from gateway_svc.http.app import Application
from tests.services.http1_running import LOOPS, Play, play_on
from tests.services.http_server_running import (
    BODY_BYTES_MAX,
    CHUNKED,
    GET,
    HEAD_END,
    POST,
    Rooms,
    posted,
    scenario,
    served,
    statuses,
    told,
)

WORDS = re.compile(rb"\r\n\r\n(\w+?)(?=HTTP/1\.1|$)")


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest) -> Play:
    return partial(play_on, request.param)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(posted(b"hello"), id="a length"),
        pytest.param(
            CHUNKED + b"2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\ntrailer: z\r\n\r\n", id="chunks, an extension, a trailer"
        ),
        pytest.param(b"\r\n" + posted(b"hello"), id="an empty line before"),
        pytest.param(posted(b"hello", b"connection: upgrade", b"upgrade: h2c"), id="a wish for HTTP/2"),
        pytest.param(
            POST
            + b"connection: upgrade\r\nupgrade: websocket\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            id="a wish for a web socket, and chunks",
        ),
        pytest.param(posted(gzip.compress(b"hello"), b"content-encoding: gzip"), id="compressed"),
        pytest.param(posted(b"hello").replace(b"/echo", b"http://x/ec%68o?a=b"), id="a whole URL"),
    ],
)
@pytest.mark.parametrize("step", [1, 5, 10_000])
def test_a_request_is_the_same_however_it_comes_and_leaves_its_connection_open(
    play: Play, sent: bytes, step: int
) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        parts = [sent[at : at + step] for at in range(0, len(sent), step)]
        said, has_ended = await told(port, *parts, *parts, GET + b"\r\n", until=b"/path")
        assert (statuses(said), has_ended) == ([200, 200, 200], False)
        assert said.count(b"\r\n\r\nhello") == 2
        assert rooms.seen == ["5 bytes", "5 bytes", "/path"]

    scenario(play, act)


def test_requests_one_behind_another_are_answered_in_order_one_at_a_time(play: Play) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        sent = [
            b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n",
            posted(b"a" * 100_000),
            b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n",
            GET + b"\r\n",
            b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            GET + b"\r\n",
        ]
        said, has_ended = await told(port, b"".join(sent))
        assert (statuses(said), has_ended) == ([200, 200, 404, 200, 200], True)
        assert rooms.seen == ["slow", "100000 bytes", "/path", "slow"]
        assert rooms.most == 1

    scenario(play, act)


def test_a_few_requests_wait_and_where_more_come_at_once_those_few_are_answered_and_no_other(play: Play) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        numbers = [b"%d" % number for number in range(connection.WAITING_MAX)]
        asking = [b"GET /tail/%b HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in numbers]
        few = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n" + b"".join(asking)
        said, has_ended = await told(port, few, until=HEAD_END + numbers[-1])
        assert (statuses(said), has_ended) == ([200] * 17, False)
        said, has_ended = await told(port, few + posted(b"x" * 100) + (GET + b"\r\n") * 1_000)
        assert (statuses(said), has_ended) == ([200] * 17, True)
        assert WORDS.findall(said) == [b"slow", *numbers]
        assert said.count(b"\r\nconnection: close\r\n") == 1
        assert rooms.seen == ["slow", "slow"]

    scenario(play, act)


def test_whoever_asks_and_reads_nothing_is_soon_not_read_any_more(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WRITE_SECONDS_MAX", 0.3)

    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as asking:
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asking.setblocking(False)
            await loop.sock_connect(asking, ("127.0.0.1", port))
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(2):
                    await loop.sock_sendall(asking, (GET + b"x: %b\r\n\r\n" % (b"y" * 500)) * 40_000)
                    pytest.fail("all of it was taken")
        assert 100 < len(rooms.seen) < 40_000

    scenario(play, act)


def test_a_stream_that_is_not_read_is_cut_off(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WRITE_SECONDS_MAX", 0.3)

    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as asking:
            asking.setblocking(False)
            await loop.sock_connect(asking, ("127.0.0.1", port))
            await loop.sock_sendall(asking, posted(b"", path=b"/endless"))
            async with asyncio.timeout(3):
                await rooms.gone.wait()

    scenario(play, act)


def test_a_body_is_waited_for_once_it_is_wanted_and_no_sooner(play: Play) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        expecting = b"expect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        said, has_ended = await told(port, POST + expecting, until=b"100 Continue\r\n\r\n")
        assert (statuses(said), has_ended) == ([100], False)
        said, _ended = await told(port, POST + expecting, b"hello", until=b"hello")
        assert statuses(said) == [100, 200]
        said, has_ended = await told(port, POST.replace(b"/echo", b"/deaf") + expecting)
        assert (statuses(said), has_ended) == ([401], True)  # a body or a request may follow, and nobody knows which
        said, has_ended = await told(port, POST + b"expect: a-miracle\r\ncontent-length: 5\r\n\r\n", b"hello")
        assert (statuses(said), has_ended) == ([417], True)
        said, has_ended = await told(port, POST.replace(b"1.1", b"1.0") + expecting + b"hello")
        assert (statuses(said), has_ended) == ([200], True)
        assert "deaf" in rooms.seen

    scenario(play, act)


def test_the_rest_of_a_body_that_nobody_reads_is_no_request(play: Play) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        head, rest = posted(GET + b"\r\n" + b"x" * 100, path=b"/deaf").split(HEAD_END, 1)
        said, has_ended = await told(port, head + HEAD_END, rest[:50], rest[50:] + GET + b"\r\n", until=b"/path")
        assert (statuses(said), has_ended) == ([401, 200], False)
        assert rooms.seen == ["deaf", "/path"]

    scenario(play, act)


def test_the_rest_of_a_body_has_a_time(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "REST_SECONDS_MAX", 0.3)

    async def act(port: int, _rooms: Rooms, _app: Application) -> None:
        said, has_ended = await told(port, posted(b"x" * 100, path=b"/deaf")[:-50])
        assert (statuses(said), has_ended) == ([401], True)

    scenario(play, act)


def test_a_body_has_a_size_at_most_and_its_sender_hears_so(play: Play) -> None:
    async def act(port: int, _rooms: Rooms, _app: Application) -> None:
        whole, chunk = b"x" * BODY_BYTES_MAX, b"%x\r\n" % (BODY_BYTES_MAX + 1)
        said, has_ended = await told(port, posted(whole), until=whole)
        assert (statuses(said), has_ended) == ([200], False)
        for large in (posted(whole + b"x"), CHUNKED + chunk + whole + b"x\r\n0\r\n\r\n"):
            said, has_ended = await told(port, large, GET + b"\r\n", until=b"/path")
            assert (statuses(said), has_ended) == ([413, 200], False)
        bomb = gzip.compress(whole + b"x")
        said, _ended = await told(port, posted(bomb, b"content-encoding: gzip"), GET + b"\r\n", until=b"/path")
        assert statuses(said) == [413, 200]
        said, _ended = await told(port, posted(b"hello", b"content-encoding: gzip"), GET + b"\r\n", until=b"/path")
        assert statuses(said) == [400, 200]

    scenario(play, act)


def test_a_stream_comes_in_chunks_and_in_http_1_0_up_to_the_end(play: Play) -> None:
    async def act(port: int, _rooms: Rooms, _app: Application) -> None:
        asking = posted(b"", b"connection: keep-alive", path=b"/stream")
        said, has_ended = await told(port, asking, GET + b"\r\n", until=b"/path")
        assert b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\nHTTP/1.1 200" in said
        assert not has_ended
        said, has_ended = await told(port, asking.replace(b"1.1", b"1.0"))
        assert said.endswith(HEAD_END + b"onetwo")
        assert b"\r\nconnection: close\r\n" in said
        assert has_ended

    scenario(play, act)


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        (GET + b"\r\n", b""),
        (GET + b"connection: close\r\n\r\n", b"close"),
        (GET + b"connection: x, Close\r\n\r\n", b"close"),
        (b"GET /path HTTP/1.0\r\n\r\n", b"close"),
        (b"GET /path HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", b"keep-alive"),
    ],
)
def test_a_connection_stays_open_where_its_client_wants_it(play: Play, sent: bytes, line: bytes) -> None:
    async def act(port: int, _rooms: Rooms, _app: Application) -> None:
        stays = line != b"close"
        said, has_ended = await told(port, sent, until=b"/path" if stays else b"")
        assert has_ended != stays
        assert (b"\r\nconnection: %b\r\n" % line if line else b"\r\ndate: ") in said
        assert (b"\r\nconnection: " in said) == bool(line)

    scenario(play, act)


def test_who_asks_for_a_head_gets_no_body(play: Play) -> None:
    async def act(port: int, _rooms: Rooms, _app: Application) -> None:
        asking = b"HEAD /path HTTP/1.1\r\nhost: x\r\n\r\nHEAD /no HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        said, _ended = await told(port, asking)
        first, second, rest = said.split(HEAD_END)
        assert (statuses(first), statuses(second), rest) == ([200], [404], b"")
        assert b"\r\ncontent-length: 5" in first

    scenario(play, act)


def test_nothing_is_a_tunnel(play: Play) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        said, has_ended = await told(port, b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n" + GET + b"\r\n")
        assert (statuses(said), has_ended) == ([404], True)
        assert not rooms.seen

    scenario(play, act)


@pytest.mark.parametrize(
    ("path", "tail"),
    [
        (b"/tail/a", b"a"),
        (b"/tail/a/b?c=d", b"a/b"),
        (b"/tail/a%2Fb#c", b"a/b"),
        (b"/ta%69l/%C3%A4%2f%25", "ä/%".encode()),
        (b"/tail/%252F", b"%2F"),
        (b"/tail/../path", b"../path"),
    ],
)
def test_the_end_of_a_path_is_read_as_it_was_meant(play: Play, path: bytes, tail: bytes) -> None:
    async def act(port: int, _rooms: Rooms, _app: Application) -> None:
        said, _ended = await told(port, b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path)
        assert said.partition(HEAD_END)[2] == tail
        for none in (b"/tail/", b"/tail%2Fa", b"/path/", b"//path"):
            said, _ended = await told(port, b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % none)
            assert statuses(said) == [404]

    scenario(play, act)


def test_a_client_that_ends_its_side_has_left_but_hears_what_it_was_being_told(play: Play) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        said, has_ended = await told(port, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n", ends=True)
        assert (statuses(said), has_ended, rooms.gone.is_set()) == ([200], True, True)
        for unfinished in (b"", GET, POST + b"content-length: 5\r\n\r\nab"):
            said, has_ended = await told(port, unfinished, ends=True)
            assert has_ended
            assert statuses(said) in ([], [499])

    scenario(play, act)


def test_an_answer_that_would_break_its_head_is_told_as_a_bug(play: Play) -> None:
    async def act(port: int, _rooms: Rooms, _app: Application) -> None:
        said, _ended = await told(port, posted(b"", path=b"/broken"), GET + b"\r\n", until=b"/path")
        assert statuses(said) == [500, 200]
        assert b"set-cookie" not in said

    scenario(play, act)


def test_a_server_that_ends_tells_whoever_it_answers_and_closes_on_whom_it_does_not(play: Play) -> None:
    async def act(port: int, rooms: Rooms, app: Application) -> None:
        slow = asyncio.create_task(told(port, b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"))
        await rooms.began.wait()
        await app.draining.quiet(5)
        said, has_ended = await slow
        assert (statuses(said), has_ended) == ([200], True)
        assert b"\r\nconnection: close\r\n" in said

    scenario(play, act)


def test_whoever_is_idle_when_the_server_closes_is_let_go_and_the_rest_is_ended(play: Play) -> None:
    async def run() -> None:
        async with served() as (port, rooms, _app):
            idle = asyncio.create_task(told(port, GET + b"\r\n"))
            endless = asyncio.create_task(told(port, posted(b"", path=b"/endless")))
            await rooms.began.wait()
            await asyncio.sleep(0.05)
        said, has_ended = await idle
        assert (statuses(said), has_ended) == ([200], True)
        said, has_ended = await endless
        assert has_ended
        assert not said.endswith(b"0\r\n\r\n")

    play(run())
