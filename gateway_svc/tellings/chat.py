"""To clients of chat completions, and of whatever else OpenAI's clients read errors of (OpenAI's reference: errors)."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from gateway_svc import sse
from gateway_svc.dialects.reading import Json, JsonObject
from gateway_svc.limits import Taken


class ChatTelling:
    """OpenAI's shape: `{"error": {message, type, param, code}}`, and streams that end in [DONE]."""

    request_id_header = "x-request-id"

    def ending(self, kept: Sequence[bytes], x_platform: JsonObject, *, usage_wanted: bool) -> bytes:
        last = b""
        told = False
        for event in kept:
            chunk: Json = orjson.loads(sse.data_of(event))
            if not isinstance(chunk, dict) or chunk.get("choices") or not chunk.get("usage"):
                last += event
            elif usage_wanted:
                last += sse.event(orjson.dumps({**chunk, "x_platform": x_platform}))
                told = True
        if not told:
            last += sse.comment(b"x_platform " + orjson.dumps(x_platform))
        return last + sse.DONE

    def failure_event(self, error: JsonObject) -> bytes:
        return sse.event(orjson.dumps({"error": error}))

    def rates(self, taken: Taken) -> dict[str, str]:
        return taken.headers()

    def error_body(self, status: int, error: JsonObject, request_id: str) -> bytes:
        return orjson.dumps({"error": error})
