from __future__ import annotations

from typing import Any

import orjson
import pytest
from openai.types.responses import Response

from gateway_svc import failures, sse
from gateway_svc.tellings.responses import ResponsesTelling

TELLING = ResponsesTelling()
RECEIPT = {"request_id": "req_1", "micro_credits_charged": 5}


def event(kind: str, **members: Any) -> bytes:
    return b"event: " + kind.encode() + b"\n" + sse.event(orjson.dumps({"type": kind, **members}))


def test_the_receipt_is_in_the_response_that_ends_the_stream() -> None:
    kept = event("response.completed", sequence_number=9, response={"id": "resp_1", "usage": None})
    told = TELLING.ending([kept], {**RECEIPT}, usage_wanted=True)
    assert sse.name_of(told) == "response.completed"
    assert orjson.loads(sse.data_of(told)) == {
        "type": "response.completed",
        "sequence_number": 9,
        "response": {"id": "resp_1", "usage": None, "x_platform": RECEIPT},
    }


def test_a_stream_without_an_end_is_told_its_receipt_in_a_comment() -> None:
    told = TELLING.ending([], {**RECEIPT}, usage_wanted=True)
    assert told.startswith(b": x_platform {")
    assert sse.data_of(told) == b""


def test_events_that_hold_no_response_stay_as_they_are() -> None:
    other = event("response.output_item.done", item={})
    last = event("response.incomplete", response={})
    assert TELLING.ending([other, last], {**RECEIPT}, usage_wanted=True).startswith(other)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"message": "m", "type": "t", "param": None, "code": "insufficient_quota"}, "insufficient_quota"),
        ({"message": "m", "type": "t", "param": None, "code": "rate_limit_exceeded"}, "rate_limit_exceeded"),
        ({"message": "m", "type": "t", "param": None, "code": None}, "server_error"),
    ],
)
def test_a_stream_that_broke_off_ends_in_a_failed_response(error: dict[str, Any], code: str) -> None:
    told = TELLING.failure_event(error)
    data = orjson.loads(sse.data_of(told))
    assert (sse.name_of(told), data["type"], data["response"]["status"]) == (*("response.failed",) * 2, "failed")
    assert data["response"]["error"] == {"code": code, "message": "m"}
    Response.model_validate({**data["response"], "error": {"code": "server_error", "message": "m"}})


def test_a_whole_error_has_openais_shape() -> None:
    error: Any = {"message": "m", "type": "t", "param": None, "code": "c"}
    assert orjson.loads(TELLING.error_body(402, error, "req_1")) == {"error": error}


@pytest.mark.parametrize(
    "data",
    [
        {"type": "error", "code": "server_error", "message": "busy", "param": None, "sequence_number": 3},
        {"type": "error", "error": {"type": "upstream_error", "code": "server_error", "message": "busy"}},
        {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "busy"}}},
    ],
)
def test_what_a_provider_says_of_its_failure_is_told_on(data: dict[str, Any]) -> None:
    assert failures.stream_failure(orjson.dumps(data), None) == {
        "message": "busy",
        "type": "upstream_error",
        "param": None,
        "code": "server_error",
    }
