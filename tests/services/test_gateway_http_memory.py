"""What a client's connection holds while it is open, and that nothing of it is left when the client is gone."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from gateway_svc.http import reading, requests
from gateway_svc.http.app import Application
from gateway_svc.http.connection import Connection
from gateway_svc.http.requests import Request
from tests.services.http1_running import LOOPS, Play, play_on
from tests.services.http_server_running import CHUNKED, GET, HEAD_END, POST, Rooms, posted, scenario, told

RESET = struct.pack("ii", 1, 0)
LARGE = b"x" * 200_000


@pytest.fixture(params=LOOPS)
def play(request: pytest.FixtureRequest) -> Play:
    return partial(play_on, request.param)


async def left_after(port: int, sent: bytes, until: bytes = b"") -> None:
    """Ask, hear so much of the answer, and leave by a reset."""
    loop = asyncio.get_running_loop()
    with socket.socket() as asking:
        asking.setblocking(False)
        await loop.sock_connect(asking, ("127.0.0.1", port))
        await loop.sock_sendall(asking, sent)
        said = b""
        while until not in said:
            said += await loop.sock_recv(asking, 65536)
        await asyncio.sleep(0.02)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


async def reset(port: int, sent: bytes) -> None:
    await left_after(port, sent)


async def reset_in_an_answer(port: int, sent: bytes) -> None:
    await left_after(port, sent, HEAD_END)


async def heard(port: int, sent: bytes) -> None:
    await told(port, sent)


def alive() -> list[str]:
    return [type(each).__name__ for each in gc.get_objects() if type(each) in {Connection, Request}]


@pytest.mark.parametrize(
    ("leave", "sent"),
    [
        pytest.param(reset_in_an_answer, posted(LARGE, path=b"/endless"), id="in a stream"),
        pytest.param(reset, posted(LARGE, path=b"/slow"), id="before a whole answer"),
        pytest.param(reset, posted(LARGE, path=b"/echo")[:-1], id="in a body that is read"),
        pytest.param(reset, posted(LARGE, path=b"/slow")[:-1], id="in a body that is not read yet"),
        pytest.param(reset_in_an_answer, posted(b"x" * 100, path=b"/deaf")[:-1], id="in a body that nobody reads"),
        pytest.param(reset, posted(b"x", path=b"/slow") * 5, id="with more requests on their way"),
        pytest.param(heard, GET + b"connection: close\r\n\r\n", id="as it should"),
        pytest.param(heard, POST + b"host: y\r\n\r\n", id="after what is no request"),
        pytest.param(heard, posted(LARGE * 2, b"connection: close"), id="after a body that is too large"),
        pytest.param(heard, CHUNKED + b"zz", id="after chunks that are none"),
    ],
)
def test_nothing_is_left_of_a_client_that_is_gone_without_a_collection_of_garbage(
    play: Play, leave: Callable[[int, bytes], Awaitable[None]], sent: bytes
) -> None:
    async def act(port: int, rooms: Rooms, app: Application) -> None:
        app.routes.add("POST", "/slow", rooms.slow)
        gc.freeze()  # what other tests left, or still use, is none of this one's
        gc.disable()
        try:
            for _ in range(3):
                await leave(port, sent)
            for _ in range(100):
                await asyncio.sleep(0.02)
                if not alive():
                    return
            assert not alive()
        finally:
            gc.enable()
            gc.unfreeze()

    scenario(play, act)


def held_bytes() -> int:
    """Return what was allocated, and is still there, by what takes requests apart."""
    places = [tracemalloc.Filter(True, str(each.__file__)) for each in (reading, requests)]
    return sum(each.size for each in tracemalloc.take_snapshot().filter_traces(places).traces)


def test_a_body_takes_as_much_memory_as_it_has_bytes_however_small_its_chunks_are(play: Play) -> None:
    async def act(port: int, rooms: Rooms, _app: Application) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        tracemalloc.start()
        try:
            writer.write(CHUNKED + b"2\r\nab\r\n" * 20_000)
            await writer.drain()
            await asyncio.sleep(0.5)
            assert 40_000 <= held_bytes() < 100_000
        finally:
            tracemalloc.stop()
        writer.write(b"0\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readuntil(HEAD_END)).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(40_000) == b"ab" * 20_000
        writer.close()
        await writer.wait_closed()
        assert rooms.seen == ["40000 bytes"]

    scenario(play, act)
