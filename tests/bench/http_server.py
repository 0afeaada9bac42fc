"""Measure the server that agents ask against aiohttp's and a floor, with the same handlers: CPU of the server alone.

Run as `python -m tests.bench.http_server [--seconds 2] [--rounds 3]`; the floor answers without reading anything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import uvloop
from aiohttp import web

from gateway_svc.http.answers import Response, Stream
from gateway_svc.http.app import Application
from gateway_svc.http.connections import Connections
from gateway_svc.http.requests import Request
from mesh import children, ids
from tests.services.gateway_running import endpoints_of_nothing

EVENTS = 20
WHOLE, STREAM = "/whole", "/stream"
BODY = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 330 + b'"}]}'
HEAD = "".join(
    f"{name}: {text}\r\n"
    for name, text in {
        "host": "127.0.0.1:8080",
        "accept-encoding": "gzip, deflate",
        "connection": "keep-alive",
        "accept": "application/json",
        "content-type": "application/json",
        "user-agent": "OpenAI/Python 3.52.0",
        "x-stainless-lang": "python",
        "x-stainless-package-version": "3.52.0",
        "x-stainless-os": "Linux",
        "x-stainless-arch": "x64",
        "x-stainless-runtime": "CPython",
        "x-stainless-runtime-version": "3.11.2",
        "authorization": "Bearer cpk_0123456789012345678901234567890123456789",
        "x-stainless-async": "false",
        "x-stainless-retry-count": "0",
        "x-stainless-read-timeout": "600",
    }.items()
)
ANSWER = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"' + b"y" * 560 + b'"}}],"usage":{"total_tokens":9}}'
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"word "}}]}' + b" " * 100 + b"\n\n"
TOLD = {f"x-ratelimit-{name}": "1000" for name in ("limit-requests", "remaining-requests", "limit-tokens")}
LAST = b"0\r\n\r\n"


async def whole(request: Request) -> Response:
    await request.read()
    return Response(200, ANSWER, {**TOLD, "content-type": "application/json"})


async def stream(request: Request) -> Stream:
    await request.read()
    sending = Stream(request, 200, {**TOLD, "content-type": "text/event-stream"})
    for _ in range(EVENTS):
        await sending.write(EVENT)
        await asyncio.sleep(0)
    sending.end()
    return sending


def ours() -> Connections:
    app = Application(endpoints_of_nothing(), instance="gateway-0", body_bytes_max=2**20)
    app.routes.add("POST", WHOLE, whole)
    app.routes.add("POST", STREAM, stream)
    return Connections(app, 1000)


@web.middleware
async def identified(request: web.Request, handler: Any) -> web.StreamResponse:
    request["id"] = ids.new(ids.Kind.REQUEST)
    response = await handler(request)
    if not response.prepared:
        response.headers.update(names(request))
    return response


def names(request: web.Request) -> dict[str, str]:
    return {"x-request-id": request["id"], "x-mandate-instance": "gateway-0"}


async def aiohttps_whole(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(status=200, body=ANSWER, headers={**TOLD, "content-type": "application/json"})


async def aiohttps_stream(request: web.Request) -> web.StreamResponse:
    await request.read()
    sending = web.StreamResponse(headers={**TOLD, **names(request), "content-type": "text/event-stream"})
    await sending.prepare(request)
    for _ in range(EVENTS):
        await sending.write(EVENT)
        await asyncio.sleep(0)
    await sending.write_eof()
    return sending


async def aiohttps() -> web.Server:
    app = web.Application(middlewares=[identified])
    app.router.add_post(WHOLE, aiohttps_whole)
    app.router.add_post(STREAM, aiohttps_stream)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    assert runner.server is not None
    return runner.server


class Floor(asyncio.Protocol):
    """The same bytes out, of which nothing is made up when they are wanted."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        told = "".join(f"{name}: {text}\r\n" for name, text in TOLD.items())
        self.head = f"HTTP/1.1 200 OK\r\n{told}".encode()

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST /stream"):
            self.transport.write(self.head + b"transfer-encoding: chunked\r\n\r\n")
            asyncio.get_running_loop().call_soon(self.step, 0)
        else:
            self.transport.write(self.head + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER)

    def step(self, number: int) -> None:
        self.transport.write(LAST if number == EVENTS else b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        if number < EVENTS:
            asyncio.get_running_loop().call_soon(self.step, number + 1)


async def serve(kind: str, port: int) -> None:
    made: Any = {"floor": lambda: Floor, "ours": ours}[kind]() if kind != "aiohttp" else await aiohttps()
    server = await asyncio.get_running_loop().create_server(made, "127.0.0.1", port)
    await server.serve_forever()


class Asking(asyncio.Protocol):
    """Asks again whenever its answer is whole."""

    def __init__(self, path: str) -> None:
        self.request = f"POST {path} HTTP/1.1\r\n{HEAD}content-length: {len(BODY)}\r\n\r\n".encode() + BODY
        self.last = LAST if path == STREAM else ANSWER[-20:]
        self.count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if data.endswith(self.last):
            self.count += 1
            self.transport.write(self.request)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(port: int, pid: int, path: str, at_once: int, seconds: float) -> tuple[float, float]:
    """Return CPU microseconds of the server an answer, and answers a second."""
    loop = asyncio.get_running_loop()
    opened = [await loop.create_connection(lambda: Asking(path), "127.0.0.1", port) for _ in range(at_once)]
    await asyncio.sleep(0.3)
    before, count, began = cpu_seconds(pid), sum(asking.count for _, asking in opened), time.monotonic()
    await asyncio.sleep(seconds)
    answers, elapsed = sum(asking.count for _, asking in opened) - count, time.monotonic() - began
    used = cpu_seconds(pid) - before
    for transport, _ in opened:
        transport.abort()
    return used / answers * 1e6, answers / elapsed


@asynccontextmanager
async def serving(kind: str) -> AsyncGenerator[tuple[int, int]]:
    """Run a server; give its port and its process."""
    port = children.free_port()
    command = ("-m", "tests.bench.http_server", "--serve", kind, "--port", str(port))
    silent = asyncio.subprocess.DEVNULL  # of the streams that are cut off at the end
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stderr=silent)
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                await asyncio.sleep(0.05)
        yield port, process.pid
    finally:
        process.kill()
        await process.wait()


async def compare(arguments: argparse.Namespace) -> None:
    async with serving("floor") as floor, serving("aiohttp") as theirs, serving("ours") as mine:
        kinds = {"floor": floor, "aiohttp": theirs, "ours": mine}
        for path, at_once in ((WHOLE, 1), (WHOLE, 16), (WHOLE, 64), (STREAM, 16)):
            rounds: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
            for _ in range(arguments.rounds):
                for kind, (port, pid) in kinds.items():
                    rounds[kind].append(await measure(port, pid, path, at_once, arguments.seconds))
            for kind, found in rounds.items():
                cpu, rate = (statistics.median(column) for column in zip(*found, strict=True))
                per = f" {cpu / EVENTS:6.1f} us an event" if path == STREAM else ""
                print(f"{path:8} {at_once:3} at once  {kind:8} {cpu:8.1f} us CPU {rate:8.0f}/s{per}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", default="")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.serve, arguments.port) if arguments.serve else compare(arguments))


if __name__ == "__main__":
    main()
