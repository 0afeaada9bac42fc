"""A server that agents ask with rooms of its own, and clients that send it any bytes."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from gateway_svc.http.answers import Response, Stream
from gateway_svc.http.app import Application
from gateway_svc.http.connections import Connections
from gateway_svc.http.requests import Request
from tests.services.gateway_running import endpoints_of_nothing
from tests.services.http1_running import Play

BODY_BYTES_MAX = 300_000
GET = b"GET /path HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: x\r\n"
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
HEAD_END = b"\r\n\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"


class Rooms:
    """Handlers, and what they have seen."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.began = asyncio.Event()
        self.gone = asyncio.Event()
        self.most = 0
        self.now = 0

    async def path(self, request: Request) -> Response:
        self.seen.append(request.path)
        self.began.set()
        return Response(200, request.path.encode())

    async def tail(self, request: Request) -> Response:
        return Response(200, request.tail.encode())

    async def echo(self, request: Request) -> Response:
        body = await request.read()
        self.seen.append(f"{len(body)} bytes")
        return Response(200, body)

    async def deaf(self, request: Request) -> Response:
        self.seen.append("deaf")
        return Response(401, b"no", {"x-was-complete": str(request.body.complete)})

    async def slow(self, request: Request) -> Response:
        self.began.set()
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(20):
            await asyncio.sleep(0.01)
            if request.line.gone():
                self.gone.set()
        self.now -= 1
        self.seen.append("slow")
        return Response(200, b"slow")

    async def stream(self, request: Request) -> Stream:
        sending = Stream(request, 200, {"content-type": "text/event-stream"})
        for piece in (b"one", b"", b"two"):
            await sending.write(piece)
            await asyncio.sleep(0)
        sending.end()
        return sending

    async def endless(self, request: Request) -> Stream:
        sending = Stream(request, 200, {})
        while not request.line.gone():
            await sending.write(b"x" * 10_000)
        self.gone.set()
        return sending

    async def broken(self, _: Request) -> Response:
        return Response(200, b"", {"x": "y\r\nset-cookie: z"})


Told = tuple[bytes, bool]
Server = tuple[int, Rooms, Application]


@asynccontextmanager
async def served() -> AsyncGenerator[Server]:
    rooms = Rooms()
    app = Application(endpoints_of_nothing(), instance="gateway-0", body_bytes_max=BODY_BYTES_MAX)
    for name in ("path", "slow"):
        app.routes.add("GET", f"/{name}", getattr(rooms, name))
    for name in ("echo", "deaf", "stream", "endless", "broken"):
        app.routes.add("POST", f"/{name}", getattr(rooms, name))
    app.routes.add("GET", "/tail/{rest}", rooms.tail)
    made = Connections(app, 100)
    listener = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1], rooms, app
    finally:
        listener.close()
        await made.close(1)
        assert not made.running


async def told(port: int, *parts: bytes, until: bytes = b"", ends: bool = False) -> Told:
    """Send parts, each in a segment of its own; return what comes up to some bytes or the end, and whether it ended."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said, has_ended = b"", False
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.002 if len(parts) < 20 else 0)
    if ends:
        writer.write_eof()
    async with asyncio.timeout(5):
        while not (until and said.endswith(until)) and not has_ended:
            with contextlib.suppress(ConnectionResetError):
                part = await reader.read(65536)
                said, has_ended = said + part, not part
                continue
            has_ended = True
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return said, has_ended


def statuses(said: bytes) -> list[int]:
    return [int(status) for status in STATUS.findall(said)]


def scenario(play: Play, act: Callable[[int, Rooms, Application], Awaitable[None]]) -> None:
    async def run() -> None:
        async with served() as (port, rooms, app):
            await act(port, rooms, app)

    play(run())


def posted(body: bytes, *lines: bytes, path: bytes = b"/echo") -> bytes:
    head = b"".join(b"%b\r\n" % line for line in (b"POST %b HTTP/1.1" % path, b"host: x", *lines))
    return head + b"content-length: %d\r\n\r\n" % len(body) + body
