"""To clients of the Responses API: named events, the last of which holds the whole response, and no [DONE]."""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from gateway_svc import sse
from gateway_svc.dialects.reading import Json, JsonObject
from gateway_svc.tellings.chat import ChatTelling


class ResponsesTelling(ChatTelling):
    """OpenAI's errors, and streams that end in the event which says how."""

    def ending(self, kept: Sequence[bytes], x_platform: JsonObject, *, usage_wanted: bool) -> bytes:
        last = b""
        for event in kept:
            told: Json = orjson.loads(sse.data_of(event))
            response = told.get("response") if isinstance(told, dict) else None
            if not isinstance(told, dict) or not isinstance(response, dict):
                last += event
                continue
            told["response"] = {**response, "x_platform": x_platform}
            last += _named(told)
        return last or sse.comment(b"x_platform " + orjson.dumps(x_platform))

    def failure_event(self, error: JsonObject) -> bytes:
        """Tell a failed response, whose error clients act on: insufficient_quota, rate_limit_exceeded and others."""
        failed: JsonObject = {
            "id": "resp_failed",
            "object": "response",
            "created_at": 0,
            "status": "failed",
            "error": {"code": error.get("code") or "server_error", "message": error.get("message")},
            "incomplete_details": None,
            "output": [],
            "usage": None,
            "model": "",
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
        return _named({"type": "response.failed", "sequence_number": 0, "response": failed})


def _named(told: JsonObject) -> bytes:
    return b"event: " + str(told.get("type")).encode() + b"\n" + sse.event(orjson.dumps(told))
