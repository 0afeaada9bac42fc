"""Every door of the gateway, and agents before whom each of them is closed, for one reason and no other."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from gateway_svc.holds import Grant, Place, Route
from mandate.gateway.v1 import policies_pb2, routes_pb2
from mandate.identity.v1 import directory_pb2, keys_pb2
from mandate.ledger.v1 import budgets_pb2, budgets_pb2_grpc
from mesh.caller import acting
from mesh.client import call
from mesh.clock import SystemClock
from tests.services.gateway_running import Answer, RunningGateway, Tenant, Upstream
from tests.services.identity_running import fresh
from tests.services.ledger_running import owner

SEEN_SECONDS_MAX = 5
ALIAS = "somebody-elses"
NOT_OURS = "no-such-model"
TOOL = "weather"
MODELS = ("mock-model", "gpt-6.2-sol", "claude-sonnet-5-5")
FLAT_MICROS = 1_000_000
HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
EMBEDDINGS, COUNT, LIST, SHOW = "/v1/embeddings", "/v1/messages/count_tokens", "/v1/models", "/v1/models/{model}"


@dataclass(frozen=True, slots=True)
class Door:
    """One path, what is sent there, and whether it wants a key."""

    path: str
    method: str = "POST"
    models: tuple[str, ...] = ()
    body: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    is_streamed: bool = False
    is_keyed: bool = True


DOORS = {
    door.path: door
    for door in (
        Door(
            CHAT,
            models=MODELS,
            body={"messages": HELLO, "max_tokens": 16},
            tools=({"type": "function", "function": {"name": TOOL, "parameters": {"type": "object"}}},),
            is_streamed=True,
        ),
        Door(
            RESPONSES,
            models=MODELS,
            body={"input": "Hello", "max_output_tokens": 16},
            tools=({"type": "function", "name": TOOL, "parameters": {"type": "object"}},),
            is_streamed=True,
        ),
        Door(
            MESSAGES,
            models=MODELS,
            body={"messages": HELLO, "max_tokens": 16},
            tools=({"name": TOOL, "input_schema": {"type": "object"}},),
            is_streamed=True,
        ),
        Door(
            COUNT, models=MODELS, body={"messages": HELLO}, tools=({"name": TOOL, "input_schema": {"type": "object"}},)
        ),
        Door(EMBEDDINGS, models=MODELS[:2], body={"input": "Hello"}),
        Door(LIST, "GET"),
        Door(SHOW, "GET", MODELS),
        *(Door(path, "GET", is_keyed=False) for path in ("/health", "/health/ready", "/version", "/metrics")),
    )
}


@dataclass(frozen=True, slots=True)
class Knock:
    """One request at a door; `is_anthropics` where the answer is to be in Anthropic's shape."""

    method: str
    path: str
    body: bytes
    is_anthropics: bool
    headers: Mapping[str, str] = field(default_factory=dict)


def knocks(door: Door, *, model: str = "", tools: bool = False, raw: bytes = b"") -> Iterator[Knock]:
    """Give every way to ask at a door: by prefix, model, streamed and not, by both vendors' clients."""
    for prefix in ("", "/gateway") if door.is_keyed else ("",):
        for asked in (model,) if model else door.models or ("",):
            path = prefix + door.path.replace("{model}", asked)
            if door.method == "GET":
                yield Knock("GET", path, b"", is_anthropics=False)
                if door.is_keyed:
                    yield Knock("GET", path, b"", is_anthropics=True, headers={"anthropic-version": "2023-06-01"})
                continue
            for stream in (False, True) if door.is_streamed else (False,):
                sent: dict[str, Any] = {"model": asked, **door.body, **({"stream": True} if stream else {})}
                if tools:
                    sent["tools"] = door.tools
                body = raw or json.dumps(sent).encode()
                yield Knock("POST", path, body, is_anthropics=door.path.startswith(MESSAGES))


@dataclass(frozen=True, slots=True)
class Scene:
    """Who knocks; without a key nobody does."""

    key: str = ""
    tenant: Tenant | None = None


class Scenes:
    """Makes the agent of each refusal once, and those that have a rate to use up anew for each door."""

    def __init__(self, gateway: RunningGateway, upstream: Upstream) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self._made: dict[str, Scene] = {}
        self._grants: list[Grant] = []

    async def of(self, name: str) -> Scene:
        """Return the scene that a method of this class is named after."""
        if name not in self._made:
            make: Callable[[], Awaitable[Scene]] = getattr(self, name)
            made = await make()
            if name.startswith("over_"):
                return made
            self._made[name] = made
        return self._made[name]

    def calls(self) -> int:
        """Return how often anybody upstream was called."""
        return len(self.gateway.bill()) + len(self.upstream.bill())

    def close(self) -> None:
        for grant in self._grants:
            self.gateway.built.parts.ledger.void(grant, "not sent")

    async def knock(self, scene: Scene, knock: Knock) -> Answer:
        headers = {**knock.headers, **({"authorization": f"Bearer {scene.key}"} if scene.key else {})}
        url, data = f"{self.gateway.url}{knock.path}", io.BytesIO(knock.body) if knock.body else None
        async with self.gateway.session.request(knock.method, url, data=data, headers=headers) as response:
            return await Answer.of(response)

    async def no_key(self) -> Scene:
        return Scene()

    async def bad_key(self) -> Scene:
        return Scene("cpk_nobodys")

    async def good(self) -> Scene:
        tenant = await self.gateway.mesh.tenant()
        return Scene(tenant.key, tenant)

    async def revoked_key(self) -> Scene:
        tenant = await self.gateway.mesh.tenant()
        with acting(tenant.owner):
            request = keys_pb2.RevokeApiKeyRequest(api_key_id=tenant.key_id, request_id=fresh())
            await call(self.gateway.mesh.keys.RevokeApiKey, request)
        return await self._closed(tenant)

    async def expired_key(self) -> Scene:
        tenant = await self.gateway.mesh.tenant()
        expires = Timestamp()
        expires.FromDatetime(SystemClock().now() + timedelta(seconds=1.5))
        request = keys_pb2.IssueApiKeyRequest(
            agent_id=tenant.family.agent_id, name="short", expire_time=expires, request_id=fresh()
        )
        with acting(tenant.owner):
            issued = await call(self.gateway.mesh.keys.IssueApiKey, request)
        tenant = replace(tenant, key=issued.plaintext)
        assert (await self.gateway.get(LIST, tenant.key)).status == 200
        return await self._closed(tenant)

    async def suspended_agent(self) -> Scene:
        tenant = await self.gateway.mesh.tenant()
        request = directory_pb2.SuspendAgentRequest(agent_id=tenant.family.agent_id, request_id=fresh())
        with acting(tenant.owner):
            await call(self.gateway.mesh.directory.SuspendAgent, request)
        return await self._closed(tenant)

    async def alien_alias(self) -> Scene:
        stranger = await self.gateway.mesh.tenant(0)
        target = routes_pb2.RouteTarget(provider="mock", model="mock-model")
        with acting(stranger.owner):
            request = routes_pb2.CreateRouteRequest(
                organization_id=stranger.family.organization_id, alias=ALIAS, targets=[target], request_id=fresh()
            )
            await call(self.gateway.routes.CreateRoute, request)
        return await self.good()

    async def other_models(self) -> Scene:
        return await self._limited(allowed_models=policies_pb2.ModelList(models=["mock-flat"]))

    async def other_endpoints(self) -> Scene:
        return await self._limited(allowed_endpoints=policies_pb2.NameList())

    async def other_tools(self) -> Scene:
        return await self._limited(allowed_tools=policies_pb2.NameList(names=["read_*"]))

    async def other_providers(self) -> Scene:
        return await self._limited(allowed_providers=policies_pb2.NameList(names=["elsewhere"]))

    async def dear(self) -> Scene:
        return await self._limited(max_cost_micros_per_request=1)

    async def over_requests(self) -> Scene:
        return await self._used_up(await self._limited(requests_per_minute=1))

    async def over_tokens(self) -> Scene:
        return await self._limited(tokens_per_minute=1)

    async def empty_wallet(self) -> Scene:
        tenant = await self.gateway.mesh.tenant(0)
        return Scene(tenant.key, tenant)

    async def exhausted_budget(self) -> Scene:
        return await self._budgeted(auto_disable=False)

    async def disabled_budget(self) -> Scene:
        scene = await self._budgeted(auto_disable=True)
        answer = await self.gateway.ask(scene.key, {"model": "mock-flat", "messages": HELLO})  # all of it
        assert answer.status == 200, answer.body
        return scene

    async def money_in_flight(self) -> Scene:
        tenant = await self.gateway.mesh.tenant(FLAT_MICROS)
        parts = self.gateway.built.parts
        agent = await parts.directory.who(hashlib.sha256(tenant.key.encode()).digest())
        route = Route("mock", "mock-flat")
        place = Place(fresh("req"), agent.id, agent.path_version, agent.api_key_id, (route,), 1, 1, 1, choices=1)
        held = await parts.ledger.hold(place)
        assert isinstance(held, Grant)
        self._grants.append(held)
        return Scene(tenant.key, tenant)

    async def _limited(self, **terms: Any) -> Scene:
        tenant = await self.gateway.mesh.tenant()
        await self.gateway.limit(tenant, tenant.family.agent_id, **terms)
        return Scene(tenant.key, tenant)

    async def _used_up(self, scene: Scene) -> Scene:
        answer = await self.gateway.ask(scene.key, {"model": "mock-model", "messages": HELLO, "max_tokens": 16})
        assert answer.status == 200, answer.body
        return scene

    async def _budgeted(self, *, auto_disable: bool) -> Scene:
        tenant = await self.gateway.mesh.tenant()
        house, address = self.gateway.mesh.house, self.gateway.mesh.ledger.address
        request = budgets_pb2.CreateBudgetRequest(
            target_id=tenant.family.agent_id,
            period=budgets_pb2.PERIOD_TOTAL,
            limit_micros=FLAT_MICROS if auto_disable else 1,
            auto_disable=auto_disable,
            request_id=fresh(),
        )
        async with house.channel("ledger", address, as_service="edge") as channel:
            with acting(tenant.owner):
                await call(budgets_pb2_grpc.BudgetServiceStub(channel).CreateBudget, request)
        return Scene(tenant.key, tenant)

    async def _closed(self, tenant: Tenant) -> Scene:
        """Wait until a key opens nothing any more."""
        async with asyncio.timeout(SEEN_SECONDS_MAX):
            while True:
                if (await self.gateway.get(LIST, tenant.key)).status != 200:
                    return Scene(tenant.key, tenant)
                await asyncio.sleep(0.05)


async def facts_of(gateway: RunningGateway, request_ids: list[str], count: int) -> list[dict[str, Any]]:
    """Return the entries of audit chains about some requests, once they tell of so many and none is on its way."""
    async with asyncio.timeout(20), owner(gateway.mesh.house) as connection:
        while True:
            # The outbox first: what leaves it is in the chain by then, so that nothing is missed in between.
            payloads = await connection.fetch("SELECT payload FROM gateway.audit_outbox")
            waiting = [row for row in payloads for each in request_ids if each.encode() in row["payload"]]
            query = "SELECT line FROM ledger.audit WHERE line::jsonb #>> '{detail,fact,request_id}' = ANY($1)"
            lines = [json.loads(row["line"]) for row in await connection.fetch(query, request_ids)]
            entries = [entry for entry in lines if entry["action"] == "policy.violated"]
            if not waiting and refused_in(entries) >= count:
                return entries
            await asyncio.sleep(0.05)


def refused_in(entries: list[dict[str, Any]]) -> int:
    """Return how many refusals some entries tell of."""
    return sum(entry["detail"]["fact"]["count"] for entry in entries)


@asynccontextmanager
async def scenes_running(gateway: RunningGateway, upstream: Upstream) -> AsyncGenerator[Scenes]:
    scenes = Scenes(gateway, upstream)
    try:
        yield scenes
    finally:
        scenes.close()
