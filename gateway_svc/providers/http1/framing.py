"""One HTTP/1.1 answer taken apart as its bytes arrive; where they come from is not here."""

from __future__ import annotations

import re
from typing import final

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
FIRST_STATUS, SWITCHING_PROTOCOLS, FIRST_FINAL_STATUS = 100, 101, 200
HEADER_LINE_EXTRA_BYTES = 4  # ": " and the line's end
KEEP_ALIVE_SECONDS = re.compile(rb"(?:^|,)\s*timeout\s*=\s*(\d{1,9})", re.IGNORECASE)


class Malformed(Exception):
    """What came is no answer that can be trusted; the text is ours, never the peer's."""


@final
class Reading:
    """An answer as far as it has arrived. The methods `on_…` are the parser's, by its names."""

    __slots__ = (
        "_barren_bytes", "_head_bytes", "_is_framed", "_lines", "_lines_seen", "_parser", "_parts", "_problem",
        "complete", "has_head", "headers", "reusable", "status",
    )  # fmt: skip

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.has_head = False
        self.complete = False
        self.reusable = False
        self._is_framed = False
        self._parts: list[bytes] = []
        self._lines: list[tuple[bytes, bytes]] = []
        self._lines_seen = 0
        self._head_bytes = 0
        self._barren_bytes = 0
        self._problem = ""
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    @property
    def keep_seconds(self) -> int | None:
        """Return for how long the peer keeps an idle connection, where it says so."""
        said = self.headers.get(b"keep-alive")
        found = KEEP_ALIVE_SECONDS.search(said) if said is not None else None
        return int(found[1]) if found is not None else None

    def feed(self, data: bytes) -> bytes:
        """Take in bytes and return what they hold of the body; Malformed when this can't become an answer.

        A head has at most 32 KiB with those of interim answers before it, as has whatever else brings no body along.
        """
        parser = self._parser
        if parser is None:
            raise Malformed("bytes came after the answer")
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self.reusable = False
            if not self.complete:
                self._problem = self._problem or "it speaks no HTTP/1.1"
        if self._problem:
            self.drop()
            raise Malformed(self._problem)
        if self.complete:
            self.drop()
        parts = self._parts
        if not parts:
            self._count_barren(len(data))
            return b""
        self._barren_bytes = 0
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return body

    def end(self) -> None:
        """Note that no byte will follow; Malformed where the answer is not complete by that."""
        self.drop()
        if self.complete:
            return
        if not self.has_head:
            raise Malformed("it closed the connection without an answer")
        if self._is_framed:
            raise Malformed("the answer ended early")
        self.complete = True

    def drop(self) -> None:
        """Let go of the parser, which holds this object as well."""
        self._parser = None

    def on_message_begin(self) -> None:
        self.reusable = False  # a second message after the answer; else it is set when the answer is complete

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.has_head:  # else it is a trailer, which nobody asked for
            self._lines.append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        self._read_lines()
        if self._lines_seen > HEADERS_MAX or self._head_bytes > HEAD_BYTES_MAX:
            self._problem = "the head of the answer is too large"
        elif status < FIRST_STATUS or status == SWITCHING_PROTOCOLS:
            self._problem = "it left HTTP/1.1"
        elif status < FIRST_FINAL_STATUS:
            self.headers.clear()
        elif self.headers.get(b"transfer-encoding", b"chunked").lower() != b"chunked":
            self._problem = "the answer's transfer coding is unknown"
        else:
            self._is_framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers
            self.status = status
            self.has_head = True

    def on_body(self, part: bytes) -> None:
        if not self.complete:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        if self.has_head and not self.complete and self._parser is not None:
            self.complete = True
            self.reusable = self._parser.should_keep_alive()

    def _read_lines(self) -> None:
        headers, size = self.headers, 0
        for line_name, value in self._lines:
            size += len(line_name) + len(value) + HEADER_LINE_EXTRA_BYTES
            name = line_name.lower()
            known = headers.get(name)
            headers[name] = value if known is None else b"%b, %b" % (known, value)
        self._lines_seen += len(self._lines)
        self._head_bytes += size
        self._lines.clear()

    def _count_barren(self, size: int) -> None:
        self._barren_bytes += size
        if self._barren_bytes > HEAD_BYTES_MAX and not self.complete:
            self.drop()
            raise Malformed("the head of the answer is too large" if not self.has_head else "it sends no body")
