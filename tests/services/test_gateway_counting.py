from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway_svc.admission import COUNTS_PER_MINUTE_AGENT as PER_MINUTE
from gateway_svc.admission import COUNTS_PER_MINUTE_ORGANIZATION
from gateway_svc.policies import Rate
from mandate.vault.v1 import credentials_pb2
from mesh.caller import acting
from mesh.client import call
from mesh.clock import monotonic_ms
from mesh.secret import Secret
from tests.services.gateway_running import Mesh, RunningGateway, Tenant, Upstream, gateway_running
from tests.services.identity_running import fresh

MORE = 10
ASK: dict[str, Any] = {"model": "claude-sonnet-5-5", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
PATH = "/v1/messages/count_tokens"


@pytest.fixture(scope="module")
async def gateway(
    mesh: Mesh, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningGateway]:
    settings: dict[str, Any] = {"anthropic_api_key": Secret("sk-ant-0"), "anthropic_base_url": upstream.url}
    async with gateway_running(mesh, tmp_path_factory.mktemp("gateway"), **settings) as running:
        yield running


async def counted(gateway: RunningGateway, tenant: Tenant, model: str) -> Counter[int]:
    asking = (gateway.ask(tenant, {**ASK, "model": model}, PATH) for _ in range(PER_MINUTE + MORE))
    return Counter([answer.status for answer in await asyncio.gather(*asking)])


async def test_an_agent_without_money_counts_with_the_platforms_key_so_often_and_no_more(
    gateway: RunningGateway,
) -> None:
    poor = await gateway.mesh.tenant(0)
    started_ms = monotonic_ms()
    found = await counted(gateway, poor, ASK["model"])
    leaked = int((monotonic_ms() - started_ms) * PER_MINUTE / 60_000) + 1
    assert found.keys() == {200, 429}
    assert PER_MINUTE <= found[200] <= PER_MINUTE + leaked
    refused = await gateway.ask(poor, ASK, PATH)
    assert (refused.status, refused.headers["anthropic-ratelimit-requests-limit"]) == (429, str(PER_MINUTE))
    answer = await gateway.ask(await poor.another_agent(), ASK, PATH)
    assert answer.status == 200, answer.body


async def test_many_agents_together_count_no_more_than_their_organization_may(gateway: RunningGateway) -> None:
    tenant = await gateway.mesh.tenant(0)
    organization_id = tenant.family.organization_id
    whole = [Rate(f"counting:{organization_id}", COUNTS_PER_MINUTE_ORGANIZATION, None)]
    takes = (gateway.built.parts.rates.take(organization_id, whole, 0) for _ in range(COUNTS_PER_MINUTE_ORGANIZATION))
    await asyncio.gather(*takes)
    asking = (gateway.ask(tenant, ASK, PATH) for _ in range(PER_MINUTE - 1))  # as many as the agent itself may
    assert 429 in {answer.status for answer in await asyncio.gather(*asking)}


async def test_with_a_key_of_its_own_or_none_needed_an_organization_counts_as_its_policies_let_it(
    gateway: RunningGateway,
) -> None:
    tenant = await gateway.mesh.tenant(0)
    with acting(tenant.owner):
        request = credentials_pb2.AddCredentialRequest(
            organization_id=tenant.family.organization_id,
            provider="anthropic",
            secret=f"sk-own-{fresh()}",
            label="ours",
            request_id=fresh(),
        )
        await call(gateway.mesh.credentials.AddCredential, request)
    assert await counted(gateway, tenant, ASK["model"]) == {200: PER_MINUTE + MORE}
    assert await counted(gateway, tenant, "mock-model") == {200: PER_MINUTE + MORE}
