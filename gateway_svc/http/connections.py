"""Clients' connections: how many there may be, and what each is given time for.

A connection beyond the limit is answered 503 rather than left in the socket's queue: its client knows at once, and what
it tries next may reach another process. No more than 256 are answered so at a time; any beyond are cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Protocol

from gateway_svc.http.answers import Response
from gateway_svc.http.connection import Connection
from gateway_svc.http.draining import Draining
from gateway_svc.http.requests import Request
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import metrics

REFUSED_MAX = 256
REFUSED_SECONDS_MAX = 1.0
LOOK_SECONDS = 0.25  # between looks at who is late; a date is as old at most


class Answering(Protocol):
    """What is served on connections."""

    body_bytes_max: int
    draining: Draining

    async def answer(self, request: Request) -> Response | None:
        """Answer one request, whatever fails; None where the answer has gone out already."""
        ...

    def failed(self, request: Request, error: Exception) -> Response:
        """Return what is told where an answer can't be sent."""
        ...

    def raw(self, error: MeshError, framing: str) -> bytes:
        """Return an error as the bytes of a last answer; `framing` is lines of its head."""
        ...


class Connections:
    """Makes the connections of one server and looks after those that are open."""

    def __init__(self, served: Answering, connections_max: int) -> None:
        self.answer: Callable[[Request], Awaitable[Response | None]] = served.answer
        self.body_bytes_max = served.body_bytes_max
        self.date = _date()
        self.failed = served.failed
        self.running: set[asyncio.Task[None]] = set()
        self._connections_max = connections_max
        self._draining = served.draining
        self._raw = served.raw
        self._looking: asyncio.TimerHandle | None = None
        self._open: set[Connection] = set()
        self._refused: set[_Refused] = set()

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of a connection that was accepted."""
        return Connection(self)

    @property
    def is_draining(self) -> bool:
        """Return whether every answer is to be its connection's last."""
        return self._draining.begun

    def raw(self, error: MeshError) -> bytes:
        """Return an error as the bytes of a last answer."""
        return self._raw(error, f"{self.date}connection: close\r\n")

    def enter(self, connection: Connection) -> bool:
        """Count a connection in; False when there are as many as may be."""
        if len(self._open) >= self._connections_max:
            return False
        self._open.add(connection)
        if self._looking is None:
            self._look()
        return True

    def leave(self, connection: Connection) -> None:
        """Count a connection out."""
        self._open.discard(connection)

    def refuse(self, transport: asyncio.Transport) -> None:
        """Tell a client that there is no room, and let it go."""
        if len(self._refused) >= REFUSED_MAX:
            transport.abort()
            return
        metrics.SHED.labels("connections").inc()
        error = Unavailable("OVERLOADED", "too many connections at once", retry_after_ms=1_000)
        refused = _Refused(transport, self.raw(error), self._refused.discard)
        self._refused.add(refused)
        transport.set_protocol(refused)

    async def close(self, seconds_max: float) -> None:
        """End all that nothing is answered on, wait for the others a while, and end what they still do."""
        for connection in tuple(self._open):
            connection.finish()
        if self.running:
            _, late = await asyncio.wait(self.running, timeout=seconds_max)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=seconds_max)
        for connection in tuple(self._open):
            connection.finish()

    def _look(self) -> None:
        """End what is late; nobody looks where there is no connection."""
        loop = asyncio.get_running_loop()
        self.date = _date()
        now = loop.time()
        for connection in [each for each in self._open if each.due < now]:
            connection.late()
        self._looking = loop.call_later(LOOK_SECONDS, self._look) if self._open else None


class _Refused(asyncio.Protocol):
    """Answers once something was asked, so that the answer is taken for one, and hears no more than a second."""

    def __init__(self, transport: asyncio.Transport, answer: bytes, gone: Callable[[_Refused], None]) -> None:
        self._transport = transport
        self._answer = answer
        self._gone = gone
        self._timer = asyncio.get_running_loop().call_later(REFUSED_SECONDS_MAX, transport.abort)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002  # read all the same: closing on it would cut the answer
        if self._answer:
            self._transport.write(self._answer)
            self._transport.write_eof()
            self._answer = b""

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._timer.cancel()
        self._gone(self)


def _date() -> str:
    return f"date: {formatdate(usegmt=True)}\r\n"
