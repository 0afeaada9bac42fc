"""Refusals on record: how many facts and commits they take, and who waits for whom."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import asyncpg
import pytest

from gateway_svc import violations
from gateway_svc.violations import Violation, Violations
from mandate.ledger.v1 import audit_pb2
from mesh import db, ids
from mesh.clock import monotonic_ms
from mesh.db import Database
from mesh.errors import MeshError
from mesh.testing import House
from tests.services.identity_running import fresh


@pytest.fixture
async def database(house: House) -> AsyncIterator[Database]:
    async with db.connect(house.dsn("gateway"), service="gateway") as opened:
        yield opened


@pytest.fixture
async def recorded(database: Database) -> AsyncIterator[Violations]:
    made = Violations(database)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


def violation(organization_id: str, **more: str) -> Violation:
    usual = {"agent_id": f"agt_of_{organization_id}", "reason": "RATE_LIMIT_EXCEEDED", **more}
    request_id = ids.new(ids.Kind.REQUEST)
    return Violation(organization_id, api_key_id="key_1", request_id=request_id, endpoint="chat", limit="", **usual)


async def facts(database: Database, organization_id: str) -> list[dict[str, Any]]:
    """Return the details of an organization's facts that have not been delivered; nothing delivers them here."""
    rows = await database.rows("SELECT payload FROM audit_outbox ORDER BY id")
    found = [audit_pb2.AuditFact.FromString(row["payload"]) for row in rows]
    return [json.loads(fact.detail) for fact in found if fact.organization_id == organization_id]


async def test_each_of_a_few_refusals_is_a_fact_of_its_own_at_once(recorded: Violations, database: Database) -> None:
    organization = fresh("org")
    refusals = [violation(organization) for _ in range(violations.AT_ONCE)]
    started_ms = monotonic_ms()
    await recorded.record(refusals[0])
    await asyncio.gather(*(recorded.record(refusal) for refusal in refusals[1:]))
    assert monotonic_ms() - started_ms < violations.EACH_MS
    found = await facts(database, organization)
    assert [fact["request_id"] for fact in found] == [refusal.request_id for refusal in refusals]
    assert [fact["count"] for fact in found] == [1] * violations.AT_ONCE


async def test_an_agent_that_hammers_gets_a_fact_a_second_that_counts_all(
    recorded: Violations, database: Database
) -> None:
    organization, told = fresh("org"), 0

    async def hammer() -> None:
        nonlocal told
        while monotonic_ms() < until_ms:
            await recorded.record(violation(organization))
            told += 1

    until_ms = monotonic_ms() + 2_500
    await asyncio.gather(*(hammer() for _ in range(50)))
    found = await facts(database, organization)
    assert sum(fact["count"] for fact in found) == told
    assert len(found) <= violations.AT_ONCE + 4


async def test_refusals_that_differ_share_the_moment_and_not_the_fact(recorded: Violations, database: Database) -> None:
    organization = fresh("org")
    for _ in range(violations.AT_ONCE):
        await recorded.record(violation(organization))
    started_ms = monotonic_ms()
    kinds = [f"requests per minute of {number}" for number in range(20)]
    alike = [
        Violation(organization, "agt_of_" + organization, "key_1", "req", "chat", "RATE_LIMIT_EXCEEDED", limit)
        for limit in kinds
    ]
    await asyncio.gather(*(recorded.record(each) for each in alike))
    assert monotonic_ms() - started_ms < 2 * violations.EACH_MS
    assert sorted(fact["limit"] for fact in await facts(database, organization)) == sorted([""] * 10 + kinds)


async def test_an_organization_whose_facts_are_locked_holds_no_other_up(
    recorded: Violations, database: Database, house: House
) -> None:
    locked, free = fresh("org"), fresh("org")
    await recorded.record(violation(locked))
    other = await asyncpg.connect(house.dsn("gateway").reveal())
    async with other.transaction():
        await other.execute("SELECT 1 FROM audit_counts WHERE organization_id = $1 FOR UPDATE", locked)
        waiting: list[asyncio.Task[None]] = []
        for number in range(2 * violations.WRITERS):
            waiting.append(asyncio.create_task(recorded.record(violation(locked, agent_id=f"agt_{number}"))))
            await asyncio.sleep(0.02)
        async with asyncio.timeout(2):
            await recorded.record(violation(free))
        assert not any(task.done() for task in waiting)
    await asyncio.gather(*waiting)
    await other.close()
    assert len(await facts(database, locked)) == 1 + 2 * violations.WRITERS


async def test_an_organization_that_floods_leaves_others_room_to_wait(database: Database) -> None:
    still = Violations(database)  # it writes nothing
    flood = [asyncio.create_task(still.record(violation("org_a"))) for _ in range(violations.WAITING_MAX)]
    await asyncio.sleep(0)
    other = asyncio.create_task(still.record(violation("org_b")))
    await asyncio.sleep(0)
    assert not other.done()
    shed = [task for task in flood if task.done()]
    assert len(shed) == violations.WAITING_MAX // 4
    with pytest.raises(MeshError, match="too many requests are refused"):
        await shed[0]
    for task in (*flood, other):
        task.cancel()
    await asyncio.gather(*flood, other, return_exceptions=True)


async def test_a_refusal_that_can_not_be_written_says_so_to_all_who_wait(house: House) -> None:
    async with db.connect(house.dsn("gateway"), service="gateway") as opened:
        made = Violations(opened)
        waiting = [asyncio.create_task(made.record(violation("org_c"))) for _ in range(3)]
        await asyncio.sleep(0)
    running = asyncio.create_task(made.run())
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    running.cancel()
    assert all(isinstance(outcome, MeshError) for outcome in outcomes)


async def test_a_refusal_that_the_database_refuses_says_so_and_the_next_one_is_written(
    recorded: Violations, database: Database, house: House
) -> None:
    organization, owner = fresh("org"), await asyncpg.connect(house.owner_dsn.reveal())
    check = f"CHECK (position('{organization}' in encode(payload, 'escape')) = 0) NOT VALID"
    await owner.execute(f"ALTER TABLE gateway.audit_outbox ADD CONSTRAINT broken {check}")
    try:
        with pytest.raises(MeshError, match="be put on record"):
            await recorded.record(violation(organization))
    finally:
        await owner.execute("ALTER TABLE gateway.audit_outbox DROP CONSTRAINT broken")
        await owner.close()
    await recorded.record(violation(organization))
    assert len(await facts(database, organization)) == 1
