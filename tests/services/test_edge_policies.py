from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.edge_running import Asker, RunningEdge, backed, edge_running


@pytest.fixture(scope="module")
async def edge(house: House, ledger: RunningLedger) -> AsyncIterator[RunningEdge]:
    async with backed(house, ledger) as addresses, edge_running(house, addresses) as running:
        yield running


@pytest.fixture(scope="module")
async def ada(edge: RunningEdge) -> Asker:
    return await edge.person()


async def test_a_policy_is_created_listed_and_removed(ada: Asker) -> None:
    agent = await ada.agent(await ada.organization())
    made = await ada.made(
        "createPolicy",
        "policy { id targetId allowedModels maxTokensPerRequest rpm tpm }",
        target={"workspaceId": agent.workspace_id},
        allowedModels=[],
        rpm=60,
    )
    policy = made["policy"]
    assert (policy["targetId"], policy["allowedModels"], policy["rpm"], policy["tpm"]) == (
        agent.workspace_id,
        [],
        60,
        None,
    )
    query = "query($id: ID!) { organization(id: $id) { policies { nodes { id } } } }"
    listed = (await ada.ask(query, id=agent.organization_id))["organization"]["policies"]["nodes"]
    assert listed == [{"id": policy["id"]}]
    assert (await ada.made("removePolicy", "policy { removeTime }", id=policy["id"]))["policy"]["removeTime"]


LIMITS = """allowedModels allowedTools allowedEndpoints allowedProviders maxTokensPerRequest rpm tpm
    maxCostMicrosPerRequest cutAbandonedStreams"""


async def test_an_update_of_a_policy_keeps_what_is_absent_and_lifts_what_is_null(ada: Asker) -> None:
    agent = await ada.agent(await ada.organization())
    limits = {
        "allowedModels": ["gpt-*"],
        "allowedTools": ["read_*"],
        "allowedEndpoints": ["messages"],
        "allowedProviders": [],
        "maxTokensPerRequest": 9,
        "rpm": 60,
        "tpm": 600,
        "maxCostMicrosPerRequest": "5000000000",
        "cutAbandonedStreams": True,
    }
    made = await ada.made("createPolicy", f"policy {{ id {LIMITS} }}", target={"agentId": agent.id}, **limits)
    policy_id = made["policy"].pop("id")
    assert made["policy"] == limits
    change = {"name": "other", "allowedModels": ["*"], "rpm": None, "cutAbandonedStreams": None}
    changed = await ada.made("updatePolicy", f"policy {{ name {LIMITS} }}", id=policy_id, **change)
    assert changed["policy"] == {**limits, **change, "cutAbandonedStreams": False}
    nothing = await ada.payload("updatePolicy", "policy { id }", id=policy_id)
    assert [error["field"] for error in nothing["userErrors"]] == ["updateMask"]
    wrong = await ada.payload("updatePolicy", "policy { id }", id=policy_id, tpm=0)
    assert [error["field"] for error in wrong["userErrors"]] == ["tpm"]


EXPLAIN = """query($node: TargetInput!, $asked: AskedOfPoliciesInput!, $proposed: ProposedPolicyInput) {
  explainPolicies(node: $node, asked: $asked, proposed: $proposed) {
    allowed outputTokensMax
    decisions { limit value deciders { targetId policyId names } }
    refusals { reason name deciders { targetId policyId } }
  }
}"""


async def test_policies_are_explained_with_a_proposed_one(ada: Asker) -> None:
    agent = await ada.agent(await ada.organization())
    made = await ada.made("createPolicy", "policy { id }", target={"workspaceId": agent.workspace_id}, tpm=50)
    policy_id = made["policy"]["id"]
    asked = {"model": "gpt-6", "tools": ["write_file"], "maxTokens": 100, "inputTokens": 20}
    now = (await ada.ask(EXPLAIN, node={"agentId": agent.id}, asked=asked))["explainPolicies"]
    assert (now["allowed"], now["outputTokensMax"], now["refusals"]) == (True, "30", [])
    decider = {"targetId": agent.workspace_id, "policyId": policy_id, "names": []}
    assert now["decisions"] == [{"limit": "tokens_per_minute", "value": "50", "deciders": [decider]}]
    proposed = {"target": {"organizationId": agent.organization_id}, "allowedTools": ["read_*"]}
    then = (await ada.ask(EXPLAIN, node={"agentId": agent.id}, asked=asked, proposed=proposed))["explainPolicies"]
    assert not then["allowed"]
    by = [{"targetId": agent.organization_id, "policyId": None}]
    assert then["refusals"] == [{"reason": "TOOL_NOT_ALLOWED", "name": "write_file", "deciders": by}]


async def test_policies_of_a_stranger_are_not_explained(edge: RunningEdge, ada: Asker) -> None:
    agent = await ada.agent(await ada.organization())
    eve = await edge.person()
    answer = await eve.answer(EXPLAIN, node={"agentId": agent.id}, asked={"model": "gpt-6"})
    assert answer["data"] == {"explainPolicies": None}
