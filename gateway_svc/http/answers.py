"""Answers to HTTP clients: whole ones, those that go out piece by piece, and their heads as bytes."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import final

import orjson

from gateway_svc.dialects.reading import JsonObject
from gateway_svc.http.requests import Request

WRITE_SECONDS_MAX = 60  # a piece of a stream, or all of another answer
PIECE_BYTES = 64 * 1024
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}
VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_response(document: JsonObject, status: int = 200) -> Response:
    """Return a JSON object with its status."""
    return Response(status, orjson.dumps(document), {"content-type": JSON})


def head_of(status: int, headers: dict[str, str], framing: str) -> bytes:
    """Return a head as bytes; `framing` is lines of our own. ValueError for a value that would end its line."""
    values = "".join(headers.values())
    if not (values.isascii() and values.isprintable()) and VALUE.fullmatch(values) is None:
        raise ValueError("a header's value holds what it can't")
    first = STATUS_LINES.get(status) or f"HTTP/1.1 {status} \r\n"
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    return f"{first}{lines}{framing}\r\n".encode()


@final
class Stream:
    """An answer whose head is sent before its body is known; with a `length` its body goes out as it is."""

    __slots__ = ("_is_chunked", "_line", "ended", "status")

    def __init__(self, request: Request, status: int, headers: dict[str, str], length: int | None = None) -> None:
        self.status = status
        self.ended = False
        self._line = request.line
        self._is_chunked = self._line.begin(request, status, headers, length)
        request.begun = True

    async def write(self, data: bytes) -> None:
        """Send a piece; it waits for the client where too much of what was sent is not taken."""
        if not data:  # would be the end
            return
        line = self._line
        line.send(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
        if line.full:
            await line.sent()

    async def whole(self, body: bytes) -> None:
        """Send all of a body, of which no more than two pieces wait in the connection's buffer."""
        by = asyncio.get_running_loop().time() + WRITE_SECONDS_MAX
        view = memoryview(body)
        for start in range(0, len(body), PIECE_BYTES):
            if self._line.gone():
                return
            self._line.send(view[start : start + PIECE_BYTES])
            if self._line.full:
                await self._line.sent(by)
        self.ended = not self._line.gone()

    def end(self) -> None:
        """Say that nothing more comes."""
        if self._is_chunked:
            self._line.send(b"0\r\n\r\n")
        self.ended = True
