"""Measure the provider client against aiohttp's on the same loopback provider, in one run: CPU of the client alone.

Run as `python -m tests.bench.upstream [--seconds 3] [--rounds 3]`; `--profile` prints where the time goes instead.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import cProfile
import itertools
import pstats
import resource
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import aiohttp
import uvloop

from gateway_svc.providers.upstream import Upstream
from mesh import children

EVENTS = 100
HEADERS = {
    "authorization": "Bearer sk-0123456789012345678901234567890123456789",
    "content-type": "application/json",
    "accept": "application/json",
    "accept-encoding": "identity",
    "x-request-id": "req_01jd3k5v8w9x0y1z2a3b4c5d6e",
}
REQUEST = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 330 + b'"}]}'
ANSWER = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"' + b"y" * 560 + b'"}}],"usage":{"total_tokens":9}}'
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ndate: Mon, 02 Nov 2026 10:00:00 GMT\r\nserver: mock\r\n"
    b"x-request-id: req_1\r\nopenai-processing-ms: 12\r\nopenai-version: 2020-10-01\r\n"
)
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"word "}}]}' + b" " * 100 + b"\n\n"
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
Ask = Callable[[str], Awaitable[int]]


class Mock(asyncio.Protocol):
    """A provider that answers each segment: a whole body, or a stream of events, one a loop turn, to /stream."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"POST /stream"):
            self.transport.write(HEAD + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER)
            return
        self.transport.write(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        asyncio.get_running_loop().call_later(0.002, self.step, 0)

    def step(self, number: int) -> None:
        if number == EVENTS:
            self.transport.write(b"0\r\n\r\n")
            return
        self.transport.write(CHUNK)
        asyncio.get_running_loop().call_later(0.002, self.step, number + 1)


async def mock(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Mock, "127.0.0.1", port)
    await server.serve_forever()


async def measure(ask: Ask, url: str, at_once: int, seconds: float) -> tuple[float, float, float]:
    """Return CPU microseconds a call, those of them outside of the kernel, and calls a second."""
    numbers = itertools.count()
    until = time.monotonic() + seconds

    async def work() -> None:
        while time.monotonic() < until:
            await ask(url)
            next(numbers)

    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.gather(*(work() for _ in range(at_once)))
    count = next(numbers)
    elapsed, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
    user = after.ru_utime - before.ru_utime
    return (user + after.ru_stime - before.ru_stime) / count * 1e6, user / count * 1e6, count / elapsed


async def with_aiohttp(session: aiohttp.ClientSession, url: str) -> int:
    size = 0
    async with session.post(url, data=REQUEST, headers=HEADERS, allow_redirects=False) as response:
        while part := await response.content.readany():
            size += len(part)
    return size


class Bare(asyncio.Protocol):
    """The floor: the same bytes sent and as many awaited, with nothing read, checked or pooled."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.waiter: asyncio.Future[int] | None = None
        head = "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
        self.request = f"POST / HTTP/1.1\r\n{head}content-length: {len(REQUEST)}\r\n\r\n".encode() + REQUEST

    def data_received(self, data: bytes) -> None:
        if self.waiter is not None:
            self.waiter.set_result(len(data))

    async def ask(self) -> int:
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(self.request)
        return await self.waiter


async def floor(port: int, arguments: argparse.Namespace) -> None:
    for kind, path, at_once in (
        (Bare, "/", 1),
        (Bare, "/", 16),
        (Bare, "/", 64),
        (BareStream, "/stream", 16),
        (BareStream, "/stream", 64),
    ):
        loop = asyncio.get_running_loop()
        idle = [(await loop.create_connection(kind, "127.0.0.1", port))[1] for _ in range(at_once)]
        for bare in idle:
            bare.request = bare.request.replace(b"POST /", b"POST " + path.encode())

        async def ask(_url: str, idle: list[Bare] = idle) -> int:
            bare = idle.pop()
            size = await bare.ask()
            idle.append(bare)
            return size

        rounds = [await measure(ask, "", at_once, arguments.seconds) for _ in range(arguments.rounds)]
        cpu, user, rate = (statistics.median(column) for column in zip(*rounds, strict=True))
        report(path, at_once, "floor", cpu, user, rate)
        for bare in idle:
            bare.transport.close()


class BareStream(Bare):
    """The floor of a stream: its bytes are taken in, and nobody is woken before the last."""

    def data_received(self, data: bytes) -> None:
        if self.waiter is not None and data.endswith(b"0\r\n\r\n"):
            self.waiter.set_result(0)


async def whole(upstream: Upstream, url: str) -> int:
    async with upstream.post(url, HEADERS, REQUEST) as answer:
        return len(await answer.body())


async def stream(upstream: Upstream, url: str) -> int:
    size = 0
    async with upstream.post(url, HEADERS, REQUEST) as answer:
        async for part in answer.chunks():
            size += len(part)
    return size


def report(path: str, at_once: int, name: str, cpu: float, user: float, rate: float) -> None:
    per = f" {cpu / EVENTS:6.1f} us an event" if path == "/stream" else ""
    print(f"{path:8} {at_once:3} at once  {name:9} {cpu:8.1f} us CPU ({user:7.1f} user) {rate:7.0f}/s{per}")


async def compare(port: int, arguments: argparse.Namespace) -> None:
    upstream = Upstream(silence_seconds_max=60, public_only=False)
    timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=60)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=2000), timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
    )
    base = f"http://127.0.0.1:{port}"
    await floor(port, arguments)
    for path, at_once, ours in (
        ("/", 1, whole),
        ("/", 16, whole),
        ("/", 64, whole),
        ("/stream", 1, stream),
        ("/stream", 16, stream),
        ("/stream", 64, stream),
    ):
        clients: dict[str, Ask] = {
            "aiohttp": lambda url: with_aiohttp(session, url),
            "upstream": lambda url, ours=ours: ours(upstream, url),
        }
        for name, ask in clients.items():
            await measure(ask, base + path, at_once, 0.3)
            rounds = [await measure(ask, base + path, at_once, arguments.seconds) for _ in range(arguments.rounds)]
            cpu, user, rate = (statistics.median(column) for column in zip(*rounds, strict=True))
            report(path, at_once, name, cpu, user, rate)
    await session.close()
    await upstream.close()


async def profiled(port: int, arguments: argparse.Namespace) -> None:
    upstream = Upstream(silence_seconds_max=60, public_only=False)
    profile = cProfile.Profile()
    profile.enable()
    await measure(lambda url: whole(upstream, url), f"http://127.0.0.1:{port}/", 16, arguments.seconds)
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(22)
    await upstream.close()


async def ready(port: int) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                return
            await asyncio.sleep(0.05)


async def run(arguments: argparse.Namespace) -> None:
    port = children.free_port()
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.bench.upstream", "--mock", str(port))
    try:
        await ready(port)
        await (profiled if arguments.profile else compare)(port, arguments)
    finally:
        process.kill()
        await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mock", type=int)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    task: Any = mock(arguments.mock) if arguments.mock else run(arguments)
    uvloop.run(task)


if __name__ == "__main__":
    main()
