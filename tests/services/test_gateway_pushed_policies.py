"""Policies' changes at gateways that are busy, and at one that PostgreSQL is taken from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from google.protobuf.field_mask_pb2 import FieldMask

from mandate.gateway.v1 import policies_pb2 as pb
from mesh.caller import acting
from mesh.client import call
from mesh.secret import Secret
from tests.fakes.cable import Cable, cable
from tests.services.gateway_running import Answer, Mesh, RunningGateway, Tenant, gateway_running
from tests.services.identity_running import fresh

HELLO: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "Hello, mock"}]}
EFFECTIVE_SECONDS = 1.0
ANSWERS_MIN = 5
PAUSE_SECONDS = 0.005
ALLOWED, REFUSED, UNAVAILABLE = 200, 403, 503


class Load:
    """Somebody who keeps asking, and when each request was sent and how it was answered."""

    def __init__(self, gateway: RunningGateway, tenant: Tenant) -> None:
        self._gateway = gateway
        self._tenant = tenant
        self.answers: list[tuple[float, int]] = []

    async def run(self) -> None:
        while True:
            sent = time.monotonic()
            answer = await self._gateway.ask(self._tenant, HELLO)
            self.answers.append((sent, answer.status))
            await asyncio.sleep(PAUSE_SECONDS)

    async def answered_since(self, sent_at: float) -> set[int]:
        """Wait for requests sent after a moment, and return what they were answered with."""
        async with asyncio.timeout(10):
            while True:
                statuses = [status for sent, status in self.answers if sent >= sent_at]
                if len(statuses) >= ANSWERS_MIN:
                    return set(statuses)
                await asyncio.sleep(PAUSE_SECONDS)


def none_at_all() -> pb.ModelList:
    return pb.ModelList()


async def test_changes_are_effective_at_two_busy_gateways_within_a_second(mesh: Mesh, tmp_path: Path) -> None:
    tenant, neighbour = await mesh.tenant(), await mesh.tenant()
    async with gateway_running(mesh, tmp_path) as one, gateway_running(mesh, tmp_path) as two:
        made: pb.Policy = pb.Policy()

        async def create() -> None:
            made.CopyFrom(await one.limit(tenant, tenant.family.agent_group_id, allowed_models=none_at_all()))

        async def update() -> None:
            wanted = pb.Policy(id=made.id, allowed_models=pb.ModelList(models=["*-model"]))
            mask = FieldMask(paths=["allowed_models"])
            request = pb.UpdatePolicyRequest(policy=wanted, update_mask=mask, request_id=fresh())
            await call(one.policies.UpdatePolicy, request)

        async def narrow() -> None:
            wanted = pb.Policy(id=made.id, allowed_models=pb.ModelList(models=["*-flat"]))
            mask = FieldMask(paths=["allowed_models"])
            request = pb.UpdatePolicyRequest(policy=wanted, update_mask=mask, request_id=fresh())
            await call(two.policies.UpdatePolicy, request)

        async def remove() -> None:
            await call(one.policies.RemovePolicy, pb.RemovePolicyRequest(policy_id=made.id, request_id=fresh()))

        steps: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (create, REFUSED),
            (update, ALLOWED),
            (narrow, REFUSED),
            (remove, ALLOWED),
        ]
        loads = [Load(gateway, agent) for gateway in (one, two) for agent in (tenant, tenant, neighbour)]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(load.run()) for load in loads]
            await asyncio.sleep(0.3)
            for step, expected in steps:
                with acting(tenant.owner):
                    await step()
                committed = time.monotonic()
                for load in (loads[0], loads[1], loads[3], loads[4]):
                    assert await load.answered_since(committed + EFFECTIVE_SECONDS) == {expected}
            for task in tasks:
                task.cancel()
        assert {status for load in (loads[2], loads[5]) for _, status in load.answers} == {ALLOWED}


async def served(gateway: RunningGateway, tenant: Tenant) -> Answer:
    async with asyncio.timeout(10):
        while True:
            answer = await gateway.ask(tenant, HELLO)
            if answer.status != UNAVAILABLE:
                return answer
            await asyncio.sleep(PAUSE_SECONDS)


def through(line: Cable, dsn: Secret) -> Secret:
    parts = urlsplit(dsn.reveal())
    return Secret(urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{line.address}")))


async def test_without_postgresql_no_agent_is_allowed_anything_after_a_second(mesh: Mesh, tmp_path: Path) -> None:
    tenant, unseen = await mesh.tenant(), await mesh.tenant()
    dsn = mesh.house.dsn("gateway")
    async with (
        gateway_running(mesh, tmp_path) as well,
        cable(urlsplit(dsn.reveal()).netloc.rpartition("@")[2]) as line,
        gateway_running(mesh, tmp_path, database_url=through(line, dsn)) as gateway,
    ):
        assert (await gateway.ask(tenant, HELLO)).status == ALLOWED
        line.unplug()
        answer = await gateway.ask(unseen, HELLO)
        assert (answer.status, answer.code) == (UNAVAILABLE, "database_unavailable")
        await well.limit(tenant, tenant.family.agent_id, allowed_models=none_at_all())
        await asyncio.sleep(EFFECTIVE_SECONDS)
        answer = await gateway.ask(tenant, HELLO)
        assert (answer.status, answer.code) == (UNAVAILABLE, "database_unavailable")
        ready = await gateway.get("/health/ready")
        assert (ready.status, ready.json["checks"]["policies"]) == (UNAVAILABLE, "down")
        line.plug()
        answer = await served(gateway, tenant)
        assert (answer.status, answer.code) == (REFUSED, "model_not_allowed")


async def test_a_postgresql_that_answers_nothing_is_no_policy_either(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant()
    dsn = mesh.house.dsn("gateway")
    async with (
        cable(urlsplit(dsn.reveal()).netloc.rpartition("@")[2]) as line,
        gateway_running(mesh, tmp_path, database_url=through(line, dsn)) as gateway,
    ):
        assert (await gateway.ask(tenant, HELLO)).status == ALLOWED
        line.mute()
        await asyncio.sleep(EFFECTIVE_SECONDS)
        async with asyncio.timeout(10):
            answer = await gateway.ask(tenant, HELLO)
        assert (answer.status, answer.code) == (UNAVAILABLE, "database_unavailable")
        line.cut()
