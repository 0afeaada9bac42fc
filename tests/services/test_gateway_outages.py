from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway_svc.holds import Grant, Place, Route
from ledger_svc.keys import LedgerKeys
from ledger_svc.store import charges
from mesh import ids
from tests.fakes.cable import Cable, cable
from tests.services.gateway_running import Mesh, RunningGateway, Tenant, gateway_running

HELLO: dict[str, Any] = {"model": "mock-model", "messages": [{"role": "user", "content": "Hello, mock"}]}
FLAT: dict[str, Any] = {**HELLO, "model": "mock-flat"}
CREDIT = 1_000_000


@asynccontextmanager
async def through(mesh: Mesh, folder: Path, address: str) -> AsyncGenerator[tuple[Cable, RunningGateway]]:
    """Run a gateway that reaches one of its services through a cable."""
    async with cable(getattr(mesh.runtime, address)) as line:
        runtime = dataclasses.replace(mesh.runtime, **{address: line.address})
        async with gateway_running(dataclasses.replace(mesh, runtime=runtime), folder) as gateway:
            yield line, gateway


async def recovered(gateway: RunningGateway, tenant: Tenant) -> None:
    for _ in range(200):
        if (await gateway.ask(tenant, FLAT)).status == 200:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the gateway did not recover")


async def test_without_the_ledger_nothing_is_served_and_nothing_lost(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant(100 * CREDIT)
    async with through(mesh, tmp_path, "ledger_address") as (line, gateway):
        assert (await gateway.ask(tenant, FLAT)).status == 200
        line.unplug()
        await asyncio.sleep(3.2)  # past the lease
        called = len(gateway.bill())
        answer = await gateway.ask(tenant, FLAT)
        assert (answer.status, answer.code) == (503, "accounting_unavailable")
        assert "ledger" in (await gateway.get("/health/ready")).body.decode()
        assert len(gateway.bill()) == called
        line.plug()
        await recovered(gateway, tenant)
        await tenant.has_in_wallet(98 * CREDIT)


async def test_a_broken_stream_charges_each_completion_once(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant(1_000 * CREDIT)
    async with through(mesh, tmp_path, "ledger_address") as (line, gateway):
        asking = [
            asyncio.ensure_future(gateway.ask(tenant, FLAT, x_mock=f"latency_ms={number * 7}")) for number in range(60)
        ]
        await _break_again_and_again(line, times=8)
        answers = await asyncio.gather(*asking)
        called = len(gateway.bill())
        assert sum(answer.status == 200 for answer in answers) == called == 60
    await tenant.has_in_wallet((1_000 - called) * CREDIT)


async def test_a_completion_that_ends_while_the_ledger_is_away_is_charged_when_it_is_back(
    mesh: Mesh, tmp_path: Path
) -> None:
    tenant = await mesh.tenant(100 * CREDIT)
    async with through(mesh, tmp_path, "ledger_address") as (line, gateway):
        asking = asyncio.ensure_future(gateway.ask(tenant, FLAT, x_mock="latency_ms=400"))
        await asyncio.sleep(0.2)
        line.unplug()
        await asyncio.sleep(1)
        assert not asking.done()
        line.plug()
        assert (await asking).status == 200
    await tenant.has_in_wallet(99 * CREDIT)


async def test_a_request_that_is_given_up_while_its_hold_is_asked_for_takes_no_tokens_of_a_minute(
    mesh: Mesh, tmp_path: Path
) -> None:
    tenant, other = [await mesh.tenant(100 * CREDIT) for _ in range(2)]
    async with through(mesh, tmp_path, "ledger_address") as (line, gateway):
        await gateway.limit(tenant, tenant.family.agent_id, tokens_per_minute=1_000)
        await asyncio.sleep(0.6)
        line.mute()
        asking = asyncio.ensure_future(gateway.ask(tenant, {**HELLO, "max_tokens": 900}))
        await asyncio.sleep(0.5)
        answering = [task for task in asyncio.all_tasks() if "Connection._answer" in repr(task)]
        for task in answering:  # as a drain does to what is late
            task.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert (len(answering), isinstance(asking.exception(), aiohttp.ClientError)) == (1, True)
        line.cut()
        await recovered(gateway, other)
        assert (await gateway.ask(tenant, {**HELLO, "max_tokens": 900})).status == 200


async def test_without_identity_a_known_key_is_good_for_under_a_second(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant(100 * CREDIT)
    async with through(mesh, tmp_path, "identity_address") as (line, gateway):
        assert (await gateway.ask(tenant, FLAT)).status == 200
        line.unplug()
        await asyncio.sleep(0.8)
        answer = await gateway.ask(tenant, FLAT)
        assert (answer.status, answer.code) == (503, "identity_unavailable")
        line.plug()
        await recovered(gateway, tenant)


async def test_a_ledger_that_restarts_is_found_again(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant(100 * CREDIT)
    ledger = mesh.ledger
    parts = ("ledger", ledger.ledger.registrations(), LedgerKeys(ledger.database), ledger.ledger.resolve)
    async with through(mesh, tmp_path, "ledger_address") as (line, gateway):
        async with mesh.house.serving(*parts) as first:
            line.lead_to(first)
            line.cut()
            await recovered(gateway, tenant)
        async with mesh.house.serving(*parts) as second:  # the first has cancelled its streams
            line.lead_to(second)
            await recovered(gateway, tenant)


async def test_a_gateway_that_lapsed_goes_on_as_another_holder(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant(100 * CREDIT)
    async with gateway_running(mesh, tmp_path) as gateway:
        asking = asyncio.ensure_future(gateway.ask(tenant, FLAT, x_mock="latency_ms=1500"))
        await asyncio.sleep(0.3)
        for organization_id in await charges.lapse_holders(mesh.ledger.database, 0):
            await charges.mark_uncertain(mesh.ledger.database, organization_id)
        await recovered(gateway, tenant)
        assert (await asking).status == 200  # it was dispatched before, and its settle replaces what was uncertain
        called = len(gateway.bill())
    await tenant.has_in_wallet((100 - called) * CREDIT)


async def test_a_hold_of_a_holder_that_lapsed_is_not_dispatched(mesh: Mesh, tmp_path: Path) -> None:
    tenant = await mesh.tenant(100 * CREDIT)
    async with gateway_running(mesh, tmp_path) as gateway:
        agent = await gateway.built.parts.directory.who(hashlib.sha256(tenant.key.encode()).digest())
        place = Place(
            request_id=ids.new(ids.Kind.REQUEST),
            agent_id=agent.id,
            path_version=agent.path_version,
            api_key_id=agent.api_key_id,
            routes=(Route("mock", "mock-flat"),),
            input_tokens_max=1,
            output_tokens_wanted=1,
            output_tokens_min=1,
            choices=1,
        )
        grant = await gateway.built.parts.ledger.hold(place)
        assert isinstance(grant, Grant)
        assert gateway.built.parts.ledger.may_dispatch(grant)
        await charges.lapse_holders(mesh.ledger.database, 0)
        await recovered(gateway, tenant)
        assert not gateway.built.parts.ledger.may_dispatch(grant)


async def _break_again_and_again(line: Cable, times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0.08)
        line.cut()
