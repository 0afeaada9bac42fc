"""One client's connection: its requests are answered in order, each in a task of its own; no silence lasts for ever.

While a request is being answered, what comes behind it is left unread. A client that ends its side has left, as far as
completions are concerned: a whole answer that is ready at once is still sent, a stream is cut. One that has more
requests behind the one that is being answered is not read, so that it left is noticed at the next write to it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from math import inf
from typing import Protocol, cast, final

from gateway_svc.http import answers
from gateway_svc.http.answers import Response, head_of
from gateway_svc.http.reading import Reading
from gateway_svc.http.requests import MET_EXPECTATION, Request
from mesh.errors import DeadlineExceeded, MeshError

HEAD_SECONDS_MAX = 15.0  # from a head's first byte to its last; of a new connection from its beginning
IDLE_SECONDS_MAX = 75.0
REST_SECONDS_MAX = 10.0  # for the rest of a body that nobody reads, and for a client to hear why it was cut off
PIECE_BYTES = 8 * 1024  # read at once, so that few requests can be in what is read one behind another
WAITING_MAX = 16  # requests read and not begun; where one piece has more, the last of them ends the connection


class Server(Protocol):
    """Who lets connections in and has requests answered."""

    body_bytes_max: int
    date: str  # a header's line
    running: set[asyncio.Task[None]]
    answer: Callable[[Request], Awaitable[Response | None]]  # None: it has gone out already

    def enter(self, connection: Connection) -> bool:
        """Let a connection in; False when there are as many as may be."""
        ...

    def leave(self, connection: Connection) -> None:
        """Let the next one in."""
        ...

    def refuse(self, transport: asyncio.Transport) -> None:
        """Tell a client that there is no room, and let it go."""
        ...

    def failed(self, request: Request, error: Exception) -> Response:
        """Return what is told where an answer can't be sent."""
        ...

    def raw(self, error: MeshError) -> bytes:
        """Return an error as the bytes of a last answer."""
        ...

    @property
    def is_draining(self) -> bool:
        """Return whether every answer is to be its connection's last."""
        ...


@final
class Connection(asyncio.Protocol):
    """A connection of `server`, which calls `late` some time after `due`."""

    __slots__ = (
        "_answering", "_has_ended", "_is_closing", "_is_paused", "_is_timed", "_last", "_loop", "_reading", "_server",
        "_transport", "_unread", "_waiter", "_waiting", "due", "full", "task",
    )  # fmt: skip

    def __init__(self, server: Server) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = server
        self.due = self._loop.time() + HEAD_SECONDS_MAX  # when the client is late with what is its turn
        self.full = False
        self.task: asyncio.Task[None] | None = None
        self._answering: Request | None = None  # without a task it is answered, and the rest of its body is to come
        self._has_ended = False
        self._is_closing = False
        self._is_paused = False
        self._is_timed = True  # whether `due` is that of the next head
        self._last: MeshError | None = None  # to be told when all else is answered
        self._reading = Reading(self, server.body_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._unread = b""
        self._waiter: asyncio.Future[None] | None = None
        self._waiting: deque[Request] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if not self._server.enter(self):
            self._is_closing = True
            self._reading.stop()
            self._server.refuse(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._is_closing or self._reading.is_over:
            return
        if self._is_busy():
            self._unread += data
            self._pause()
        else:
            self._read(data)

    def eof_received(self) -> bool:
        self._has_ended = True
        self._leave_body()
        return self.task is not None

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # why it is lost is nobody's matter
        self._server.leave(self)
        self._let_go()
        self._transport = None
        self._wake()

    def came(self, request: Request) -> None:
        """Begin to answer it, unless another is being answered; one too many is not, nor what is behind it."""
        if self._answering is None:
            self._start(request)
            return
        if len(self._waiting) == WAITING_MAX:
            self._waiting[-1].keeps = False
            self._reading.stop()
        self._waiting.append(request)

    def complete(self, request: Request) -> None:
        """Be ready for the next, where this one is answered."""
        if request is self._answering and self.task is None:
            self._answering = None
            self.due = self._loop.time() + IDLE_SECONDS_MAX

    def gone(self) -> bool:
        return self._has_ended or self._transport is None or self._transport.is_closing()

    def wanted(self) -> None:
        request = self._answering
        if request is not None and request.expects() == MET_EXPECTATION:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._resume()

    def begin(self, request: Request, status: int, headers: dict[str, str], length: int | None) -> bool:
        is_chunked = length is None and not request.is_old
        if length is None and request.is_old:
            request.keeps = False
        framing = "transfer-encoding: chunked\r\n" if is_chunked else ""
        if length is not None:
            framing = f"content-length: {length}\r\n"
        self.send(self._head(request, status, headers, framing))
        return is_chunked

    def send(self, data: bytes | memoryview) -> None:
        transport = self._transport
        if transport is not None and not transport.is_closing():
            transport.write(data)

    async def sent(self, by: float = 0.0) -> None:
        if not self.full or self._transport is None:
            return
        self.due = by or self._loop.time() + answers.WRITE_SECONDS_MAX
        waiter = self._waiter = self._loop.create_future()
        try:
            await waiter
        finally:
            self._waiter = None
            self.due = inf

    def late(self) -> None:
        """End it: what is the client's turn has not come in time."""
        if self._is_closing or self.task is not None:
            self.abort()
        elif self._answering is None and self._reading.is_begun:
            self._close(DeadlineExceeded("HEAD_TOO_SLOW", "the request's head did not arrive in time"))
        else:
            self._close()

    def finish(self) -> None:
        """End it, unless something is being answered."""
        if self.task is None and not self._is_closing:
            self._close()

    def abort(self) -> None:
        """Cut it off: what was not taken is lost."""
        self._let_go()
        if self._transport is not None:
            self._transport.abort()

    def _is_busy(self) -> bool:
        """Return whether what comes now belongs to no request that is being answered."""
        answering = self._answering
        return bool(self._waiting) or (answering is not None and answering.body.complete)

    def _read(self, data: bytes) -> None:
        if len(data) <= PIECE_BYTES:
            self._last = self._reading.feed(data)
        else:
            self._read_pieces(memoryview(data))
        self._listen()

    def _read_pieces(self, data: memoryview) -> None:
        for at in range(0, len(data), PIECE_BYTES):
            if self._is_busy():
                self._unread = bytes(data[at:])
                self._pause()
                return
            self._last = self._reading.feed(data[at : at + PIECE_BYTES])
            if self._reading.is_over:
                return

    def _listen(self) -> None:
        """Set by when the client must have done what is its turn, and take no more than there is room for."""
        answering, reading = self._answering, self._reading
        if answering is not None and (self.task is not None or not reading.is_over):
            if answering.body.is_unread:
                self._pause()
        elif reading.is_over or self._has_ended:
            self._close(self._last)
        else:
            if reading.is_begun and not self._is_timed:
                self._is_timed = True
                self.due = self._loop.time() + HEAD_SECONDS_MAX
            self._resume()

    def _start(self, request: Request) -> None:
        self._answering = request
        self._is_timed = False
        self.due = inf
        self.task = self._loop.create_task(self._answer(request))
        self._server.running.add(self.task)

    async def _answer(self, request: Request) -> None:
        """Answer one request, and go on to the next."""
        try:
            answer = await self._server.answer(request)
            if answer is not None:
                self._respond(request, answer)
            if self.full:
                await self.sent()
        except BaseException:
            self.abort()
            raise
        finally:
            if self.task is not None:  # never a local: a traceback that its task keeps would keep the task
                self._server.running.discard(self.task)
                self.task = None
            if self._is_closing:
                self._answering = None
        self._answered(request)

    def _answered(self, request: Request) -> None:
        body = request.body
        if self._is_closing:
            return
        if not request.keeps or (self._has_ended and not body.complete):
            self._close()
        elif body.complete:
            self._answering = None
            self._go_on()
        else:
            body.drop()
            self.due = self._loop.time() + REST_SECONDS_MAX
            self._resume()

    def _go_on(self) -> None:
        """Answer what has come meanwhile, else wait for the client."""
        self.due = self._loop.time() + IDLE_SECONDS_MAX
        if self._waiting:
            self._start(self._waiting.popleft())
        if self._is_busy():
            return
        data, self._unread = self._unread, b""
        if data:
            self._resume()
            self._read(data)
        else:
            self._listen()

    def _respond(self, request: Request, response: Response) -> None:
        try:
            head = self._head(request, response.status, response.headers, f"content-length: {len(response.body)}\r\n")
        except ValueError as error:  # a header that can't be sent
            response = self._server.failed(request, error)
            head = self._head(request, response.status, response.headers, f"content-length: {len(response.body)}\r\n")
        self.send(head if request.method == "HEAD" else head + response.body)

    def _head(self, request: Request, status: int, headers: dict[str, str], framing: str) -> bytes:
        body = request.body
        if self._server.is_draining or not (body.complete or body.is_wanted or not request.expects()):
            request.keeps = False  # who waits to be told to send a body may send it, or the next request instead
        if not request.keeps:
            framing += "connection: close\r\n"
        elif request.is_old:
            framing += "connection: keep-alive\r\n"
        return head_of(status, headers, self._server.date + framing)

    def _close(self, error: MeshError | None = None) -> None:
        """Say no more than the error; a client that may still be sending hears it before the connection ends."""
        transport = self._transport
        is_read = error is None and self._reading.incoming is None and not (self._unread or self._waiting)
        self._let_go()
        if transport is None or transport.is_closing():
            return
        if error is not None:
            transport.write(self._server.raw(error))
        if is_read or self._has_ended:
            self.due = self._loop.time() + answers.WRITE_SECONDS_MAX
            transport.close()
        else:
            self.due = self._loop.time() + REST_SECONDS_MAX
            self._resume()
            transport.write_eof()

    def _let_go(self) -> None:
        """Take nothing more, and let go of what holds this object: a circle waits for the collector of garbage."""
        self._leave_body()
        self._is_closing = True
        if self.task is None:
            self._answering = None
        self._last = None
        self._unread = b""
        self._waiting.clear()
        self._reading.stop()

    def _leave_body(self) -> None:
        if self._reading.incoming is not None:
            self._reading.incoming.body.fail(ConnectionResetError())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _pause(self) -> None:
        if not self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def _resume(self) -> None:
        if self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = False
            self._transport.resume_reading()
