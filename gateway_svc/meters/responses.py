"""A stream of the Responses API (OpenAI's reference: streaming events); most events are passed by a few scans."""

from __future__ import annotations

import orjson

from gateway_svc import sse
from gateway_svc.dialects.reading import Json, JsonObject
from gateway_svc.meters.counting import Counting
from gateway_svc.meters.following import EVENT_END, Following
from gateway_svc.usage import TokenUsage, of_openai

# What may end a stream, in its event line or its data; where it is only a text of the model, it is read for nothing.
COMPLETED, INCOMPLETE, FAILED = b"response.completed", b"response.incomplete", b"response.failed"
ERROR = b'"error"'
EVENT_BYTES_MAX = 4 * sse.EVENT_BYTES_MAX  # some tell the whole response, with the request's tools in it
FAILURES = ("response.failed", "error")
ENDINGS = ("response.completed", "response.incomplete")


class ResponsesMeter(Following):
    """One stream, from its first byte to the event that ends it."""

    def __init__(self) -> None:
        super().__init__(Counting(_bytes_written, (b".delta", b"response.output_item")), EVENT_BYTES_MAX)
        self._usage: TokenUsage | None = None

    @property
    def usage(self) -> TokenUsage | None:
        return self._usage

    def _ordinary(self, data: bytes) -> bool:
        return _ordinary(data)

    def _read(self, event: bytes, data: bytes) -> bytes:
        if data == b"[DONE]":
            return b""
        told = _object_of(data)
        kind = told.get("type")
        if kind in ENDINGS:
            response = told.get("response")
            self._usage = usage_of(response) if isinstance(response, dict) else None
            self.kept = [event]
            self.complete = self.over = True
            return b""
        if kind in FAILURES or not isinstance(kind, str):
            response = told.get("response")
            self._usage = usage_of(response) if isinstance(response, dict) else None
            self.failure, self.over = data, True
            return b""
        self._counting.add(event)
        return event


def usage_of(document: JsonObject) -> TokenUsage | None:
    """Read the inclusive figures of a whole response; None when they are missing or broken."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return None
    return of_openai(
        {
            "prompt_tokens": usage.get("input_tokens"),
            "completion_tokens": usage.get("output_tokens"),
            "total_tokens": usage.get("total_tokens"),
            "prompt_tokens_details": usage.get("input_tokens_details"),
            "completion_tokens_details": usage.get("output_tokens_details"),
        }
    )


def _ordinary(data: bytes) -> bool:
    """Return whether these are whole events of one event line and one data line, none of which has to be read."""
    if not data.startswith(b"event: response.") or b"\r" in data or ERROR in data:
        return False
    if COMPLETED in data or INCOMPLETE in data or FAILED in data:
        return False
    events = data.count(EVENT_END)
    if data.count(b"\ndata:") != events or data.count(b"\n") != 3 * events:
        return False
    return data.count(b"\n\nevent: response.") + 1 == events


def _object_of(data: bytes) -> JsonObject:
    try:
        told: Json = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}


def _bytes_written(event: bytes) -> int:
    """Return how many bytes the model wrote in one event: those of a delta, whatever it is of."""
    if b".delta" not in event:
        return 0
    delta = _object_of(sse.data_of(event)).get("delta")
    return len(delta.encode(errors="replace")) if isinstance(delta, str) else 0
