from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from mandate.gateway.v1 import policies_pb2 as pb
from mesh import ids
from mesh.caller import acting
from mesh.client import call
from mesh.errors import AlreadyExists, FailedPrecondition, InvalidArgument, MeshError, NotFound
from mesh.secret import Secret
from mesh.telemetry import metrics
from tests.services.gateway_running import Mesh, RunningGateway, Tenant, gateway_running
from tests.services.identity_running import fresh

HELLO: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "Hello, mock"}]}
LEVELS = ("organization_id", "workspace_id", "agent_group_id", "agent_id")
SEEN_SECONDS = 0.9  # less than the second within which a policy takes effect


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway")) as running:
        yield running


def models(*names: str) -> pb.ModelList:
    return pb.ModelList(models=names)


def names(*listed: str) -> pb.NameList:
    return pb.NameList(names=listed)


def on_record(reason: str) -> float:
    """Return how many refusals for one reason this process has put on record."""
    return metrics.REGISTRY.get_sample_value("mandate_violations_total", {"reason": reason}) or 0


async def listed(gateway: RunningGateway, tenant: Tenant) -> list[pb.Policy]:
    with acting(tenant.owner):
        request = pb.ListPoliciesRequest(organization_id=tenant.family.organization_id)
        return list((await call(gateway.policies.ListPolicies, request)).policies)


async def test_policies_are_kept_listed_and_removed(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    made = await gateway.limit(tenant, tenant.family.agent_id, allowed_models=models("mock-*"), requests_per_minute=9)
    assert (made.organization_id, made.requests_per_minute) == (tenant.family.organization_id, 9)
    assert not made.HasField("tokens_per_minute")
    assert await listed(gateway, tenant) == [made]
    with acting(tenant.owner):
        removed = await call(gateway.policies.RemovePolicy, pb.RemovePolicyRequest(policy_id=made.id, request_id="r1"))
    assert removed.HasField("remove_time")
    assert await listed(gateway, tenant) == [removed]


EVERY_LIMIT: dict[str, Any] = {
    "allowed_models": models("mock-*", "*-sol"),
    "allowed_tools": names("read_*", "*__search"),
    "allowed_endpoints": names("chat.completions", "messages"),
    "allowed_providers": names(),
    "max_tokens_per_request": 7,
    "requests_per_minute": 8,
    "tokens_per_minute": 9,
    "max_cost_micros_per_request": 10,
    "cut_abandoned_streams": True,
}


async def test_every_limit_is_kept_as_it_was_given(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = await gateway.limit(tenant, tenant.family.agent_id, **EVERY_LIMIT)
    assert made == pb.Policy(
        id=made.id,
        organization_id=tenant.family.organization_id,
        target_id=tenant.family.agent_id,
        name="limit",
        create_time=made.create_time,
        **EVERY_LIMIT,
    )
    assert await listed(gateway, tenant) == [made]


async def update(gateway: RunningGateway, tenant: Tenant, policy: pb.Policy, *paths: str, key: str = "") -> pb.Policy:
    request = pb.UpdatePolicyRequest(policy=policy, update_mask=FieldMask(paths=paths), request_id=key or fresh())
    with acting(tenant.owner):
        return await call(gateway.policies.UpdatePolicy, request)


async def test_an_update_changes_what_its_mask_names_and_nothing_else(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = await gateway.limit(tenant, tenant.family.agent_id, **EVERY_LIMIT)
    wanted = pb.Policy(id=made.id, name=" looser ", allowed_models=models("*"), max_tokens_per_request=70)
    changed = await update(gateway, tenant, wanted, "name", "allowed_models", "tokens_per_minute", key="once")
    made.update_time.CopyFrom(changed.update_time)
    made.allowed_models.CopyFrom(models("*"))
    made.ClearField("tokens_per_minute")
    made.name = "looser"
    assert changed == made
    assert await listed(gateway, tenant) == [changed]
    assert (
        await update(gateway, tenant, wanted, "name", "allowed_models", "tokens_per_minute", key="once")
    ).update_time == changed.update_time


@pytest.mark.parametrize(
    ("wanted", "paths", "field"),
    [
        ({"name": "x"}, (), "update_mask"),
        ({"name": "x"}, ("name", "target_id"), "update_mask"),
        ({}, ("name",), "name"),
        ({"requests_per_minute": -1}, ("requests_per_minute",), "requests_per_minute"),
        ({}, ("requests_per_minute",), "allowed_models"),  # nothing would be left of it
    ],
)
async def test_an_update_that_makes_no_sense_is_refused(
    gateway: RunningGateway, wanted: dict[str, Any], paths: tuple[str, ...], field: str
) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = await gateway.limit(tenant, tenant.family.agent_id, requests_per_minute=1)
    with pytest.raises(InvalidArgument) as raised:
        await update(gateway, tenant, pb.Policy(id=made.id, **wanted), *paths)
    assert raised.value.details["field"] == field
    assert await listed(gateway, tenant) == [made]


async def test_a_policy_that_has_ended_is_not_updated(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = await gateway.limit(tenant, tenant.family.agent_id, requests_per_minute=1)
    with acting(tenant.owner):
        await call(gateway.policies.RemovePolicy, pb.RemovePolicyRequest(policy_id=made.id, request_id=fresh()))
    with pytest.raises(FailedPrecondition) as raised:
        await update(gateway, tenant, pb.Policy(id=made.id, name="x"), "name")
    assert raised.value.reason == "POLICY_REMOVED"


async def test_a_list_of_policies_has_pages(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    made = [await gateway.limit(tenant, tenant.family.agent_id, requests_per_minute=n) for n in (1, 2, 3)]
    with acting(tenant.owner):
        request = pb.ListPoliciesRequest(organization_id=tenant.family.organization_id, page_size=2)
        first = await call(gateway.policies.ListPolicies, request)
        request.page_token = first.next_page_token
        second = await call(gateway.policies.ListPolicies, request)
    assert [*first.policies, *second.policies] == made
    assert not second.next_page_token


async def test_a_policy_is_made_once_for_each_request_id(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    target = tenant.family.workspace_id
    request = pb.CreatePolicyRequest(target_id=target, name="once", requests_per_minute=1, request_id=fresh())
    with acting(tenant.owner):
        first = await call(gateway.policies.CreatePolicy, request)
        assert await call(gateway.policies.CreatePolicy, request) == first
        request.requests_per_minute = 2
        with pytest.raises(AlreadyExists):
            await call(gateway.policies.CreatePolicy, request)


@pytest.mark.parametrize(
    ("terms", "field"),
    [
        ({"name": " ", "requests_per_minute": 1}, "name"),
        ({"name": "x" * 201, "requests_per_minute": 1}, "name"),
        ({"name": "a\x00b", "requests_per_minute": 1}, "name"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"tokens_per_minute": -1}, "tokens_per_minute"),
        ({"max_tokens_per_request": 0}, "max_tokens_per_request"),
        ({"requests_per_minute": 10**11 + 1}, "requests_per_minute"),
        ({"max_cost_micros_per_request": 0}, "max_cost_micros_per_request"),
        ({"allowed_models": models("a b")}, "allowed_models"),
        ({"allowed_models": models("a\n")}, "allowed_models"),
        ({"allowed_models": models("")}, "allowed_models"),
        ({"allowed_models": models(*("m" * n for n in range(1, 102)))}, "allowed_models"),
        ({"allowed_tools": names("[a-z]+")}, "allowed_tools"),
        ({"allowed_providers": names("x" * 201)}, "allowed_providers"),
        ({"allowed_endpoints": names("chat.*")}, "allowed_endpoints"),
        ({"cut_abandoned_streams": False}, "allowed_models"),
        ({}, "allowed_models"),
    ],
)
async def test_a_policy_that_makes_no_sense_is_refused(
    gateway: RunningGateway, terms: dict[str, Any], field: str
) -> None:
    tenant = await gateway.mesh.tenant(0)
    fields: dict[str, Any] = {"name": "limit", **terms}
    request = pb.CreatePolicyRequest(target_id=tenant.family.agent_id, request_id=fresh(), **fields)
    with acting(tenant.owner), pytest.raises(InvalidArgument) as raised:
        await call(gateway.policies.CreatePolicy, request)
    assert raised.value.details["field"] == field


async def test_another_organizations_objects_do_not_exist(gateway: RunningGateway) -> None:
    tenant, stranger = await gateway.mesh.tenant(0), await gateway.mesh.tenant(0)
    made = await gateway.limit(tenant, tenant.family.agent_id, requests_per_minute=1)
    nobody = ids.new(ids.Kind.AGENT)
    calls: list[tuple[Any, Any]] = [
        (gateway.policies.ListPolicies, pb.ListPoliciesRequest(organization_id=tenant.family.organization_id)),
        (gateway.policies.RemovePolicy, pb.RemovePolicyRequest(policy_id=made.id, request_id=fresh())),
        (gateway.policies.UpdatePolicy, pb.UpdatePolicyRequest(policy=made, request_id=fresh())),
        *(
            (gateway.policies.ExplainPolicies, pb.ExplainPoliciesRequest(node_id=node_id))
            for node_id in (*dataclasses.astuple(tenant.family), nobody, made.id, "")
        ),
        *(
            (gateway.policies.CreatePolicy, pb.CreatePolicyRequest(target_id=target, name="x", request_id=fresh()))
            for target in (tenant.family.agent_id, tenant.family.workspace_id, nobody, made.id)
        ),
    ]
    with acting(stranger.owner):
        for method, request in calls:
            with pytest.raises(NotFound):
                await call(method, request)


async def test_a_policy_stands_on_a_level_of_the_hierarchy_only(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    made = await gateway.limit(tenant, tenant.family.agent_id, requests_per_minute=1)
    with pytest.raises(InvalidArgument):
        await gateway.limit(tenant, made.id, requests_per_minute=1)


async def test_a_target_has_so_many_policies_and_no_more(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    outcomes: list[pb.Policy | MeshError | BaseException] = await asyncio.gather(
        *(gateway.limit(tenant, tenant.family.agent_id, requests_per_minute=1) for _ in range(25)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, pb.Policy) for outcome in outcomes) == 20
    assert sum(isinstance(outcome, FailedPrecondition) for outcome in outcomes) == 5


@pytest.mark.parametrize("level", LEVELS)
async def test_a_model_that_any_level_leaves_out_is_403(gateway: RunningGateway, level: str) -> None:
    tenant = await gateway.mesh.tenant()
    await gateway.limit(tenant, getattr(tenant.family, level), allowed_models=models("mock-f*", "gpt-6.2-sol"))
    answer = await gateway.ask(tenant, HELLO)
    assert (answer.status, answer.code) == (403, "model_not_allowed")
    assert (await gateway.ask(tenant, {**HELLO, "model": "mock-flat"})).status == 200
    found = (await gateway.get("/v1/models", tenant.key)).json
    assert {model["id"] for model in found["data"]} == {"mock-flat", "gpt-6.2-sol"}
    assert (await gateway.get("/v1/models/mock-model", tenant.key)).code == "model_not_found"


async def test_a_policy_takes_effect_and_ends_within_a_second(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    assert (await gateway.ask(tenant, HELLO)).status == 200
    made = await gateway.limit(tenant, tenant.family.agent_group_id, allowed_models=models())
    await asyncio.sleep(SEEN_SECONDS)
    assert (await gateway.ask(tenant, HELLO)).status == 403
    with acting(tenant.owner):
        await call(gateway.policies.RemovePolicy, pb.RemovePolicyRequest(policy_id=made.id, request_id=fresh()))
    await asyncio.sleep(SEEN_SECONDS)
    assert (await gateway.ask(tenant, HELLO)).status == 200


async def test_the_least_of_all_levels_limits_the_tokens_of_a_request(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    for level, limit in zip(LEVELS, (40, 9, 12, 30), strict=True):
        await gateway.limit(tenant, getattr(tenant.family, level), max_tokens_per_request=limit)
    answer = await gateway.ask(tenant, {**HELLO, "max_tokens": 100})
    assert answer.json["usage"]["completion_tokens"] == 9
    assert answer.headers["x-mandate-max-tokens"] == "9"


async def test_requests_per_minute_are_exact_over_two_gateways(
    gateway: RunningGateway, mesh: Mesh, tmp_path: Path
) -> None:
    tenant = await mesh.tenant()
    sibling = await tenant.another_agent()
    await gateway.limit(tenant, tenant.family.agent_group_id, requests_per_minute=7)
    async with gateway_running(mesh, tmp_path) as second:
        answers = await asyncio.gather(
            *(one.ask(agent, HELLO) for one in (gateway, second) for agent in (tenant, sibling) for _ in range(6))
        )
    assert [answer.status for answer in answers].count(200) == 7
    refused = [answer for answer in answers if answer.status != 200]
    assert {(answer.status, answer.code) for answer in refused} == {(429, "rate_limit_exceeded")}
    assert all(0 < int(answer.headers["retry-after-ms"]) <= 60_000 // 7 + 1 for answer in refused)
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"7"}
    assert {answer.headers["x-ratelimit-remaining-requests"] for answer in refused} == {"0"}


async def test_tokens_per_minute_count_what_was_used_not_what_was_held(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    await gateway.limit(tenant, tenant.family.agent_id, tokens_per_minute=100)
    answers = [await gateway.ask(tenant, {**HELLO, "max_tokens": 20}) for _ in range(6)]
    # Each uses 19; what is asked for is bounded by 23, so a fifth fits into 100 - 76 and a sixth does not.
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "100"


async def test_a_request_of_more_tokens_than_a_minutes_is_refused_on_record_and_takes_nothing(
    gateway: RunningGateway,
) -> None:
    tenant = await gateway.mesh.tenant()
    await gateway.limit(tenant, tenant.family.agent_id, tokens_per_minute=100)
    await asyncio.sleep(0.6)
    long = {**HELLO, "messages": [{"role": "user", "content": "word " * 40_000}]}
    before = on_record("tokens_above_rate")
    refused = await gateway.ask(tenant, long)
    assert (refused.status, refused.code, refused.json["error"]["type"]) == (
        429,
        "tokens_above_rate",
        "rate_limit_error",
    )
    assert refused.headers["x-should-retry"] == "false"
    assert "retry-after" not in refused.headers
    assert on_record("tokens_above_rate") == before + 1
    answer = await gateway.ask(tenant, {**HELLO, "max_tokens": 4_096})  # whose output is less for the limit's sake
    assert (answer.status, answer.headers["x-ratelimit-limit-tokens"]) == (200, "100")


async def test_what_was_never_sent_takes_no_tokens_of_a_minute(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    await gateway.limit(tenant, tenant.family.agent_id, tokens_per_minute=1_000)
    await asyncio.sleep(0.6)
    body = {**HELLO, "max_tokens": 900}
    for _ in range(2):  # an order that is wrong is found after the hold
        assert (await gateway.ask(tenant, body, x_mock="usage=odd")).status == 400
    answer = await gateway.ask(tenant, body)
    assert answer.status == 200, answer.body


async def test_without_valkey_only_agents_with_a_rate_are_refused(mesh: Mesh, tmp_path: Path) -> None:
    free, limited = await mesh.tenant(), await mesh.tenant()
    async with gateway_running(mesh, tmp_path) as well:
        await well.limit(limited, limited.family.agent_id, requests_per_minute=100)
    nowhere = Secret("redis://127.0.0.1:1/0")
    async with gateway_running(mesh, tmp_path, redis_url=nowhere, is_ready=False) as gateway:
        assert (await gateway.ask(free, HELLO)).status == 200
        answer = await gateway.ask(limited, HELLO)
        assert (answer.status, answer.code) == (503, "rate_limits_unavailable")
        ready = await gateway.get("/health/ready")
        assert (ready.status, ready.json["checks"]["valkey"]) == (503, "down")
