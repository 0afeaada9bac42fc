from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway_svc.bounds import Model, bound
from gateway_svc.dialects import Dialect, Request, Size
from gateway_svc.policies import Policy, Terms, merge, policy
from gateway_svc.verdicts import LISTS, Asked, Decider, Level, explain, output_tokens_max, refusals
from tests.decisions.test_policies import limits, names, rules, targets

asked = st.builds(
    Asked,
    st.just("") | names,
    st.just("") | names,
    st.just("") | names,
    st.lists(names, max_size=3).map(tuple),
    limits,
    st.integers(0, 60),
)
levels = st.lists(st.builds(Level, targets, st.uuids().map(str), rules), max_size=5)
PATH = ("org_1", "ws_1", "grp_1", "agt_1")
ALLOWED = {"MODEL_NOT_ALLOWED", "PROVIDER_NOT_ALLOWED", "ENDPOINT_NOT_ALLOWED", "TOOL_NOT_ALLOWED"}


def level(target_id: str, policy_id: str = "", **terms: Any) -> Level:
    return Level(target_id, policy_id or f"pol_{target_id}", policy(Terms(**terms), target_id))


def reasons(rule: Policy, request: Asked) -> list[str]:
    return [error.reason for _, _, error in refusals(rule, request)]


@given(levels, asked)
def test_an_explanation_refuses_what_the_merge_refuses(path: list[Level], request: Asked) -> None:
    merged = merge(level.policy for level in path)
    explained = explain(path, request)
    told = [(refusal.error.reason, refusal.name) for refusal in explained.refusals]
    assert told == [(error.reason, name) for _, name, error in refusals(merged, request)]
    allows = (
        (not request.model or merged.allows(request.model))
        and (not request.provider or merged.allows_provider(request.provider))
        and (not request.endpoint or merged.allows_endpoint(request.endpoint))
        and all(merged.allows_tool(tool) for tool in request.tools)
    )
    assert allows is not bool(told)


@given(levels, asked)
def test_who_refuses_is_each_level_that_refuses_alone(path: list[Level], request: Asked) -> None:
    for refusal in explain(path, request).refusals:
        alone = [
            Decider(level.target_id, level.policy_id)
            for level in path
            if (refusal.error.reason, refusal.name)
            in [(error.reason, name) for _, name, error in refusals(level.policy, request)]
        ]
        assert list(refusal.deciders) == alone != []


@given(levels, asked)
def test_a_decision_tells_what_is_in_force_and_by_whom(path: list[Level], request: Asked) -> None:
    merged = merge(level.policy for level in path)
    decisions = {decision.limit: decision for decision in explain(path, request).decisions}
    for limit, (lists_of, _) in LISTS.items():
        assert (limit in decisions) is bool(lists_of(merged))
        if limit in decisions:
            listed = {frozenset(decider.names) for decider in decisions[limit].deciders}
            assert listed == lists_of(merged)
    for limit in ("max_tokens_per_request", "requests_per_minute", "tokens_per_minute", "max_cost_micros_per_request"):
        in_force: int | None = getattr(merged, limit)
        assert (decisions[limit].value if limit in decisions else None) == in_force
        if in_force is not None:
            deciders = {(decider.target_id, decider.policy_id) for decider in decisions[limit].deciders}
            assert deciders == {
                (level.target_id, level.policy_id) for level in path if getattr(level.policy, limit) == in_force
            }
    assert ("cut_abandoned_streams" in decisions) is merged.cut_abandoned_streams


@given(levels, asked, levels)
def test_one_more_policy_never_allows_more(path: list[Level], request: Asked, more: list[Level]) -> None:
    few, many = explain(path, request), explain([*path, *more], request)
    assert {(r.error.reason, r.name) for r in few.refusals} <= {(r.error.reason, r.name) for r in many.refusals}
    if few.output_tokens_max is not None:
        assert many.output_tokens_max is not None
        assert many.output_tokens_max <= few.output_tokens_max


@given(rules, st.integers(1, 60))
def test_the_output_that_is_told_is_what_the_gateway_writes_upstream(rule: Policy, max_tokens: int) -> None:
    sent = Request(Dialect.CHAT, {}, "mock-model", max_tokens=max_tokens)
    written = bound(sent, [(Model("mock", "mock-model", 0, 0), Size(0, text_bytes=80))], rule, clamp=True)
    request = Asked(max_tokens=max_tokens, input_tokens=written.input_tokens_max)
    assert output_tokens_max(rule, request) == written.output_tokens_wanted


@pytest.mark.parametrize(
    ("terms", "request_", "reason", "field"),
    [
        ({"allowed_models": ("gpt-*",)}, {"model": "claude"}, "MODEL_NOT_ALLOWED", "model"),
        ({"allowed_providers": ()}, {"provider": "openai"}, "PROVIDER_NOT_ALLOWED", "model"),
        ({"allowed_endpoints": ("messages",)}, {"endpoint": "responses"}, "ENDPOINT_NOT_ALLOWED", None),
        ({"allowed_tools": ("read_*",)}, {"tools": ("read_a", "write_a")}, "TOOL_NOT_ALLOWED", "tools"),
    ],
)
def test_what_a_policy_does_not_allow_is_refused_by_its_own_reason(
    terms: dict[str, Any], request_: dict[str, Any], reason: str, field: str | None
) -> None:
    ((_, _, error),) = refusals(policy(Terms(**terms), "org_1"), Asked(**request_))
    assert (error.reason, error.details.get("field")) == (reason, field)


def test_what_is_not_described_is_not_judged() -> None:
    nothing = policy(Terms((), (), (), ()), "org_1")
    assert reasons(nothing, Asked()) == []
    assert set(reasons(nothing, Asked("m", "p", "e", ("t",)))) == ALLOWED


def test_levels_that_share_the_least_decide_together() -> None:
    path = [level(target_id, max_tokens_per_request=limit) for target_id, limit in zip(PATH, (9, 7, 7, 8), strict=True)]
    (decision,) = explain(path, Asked(max_tokens=100)).decisions
    assert (decision.limit, decision.value) == ("max_tokens_per_request", 7)
    assert [decider.target_id for decider in decision.deciders] == ["ws_1", "grp_1"]


def test_a_name_of_over_256_characters_is_in_no_list() -> None:
    rule = policy(Terms(allowed_tools=("a*",)), "org_1")
    assert rule.allows_tool("a" * 256)
    assert not rule.allows_tool("a" * 257)
