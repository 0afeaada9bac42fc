"""What identity takes from an agent, at two busy gateways that can no longer hear of it: what they know expires."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
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
PATIENCE_SECONDS = 30
CALLERS = 3
TRIES = 3  # where the machine stands still, nothing that is known is good for a while
STILL_SECONDS = 0.3
SERVED, UNAVAILABLE = 200, 503


async def revoke(mesh: Mesh, tenant: Tenant) -> None:
    await call(mesh.keys.RevokeApiKey, keys_pb2.RevokeApiKeyRequest(api_key_id=tenant.key_id, request_id=fresh()))


async def suspend(mesh: Mesh, tenant: Tenant) -> None:
    request = directory_pb2.SuspendAgentRequest(agent_id=tenant.family.agent_id, request_id=fresh())
    await call(mesh.directory.SuspendAgent, request)


class Heard:
    """When each request of one gateway was sent, and how it was answered."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, int]] = []

    async def keep_asking(self, gateway: RunningGateway, tenant: Tenant) -> None:
        while True:
            sent_at = time.monotonic()
            self.answers.append((sent_at, (await gateway.ask(tenant, HELLO)).status))
            await asyncio.sleep(0.01)

    def statuses(self, since: float, until: float = float("inf")) -> set[int]:
        return {status for sent_at, status in self.answers if since <= sent_at < until}


@dataclass
class Pulse:
    """How long this process, with all that it serves, stood still at most."""

    longest_seconds: float = 0.0

    async def watch(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.02)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)


async def outlast(
    mesh: Mesh, folder: Path, change: Callable[[Mesh, Tenant], Awaitable[None]], fail: Callable[[Cable], None]
) -> tuple[list[set[int]], list[set[int]], Pulse]:
    """Cut two busy gateways off, take the right away; return what each answered until a second later, and then."""
    tenant, pulse = await mesh.tenant(), Pulse()
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(through(mesh, folder, "identity_address")) for _ in range(2)]
        heard = [Heard() for _ in pairs]
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(mine.keep_asking(gateway, tenant))
                for (_, gateway), mine in zip(pairs, heard, strict=True)
                for _ in range(CALLERS)
            ]
            tasks.append(group.create_task(pulse.watch()))
            await asyncio.sleep(0.5)
            cut_at = time.monotonic()
            for line, _ in pairs:
                fail(line)
            with acting(tenant.owner):
                await change(mesh, tenant)
            over_at = time.monotonic() + EFFECTIVE_SECONDS
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not all(mine.statuses(over_at) for mine in heard):  # noqa: ASYNC110  # tasks of ours ask
                    await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
    return [mine.statuses(cut_at, over_at) for mine in heard], [mine.statuses(over_at) for mine in heard], pulse


@pytest.mark.parametrize("change", [revoke, suspend])
@pytest.mark.parametrize("fail", [Cable.mute, Cable.unplug])
async def test_a_gateway_that_hears_nothing_more_of_identity_admits_nobody_after_a_second(
    mesh: Mesh, tmp_path: Path, change: Callable[[Mesh, Tenant], Awaitable[None]], fail: Callable[[Cable], None]
) -> None:
    for tries_left in reversed(range(TRIES)):
        meanwhile, afterwards, pulse = await outlast(mesh, tmp_path, change, fail)
        assert afterwards == [{UNAVAILABLE}] * 2
        if pulse.longest_seconds < STILL_SECONDS or not tries_left:
            assert all(SERVED in statuses for statuses in meanwhile), "what was known was to be good for a while"
            return
