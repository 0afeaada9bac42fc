from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway_svc import failures, receipt
from gateway_svc.bounds import Bound
from gateway_svc.dialects.reading import Json
from gateway_svc.receipt import Receipt
from gateway_svc.settlement import Ending, Outcome, Settlement, settlement
from gateway_svc.usage import NOTHING, TokenUsage, UsageSource, of_openai
from mesh.errors import Exhausted, Unauthenticated, Unavailable
from mesh.secret import Secret

BOUND = Bound(input_tokens_max=100, output_tokens_wanted=50, output_tokens_min=16, choices=2)
TOLD = TokenUsage(input_tokens=7, output_tokens=9)


@pytest.mark.parametrize(
    ("usage", "classes"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, (10, 0, 0, 5, 0)),
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}, (6, 4, 0, 5, 0)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 3},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            (3, 4, 3, 3, 2),
        ),
        (
            {"prompt_tokens": 1, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 9}},
            (1, 0, 0, 5, 9),
        ),
        (
            {
                "prompt_tokens": 1,
                "completion_tokens": 5,
                "total_tokens": 9,
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            (1, 0, 0, 5, 3),
        ),
        ({"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 99}}, (0, 3, 0, 1, 0)),
        ({"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": None}, (3, 0, 0, 1, 0)),
    ],
)
def test_a_providers_figures_become_disjoint_classes(usage: Json, classes: tuple[int, ...]) -> None:
    read = of_openai(usage)
    assert read is not None
    assert (
        read.input_tokens,
        read.cached_input_tokens,
        read.cache_write_tokens,
        read.output_tokens,
        read.reasoning_tokens,
    ) == classes
    assert read.total == sum(classes)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        [],
        {"prompt_tokens": -1, "completion_tokens": 5},
        {"prompt_tokens": "5", "completion_tokens": 5},
        {"prompt_tokens": True, "completion_tokens": 5},
        {"prompt_tokens": 10**12, "completion_tokens": 5},
        {"prompt_tokens": 5},
    ],
)
def test_figures_that_mean_nothing_are_no_figures(usage: Json) -> None:
    assert of_openai(usage) is None


def test_zero_is_a_figure_and_not_a_missing_one() -> None:
    assert of_openai({"prompt_tokens": 0, "completion_tokens": 0}) == TokenUsage()


ALL_HELD = TokenUsage(100, output_tokens=80)  # all that is held
SEEN = TokenUsage(100, output_tokens=3)
REPORTED, MISSING, ZERO, INVALID, ABOVE = UsageSource
CASES: list[tuple[Ending, bool, Settlement]] = [
    (Ending(200, TOLD, None, complete=True), False, Settlement(TOLD, False, Outcome.OK, 200, REPORTED)),
    (Ending(200, TOLD, None, complete=True), True, Settlement(TOLD, False, Outcome.CLIENT_GONE, 200, REPORTED)),
    (Ending(200, TOLD, 3, complete=False), False, Settlement(TOLD, False, Outcome.UPSTREAM_CUT, 200, REPORTED)),
    (Ending(200, NOTHING, 3, complete=True), False, Settlement(NOTHING, False, Outcome.OK, 200, ZERO)),
    (Ending(200, TokenUsage(101), 3, complete=True), False, Settlement(TokenUsage(101), False, Outcome.OK, 200, ABOVE)),
    (
        Ending(200, TokenUsage(7, output_tokens=80, reasoning_tokens=1), 3, complete=True),
        False,
        Settlement(TokenUsage(7, output_tokens=80, reasoning_tokens=1), False, Outcome.OK, 200, ABOVE),
    ),
    (Ending(500, None, None, complete=True), False, Settlement(NOTHING, False, Outcome.UPSTREAM_ERROR, 500, MISSING)),
    (Ending(500, TOLD, None, complete=True), False, Settlement(TOLD, False, Outcome.UPSTREAM_ERROR, 500, REPORTED)),
    (Ending(200, None, 3, complete=True), False, Settlement(ALL_HELD, True, Outcome.OK, 200, MISSING)),
    (
        Ending(200, None, 3, complete=True, usage_seen=True),
        False,
        Settlement(ALL_HELD, True, Outcome.OK, 200, INVALID),
    ),
    (Ending(200, None, 3, complete=False), False, Settlement(SEEN, True, Outcome.UPSTREAM_CUT, 200, MISSING)),
    (Ending(200, None, 999, complete=False), True, Settlement(ALL_HELD, True, Outcome.CLIENT_GONE, 200, MISSING)),
    (Ending(502, None, None, complete=False), False, Settlement(ALL_HELD, True, Outcome.UPSTREAM_CUT, 502, MISSING)),
]


@pytest.mark.parametrize(("ending", "gone", "expected"), CASES)
def test_every_way_to_end_is_settled(ending: Ending, *, gone: bool, expected: Settlement) -> None:
    assert settlement(ending, BOUND, 40, client_gone=gone) == expected


def test_a_receipt_is_spliced_into_a_body_that_stays_as_it_is() -> None:
    told = Receipt("req_1", 1_500_000, 9, 12.3456, 1.5)
    body = b'{"id":"x","nested":{"a":1}} \n'
    spliced = receipt.in_body(body, told)
    assert spliced.startswith(b'{"id":"x","nested":{"a":1}')
    assert orjson.loads(spliced)["x_platform"] == {
        "request_id": "req_1",
        "credits_charged": 1.5,
        "micro_credits_charged": 1_500_000,
        "balance_micro_credits": 9,
        "latency_ms": 12.346,
        "overhead_ms": 1.5,
    }
    assert orjson.loads(receipt.in_body(b"{}", told)).keys() == {"x_platform"}


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"),
    [
        (Unauthenticated("INVALID_API_KEY", "x"), 401, "invalid_api_key", {}),
        (Exhausted("INSUFFICIENT_QUOTA", "x"), 402, "insufficient_quota", {"x-should-retry": "false"}),
        (Exhausted("BUDGET_DISABLED", "x"), 402, "budget_disabled", {"x-should-retry": "false"}),
        (
            Exhausted("BUDGET_IN_FLIGHT", "x", retry_after_ms=250),
            429,
            "budget_in_flight",
            {"retry-after-ms": "250", "retry-after": "1"},
        ),
        (Unavailable("ACCOUNTING_UNAVAILABLE", "x"), 503, "accounting_unavailable", {}),
        (Unavailable("SETTLEMENT_PENDING", "x"), 503, "settlement_pending", {"x-should-retry": "false"}),
        (failures.cut(), 502, "upstream_cut", {"x-should-retry": "false"}),
    ],
)
def test_errors_steer_clients_by_status_code_and_headers(
    error: Any, status: int, code: str, headers: dict[str, str]
) -> None:
    told = failures.failure(error)
    assert (told.status, told.error["code"], told.headers) == (status, code, headers)
    assert told.error.keys() == {"message", "type", "param", "code"}


SECRET = Secret("very-secret-text")


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"bad very-secret-text"}}',
        b'{"error":"bad very-secret-text and sk-proj-abc***def"}',
        b"<html>very-secret-text</html>",
        b"",
    ],
)
def test_a_providers_error_is_told_in_our_shape_without_secrets(body: bytes) -> None:
    status, told = failures.told(500, body, SECRET, own=True)
    assert status == 500
    assert "very-secret-text" not in str(told)
    assert "sk-proj" not in str(told)
    assert told.keys() == {"message", "type", "param", "code"}
