"""A provider that says exactly the bytes it is told to, and counts who connects: for what a real one never does."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

Script = Callable[["Visit"], Awaitable[None]]


class Visit:
    """One request on one connection, and the way to answer it."""

    def __init__(self, request: bytes, number: int, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self.number = number
        self.writer = writer

    async def say(self, data: bytes, *, step: int | None = None) -> None:
        for at in range(0, len(data), step or len(data)):
            self.writer.write(data[at : at + (step or len(data))])
            await self.writer.drain()
            if step:
                await asyncio.sleep(0)

    def cut(self) -> None:
        self.writer.transport.abort()

    async def wait_for_the_end(self) -> None:
        await asyncio.sleep(60)


class RawProvider:
    """Plays one script to each request; `open_now` are the connections that the client has not closed."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.connections = 0
        self.open_now = 0
        self.open_most = 0
        self.requests: list[bytes] = []
        self.port = 0
        self.scheme = "http"
        self._all_gone = asyncio.Event()
        self._all_gone.set()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"

    async def gone(self) -> None:
        """Wait until no connection is open any more."""
        async with asyncio.timeout(5):
            await self._all_gone.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_now += 1
        self._all_gone.clear()
        self.open_most = max(self.open_most, self.open_now)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                await self._answer(reader, Visit(self.requests[-1], len(self.requests), writer))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self.open_now -= 1
            if not self.open_now:
                self._all_gone.set()
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, visit: Visit) -> None:
        """Play the script, until the client is gone."""
        script = asyncio.ensure_future(self.script(visit))
        try:
            while not script.done():
                await asyncio.wait([script], timeout=0.02)
                if reader.at_eof() or reader.exception() is not None:
                    raise ConnectionResetError
            await script
        finally:
            script.cancel()
            await asyncio.gather(script, return_exceptions=True)


@asynccontextmanager
async def raw_provider(script: Script, tls: ssl.SSLContext | None = None) -> AsyncGenerator[RawProvider]:
    """Serve a script during the block."""
    provider = RawProvider(script)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await provider.serve(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls, backlog=1024)
    provider.port = server.sockets[0].getsockname()[1]
    provider.scheme = "https" if tls is not None else "http"
    try:
        yield provider
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
