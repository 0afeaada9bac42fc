"""Valkey as a child process: its configuration, its command, `running()` for tests; restarts are the supervisor's."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh import children
from mesh.embedded import binaries
from mesh.home import Home, write_private
from mesh.secret import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

STOP_SIGNAL = signal.SIGTERM
PROBE_SECONDS = 5.0
CONFIGURATION = """\
bind 127.0.0.1
port {port}
unixsocket {socket}
unixsocketperm 700
dir {data}
requirepass {password}
appendonly yes
appendfsync everysec
save ""
maxmemory 64mb
maxmemory-policy noeviction
daemonize no
loglevel warning
"""


@dataclass(frozen=True, slots=True)
class Valkey:
    """One server and how to run it; its password stands in a private file, never in a command line."""

    data: Path
    sockets: Path
    port: int
    password: Secret
    configuration: Path

    @classmethod
    def of(cls, home: Home, port: int) -> Valkey:
        """Describe the server of `home`; nothing is touched yet."""
        return cls(home.path / "valkey", home.sockets, port, home.secret("valkey"), home.run / "valkey.conf")

    @property
    def url(self) -> Secret:
        """Address of the server, password included."""
        return Secret(f"redis://:{self.password.reveal()}@127.0.0.1:{self.port}/0")

    def argv(self) -> tuple[str, ...]:
        """Return the server's command."""
        return (str(binaries.valkey()), str(self.configuration))

    async def prepare(self) -> None:
        """Write the configuration; Valkey itself clears a socket that a killed server left."""
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = CONFIGURATION.format(
            port=self.port,
            socket=_quoted(self.sockets / "valkey.sock"),
            data=_quoted(self.data),
            password=self.password.reveal(),
        )
        write_private(self.configuration, content.encode())

    async def ready(self) -> bool:
        """Say whether the server answers, its data loaded."""
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(f"AUTH {self.password.reveal()}\r\nPING\r\n".encode())
                    return (await reader.readline(), await reader.readline()) == (b"+OK\r\n", b"+PONG\r\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False


@contextlib.asynccontextmanager
async def running(directory: Path, port: int = 0, *, keep: bool = False) -> AsyncGenerator[Valkey]:
    """Run a server for a test, its home in `directory`; all is removed afterwards unless `keep`."""
    home = Home.open(directory)
    server = Valkey.of(home, port or children.free_port())
    try:
        await server.prepare()
        async with children.started(server.argv(), server.ready, stop=STOP_SIGNAL):
            yield server
    finally:
        if not keep:
            await asyncio.to_thread(home.wipe)


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
