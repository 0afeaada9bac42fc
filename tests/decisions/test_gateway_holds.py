from __future__ import annotations

from dataclasses import replace

import pytest

from gateway_svc import failures, wire
from gateway_svc.holds import Dialect, Place, Refusal, Refused, Report, Route
from gateway_svc.settlement import Outcome, Settlement
from gateway_svc.usage import TokenUsage, UsageSource
from mandate.ledger.v1 import charges_pb2 as pb
from mesh.errors import PermissionDenied

PLACE = Place(
    request_id="req_1",
    agent_id="agt_1",
    path_version=1,
    api_key_id="",
    routes=(Route("openai", "a"), Route("anthropic", "b")),
    input_tokens_max=10,
    output_tokens_wanted=20,
    output_tokens_min=16,
    choices=1,
)
REPORT = Report(
    request_id="req_1",
    agent_id="agt_1",
    settlement=Settlement(
        TokenUsage(3, output_tokens=5),
        estimated=False,
        outcome=Outcome.OK,
        http_status=200,
        source=UsageSource.REPORTED,
    ),
    ceiling=TokenUsage(10, output_tokens=20),
    latency_ms=1,
    overhead_ms=1,
    first_token_ms=0,
    streamed=False,
)


def test_a_hold_names_its_routes_in_their_order() -> None:
    assert [(route.provider, route.model) for route in wire.place_message(PLACE).routes] == [
        ("openai", "a"),
        ("anthropic", "b"),
    ]


@pytest.mark.parametrize("cost_max_micros", [0, 70])
def test_a_hold_says_the_most_that_it_may_cost(cost_max_micros: int) -> None:
    assert wire.place_message(replace(PLACE, cost_max_micros=cost_max_micros)).cost_max_micros == cost_max_micros


def test_a_settle_says_which_route_was_taken_after_how_many_attempts() -> None:
    told = wire.settle_message(replace(REPORT, route=1, attempts=3))
    assert (told.route, told.attempts) == (1, 3)


def test_a_settle_says_by_which_interface_and_on_whose_figures() -> None:
    told = wire.settle_message(
        replace(REPORT, dialect=Dialect.MESSAGES, settlement=replace(REPORT.settlement, source=UsageSource.ZERO))
    )
    assert (told.dialect, told.usage_source) == ("messages", "zero")


def test_figures_that_the_ledger_cannot_read_are_settled_as_invalid_on_the_same_route() -> None:
    told = wire.settle_message(replace(REPORT, route=1).at_ceiling())
    assert (told.route, told.usage_source, told.estimated, told.usage.output_tokens) == (1, "invalid", True, 20)


def test_a_hold_above_the_requests_own_limit_is_forbidden_and_says_by_how_much() -> None:
    refused = pb.HoldRefused(refusal=pb.HOLD_REFUSAL_COST_LIMIT, short_micros=40)
    outcome = wire.hold_outcome(pb.HoldAnswer(refused=refused), PLACE, "hld_1")
    assert isinstance(outcome, Refused)
    assert outcome == Refused(Refusal.COST_LIMIT, "", 40)
    error = outcome.error()
    assert isinstance(error, PermissionDenied)
    assert (error.reason, error.details) == ("REQUEST_COST_LIMIT", {"short_micros": "40"})
    told = failures.failure(error)
    assert (told.status, told.error["code"]) == (403, "request_cost_limit")
