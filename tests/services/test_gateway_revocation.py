"""What identity takes from an agent, at two busy gateways that can no longer hear of it: what they know expires."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from mandate.identity.v1 import directory_pb2, keys_pb2
from mesh.caller import acting
from mesh.client import call
from tests.fakes.cable import Cable
from tests.services.gateway_running import Mesh, RunningGateway, Tenant
from tests.services.identity_running import fresh
from tests.services.test_gateway_outages import through

HELLO: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "Hello, mock"}]}
EFFECTIVE_SECONDS = 1.0
WATCHED_SECONDS = 1.5
CALLERS = 3


async def revoke(mesh: Mesh, tenant: Tenant) -> None:
    await call(mesh.keys.RevokeApiKey, keys_pb2.RevokeApiKeyRequest(api_key_id=tenant.key_id, request_id=fresh()))


async def suspend(mesh: Mesh, tenant: Tenant) -> None:
    request = directory_pb2.SuspendAgentRequest(agent_id=tenant.family.agent_id, request_id=fresh())
    await call(mesh.directory.SuspendAgent, request)


async def keep_asking(gateway: RunningGateway, tenant: Tenant, heard: list[int]) -> None:
    while True:
        heard.append((await gateway.ask(tenant, HELLO)).status)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("change", [revoke, suspend])
@pytest.mark.parametrize("fail", [Cable.mute, Cable.unplug])
async def test_a_gateway_that_hears_nothing_more_of_identity_admits_nobody_after_a_second(
    mesh: Mesh, tmp_path: Path, change: Callable[[Mesh, Tenant], Awaitable[None]], fail: Callable[[Cable], None]
) -> None:
    tenant = await mesh.tenant()
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(through(mesh, tmp_path, "identity_address")) for _ in range(2)]
        heard: list[list[int]] = [[], []]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(keep_asking(gateway, tenant, mine))
                for (_, gateway), mine in zip(pairs, heard, strict=True)
                for _ in range(CALLERS)
            ]
            await asyncio.sleep(0.5)
            cut_at = time.time()
            for line, _ in pairs:
                fail(line)
            with acting(tenant.owner):
                await change(mesh, tenant)
            returned_at = time.time()
            await asyncio.sleep(WATCHED_SECONDS)
            for task in tasks:
                task.cancel()
            for line, _ in pairs:
                line.cut()  # what waits for an answer hears that there is none
        for (_, gateway), mine in zip(pairs, heard, strict=True):
            last_at = max(datetime.fromisoformat(bill["time"]).timestamp() for bill in gateway.bill())
            assert cut_at < last_at <= returned_at + EFFECTIVE_SECONDS
            assert set(mine) <= {200, 503}
