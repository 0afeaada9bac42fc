"""Server-sent events as bytes: cut into events without changing them, and read (HTML standard, 9.2.6)."""

from __future__ import annotations

import re

EVENT_BYTES_MAX = 1024 * 1024
# Two line ends in a row; a CR at the end of what has arrived may still turn out to be half of a CRLF.
BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r(?!\Z))")
LINE_END = re.compile(rb"\r\n|\n|\r")


class OversizedEvent(Exception):
    """An event is longer than anybody may send."""


class Splitter:
    """Cuts a stream into events; joined again they are the stream, byte for byte."""

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._rest = b""
        self._searched = 0

    @property
    def rest(self) -> bytes:
        """Return what has arrived of an event that is not complete."""
        return self._rest

    def feed(self, data: bytes) -> list[bytes]:
        """Take in bytes and return the events that they complete, each with the blank line that ends it."""
        buffer = self._rest + data
        events, start = _cut(buffer, self._searched) if b"\r" in buffer else _cut_at_newlines(buffer)
        self._rest = buffer[start:]
        if len(self._rest) > self._event_bytes_max:
            raise OversizedEvent(f"an event is longer than {self._event_bytes_max} bytes")
        self._searched = max(0, len(self._rest) - 3)
        return events


def _cut(buffer: bytes, search: int) -> tuple[list[bytes], int]:
    """Return the events that are complete, and where they end; before `search` none of them does."""
    events: list[bytes] = []
    start = 0
    while found := BLANK_LINE.search(buffer, search):
        events.append(buffer[start : found.end()])
        start = search = found.end()
    return events, start


def _cut_at_newlines(buffer: bytes) -> tuple[list[bytes], int]:
    """Cut what has no CR in it, as most streams have none: an expression takes ten times as long."""
    *whole, rest = buffer.split(b"\n\n")
    return [event + b"\n\n" for event in whole], len(buffer) - len(rest)


def events_of(data: bytes) -> list[bytes]:
    """Cut whole events; one that ends in CRs alone would wait in a splitter for what makes no more of them."""
    if b"\r" not in data:
        return [event for event in data.split(b"\n\n") if event]
    splitter = Splitter()
    return [*splitter.feed(data), *([splitter.rest] if splitter.rest else [])]


def data_of(event: bytes) -> bytes:
    """Return an event's data lines joined by newlines; empty for a comment."""
    lines = (line[5:] for line in LINE_END.split(event) if line.startswith(b"data:"))
    return b"\n".join(line[1:] if line.startswith(b" ") else line for line in lines)


def name_of(event: bytes) -> str:
    """Return an event's name; empty when it has none."""
    for line in LINE_END.split(event):
        if line.startswith(b"event:"):
            return line[6:].strip().decode(errors="replace")
    return ""


def event(data: bytes) -> bytes:
    """Build an event of one line of data."""
    return b"data: " + data + b"\n\n"


def comment(text: bytes) -> bytes:
    """Build a comment, which clients skip."""
    return b": " + text + b"\n\n"


DONE = event(b"[DONE]")
