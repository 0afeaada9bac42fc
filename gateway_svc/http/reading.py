"""Requests taken apart as their bytes arrive, by llhttp in its strict mode; where they come from is not here.

What llhttp lets pass and two servers might still read differently is refused as well: a transfer coding beside chunks,
chunks in HTTP/1.0, no host or two. A wish to leave HTTP/1.1 is not heard (RFC 9110, 7.8).
"""

from __future__ import annotations

from typing import Protocol, final

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from gateway_svc.http.requests import Head, Line, Request, malformed
from mesh.errors import InvalidArgument, MeshError
from mesh.telemetry import metrics

LINE_BYTES_MAX = 16 * 1024
HEAD_BYTES_MAX = 64 * 1024
HEADERS_MAX = 128
SINGLE = frozenset({b"content-length", b"content-type", b"host", b"transfer-encoding"})


class Hearing(Line, Protocol):
    """A connection whose requests are read."""

    def came(self, request: Request) -> None:
        """Take a request whose head has come."""
        ...

    def complete(self, request: Request) -> None:
        """Note that all of a request has come."""
        ...


@final
class Reading:
    """The requests of one connection. The methods `on_…` are the parser's, by its names."""

    __slots__ = (
        "_barren_bytes", "_body_bytes_max", "_hearing", "_leaves", "_lines", "_parser", "_piece_bytes", "_target",
        "incoming", "is_begun", "is_over",
    )  # fmt: skip

    def __init__(self, hearing: Hearing, body_bytes_max: int) -> None:
        self.incoming: Request | None = None  # whose body has not come to its end
        self.is_begun = False  # whether some of a head has come, and not all
        self.is_over = False  # whether nothing more will be read
        self._hearing: Hearing | None = hearing
        self._body_bytes_max = body_bytes_max
        self._parser: HttpRequestParser | None = HttpRequestParser(self)
        self._lines: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._leaves = False  # whether it would have the rest be no HTTP/1.1
        self._piece_bytes = 0
        self._barren_bytes = 0  # what came since the last byte of a body, or of nothing

    def feed(self, piece: bytes | memoryview) -> MeshError | None:
        """Take in bytes; return why nothing more can be read where the client is still to be told."""
        parser = self._parser
        if parser is None or self.is_over:
            return None
        self._piece_bytes = len(piece)
        self._barren_bytes += len(piece)
        try:
            parser.feed_data(piece)
        except HttpParserUpgrade as upgrade:
            return self._stay(bytes(piece[upgrade.args[0] :]))
        except HttpParserCallbackError as error:
            if not isinstance(error.__context__, MeshError):
                raise
            return self._failed(error.__context__)
        except HttpParserError as error:
            return self._failed(_unreadable(), error)
        if self._barren_bytes > HEAD_BYTES_MAX and not self.is_over:
            return self._failed(_too_large("the head", HEAD_BYTES_MAX))
        return None

    def stop(self) -> None:
        """Read nothing more, and let go of the parser and of a request, which hold this object and its connection."""
        self.is_over = True
        self.is_begun = False
        self.incoming = None
        self._parser = None
        self._hearing = None

    def on_message_begin(self) -> None:
        self.is_begun = not self.is_over
        self._lines = []
        self._target = b""
        self._barren_bytes = self._piece_bytes

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.is_begun:  # it is a trailer, which nobody asked for
            return
        if len(self._lines) == HEADERS_MAX:
            raise _unreadable()
        self._lines.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser, hearing = self._parser, self._hearing
        if parser is None or hearing is None:
            return
        self.is_begun = False
        version = parser.get_http_version()
        self._check(version)
        method = parser.get_method().decode()
        self._leaves = parser.should_upgrade() and method != "CONNECT"
        if self._leaves:
            return
        keeps = parser.should_keep_alive() and not parser.should_upgrade()
        head = Head(method, self._target, version == "1.0", keeps, self._lines)
        request = self.incoming = Request(head, hearing, self._body_bytes_max)
        size = request.header("content-length")
        if size:
            request.body.announce(int(size))
        hearing.came(request)

    def on_body(self, part: bytes) -> None:
        self._barren_bytes = 0
        if self.incoming is not None:
            self.incoming.body.take(part)

    def on_message_complete(self) -> None:
        request, self.incoming = self.incoming, None
        if request is None or self._hearing is None:
            return
        self._barren_bytes = 0
        self.is_over = not request.keeps
        request.body.end()
        self._hearing.complete(request)

    def _check(self, version: str) -> None:
        """Refuse a head that is too large, or that might be read otherwise elsewhere."""
        lines = self._lines
        if self._barren_bytes > LINE_BYTES_MAX:
            _check_sizes(self._target, lines)
        if version not in {"1.1", "1.0"}:
            raise _unreadable()
        names = [name for name, _ in lines if name in SINGLE]
        if len(set(names)) < len(names) or (version == "1.1" and b"host" not in names):
            raise _unreadable()
        if b"transfer-encoding" in names:
            coding = next(value for name, value in lines if name == b"transfer-encoding")
            if version == "1.0" or coding.strip().lower() != b"chunked":
                raise _unreadable()

    def _stay(self, rest: bytes) -> MeshError | None:
        """Read a request without its wish to leave HTTP/1.1, which hid its body; after a CONNECT nothing is read."""
        if not self._leaves:
            self.is_over = True
            return None
        parser = self._parser
        if parser is None:
            return None
        method, target = parser.get_method(), self._target
        kept = [b"%b: %b\r\n" % line for line in self._lines if line[0] != b"upgrade"]
        self._parser = HttpRequestParser(self)
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, target, parser.get_http_version().encode(), b"".join(kept))
        return self.feed(head) or self.feed(rest)

    def _failed(self, told: MeshError, error: HttpParserError | None = None) -> MeshError | None:
        """Read nothing more; a request whose head has come is told by whoever answers it."""
        if self.is_over:  # more came behind a last request
            return None
        metrics.UNREADABLE.labels(type(error or told).__name__).inc()  # no log: anybody could fill it
        self.is_over = True
        self.is_begun = False
        if self.incoming is None:
            return told
        self.incoming.keeps = False
        self.incoming.body.fail(malformed())
        return None


def _check_sizes(target: bytes, lines: list[tuple[bytes, bytes]]) -> None:
    sizes = [len(target), *(len(part) for line in lines for part in line)]
    if max(sizes) > LINE_BYTES_MAX:
        raise _too_large("a line of the head", LINE_BYTES_MAX)
    if sum(sizes) > HEAD_BYTES_MAX:
        raise _too_large("the head", HEAD_BYTES_MAX)


def _too_large(what: str, bytes_max: int) -> InvalidArgument:
    return InvalidArgument("HEADERS_TOO_LARGE", f"{what} has more than {bytes_max} bytes")


def _unreadable() -> InvalidArgument:
    return InvalidArgument("BAD_REQUEST", "this is no HTTP request")
