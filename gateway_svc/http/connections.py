"""Clients' connections: how many there may be, how long each may be silent, and what HTTP itself finds wrong.

A connection beyond the limit is answered 503 rather than left in the socket's queue: its client knows at once, and what
it tries next may reach another process. No more than 256 are answered so at a time; any beyond are cut.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from gateway_svc.http import answers
from gateway_svc.http.errors import Voice, raw, refusal, tagged
from mesh.errors import DeadlineExceeded, Internal, InvalidArgument, MeshError, Unavailable
from mesh.telemetry import logs, metrics

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER_BYTES_MAX = 16 * 1024
HEAD_SECONDS_MAX = 15.0  # from a head's first byte to its last; of a new connection from its beginning
IDLE_SECONDS_MAX = 75.0
REFUSED_MAX = 256
REFUSED_SECONDS_MAX = 1.0

log = logs.get(__name__)


class Connections:
    """Makes the connections of one server and counts those that are open."""

    def __init__(self, server: web.Server, instance: str, connections_max: int) -> None:
        self.instance = instance
        self._server = server
        self._connections_max = connections_max
        self._open = 0
        self._refused: set[_Refused] = set()

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of a connection that was accepted."""
        return Connection(self, self._server)

    def enter(self) -> bool:
        """Count a connection in; False when there are as many as may be."""
        if self._open >= self._connections_max:
            return False
        self._open += 1
        return True

    def leave(self) -> None:
        """Count a connection out."""
        self._open -= 1

    def refuse(self, transport: asyncio.Transport) -> None:
        """Tell a client that there is no room, and let it go."""
        if len(self._refused) >= REFUSED_MAX:
            transport.set_protocol(asyncio.Protocol())  # its end is not to be counted as that of one let in
            transport.abort()
            return
        metrics.SHED.labels("connections").inc()
        error = Unavailable("OVERLOADED", "too many connections at once", retry_after_ms=1_000)
        refused = _Refused(transport, raw(error, self.instance), self._refused.discard)
        self._refused.add(refused)
        transport.set_protocol(refused)


class Connection(web.RequestHandler):
    """One client's connection, with its errors in our shape."""

    __slots__ = ("_begun", "_connections", "_head_timer")

    def __init__(self, connections: Connections, server: web.Server) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # pyright: ignore[reportArgumentType]  # so says aiohttp's documentation
            logger=logs.http(),  # pyright: ignore[reportArgumentType]
            keepalive_timeout=IDLE_SECONDS_MAX,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
        )
        self._connections = connections
        self._begun = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let the connection in, or refuse it."""
        if not self._connections.enter():
            self._connections.refuse(cast("asyncio.Transport", transport))
            return
        super().connection_made(transport)
        self._head_timer = self._loop.call_later(HEAD_SECONDS_MAX, self._late)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let the next one in."""
        self._connections.leave()
        self._head_came()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hear bytes; those that end no head, while nothing is being answered, are the beginning of one."""
        heads = self._request_count
        super().data_received(data)
        if self._request_count > heads:
            self._head_came()
        elif self._waiter is not None:
            self._begun = True
            if self._head_timer is None:
                self._head_timer = self._loop.call_later(HEAD_SECONDS_MAX, self._late)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002  # it quotes the request
    ) -> web.StreamResponse:
        """Answer what aiohttp found wrong before any route was reached, or after it failed."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun")
        voice = Voice.of(request)
        response = tagged(voice.answer(_error_of(status, exc)), self._connections.instance, voice)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer, within a time; one that aiohttp raised, such as to a wrong Expect, in our shape."""
        if isinstance(resp, web.HTTPException):
            resp = tagged(refusal(request, resp), self._connections.instance, Voice.of(request))
            resp.force_close()
        try:
            async with asyncio.timeout(answers.WRITE_SECONDS_MAX):
                return await super().finish_response(request, resp, start_time)
        except TimeoutError:
            self.force_close()
            if request.transport is not None:
                request.transport.abort()
            return resp, True

    def _head_came(self) -> None:
        self._begun = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        self._head_timer = None
        if self._begun and self.transport is not None:
            error = DeadlineExceeded("HEAD_TOO_SLOW", "the request's head did not arrive in time")
            self.transport.write(raw(error, self._connections.instance))
        self.force_close()


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


def _error_of(status: int, error: BaseException | None) -> MeshError:
    if isinstance(error, HttpProcessingError):
        log.warn("http.unreadable", error=type(error).__name__)  # its text quotes the request, which may hold a key
    match error:
        case LineTooLong():
            return InvalidArgument("HEADERS_TOO_LARGE", f"a line of the head has more than {HEADER_BYTES_MAX} bytes")
        case HttpProcessingError():
            return InvalidArgument("BAD_REQUEST", "this is no HTTP request")
        case _:
            log.error("http.bug", error or TimeoutError(), status=status)
            return Internal("INTERNAL", "the gateway failed")
