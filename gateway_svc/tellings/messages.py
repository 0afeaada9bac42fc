"""To clients of Anthropic's Messages (Anthropic's reference: errors, streaming messages). Pure.

Errors are `{"type": "error", "error": {type, message, details}, "request_id"}`; every event of a stream has a name.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from gateway_svc import sse
from gateway_svc.dialects.reading import Json, JsonObject
from gateway_svc.limits import Taken

STOP: JsonObject = {"type": "message_stop"}
KINDS_BY_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
KINDS_BY_WORD = {  # in the middle of a stream, where the status was sent long ago: by OpenAI's codes and types
    "insufficient_quota": "billing_error",
    "budget_disabled": "billing_error",
    "rate_limit_exceeded": "rate_limit_error",
    "server_is_overloaded": "overloaded_error",
    "slow_down": "overloaded_error",
    "context_length_exceeded": "invalid_request_error",
    "model_not_found": "not_found_error",
    **{
        kind: kind
        for kind in (
            *("invalid_request_error", "authentication_error", "billing_error", "permission_error", "not_found_error"),
            *("request_too_large", "rate_limit_error", "timeout_error", "api_error", "overloaded_error"),
        )
    },
}
OTHER_KIND = "api_error"
FIRST_SERVER_ERROR = 500


class MessagesTelling:
    """Anthropic's shape: named events, and figures in the last message_delta."""

    request_id_header = "request-id"

    def rates(self, taken: Taken) -> dict[str, str]:
        return taken.anthropic_headers()

    def ending(self, kept: Sequence[bytes], x_platform: JsonObject, *, usage_wanted: bool) -> bytes:
        last = b""
        told = stopped = False
        for event in kept:
            document: Json = orjson.loads(sse.data_of(event))
            match document:
                case {"type": "message_delta"}:
                    last += _event("message_delta", {**document, "x_platform": x_platform})
                    told = True
                case _:
                    last += event
                    stopped = stopped or (isinstance(document, dict) and document.get("type") == "message_stop")
        if not told:
            last = sse.comment(b"x_platform " + orjson.dumps(x_platform)) + last
        return last if stopped else last + _event("message_stop", STOP)

    def failure_event(self, error: JsonObject) -> bytes:
        return _event("error", {"type": "error", "error": _members(error, _kind_by_word(error))})

    def error_body(self, status: int, error: JsonObject, request_id: str) -> bytes:
        kind = KINDS_BY_STATUS.get(status)
        if kind is None:
            kind = OTHER_KIND if status >= FIRST_SERVER_ERROR else "invalid_request_error"
        return orjson.dumps({"type": "error", "error": _members(error, kind), "request_id": request_id})


def _members(error: JsonObject, kind: str) -> JsonObject:
    members: JsonObject = {"type": kind, "message": error.get("message")}
    return {**members, "details": {"error_code": code}} if (code := error.get("code")) is not None else members


def _kind_by_word(error: JsonObject) -> str:
    words = (word for name in ("code", "type") if isinstance(word := error.get(name), str))
    return next((KINDS_BY_WORD[word] for word in words if word in KINDS_BY_WORD), OTHER_KIND)


def _event(name: str, document: JsonObject) -> bytes:
    return b"event: " + name.encode() + b"\n" + sse.event(orjson.dumps(document))
