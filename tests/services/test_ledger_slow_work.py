from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest

from ledger_svc import worker
from ledger_svc.jobs import TableProcess
from ledger_svc.processing import Job
from ledger_svc.store import grants, jobs
from mesh import ids
from mesh.clock import SystemClock, monotonic_ms
from tests.conftest import RunningLedger
from tests.services.jobs_running import QUICK, a_kind, becomes, ends, running
from tests.services.ledger_running import TOKEN_MICROS, Tenant, check_books, owner, tenant


def a_grant(seconds: float) -> grants.NewGrant:
    until = SystemClock().now() + timedelta(seconds=seconds)
    request = ids.new(ids.Kind.REQUEST)
    return grants.NewGrant(
        ids.new(ids.Kind.GRANT), request, 10 * TOKEN_MICROS, 50, until, "promotional", "test"
    )  # fmt: skip


async def test_grants_expire_by_themselves_and_what_holds_cover_follows(ledger: RunningLedger) -> None:
    idle, busy = await tenant(ledger, 0), await tenant(ledger, 0)
    for spender in (idle, busy):
        await grants.make(ledger.database, spender.organization, a_grant(0.5), "test")
    await busy.place("h", 4)
    process = TableProcess(ledger.database)
    async with running(process, worker.handlers(ledger.database)):

        async def expired() -> bool:
            return await idle.wallet() == (0, 0) and await busy.wallet() == (4 * TOKEN_MICROS, 4 * TOKEN_MICROS)

        began_ms = monotonic_ms()
        await becomes(expired)
        assert monotonic_ms() - began_ms < 2_500
        await busy.settle("h", 1)

        async def freed() -> bool:
            return await busy.wallet() == (0, 0)

        await becomes(freed)
    async with owner(ledger.house) as connection:
        await check_books(connection, busy.organization)


async def ruled(ledger: RunningLedger, rule: str, grace: timedelta) -> tuple[Tenant, str]:
    """Return a tenant with a rule, and two holds whose holder lapsed; and how many jobs that made."""
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    insert = "INSERT INTO rules VALUES ($1, 1, 'UTC', $2, '', 'test', 'test', now())"
    await ledger.database.execute(insert, spender.organization, rule)
    await spender.place("a", 1)
    await spender.place("b", 3)
    lapse = "UPDATE leases SET lapsed_at = clock_timestamp() WHERE holder_id = $1"
    await ledger.database.execute(lapse, spender.holder)
    assert await jobs.sweep_uncertain(ledger.database, spender.organization, grace) == 2
    query = "SELECT max(key) FROM jobs WHERE kind = 'holds.resolve' AND key LIKE $1 || '/%'"
    return spender, await ledger.database.value(query, spender.organization) or ""


@pytest.mark.parametrize(("rule", "left"), [("release", 10), ("post", 6)])
async def test_an_organizations_rule_decides_uncertain_holds(ledger: RunningLedger, rule: str, left: int) -> None:
    spender, key = await ruled(ledger, rule, timedelta())
    assert (await spender.wallet())[0] == 6 * TOKEN_MICROS
    handlers = worker.handlers(ledger.database, timedelta())
    async with running(TableProcess(ledger.database, QUICK), {"holds.resolve": handlers["holds.resolve"]}):
        await ends(ledger, Job("holds.resolve", key, {}))
    assert await spender.wallet() == (left * TOKEN_MICROS, 0)
    async with owner(ledger.house) as connection:
        actors = await connection.fetchval(
            "SELECT array_agg(DISTINCT actor) FROM transfers "
            "WHERE organization_id = $1 AND kind IN ('resolve', 'release')",
            spender.organization,
        )
        await check_books(connection, spender.organization)
    assert actors == [f"rule:{rule}"]
    assert await jobs.resolve_by_rule(ledger.database, spender.organization, timedelta()) == (0, False)


async def test_without_a_rule_uncertain_holds_wait_for_somebody(ledger: RunningLedger) -> None:
    spender, key = await ruled(ledger, "list", timedelta())
    assert not key
    assert await jobs.resolve_by_rule(ledger.database, spender.organization, timedelta()) == (0, False)
    assert (await spender.wallet())[0] == 6 * TOKEN_MICROS


async def test_a_gateway_that_comes_back_within_the_grace_settles(ledger: RunningLedger) -> None:
    spender, key = await ruled(ledger, "release", timedelta(minutes=1))
    assert key
    assert await jobs.resolve_by_rule(ledger.database, spender.organization, timedelta(minutes=1)) == (0, True)
    await spender.settle("b", 2)
    assert await jobs.resolve_by_rule(ledger.database, spender.organization, timedelta()) == (1, False)
    assert await spender.wallet() == (8 * TOKEN_MICROS, 0)


async def test_only_leases_that_are_long_over_and_left_nothing_are_forgotten(ledger: RunningLedger) -> None:
    gone, recent, alive, busy = [await tenant(ledger, TOKEN_MICROS) for _ in range(4)]
    await busy.place("h", 1)
    for spender, days in ((gone, 31), (recent, 29), (busy, 31)):
        lapse = "UPDATE leases SET lapsed_at = now() - $2 * interval '1 day' WHERE holder_id = $1"
        await ledger.database.execute(lapse, spender.holder, days)
    assert await jobs.prune_leases(ledger.database) == 1
    kept = "SELECT count(*) FROM leases WHERE holder_id = ANY($1)"
    assert await ledger.database.value(kept, [spender.holder for spender in (recent, alive, busy)]) == 3


async def test_jobs_that_are_done_are_forgotten_and_dead_ones_kept(ledger: RunningLedger) -> None:
    kind = a_kind()
    insert = "INSERT INTO jobs (kind, key, payload, due_at, done_at, dead_at) VALUES ($1, $2, '{}', now(), now() - $3 * interval '1 day', now() - $4 * interval '1 day')"  # noqa: E501
    for key, done, dead in (("old", 8, None), ("new", 6, None), ("dead", None, 400), ("waits", None, None)):
        await ledger.database.execute(insert, kind, key, done, dead)
    assert await jobs.prune_done(ledger.database) == 1
    kept = await ledger.database.rows("SELECT key FROM jobs WHERE kind = $1 ORDER BY key", kind)
    assert [row["key"] for row in kept] == ["dead", "new", "waits"]


async def test_what_stands_is_done_again_and_again(ledger: RunningLedger) -> None:
    process = asyncio.create_task(worker.process(ledger.database, TableProcess(ledger.database, QUICK)))

    async def all_scheduled() -> bool:
        rows = await ledger.database.rows(
            "SELECT 1 FROM jobs WHERE key = 'all' AND due_at > now() + interval '50 minutes' AND claims > 0"
        )
        return len(rows) == 3

    try:
        await becomes(all_scheduled)
    finally:
        process.cancel()
        with suppress(asyncio.CancelledError):
            await process
