"""One request as it came: its head, and its body as far as it has arrived. How the bytes come is the connection's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, Protocol, final
from urllib.parse import unquote, unquote_to_bytes

from httptools import HttpParserInvalidURLError, parse_url

from gateway_svc.providers.http1.inflation import InflatedTooFar, Inflation, NotInflated, is_encoded
from mesh import ids
from mesh.errors import InvalidArgument

UNREAD_BYTES_MAX = 64 * 1024  # of a body that nobody has asked for yet
MET_EXPECTATION = "100-continue"


class Line(Protocol):
    """The connection that a request came on, as far as those need it who read the request and answer it."""

    def gone(self) -> bool:
        """Return whether the client has left; it may hear nothing any more."""
        ...

    def wanted(self) -> None:
        """Take in the rest of a body, and tell a client that waits for a word to send it."""
        ...

    def begin(self, request: Request, status: int, headers: dict[str, str], length: int | None) -> bool:
        """Send the head of an answer; return whether its body goes out in chunks."""
        ...

    def send(self, data: bytes | memoryview) -> None:
        """Send bytes of an answer; they wait here when the client does not take them."""
        ...

    @property
    def full(self) -> bool:
        """Return whether so much waits to be taken that no more should be sent."""
        ...

    def abort(self) -> None:
        """Cut the client off: what it did not take is lost, and no answer that has begun passes for whole."""
        ...

    async def sent(self, by: float = 0.0) -> None:
        """Wait until there is room again, at most a minute or to a moment; a client that takes nothing is cut off."""
        ...


class Head(NamedTuple):
    """What a request's head says; its lines are as they came, but for their names' capitals."""

    method: str
    target: bytes
    is_old: bool  # HTTP/1.0, which knows no chunks
    keeps: bool  # whether the client would use its connection again
    lines: Sequence[tuple[bytes, bytes]]


@final
class Body:
    """A request's body, of a limited size; it waits here for its one reader."""

    __slots__ = ("_bytes_max", "_came", "_failure", "_line", "_size", "_waiter", "complete", "dropped", "is_wanted")

    def __init__(self, line: Line, bytes_max: int) -> None:
        self.complete = False
        self.is_wanted = False
        self.dropped = False  # what still comes of it is for nobody
        self._bytes_max = bytes_max
        self._came: bytes | bytearray = b""
        self._failure: Exception | None = None
        self._line = line
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_unread(self) -> bool:
        """Return whether so much has come without a reader that no more should."""
        return self._size > UNREAD_BYTES_MAX and not (self.is_wanted or self.dropped)

    def announce(self, size: int) -> None:
        """Fail one at once that says itself how far too large it is."""
        if size > self._bytes_max:
            self.fail(self._too_large())

    def take(self, part: bytes) -> None:
        """Keep what has come, where it is still of use."""
        self._size += len(part)
        if self._size > self._bytes_max:
            self.fail(self._too_large())
        if self._failure is None and not self.dropped:
            if self._came and isinstance(self._came, bytes):
                self._came = bytearray(self._came)  # a list of parts of a byte each would be thirty times as large
            self._came += part

    def end(self) -> None:
        """Note that all of it has come."""
        self.complete = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Note why it can't be read; whatever failed first is told."""
        if self._failure is None and not self.complete:
            self._failure = error
            self._came = b""
            self._wake()

    def drop(self) -> None:
        """Forget it: its request is answered."""
        self.dropped = True
        self._came = b""

    async def read(self) -> bytes:
        """Return all of it once, when it has come; raise why it can't."""
        if not self.complete and self._failure is None:
            self.is_wanted = True
            self._line.wanted()
            waiter = self._waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                self._waiter = None
        if self._failure is not None:
            try:
                raise self._failure
            finally:
                self.dropped = True
                self._failure = None  # its traceback holds this object
        came, self._came = self._came, b""  # not held twice for as long as the answer takes
        return bytes(came)

    def inflated(self, data: bytes, encoding: str) -> bytes:
        """Return what a compressed body becomes, within its limit."""
        try:
            inflation = Inflation(encoding, self._bytes_max)
            whole = b"".join(inflation.feed(data))
            inflation.end()
        except InflatedTooFar:
            raise self._too_large() from None
        except NotInflated:
            raise malformed() from None
        return whole

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _too_large(self) -> InvalidArgument:
        return InvalidArgument("BODY_TOO_LARGE", "the body is too large")


@final
class Request:
    """A request and its id; `begun` is its answer, where the answer's head was sent before its end is known."""

    __slots__ = (
        "_headers", "_lines", "begun", "body", "id", "is_old", "keeps", "line", "method", "path", "place", "tail",
    )  # fmt: skip

    def __init__(self, head: Head, line: Line, body_bytes_max: int) -> None:
        self.id = ids.new(ids.Kind.REQUEST)
        self.method = head.method
        self.is_old = head.is_old
        self.keeps = head.keeps
        self.line = line
        self.body = Body(line, body_bytes_max)
        self.begun = False
        self.place, self.path = _places(head.target)
        self.tail = ""  # what stands in the path where its route has a gap
        self._lines = head.lines
        self._headers = dict(reversed(head.lines))  # of those that came twice the first counts

    def header(self, name: str) -> str:
        """Return the value of a header by its name in small letters; empty where it was not sent."""
        value = self._headers.get(name.encode())
        return "" if value is None else value.decode("latin-1").strip(" \t")

    def has(self, name: str) -> bool:
        """Return whether a header was sent, even an empty one."""
        return name.encode() in self._headers

    def every(self, name: str) -> list[str]:
        """Return all values of a header that may have come more than once."""
        wanted = name.encode()
        if wanted not in self._headers:
            return []
        return [value.decode("latin-1").strip(" \t") for each, value in self._lines if each == wanted]

    def expects(self) -> str:
        """Return what the client wants to hear before it sends its body (RFC 9110, 10.1.1)."""
        return "" if self.is_old or b"expect" not in self._headers else self.header("expect").lower()

    async def read(self) -> bytes:
        """Return the body, decompressed; raise why it can't be read."""
        data = await self.body.read()
        encoding = self.header("content-encoding")
        return self.body.inflated(data, encoding) if is_encoded(encoding) else data


def malformed() -> InvalidArgument:
    """Return the error of a body that can't be taken apart."""
    return InvalidArgument("BAD_REQUEST", "the body is not what its headers say")


def _places(target: bytes) -> tuple[str, str]:
    """Return a target's path as routes are found by, in which an escaped slash is none, and as it reads."""
    if target[:1] != b"/":
        target = _path_of_whole(target)
    path = target.partition(b"?")[0].partition(b"#")[0]
    if b"%" not in path:
        plain = path.decode("latin-1")
        return plain, plain
    kept = path.replace(b"%25", b"%2525").replace(b"%2F", b"%252F").replace(b"%2f", b"%252F")
    return unquote_to_bytes(kept).decode(errors="replace"), unquote(path.decode("latin-1"))


def _path_of_whole(target: bytes) -> bytes:
    """Return the path of a URL that names its host as well, as proxies are asked."""
    if target[:4].lower() != b"http":  # `*`, or the host and port of a CONNECT
        return target
    try:
        return parse_url(target).path or b"/"
    except HttpParserInvalidURLError:
        raise InvalidArgument("BAD_REQUEST", "this is no HTTP request") from None
