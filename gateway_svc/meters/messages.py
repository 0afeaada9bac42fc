"""A stream of Anthropic's Messages (Anthropic's reference: streaming messages), and the usage of a whole answer.

Ordinary events are passed by a few scans of their bytes; only one that begins or ends the message, or reports an error,
is read. The last `message_delta` holds the final figures, so it and what follows it are kept.
"""

from __future__ import annotations

import re

import orjson

from gateway_svc import sse
from gateway_svc.dialects.reading import Json, JsonObject
from gateway_svc.meters.counting import Counting, bytes_of_text
from gateway_svc.meters.following import Following
from gateway_svc.usage import TOKENS_MAX, TokenUsage

ORDINARY = re.compile(rb"(?>event: (?:content_block_(?:delta|start|stop)|ping)\ndata: [^\r\n]*\n\n)+")
# Text of the model stands in JSON strings, where each quote has a backslash before it: it can't look like a type.
TOLD = re.compile(rb'"type"\s*:\s*"(?:message|error)')
CACHE_WRITES = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")


class MessagesMeter(Following):
    """One stream, from message_start to message_stop."""

    def __init__(self) -> None:
        super().__init__(Counting(_bytes_written, (b"content_block",)))
        self._told_input: TokenUsage | None = None
        self._figures: JsonObject = {}  # those of message_start, and over them those of message_delta
        self._final = False  # the output is that of the whole answer

    @property
    def usage(self) -> TokenUsage | None:
        return _usage(self._figures) if self._final else None

    @property
    def told_input(self) -> TokenUsage | None:
        return self._told_input

    def _ordinary(self, data: bytes) -> bool:
        return not self.kept and _ordinary(data)

    def _read(self, event: bytes, data: bytes) -> bytes:
        message = _document(data)
        kind = message.get("type")
        if not isinstance(kind, str) or kind == "error":
            self.failure, self.over = data, True
            return b""
        return self._follow(event, kind, message)

    def _follow(self, event: bytes, kind: str, message: JsonObject) -> bytes:
        match message:
            case {"type": "message_start", "message": dict(start)}:
                self._see(start.get("usage"))
                self._told_input = _input_of(start)
            case {"type": "message_delta"}:
                earlier = self._release()
                self.kept = [event]
                self._final = self._see(message.get("usage"))
                delta = message.get("delta")
                self.complete = isinstance(delta, dict) and delta.get("stop_reason") is not None
                return earlier
            case {"type": "message_stop"}:
                self.kept.append(event)
                self.complete = self.over = True
                return b""
            case _:
                self._counting.add(event)
        return event if kind == "ping" else self._release() + event

    def _release(self) -> bytes:
        """Give up what was kept: more of the message follows it."""
        released = b"".join(self.kept)
        self.kept = []
        self._final = self.complete = False
        return released

    def _see(self, usage: Json) -> bool:
        """Take in the newest figures; return whether the output is among them."""
        if not isinstance(usage, dict):
            return False
        self._figures |= {name: value for name, value in usage.items() if value is not None}
        return usage.get("output_tokens") is not None


def usage_of(document: JsonObject) -> TokenUsage | None:
    """Read the figures in a whole answer; None when they are missing or broken."""
    usage = document.get("usage")
    return _usage(usage) if isinstance(usage, dict) else None


def _input_of(start: JsonObject) -> TokenUsage | None:
    """Read what a message_start tells of the input; servers that tell none until the end say 0."""
    usage = start.get("usage")
    if not isinstance(usage, dict):
        return None
    told = _usage({**usage, "output_tokens": 0})
    return told if told is not None and told.input_total else None


def _usage(usage: JsonObject) -> TokenUsage | None:
    """Read disjoint figures of the input, and an output that thinking is part of."""
    fresh, output = _count(usage, "input_tokens"), _count(usage, "output_tokens")
    read, written = _count(usage, "cache_read_input_tokens", 0), _cache_writes(usage)
    if fresh is None or output is None or read is None or written is None:
        return None
    details = usage.get("output_tokens_details")
    thought = min(_count(details, "thinking_tokens", 0) or 0, output) if isinstance(details, dict) else 0
    return TokenUsage(
        input_tokens=fresh,
        cached_input_tokens=read,
        cache_write_tokens=written,
        output_tokens=output - thought,
        reasoning_tokens=thought,
    )


def _cache_writes(usage: JsonObject) -> int | None:
    """Return the tokens written to caches: their sum by lifetime where that is told alone, or is more."""
    total = _count(usage, "cache_creation_input_tokens", 0)
    details = usage.get("cache_creation")
    if total is None or not isinstance(details, dict):
        return total
    parts = [_count(details, name, 0) for name in CACHE_WRITES]
    return max(total, sum(part or 0 for part in parts)) if None not in parts else None


def _count(figures: JsonObject, name: str, absent: int | None = None) -> int | None:
    value = figures.get(name)
    if value is None:
        return absent
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOKENS_MAX:
        return None
    return value


def _ordinary(data: bytes) -> bool:
    """Return whether these are whole events none of which has to be read."""
    return ORDINARY.fullmatch(data) is not None and TOLD.search(data) is None


def _document(data: bytes) -> JsonObject:
    try:
        document: Json = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _bytes_written(event: bytes) -> int:
    """Add up the bytes that the model wrote in one event."""
    document = _document(sse.data_of(event))
    return bytes_of_text(document.get("delta")) + bytes_of_text(document.get("content_block"))
