from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from ledger_svc import worker
from ledger_svc.holds import Ended, Granted, Lapsed, Refusal, Refused, Settled, Voided
from ledger_svc.store import charges
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, check_books, owner, tenant


async def silent(spender: Tenant) -> None:
    """Let the holder have been silent for an hour, and lapse."""
    database = spender.ledger.database
    await database.execute(
        "UPDATE leases SET beat_at = beat_at - interval '1 hour' WHERE holder_id = $1", spender.holder
    )
    assert spender.organization in await charges.lapse_holders(database, 1_800_000)
    await charges.mark_uncertain(database, spender.organization)


async def phases(spender: Tenant, key: str) -> list[str]:
    rows = await spender.ledger.database.rows(
        "SELECT phase FROM ends WHERE organization_id = $1 AND request_id = $2", spender.organization, key
    )
    return sorted(row["phase"] for row in rows)


@asynccontextmanager
async def sweeping(spender: Tenant, lease_ms: int) -> AsyncGenerator[None]:
    task = asyncio.create_task(worker.sweep(spender.ledger.database, lease_ms))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def becomes(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():  # noqa: ASYNC110  # it is a database that is asked
            await asyncio.sleep(0.05)


async def test_a_silent_holder_lapses_and_one_that_beats_lives(ledger: RunningLedger) -> None:
    quiet = await tenant(ledger, 10 * TOKEN_MICROS)
    lively = await tenant(ledger, 10 * TOKEN_MICROS)
    budget = await quiet.budget(10 * TOKEN_MICROS)
    await quiet.place("q", 4)
    await lively.place("l", 4)

    async def uncertain() -> bool:
        assert await charges.renew_lease(ledger.database, lively.holder)
        return await phases(quiet, "q") == ["uncertain"]

    async with sweeping(quiet, 1_500):
        await becomes(uncertain)
    assert await phases(lively, "l") == []
    assert await quiet.wallet() == (6 * TOKEN_MICROS, 0)
    assert await quiet.spent(budget) == (4 * TOKEN_MICROS, 0, False)
    assert not await charges.renew_lease(ledger.database, quiet.holder)
    assert not await charges.open_lease(ledger.database, quiet.holder)


async def test_a_start_of_the_ledger_forgives_silence_that_it_could_not_have_heard(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("a", 4)
    await ledger.database.execute(
        "UPDATE leases SET beat_at = beat_at - interval '1 hour' WHERE holder_id = $1", spender.holder
    )
    async with sweeping(spender, 60_000):
        await asyncio.sleep(0.3)
    assert await phases(spender, "a") == []
    assert await charges.renew_lease(ledger.database, spender.holder)


async def test_a_ledger_that_was_paused_blames_no_holder_for_it(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("a", 4)
    async with sweeping(spender, 2_000):
        await asyncio.sleep(0.2)
        time.sleep(2.5)  # noqa: ASYNC251  # nothing of this process runs
        await asyncio.sleep(0.2)
    assert await phases(spender, "a") == []
    assert await charges.renew_lease(ledger.database, spender.holder)


async def test_every_hold_of_a_lapsed_holder_becomes_uncertain_however_many(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 2_000 * TOKEN_MICROS)
    await asyncio.gather(*(spender.place(f"h{number}", 1) for number in range(1_100)))
    await ledger.database.execute("UPDATE leases SET lapsed_at = now() WHERE holder_id = $1", spender.holder)

    async def none_open() -> bool:
        count = "SELECT count(*) FROM open_holds WHERE organization_id = $1"
        return await ledger.database.value(count, spender.organization) == 0

    async with sweeping(spender, 60_000):
        await asyncio.sleep(0)
        await becomes(none_open)
    assert await spender.wallet() == (900 * TOKEN_MICROS, 0)


async def test_a_late_settlement_replaces_uncertain_once(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    budget = await spender.budget(10 * TOKEN_MICROS)
    await spender.place("a", 4)
    await silent(spender)
    assert await spender.settle("a", 3) == Settled(3 * TOKEN_MICROS, 7 * TOKEN_MICROS, 0, replayed=False)
    assert await spender.settle("a", 3) == Settled(3 * TOKEN_MICROS, 7 * TOKEN_MICROS, 0, replayed=True)
    assert await spender.spent(budget) == (3 * TOKEN_MICROS, 0, False)
    assert await phases(spender, "a") == ["settled", "uncertain"]
    assert await spender.void("a") == Ended("settled")
    async with owner(ledger.house) as connection:
        await check_books(connection, spender.organization)


async def test_a_late_void_gives_everything_back_once(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("a", 4)
    await silent(spender)
    assert await spender.void("a") == Voided(replayed=False)
    assert await spender.void("a") == Voided(replayed=True)
    assert await spender.settle("a", 3) == Ended("voided")
    assert await spender.wallet() == (10 * TOKEN_MICROS, 0)
    async with owner(ledger.house) as connection:
        await check_books(connection, spender.organization)


async def test_a_lapsed_holder_places_nothing_and_another_goes_on(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("a", 4)
    await silent(spender)
    assert await spender.place("b", 1) == Lapsed()
    other = await spender.again()
    assert await other.place("b", 1) == Granted(1, TOKEN_MICROS, replayed=False)


async def test_a_void_of_a_key_never_placed_closes_it(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    assert await spender.void("a") == Voided(replayed=False)
    assert await spender.void("a") == Voided(replayed=True)
    assert await spender.place("a", 1) == Refused(Refusal.VOIDED, "", "", 0, replayed=True)
    assert await spender.wallet() == (10 * TOKEN_MICROS, 0)


async def test_marking_twice_changes_nothing(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("a", 4)
    await silent(spender)
    assert await charges.mark_uncertain(ledger.database, spender.organization) == 0
    assert await spender.wallet() == (6 * TOKEN_MICROS, 0)
