from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from mandate.gateway.v1 import policies_pb2 as pb
from mesh.caller import acting
from mesh.client import call
from mesh.errors import InvalidArgument
from tests.services.gateway_running import Mesh, RunningGateway, Tenant, gateway_running

HELLO: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "Hello, mock"}]}


@pytest.fixture(scope="module")
async def gateway(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway")) as running:
        yield running


async def explained(
    gateway: RunningGateway, tenant: Tenant, node_id: str, proposed: pb.Policy | None = None, **asked: Any
) -> pb.ExplainPoliciesResponse:
    request = pb.ExplainPoliciesRequest(node_id=node_id, asked=pb.AskedOfPolicies(**asked), proposed=proposed)
    with acting(tenant.owner):
        return await call(gateway.policies.ExplainPolicies, request)


def refused(answer: pb.ExplainPoliciesResponse) -> list[tuple[str, str, list[str]]]:
    return [
        (refusal.reason, refusal.name, [decider.policy_id for decider in refusal.deciders])
        for refusal in answer.refusals
    ]


async def test_each_limit_is_explained_by_the_policies_that_decide_it(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    family = tenant.family
    models = await gateway.limit(tenant, family.organization_id, allowed_models=pb.ModelList(models=["mock-*"]))
    tools = await gateway.limit(
        tenant, family.workspace_id, allowed_tools=pb.NameList(names=["read_*"]), tokens_per_minute=90
    )
    tokens = await gateway.limit(tenant, family.agent_id, max_tokens_per_request=50)
    answer = await explained(
        gateway, tenant, family.agent_id, model="gpt-6", tools=["read_a", "write_a"], max_tokens=200, input_tokens=50
    )
    assert refused(answer) == [
        ("MODEL_NOT_ALLOWED", "gpt-6", [models.id]),
        ("TOOL_NOT_ALLOWED", "write_a", [tools.id]),
    ]
    assert answer.output_tokens_max == 40
    decided = {decision.limit: decision for decision in answer.decisions}
    assert set(decided) == {"allowed_models", "allowed_tools", "max_tokens_per_request", "tokens_per_minute"}
    assert (decided["max_tokens_per_request"].value, decided["tokens_per_minute"].value) == (50, 90)
    assert [decider.policy_id for decider in decided["max_tokens_per_request"].deciders] == [tokens.id]
    (lists,) = decided["allowed_tools"].deciders
    assert (lists.target_id, lists.policy_id, lists.names) == (family.workspace_id, tools.id, ["read_*"])


async def test_an_organization_is_judged_by_its_own_policies_alone(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    family = tenant.family
    await gateway.limit(tenant, family.agent_id, allowed_models=pb.ModelList())
    assert refused(await explained(gateway, tenant, family.organization_id, model="mock-model")) == []
    assert len(refused(await explained(gateway, tenant, family.agent_id, model="mock-model"))) == 1


async def test_a_proposed_policy_counts_and_is_not_kept(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant()
    family = tenant.family
    proposed = pb.Policy(target_id=family.agent_group_id, allowed_models=pb.ModelList(models=["gpt-*"]))
    answer = await explained(gateway, tenant, family.agent_id, proposed, model="mock-model")
    assert refused(answer) == [("MODEL_NOT_ALLOWED", "mock-model", [""])]
    assert answer.refusals[0].deciders[0].target_id == family.agent_group_id
    assert refused(await explained(gateway, tenant, family.agent_id, model="mock-model")) == []
    assert (await gateway.ask(tenant, HELLO)).status == 200


TOOL = {"type": "function", "function": {"name": "write_file", "parameters": {}}}


@pytest.mark.parametrize(
    "limits",
    [
        {"allowed_models": pb.ModelList(models=["*-flat"])},
        {"allowed_providers": pb.NameList(names=["open*"])},
        {"allowed_endpoints": pb.NameList(names=["messages"])},
        {"allowed_tools": pb.NameList(names=["read_*"])},
    ],
    ids=lambda limits: next(iter(limits)),
)
async def test_the_gateway_refuses_with_the_reason_that_was_explained(
    gateway: RunningGateway, limits: dict[str, Any]
) -> None:
    tenant = await gateway.mesh.tenant()
    await gateway.limit(tenant, tenant.family.workspace_id, **limits)
    asked: dict[str, Any] = {
        "model": "mock-model",
        "provider": "mock",
        "endpoint": "chat.completions",
        "tools": ["write_file"],
    }
    (refusal,) = (await explained(gateway, tenant, tenant.family.agent_id, **asked)).refusals
    answer = await gateway.ask(tenant, {**HELLO, "tools": [TOOL]})
    assert (answer.status, answer.code) == (403, refusal.reason.lower())


@pytest.mark.parametrize(
    ("asked", "limits", "field"),
    [
        ({"tools": ["t"] * 201}, None, "asked.tools"),
        ({"max_tokens": 0}, None, "asked.max_tokens"),
        ({"input_tokens": -1}, None, "asked.input_tokens"),
        ({}, {}, "allowed_models"),
        ({}, {"allowed_tools": pb.NameList(names=["a b"])}, "allowed_tools"),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(
    gateway: RunningGateway, asked: dict[str, Any], limits: dict[str, Any] | None, field: str
) -> None:
    tenant = await gateway.mesh.tenant(0)
    proposed = None if limits is None else pb.Policy(target_id=tenant.family.agent_id, **limits)
    with pytest.raises(InvalidArgument) as raised:
        await explained(gateway, tenant, tenant.family.agent_id, proposed, **asked)
    assert raised.value.details["field"] == field


async def test_a_proposed_policy_stands_on_the_node_or_above_it(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    proposed = pb.Policy(target_id=tenant.family.agent_id, requests_per_minute=1)
    with pytest.raises(InvalidArgument) as raised:
        await explained(gateway, tenant, tenant.family.workspace_id, proposed)
    assert raised.value.details["field"] == "proposed.target_id"
