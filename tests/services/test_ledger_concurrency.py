from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic

import pytest

from ledger_svc.holds import Granted, Placed, Refusal, Refused
from tests.conftest import RunningLedger
from tests.services.ledger_running import FLAT_MICROS, TOKEN_MICROS, check_books, owner, replica, tenant


async def test_thirty_two_spenders_over_two_replicas_spend_a_wallet_exactly(ledger: RunningLedger) -> None:
    async with replica(ledger.house) as one, replica(ledger.house) as two:
        first = await tenant(ledger, 137 * FLAT_MICROS)
        spenders = [replace(first, commits=(one, two)[number % 2]) for number in range(32)]

        async def spend(number: int) -> int:
            granted = 0
            for turn in range(6):
                key = f"{number}.{turn}"
                if isinstance(await spenders[number].place(key, model="mock-flat"), Granted):
                    granted += 1
                    await spenders[number].settle(key, 1, model="mock-flat")
            return granted

        assert sum(await asyncio.gather(*map(spend, range(32)))) == 137
    assert await first.wallet() == (0, 0)
    async with owner(ledger.house) as connection:
        await check_books(connection, first.organization)


async def test_of_a_thousand_holds_at_once_a_cap_admits_exactly_what_fits(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * 1_000_000)
    budget = await spender.budget(5_000_000)
    tenth = 100_000 // TOKEN_MICROS
    placed = await asyncio.gather(*(spender.place(f"h{number}", tenth) for number in range(1_000)))
    assert sum(isinstance(one, Granted) for one in placed) == 50
    assert {one.refusal for one in placed if isinstance(one, Refused)} == {Refusal.IN_FLIGHT}
    assert await spender.spent(budget) == (0, 5_000_000, False)


async def test_the_same_key_at_two_replicas_is_one_hold(ledger: RunningLedger) -> None:
    async with replica(ledger.house) as one, replica(ledger.house) as two:
        first = await tenant(ledger, 100 * FLAT_MICROS)
        both = [replace(first, commits=one), replace(first, commits=two)]
        keys = [f"h{number}" for number in range(40)]
        placed = await asyncio.gather(*(spender.place(key, model="mock-flat") for key in keys for spender in both))
        assert sum(isinstance(answer, Granted) and not answer.replayed for answer in placed) == 40
        settled = await asyncio.gather(*(spender.settle(key, 1, model="mock-flat") for key in keys for spender in both))
        assert sum(not getattr(answer, "replayed", True) for answer in settled) == 40
    assert await first.wallet() == (60 * FLAT_MICROS, 0)


@pytest.mark.parametrize("how", ["settle", "void"])
async def test_a_hold_waits_for_headroom_that_another_gives_back(ledger: RunningLedger, how: str) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("first", 10)
    waiting = asyncio.ensure_future(spender.place("second", 5, wait_ms=250))
    await asyncio.sleep(0.03)
    assert not waiting.done()
    await (spender.settle("first", 2) if how == "settle" else spender.void("first"))
    assert await waiting == Granted(5, 5 * TOKEN_MICROS, replayed=False)


async def test_a_hold_waits_for_headroom_that_another_replica_gives_back(ledger: RunningLedger) -> None:
    async with replica(ledger.house) as other:
        spender = await tenant(ledger, 10 * TOKEN_MICROS)
        await spender.place("first", 10)
        waiting = asyncio.ensure_future(spender.place("second", 5, wait_ms=250))
        await asyncio.sleep(0.03)
        await replace(spender, commits=other).settle("first", 2)
        assert isinstance(await waiting, Granted)


async def test_without_headroom_the_wait_ends_in_flight_and_exhaustion_does_not_wait(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("first", 10)

    async def timed(key: str, tokens: int) -> tuple[Placed, float]:
        began = monotonic()
        return await spender.place(key, tokens, wait_ms=250), monotonic() - began

    patient, waited = await timed("second", 5)
    exhausted, at_once = await timed("third", 11)
    assert isinstance(patient, Refused)
    assert isinstance(exhausted, Refused)
    assert (patient.refusal, exhausted.refusal) == (Refusal.IN_FLIGHT, Refusal.EXHAUSTED)
    assert 0.25 <= waited < 1
    assert at_once < 0.2
    assert await spender.place("second", 5) == replace(patient, replayed=True)


async def test_a_waiting_hold_whose_caller_is_gone_is_never_placed(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("first", 10)
    waiting = asyncio.ensure_future(spender.place("second", 5, wait_ms=250))
    await asyncio.sleep(0.03)
    waiting.cancel()
    await spender.void("first")
    await spender.commits.drain()
    assert await spender.wallet() == (10 * TOKEN_MICROS, 0)
