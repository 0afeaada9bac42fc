"""One organization's trouble is nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from ledger_svc import rollups, worker
from ledger_svc.store import charges
from tests.conftest import RunningLedger
from tests.services.jobs_running import becomes
from tests.services.ledger_running import TOKEN_MICROS, Tenant, owner, tenant


@asynccontextmanager
async def refusing(spender: Tenant, table: str) -> AsyncGenerator[None]:
    """Let the database refuse every row that one organization adds to a table."""
    async with owner(spender.ledger.house) as connection:
        await connection.execute(
            "CREATE FUNCTION refuse_row() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '22003'; END $$"
        )
        await connection.execute(
            f"CREATE TRIGGER refused BEFORE INSERT ON {table} FOR EACH ROW "
            f"WHEN (NEW.organization_id = '{spender.organization}') EXECUTE FUNCTION refuse_row()"
        )
        try:
            yield
        finally:
            await connection.execute("DROP FUNCTION refuse_row() CASCADE")


async def test_holds_of_others_become_uncertain_where_one_organizations_cannot(ledger: RunningLedger) -> None:
    stuck, other = await tenant(ledger, 10 * TOKEN_MICROS), await tenant(ledger, 10 * TOKEN_MICROS)
    for spender in (stuck, other):
        await spender.place("a", 2)
        await ledger.database.execute(
            "UPDATE leases SET lapsed_at = clock_timestamp() WHERE holder_id = $1", spender.holder
        )

    async def settled(spender: Tenant) -> bool:
        return await spender.wallet() == (8 * TOKEN_MICROS, 0)

    async with refusing(stuck, "outcomes"):
        sweeping = asyncio.create_task(worker.sweep(ledger.database, 60_000))
        try:
            await becomes(lambda: settled(other))
            assert not sweeping.done()
            assert not await settled(stuck)
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
    assert await charges.mark_uncertain(ledger.database, stuck.organization) == 1
    assert await settled(stuck)


async def test_usage_of_others_is_summed_where_one_organizations_cannot_be(ledger: RunningLedger) -> None:
    stuck, other = await tenant(ledger, 10 * TOKEN_MICROS), await tenant(ledger, 10 * TOKEN_MICROS)
    for spender in (stuck, other):
        await spender.place("a", 2)
        await spender.settle("a", 2)

    async def summed(spender: Tenant) -> bool:
        cursor = "SELECT seq FROM report_cursors WHERE organization_id = $1"
        return bool(await ledger.database.value(cursor, spender.organization))

    async with refusing(stuck, "report_subjects"):
        while await rollups.catch_up(ledger.database):
            pass
        assert await summed(other)
        assert not await summed(stuck)
    await rollups.catch_up(ledger.database)
    assert await summed(stuck)
