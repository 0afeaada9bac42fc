"""A TCP connection that can be cut, or unplugged for a while, between two real parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

CHUNK_BYTES = 64 * 1024


class Cable:
    """Carries bytes both ways to one address."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._plugged = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._heard = asyncio.Event()
        self._heard.set()
        self.address = ""

    def lead_to(self, target: str) -> None:
        """Carry new connections to another `host:port`."""
        self._target = target

    def mute(self) -> None:
        """Carry questions on and keep every answer back, until the connection is cut."""
        self._heard.clear()

    def cut(self) -> None:
        """Break every connection; new ones may be made."""
        self._heard.set()
        for writer in self._writers:
            writer.transport.abort()

    def unplug(self) -> None:
        """Break every connection and refuse new ones."""
        self._plugged = False
        self.cut()

    def plug(self) -> None:
        """Carry connections again."""
        self._plugged = True

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._plugged:
            writer.transport.abort()
            return
        host, _, port = self._target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer, self._heard))
        finally:
            self._writers -= {writer, far_writer}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: asyncio.Event | None = None) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK_BYTES):
            if heard is not None:
                await heard.wait()
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


@asynccontextmanager
async def cable(target: str) -> AsyncGenerator[Cable]:
    """Lay a cable to `host:port` during the block."""
    line = Cable(target)
    server = await asyncio.start_server(line.carry, "127.0.0.1", 0)
    line.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        line.unplug()
        server.close()
        await server.wait_closed()
