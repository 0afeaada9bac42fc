"""What is taken from an agent is taken at both replicas: nothing is admitted a second after the owner was told so."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.journeys.families import Agent, Family, family
from tests.journeys.running import Mesh

CALLERS_EACH = 6
EFFECTIVE_SECONDS = 1.0
WATCHED_SECONDS = 1.5  # after the mutation
BODY: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 16}

pytestmark = [pytest.mark.journey, pytest.mark.timeout(120)]

Change = Callable[[Family], object]


@dataclass
class Load:
    """Callers of one agent, each on a new connection every time, and what they heard."""

    url: str
    agent: Agent
    heard: list[tuple[str, str, str]] = field(default_factory=list)  # request id, status and code, instance

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Ask for ever."""
        headers = {"authorization": f"Bearer {self.agent.key}"}
        while True:
            async with session.post(self.url, json=BODY, headers=headers) as response:
                document = await response.json()
            code = f" {document['error']['code']}" if response.status != 200 else ""
            instance = response.headers["x-mandate-instance"]
            self.heard.append((response.headers["x-request-id"], f"{response.status}{code}", instance))

    def served(self) -> set[str]:
        return {request_id for request_id, told, _ in self.heard if told == "200"}


@asynccontextmanager
async def loaded(*loads: Load) -> AsyncGenerator[None]:
    """Keep all of them asking inside the block."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
        tasks = [asyncio.create_task(load.run(session)) for load in loads for _ in range(CALLERS_EACH)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended


def revoke(made: Family) -> None:
    values = {"id": made.tenant.api_key_id, "idempotencyKey": uuid.uuid4().hex}
    made.mesh.mutate("revokeApiKey", "RevokeApiKeyInput", values, "apiKey { revokeTime }", made.tenant.token)


def suspend(made: Family) -> None:
    values = {"id": made.tenant.agent_id, "idempotencyKey": uuid.uuid4().hex}
    made.mesh.mutate("suspendAgent", "AgentInput", values, "agent { state }", made.tenant.token)


def forbid(made: Family) -> None:
    values = {"target": {"agentId": made.tenant.agent_id}, "name": "none", "allowedModels": ["mock-flat"]}
    made.mesh.mutate("createPolicy", "CreatePolicyInput", values, "policy { id }", made.tenant.token)


def disable(made: Family) -> None:
    made.budget("agentId", made.tenant.agent_id, 1, autoDisable=True)  # the next request hits it, and all after it


def billed_at(mesh: Mesh, request_ids: set[str]) -> list[float]:
    lines = [json.loads(line) for line in Path(mesh.extra["MANDATE_MOCK_BILL_FILE"]).read_text().splitlines()]
    mine = [line for line in lines if line["request_id"] in request_ids]
    return [datetime.fromisoformat(line["time"]).timestamp() for line in mine]


@pytest.mark.parametrize(
    ("change", "refusals"),
    [
        pytest.param(revoke, {"401 invalid_api_key"}, id="key"),
        pytest.param(suspend, {"403 agent_suspended"}, id="agent"),
        pytest.param(forbid, {"403 model_not_allowed"}, id="policy"),
        pytest.param(disable, {"402 insufficient_quota", "402 budget_disabled"}, id="budget"),
    ],
)
async def test_what_is_taken_from_an_agent_is_gone_at_both_replicas_within_a_second(
    mesh: Mesh, change: Change, refusals: set[str], record_property: Callable[[str, object], None]
) -> None:
    made = await asyncio.to_thread(family, mesh, 10**12)
    url = f"{mesh.gateway_url}/v1/chat/completions"
    load, neighbour = Load(url, made.agents[0]), Load(url, made.agents[1])
    async with loaded(load, neighbour):
        await asyncio.sleep(1)
        await asyncio.to_thread(change, made)
        returned_at, before = time.time(), len(load.heard)
        await asyncio.sleep(WATCHED_SECONDS)

    after = load.heard[before + CALLERS_EACH * 2 :]
    assert {instance for *_, instance in load.heard[:before]} == {"gateway-0", "gateway-1"}
    assert {instance for *_, instance in after} == {"gateway-0", "gateway-1"}, "nobody asked one of them any more"
    lag_seconds = max(billed_at(mesh, {request_id for request_id, *_ in load.heard})) - returned_at
    record_property("lag_seconds", lag_seconds)
    assert lag_seconds <= EFFECTIVE_SECONDS
    told = Counter(told for _, told, _ in load.heard)
    assert set(told) <= {"200"} | refusals
    assert set(told) & refusals
    assert {told for _, told, _ in neighbour.heard} == {"200"}
    assert len(billed_at(mesh, load.served())) == len(load.served())
