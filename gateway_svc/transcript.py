"""Follow a stream of chat completion events: what to pass on, what to keep back, and what it used. Pure."""

from __future__ import annotations

from enum import Enum, auto

import orjson

from gateway_svc import sse
from gateway_svc.chat import Json, JsonObject
from gateway_svc.usage import TokenUsage, of_openai

BYTES_PER_TOKEN = 4  # for the count of a stream that broke off; never for a bound


class Verdict(Enum):
    """What becomes of one event."""

    PASS = auto()
    KEEP = auto()  # the usage chunk: sent last, or not at all
    DONE = auto()
    FAILED = auto()  # the provider reports an error in the middle of its stream


class Transcript:
    """One stream, event by event."""

    def __init__(self) -> None:
        self.usage_chunk: JsonObject | None = None
        self.complete = False
        self._usage: TokenUsage | None = None
        self._written_bytes = 0
        self._written_events = 0

    @property
    def usage(self) -> TokenUsage | None:
        """Return the provider's figures; None where they are from before most of what it wrote, as zeros at first."""
        is_last = self.complete or self.usage_chunk is not None
        if self._usage is None or is_last or self._usage.output_tokens >= self._written_events > 0:
            return self._usage
        return None

    @property
    def counted_tokens(self) -> int:
        """Return our own count of the output: a token an event, or one for every 4 bytes where that is more."""
        return max(self._written_events, -(-self._written_bytes // BYTES_PER_TOKEN))

    def take(self, event: bytes) -> Verdict:
        """Read one event."""
        data = sse.data_of(event)
        if not data:
            return Verdict.PASS
        if data == b"[DONE]":
            self.complete = True
            return Verdict.DONE
        try:
            chunk: Json = orjson.loads(data)
        except orjson.JSONDecodeError:
            return Verdict.FAILED
        if not isinstance(chunk, dict) or "error" in chunk:
            return Verdict.FAILED
        return self._take_chunk(chunk)

    def _take_chunk(self, chunk: JsonObject) -> Verdict:
        reported = chunk.get("usage")
        if reported is not None:
            self._usage = of_openai(reported) or self._usage
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return Verdict.FAILED
        if not choices and reported is not None:
            self.usage_chunk = chunk
            return Verdict.KEEP
        for choice in choices:
            if isinstance(choice, dict):
                self._count(choice)
        return Verdict.PASS

    def _count(self, choice: JsonObject) -> None:
        written = _bytes_of_text(choice.get("delta"))
        if written:
            self._written_bytes += written
            self._written_events += 1
        if choice.get("finish_reason") is not None:
            self.complete = True  # some compatible servers end without [DONE]


def _bytes_of_text(delta: Json) -> int:
    """Add up the bytes of every text in a delta that the model wrote."""
    if not isinstance(delta, dict):
        return 0
    waiting: list[Json] = [value for name, value in delta.items() if name not in ("role", "id", "type", "index")]
    size = 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            size += len(value.encode(errors="replace"))
        elif isinstance(value, list):
            waiting.extend(value)
        elif isinstance(value, dict):
            waiting.extend(item for name, item in value.items() if name not in ("id", "type", "index"))
    return size
