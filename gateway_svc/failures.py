"""Errors as clients read them: what to raise when a provider fails, and the words that tell it. Pure.

They are put into OpenAI's four members (message, type, param, code) here, and into a dialect's shape by its telling;
clients act on the status, the code and the retry headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import orjson

from gateway_svc.dialects.reading import Json, JsonObject
from gateway_svc.scrubbing import ACCOUNT_SHAPE, scrub, scrub_accounts
from mesh.errors import Code, MeshError, Unavailable
from mesh.secret import Secret

AUTH_STATUSES = (401, 403)
WORTH_A_RETRY = frozenset({408, 409, 425, 429, *range(500, 600)})  # of a provider's statuses, as SDKs see it
FIRST_CLIENT_ERROR, BAD_GATEWAY = 400, 502
RETRY_AFTER = re.compile(r"[0-9]{1,6}|[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT")  # RFC 9110, 10.2.3
MESSAGE_CHARACTERS_MAX, MEMBER_CHARACTERS_MAX = 2_000, 200
READ_CHARACTERS_MAX = 32 * MESSAGE_CHARACTERS_MAX
PAYMENT_REQUIRED, NO_QUOTA = 402, 503
ACCOUNT_STATUSES = (403, 429)
STREAMING = 200
QUOTA_WORDS = re.compile(r"insufficient_quota|\bbilling_\w|credit balance|current quota", re.IGNORECASE)
NEVER_RETRIED = (402, 403)  # a retry gets the same answer
NO_QUOTA_CODE = "upstream_quota"

STATUSES: dict[Code, tuple[int, str]] = {
    Code.INVALID_ARGUMENT: (400, "invalid_request_error"),
    Code.UNAUTHENTICATED: (401, "authentication_error"),
    Code.PERMISSION_DENIED: (403, "permission_error"),
    Code.NOT_FOUND: (404, "invalid_request_error"),
    Code.ALREADY_EXISTS: (409, "invalid_request_error"),
    Code.ABORTED: (409, "invalid_request_error"),
    Code.FAILED_PRECONDITION: (400, "invalid_request_error"),
    Code.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    Code.DEADLINE_EXCEEDED: (504, "server_error"),
    Code.UNAVAILABLE: (503, "server_error"),
    Code.INTERNAL: (500, "server_error"),
}
REASONS: dict[str, tuple[int, str]] = {
    "INSUFFICIENT_QUOTA": (402, "insufficient_quota"),
    "BUDGET_DISABLED": (402, "insufficient_quota"),
    "BODY_TOO_SLOW": (408, "invalid_request_error"),
    "HEAD_TOO_SLOW": (408, "invalid_request_error"),
    "BODY_TOO_LARGE": (413, "invalid_request_error"),
    "METHOD_NOT_ALLOWED": (405, "invalid_request_error"),
    "EXPECTATION_FAILED": (417, "invalid_request_error"),
    "HEADERS_TOO_LARGE": (431, "invalid_request_error"),
    "IDEMPOTENCY_MISMATCH": (422, "invalid_request_error"),
    "UPSTREAM_UNREACHABLE": (502, "upstream_error"),
    "UPSTREAM_CUT": (502, "upstream_error"),
}
NOT_RETRIED = {
    "UPSTREAM_CUT",  # a retry might be billed again
    "SETTLEMENT_PENDING",
    "TOKENS_ABOVE_RATE",  # it fits at no time
    "PROVIDER_NOT_CONFIGURED",
    "IDEMPOTENCY_MISMATCH",  # a retry gets the same answer
    "IDEMPOTENCY_EXPIRED",
    "IDEMPOTENCY_OUTCOME_UNKNOWN",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it goes to an HTTP client, before a dialect gives it its shape."""

    status: int
    error: JsonObject
    headers: dict[str, str]


def failure(error: MeshError) -> Failure:
    """Turn an error into status, members and the headers that steer a client's retries."""
    status, _ = REASONS.get(error.reason) or STATUSES[error.code]
    headers: dict[str, str] = {}
    if error.retry_after_ms is not None:
        headers["retry-after-ms"] = str(error.retry_after_ms)
        headers["retry-after"] = str(-(-error.retry_after_ms // 1000))
    if status in NEVER_RETRIED or error.reason in NOT_RETRIED:
        headers["x-should-retry"] = "false"
    return Failure(status, members(error), headers)


def members(error: MeshError) -> JsonObject:
    """Return an error in OpenAI's four members."""
    _, kind = REASONS.get(error.reason) or STATUSES[error.code]
    return {
        "message": error.message,
        "type": kind,
        "param": error.details.get("field"),
        "code": error.reason.lower(),
    }


def unreachable() -> MeshError:
    """Return the error of a provider that no byte reached."""
    return Unavailable("UPSTREAM_UNREACHABLE", "the provider cannot be reached", retry_after_ms=1_000)


def cut() -> MeshError:
    """Return the error of a provider whose answer broke off."""
    return Unavailable("UPSTREAM_CUT", "the provider's answer broke off; what was used has been charged")


def told(status: int, body: bytes, secret: Secret | None, *, own: bool) -> tuple[int, JsonObject]:
    """Return a provider's error as our client is told it: its own status, without secrets, in OpenAI's members.

    A provider that refuses our key is our fault, not the caller's: 502 `upstream_auth_failed`. What a provider says of
    the platform's account is nobody else's business: 503 `upstream_quota`; of the organization's `own` it is told.
    """
    if status < FIRST_CLIENT_ERROR:
        return BAD_GATEWAY, _upstream_error(f"the provider answered {status}", "upstream_error")
    text = body.decode(errors="replace")
    error = _error_of(text, secret) or _upstream_error(
        _said(text, secret) or f"the provider answered {status}", "upstream_error"
    )
    if not own and _is_of_account(status, error):
        return NO_QUOTA, _no_quota()
    if status in AUTH_STATUSES:
        return BAD_GATEWAY, _upstream_error(
            "the provider refuses the key that it was asked with", "upstream_auth_failed"
        )
    return status, error if own else _without_accounts(error)


def retry_after(text: str) -> str:
    """Return a provider's `retry-after` where it is one, else nothing: a header may hold whatever it likes."""
    return text if RETRY_AFTER.fullmatch(text) else ""


def is_an_error(body: bytes) -> bool:
    """Return whether a body is an error as providers tell them, and not a word of something in between."""
    return _error_of(body.decode(errors="replace"), None) is not None


def seconds_of(retry_after: str) -> int:
    """Return the seconds that a `retry-after` names; 0 for a date or anything else."""
    return int(retry_after) if retry_after.isdecimal() and RETRY_AFTER.fullmatch(retry_after) else 0


def stream_failure(data: bytes, secret: Secret | None, *, own: bool = False) -> JsonObject:
    """Return what ends a stream that broke off: the provider's own error as `told` tells it, else ours."""
    error = _error_of(data.decode(errors="replace"), secret) if data else None
    if error is None:
        return members(cut())
    if own:
        return error
    return _no_quota() if _is_of_account(STREAMING, error) else _without_accounts(error)


def _upstream_error(message: str, code: str) -> JsonObject:
    return {"message": message, "type": "upstream_error", "param": None, "code": code}


def _no_quota() -> JsonObject:
    return _upstream_error("the provider takes no more from this platform now", NO_QUOTA_CODE)


def _is_of_account(status: int, error: JsonObject) -> bool:
    """Return whether a refusal is about the account that asked, and not about what was asked."""
    said = " ".join(str(member) for member in error.values() if member)
    if status == PAYMENT_REQUIRED or QUOTA_WORDS.search(said):
        return True
    return status in ACCOUNT_STATUSES and ACCOUNT_SHAPE.search(said) is not None


def _without_accounts(error: JsonObject) -> JsonObject:
    return {name: scrub_accounts(text) if isinstance(text, str) else text for name, text in error.items()}


def _error_of(text: str, secret: Secret | None) -> JsonObject | None:
    """Read a provider's error: the four members that clients expect, texts only, and none of them with a secret.

    It is read first and scrubbed then: JSON has many ways to write a text.
    """
    try:
        document: Json = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    error = document.get("error") if isinstance(document, dict) else None
    if error is None and isinstance(document, dict) and isinstance(response := document.get("response"), dict):
        error = response.get("error")  # a stream of the Responses API
    if error is None and isinstance(document, dict) and document.get("type") == "error":
        error = {**document, "type": None}  # such a stream's error event, whose type is that of the event
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None
    kind, param, code = (error.get(name) for name in ("type", "param", "code"))
    return {
        "message": _said(str(error["message"]), secret),
        "type": _member(kind, secret) if isinstance(kind, str) else "upstream_error",
        "param": _member(param, secret) if isinstance(param, str) else None,
        "code": _member(str(code), secret) if isinstance(code, str | int) else None,
    }


def _member(text: str, secret: Secret | None) -> str:
    return _said(text, secret)[:MEMBER_CHARACTERS_MAX]


def _said(text: str, secret: Secret | None) -> str:
    """Return as much of a text as is told, scrubbed in a multiple of that, so that no key is cut at the end of it."""
    return scrub(text[:READ_CHARACTERS_MAX], secret)[:MESSAGE_CHARACTERS_MAX]
