from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway_svc import sse
from gateway_svc.tellings.messages import MessagesTelling

TELLING = MessagesTelling()
RECEIPT = {"request_id": "r", "micro_credits_charged": 5}
LAST = b"event: message_delta\n" + sse.event(
    b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":9}}'
)
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def told(kept: list[bytes]) -> list[Any]:
    events = sse.Splitter().feed(TELLING.ending(kept, {**RECEIPT}, usage_wanted=True))
    documents = [orjson.loads(sse.data_of(event)) for event in events]
    assert [sse.name_of(event) for event in events] == [document["type"] for document in documents]
    return documents


@pytest.mark.parametrize("kept", [[LAST, STOP], [LAST], [LAST.replace(b"\n", b"\r\n"), STOP]])
def test_the_receipt_stands_beside_the_figures(kept: list[bytes]) -> None:
    delta, stop = told(kept)
    assert (delta["x_platform"], delta["usage"], stop) == (RECEIPT, {"output_tokens": 9}, {"type": "message_stop"})


@pytest.mark.parametrize("kept", [[], [STOP]])
def test_without_figures_the_receipt_is_a_comment(kept: list[bytes]) -> None:
    ending = TELLING.ending(kept, {**RECEIPT}, usage_wanted=True)
    assert ending == sse.comment(b"x_platform " + orjson.dumps(RECEIPT)) + STOP


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (409, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_a_whole_error_has_the_type_of_its_status(status: int, kind: str) -> None:
    body = TELLING.error_body(status, {"message": "m", "type": "t", "param": None, "code": "c"}, "r")
    assert orjson.loads(body) == {
        "type": "error",
        "error": {"type": kind, "message": "m", "details": {"error_code": "c"}},
        "request_id": "r",
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"type": "insufficient_quota", "code": "insufficient_quota"}, "billing_error"),
        ({"type": "rate_limit_error", "code": "budget_in_flight"}, "rate_limit_error"),
        ({"type": "server_error", "code": "rate_limit_exceeded"}, "rate_limit_error"),
        ({"type": "server_error", "code": "server_is_overloaded"}, "overloaded_error"),
        ({"type": "invalid_request_error", "code": "context_length_exceeded"}, "invalid_request_error"),
        ({"type": "overloaded_error", "code": None}, "overloaded_error"),
        ({"type": "upstream_error", "code": "upstream_cut"}, "api_error"),
        ({}, "api_error"),
    ],
)
def test_an_error_amid_a_stream_has_the_type_of_its_code(error: dict[str, Any], kind: str) -> None:
    event = TELLING.failure_event({"message": "m", **error})
    document = orjson.loads(sse.data_of(event))
    assert (sse.name_of(event), document["type"], document["error"]["type"]) == ("error", "error", kind)
