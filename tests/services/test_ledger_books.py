"""Batches that are decided from what a process remembers: they are told apart from others, and never wrong for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest

from ledger_svc import remembering
from ledger_svc.books import Books, Plain
from ledger_svc.holds import Granted, Lapsed, Refused, Settled, StalePath
from ledger_svc.store import books as store
from ledger_svc.store import charges, registry
from mesh.db import Database
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import metrics
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, check_books, owner, replica, tenant


def plain_items() -> float:
    """Return how many items this process decided from remembered books."""
    return sum(sample.value for each in metrics.LEDGER_PLAIN.collect() for sample in each.samples[:1])


@pytest.fixture(autouse=True)
def always_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try every batch from what is remembered, however often it was no use."""
    monkeypatch.setattr(remembering, "SKIPPED_MAX", 1)


async def warm(spender: Tenant) -> None:
    """Have one hold placed and settled, so that the accounts that it needs are there."""
    assert isinstance(await spender.place("warm", 2), Granted)
    assert isinstance(await spender.settle("warm", 1), Settled)


async def test_what_is_plain_is_decided_from_what_is_remembered(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await spender.budget(500 * TOKEN_MICROS)
    await warm(spender)
    before = plain_items()
    for number in range(5):
        assert await spender.place(f"a{number}", 2) == Granted(2, 2 * TOKEN_MICROS, replayed=False)
    assert await spender.wallet() == (999 * TOKEN_MICROS, 10 * TOKEN_MICROS)
    settled = await asyncio.gather(*(spender.settle(f"a{number}", 1) for number in range(5)))
    assert all(isinstance(one, Settled) and one.charged_micros == TOKEN_MICROS for one in settled)
    assert plain_items() - before == 10
    async with owner(ledger.house) as connection:
        await check_books(connection, spender.organization)


async def test_two_processes_that_take_turns_spend_no_more_than_there_is(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 60 * TOKEN_MICROS)
    async with replica(ledger.house) as commits:
        other = replace(spender, commits=commits)
        placed = await asyncio.gather(
            *((spender, other)[number % 2].place(f"a{number}", 1 + number % 3) for number in range(60))
        )
        granted = {number for number, one in enumerate(placed) if isinstance(one, Granted)}
        assert sum(1 + number % 3 for number in granted) <= 60
        refused = await spender.place("more", 60)
        assert isinstance(refused, Refused)
        assert await other.place("more", 60) == replace(refused, replayed=True)
        await asyncio.gather(*((other, spender)[number % 2].settle(f"a{number}", 1) for number in granted))
    assert await spender.wallet() == ((60 - len(granted)) * TOKEN_MICROS, 0)
    async with owner(ledger.house) as connection:
        await check_books(connection, spender.organization)


async def test_an_agent_that_moved_is_known_at_once(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await warm(spender)
    organization, *_between, agent = spender.path
    await registry.put_nodes(
        ledger.database, [registry.NodeFact(agent, organization, (organization, *_between, agent), 5)]
    )
    assert isinstance(await spender.place("a", 1), StalePath)


async def test_a_holder_that_lapsed_gets_nothing(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await warm(spender)
    await ledger.database.execute(
        "UPDATE leases SET lapsed_at = clock_timestamp() WHERE holder_id = $1", spender.holder
    )
    assert isinstance(await spender.place("a", 1), Lapsed)


async def test_a_budget_that_was_made_meanwhile_counts_what_is_in_flight(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await warm(spender)
    assert isinstance(await spender.place("a", 10), Granted)
    budget = await spender.budget(15 * TOKEN_MICROS)
    assert isinstance(await spender.place("b", 6), Refused)
    assert isinstance(await spender.settle("a", 3), Settled)
    assert await spender.spent(budget) == (4 * TOKEN_MICROS, 0, False)
    assert isinstance(await spender.place("c", 6), Granted)


async def test_a_hold_that_is_missing_in_the_worklist_is_settled_all_the_same(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await warm(spender)
    assert isinstance(await spender.place("a", 2), Granted)
    async with owner(ledger.house) as connection:
        await connection.execute("DELETE FROM open_holds WHERE organization_id = $1", spender.organization)
        assert isinstance(await spender.settle("a", 1), Settled)
        await check_books(connection, spender.organization)


async def test_a_commit_of_which_nothing_is_heard_is_not_made_twice(
    ledger: RunningLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await warm(spender)
    post = store.post

    async def deaf(db: Database, books: Books, batch: Plain) -> datetime | None:
        await post(db, books, batch)
        raise Unavailable("DATABASE_UNAVAILABLE", "x")

    for ask in (lambda: spender.place("a", 2), lambda: spender.settle("a", 1)):
        monkeypatch.setattr(store, "post", deaf)
        with pytest.raises(MeshError, match="x"):
            await ask()
        monkeypatch.setattr(store, "post", post)
        again: Any = await ask()
        assert again.replayed
    assert await spender.wallet() == (998 * TOKEN_MICROS, 0)
    async with owner(ledger.house) as connection:
        await check_books(connection, spender.organization)


async def test_what_the_database_refuses_of_a_plain_batch_is_walked_through(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await warm(spender)
    placing = spender.placing("a", 1)
    assert await charges.place(ledger.database, spender.organization, [(placing, True)])  # another process's turn
    assert await spender.place("a", 1) == Granted(1, TOKEN_MICROS, replayed=True)


async def test_after_batches_that_were_no_use_the_next_ones_are_walked_at_once(
    ledger: RunningLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "SKIPPED_MAX", 4)
    reads = 0
    read = store.read

    async def counted(*values: Any) -> Any:
        nonlocal reads
        reads += 1
        return await read(*values)

    monkeypatch.setattr(store, "read", counted)
    spender = await tenant(ledger, TOKEN_MICROS)
    for number in range(12):
        assert isinstance(await spender.place(f"a{number}", 2), Refused)
    assert reads <= 6
