"""The main story, told through the public interface alone: GraphQL as people use it, then the gateway as an agent does.

What starts a mesh for it and prints it is in `demo.py`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import httpx

from mesh.money import show_credits

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionStreamOptionsParam

PURCHASE_MICROS = 1_000_000_000
MODEL = "mock-model"
TIMEOUT_SECONDS = 30.0
PAGES_MAX = 20
X_PLATFORM_LINE = ": x_platform "

Say = Callable[[str], None]
Values = Mapping[str, object]


class StoryError(Exception):
    """Something did not happen as the story tells it."""


@dataclass(frozen=True, slots=True)
class Urls:
    """Where the mesh is reached."""

    gateway: str
    graphql: str
    portal: str


@dataclass(frozen=True, slots=True)
class Tenant:
    """A fresh person, what they own, and their agent's key; it stays in memory."""

    email: str
    password: str
    organization_id: str
    workspace_id: str
    agent_group_id: str
    agent_id: str
    api_key: str


@dataclass(frozen=True, slots=True)
class Graph:
    """The edge, asked as one person."""

    url: str
    client: httpx.AsyncClient
    access_token: str = ""

    async def ask(self, query: str, variables: Values) -> dict[str, Any]:
        """Execute one operation and return its data."""
        headers = {"authorization": f"Bearer {self.access_token}"} if self.access_token else {}
        body = {"query": query, "variables": variables}
        response = await self.client.post(self.url, json=body, headers=headers)
        try:
            answer = response.json()
        except ValueError:
            raise StoryError(f"{self.url} answered {response.status_code} without JSON") from None
        if answer.get("errors"):
            raise StoryError(f"GraphQL answered {json.dumps(answer['errors'])}")
        return answer["data"]

    async def mutate(self, name: str, kind: str, values: Values, fields: str) -> dict[str, Any]:
        """Make one mutation that must not be refused and return its payload."""
        query = (
            f"mutation($input: {kind}!) {{ {name}(input: $input) {{ {fields} userErrors {{ code field message }} }} }}"
        )
        payload = (await self.ask(query, {"input": values}))[name]
        if payload["userErrors"]:
            raise StoryError(f"{name} was refused: {json.dumps(payload['userErrors'])}")
        return payload


async def quick_key(graphql_url: str) -> str:
    """Make a new person, organization and agent with credits, and return the agent's key."""
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
        _, tenant = await _settled_in(Graph(graphql_url, client), lambda _line: None)
    return tenant.api_key


async def tell(urls: Urls, say: Say) -> Tenant:
    """Do the whole story; StoryError when anything in it is not as it should be."""
    async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
        graph, tenant = await _settled_in(Graph(urls.graphql, client), say)
        await _governed(graph, tenant, say)
        charged_micros = await _worked(urls.gateway, tenant.api_key, say)
        await _audited(graph, tenant, charged_micros, say)
    return tenant


async def _settled_in(graph: Graph, say: Say) -> tuple[Graph, Tenant]:
    email, password = f"demo-{secrets.token_hex(6)}@example.com", secrets.token_urlsafe(18)
    person = {"email": email, "password": password, "name": "Demo"}
    made = await graph.mutate("signUp", "SignUpInput", person, "accessToken")
    graph = replace(graph, access_token=made["accessToken"])
    say(f"signed up {email}")
    values: Values = {"name": "Demo", "idempotencyKey": "demo-organization"}
    made = await graph.mutate("createOrganization", "CreateOrganizationInput", values, "organization { id }")
    organization_id = made["organization"]["id"]
    say(f"created organization {organization_id}")
    await _bought(graph, organization_id, say)
    values = {"organizationId": organization_id, "name": "Research"}
    made = await graph.mutate("createWorkspace", "CreateWorkspaceInput", values, "workspace { id }")
    workspace_id = made["workspace"]["id"]
    values = {"workspaceId": workspace_id, "name": "Readers"}
    made = await graph.mutate("createAgentGroup", "CreateAgentGroupInput", values, "agentGroup { id }")
    agent_group_id = made["agentGroup"]["id"]
    values = {"agentGroupId": agent_group_id, "name": "Reader"}
    agent_id = (await graph.mutate("createAgent", "CreateAgentInput", values, "agent { id }"))["agent"]["id"]
    say(f"built workspace {workspace_id}, agent group {agent_group_id}, agent {agent_id}")
    values = {"agentId": agent_id, "name": "demo"}
    made = await graph.mutate("issueApiKey", "IssueApiKeyInput", values, "apiKey { prefix } plaintext")
    say(f"issued an API key, {made['apiKey']['prefix']}…, shown once")
    ids = (organization_id, workspace_id, agent_group_id, agent_id)
    return graph, Tenant(email, password, *ids, made["plaintext"])


async def _bought(graph: Graph, organization_id: str, say: Say) -> None:
    values = {"organizationId": organization_id, "micros": str(PURCHASE_MICROS), "idempotencyKey": "demo-purchase"}
    fields = "transfer { id } wallet { availableMicros } replayed"
    first = await graph.mutate("purchaseCredits", "PurchaseCreditsInput", values, fields)
    again = await graph.mutate("purchaseCredits", "PurchaseCreditsInput", values, fields)
    _check(again["replayed"] and again["transfer"] == first["transfer"], "a repeated purchase was made twice")
    available_micros = int(again["wallet"]["availableMicros"])
    _check(available_micros == PURCHASE_MICROS, f"the wallet holds {available_micros}, bought were {PURCHASE_MICROS}")
    say(f"bought {show_credits(PURCHASE_MICROS)} credits; asked twice under one key, bought once")


async def _governed(graph: Graph, tenant: Tenant, say: Say) -> None:
    values: Values = {
        "organizationId": tenant.organization_id,
        "provider": "openai",
        "secret": f"sk-demo-{secrets.token_hex(16)}",
        "label": "demo",
    }
    made = await graph.mutate(
        "addProviderCredential", "AddProviderCredentialInput", values, "providerCredential { id hint }"
    )
    credential = made["providerCredential"]
    say(f"sealed a provider credential that ends in {credential['hint']}")
    # Taken away again: it is a dummy, and calls to that provider would be made with it.
    removed = {"id": credential["id"]}
    await graph.mutate(
        "removeProviderCredential", "RemoveProviderCredentialInput", removed, "providerCredential { id }"
    )
    say("destroyed it again")
    values = {
        "target": {"agentGroupId": tenant.agent_group_id},
        "period": "MONTHLY",
        "limitMicros": str(PURCHASE_MICROS),
        "autoDisable": False,
        "idempotencyKey": "demo-budget",
    }
    await graph.mutate("createBudget", "CreateBudgetInput", values, "budget { id }")
    values = {"target": {"agentId": tenant.agent_id}, "name": "demo", "maxTokensPerRequest": 100_000}
    await graph.mutate("createPolicy", "CreatePolicyInput", values, "policy { id }")
    say(f"set a monthly budget of {show_credits(PURCHASE_MICROS)} credits and a policy of 100,000 tokens a request")


async def _worked(gateway_url: str, api_key: str, say: Say) -> int:
    """Call the gateway with the official client and return what the answers said was charged."""
    from openai import AsyncOpenAI, AuthenticationError  # noqa: PLC0415  # a second of imports that `up` need not wait for

    async with AsyncOpenAI(base_url=f"{gateway_url}/v1", api_key=api_key, max_retries=0) as agent:
        models = [model.id async for model in agent.models.list()]
        _check(MODEL in models, f"{MODEL} is not listed")
        say(f"listed {len(models)} models")
        told = [await _completed(agent, say), await _streamed(agent, say), await _streamed_bare(agent, say)]
    async with AsyncOpenAI(base_url=f"{gateway_url}/v1", api_key="cpk_not-a-key", max_retries=0) as stranger:
        try:
            await stranger.chat.completions.create(model=MODEL, messages=_messages("Let me in."))
        except AuthenticationError as refused:
            _check(refused.code == "invalid_api_key", f"a wrong key was refused with {refused.code}")
            _check(bool(refused.request_id), "the refusal names no request id")
            say(f"a wrong key was refused: {refused.code}, request {refused.request_id}")
        else:
            _check(holds=False, problem="a wrong key was served")
    return sum(told)


async def _completed(agent: AsyncOpenAI, say: Say) -> int:
    answer = await agent.chat.completions.create(model=MODEL, messages=_messages("What is a mandate?"))
    platform = (answer.model_extra or {})["x_platform"]
    say(f"completion: {_charge(platform)} charged, {show_credits(platform['balance_micro_credits'])} left")
    return platform["micro_credits_charged"]


async def _streamed(agent: AsyncOpenAI, say: Say) -> int:
    options: ChatCompletionStreamOptionsParam = {"include_usage": True}
    chunks = [
        chunk
        async for chunk in await agent.chat.completions.create(
            model=MODEL, messages=_messages("Tell it slowly."), stream=True, stream_options=options
        )
    ]
    last = chunks[-1]
    _check(last.usage is not None, "the stream ended without the usage that was asked for")
    platform = (last.model_extra or {})["x_platform"]
    say(f"stream of {len(chunks)} chunks with usage: {_charge(platform)} charged")
    return platform["micro_credits_charged"]


async def _streamed_bare(agent: AsyncOpenAI, say: Say) -> int:
    """Stream without asking for usage: what was charged then stands in a comment, which the client's iterator skips."""
    asking = agent.chat.completions.with_streaming_response.create(
        model=MODEL, messages=_messages("And without usage."), stream=True
    )
    async with asking as response:
        lines = [line async for line in response.iter_lines()]
    comments = [line.removeprefix(X_PLATFORM_LINE) for line in lines if line.startswith(X_PLATFORM_LINE)]
    _check(len(comments) == 1, "the stream did not say what was charged")
    _check(not any('"usage":{' in line for line in lines), "the stream told usage that nobody asked for")
    platform = json.loads(comments[0])
    say(f"stream without usage: {_charge(platform)} charged")
    return platform["micro_credits_charged"]


async def _audited(graph: Graph, tenant: Tenant, charged_micros: int, say: Say) -> None:
    """Read everything back and check it to the micro-credit."""
    query = "query($id: ID!) { organization(id: $id) { wallet { settledMicros heldMicros availableMicros } } }"
    data = await graph.ask(query, {"id": tenant.organization_id})
    wallet = {name: int(text) for name, text in data["organization"]["wallet"].items()}
    expected_micros = PURCHASE_MICROS - charged_micros
    _check(wallet["heldMicros"] == 0, f"{wallet['heldMicros']} micro-credits are still held")
    settled = wallet["settledMicros"]
    _check(settled == expected_micros, f"the wallet holds {settled}, the answers make it {expected_micros}")
    usage = await _all(graph, tenant, "usage", "chargedMicros")
    used_micros = sum(int(row["chargedMicros"]) for row in usage)
    _check(used_micros == charged_micros, f"usage says {used_micros}, the answers said {charged_micros}")
    entries = await _all(graph, tenant, "entries", "account amountMicros")
    _check(sum(int(row["amountMicros"]) for row in entries) == 0, "the entries do not sum to zero")
    _check(
        sum(int(row["amountMicros"]) for row in entries if row["account"] == "wallet") == settled,
        "the wallet is not the sum of its entries",
    )
    say(f"read back: {len(usage)} completions, {len(entries)} entries that sum to zero")
    told = f"{show_credits(PURCHASE_MICROS)} bought - {show_credits(charged_micros)} charged = {show_credits(settled)}"
    say(f"the wallet is exact to the micro-credit: {told}")


async def _all(graph: Graph, tenant: Tenant, name: str, fields: str) -> list[dict[str, Any]]:
    page = f"{name}(first: 100, after: $after) {{ nodes {{ {fields} }} pageInfo {{ endCursor hasNextPage }} }}"
    query = f"query($id: ID!, $after: String) {{ organization(id: $id) {{ {page} }} }}"
    found: list[dict[str, Any]] = []
    after: str | None = None
    for _ in range(PAGES_MAX):
        data = await graph.ask(query, {"id": tenant.organization_id, "after": after})
        found += data["organization"][name]["nodes"]
        after = data["organization"][name]["pageInfo"]["endCursor"]
        if after is None:
            break
    return found


def _messages(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def _charge(platform: Mapping[str, Any]) -> str:
    return f"{show_credits(platform['micro_credits_charged'])} credits"


def _check(holds: bool, problem: str) -> None:  # noqa: FBT001  # a check reads so
    if not holds:
        raise StoryError(problem)
