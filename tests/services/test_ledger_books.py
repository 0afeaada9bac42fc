"""Batches that are decided from what a process remembers: they are told apart from others, and never wrong for it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import pytest

from ledger_svc import remembering
from ledger_svc.books import Books, Plain
from ledger_svc.holds import Granted, Lapsed, Refused, Settled, Settling, StalePath
from ledger_svc.pricing import Usage
from ledger_svc.remembering import Remembering
from ledger_svc.store import books as store
from ledger_svc.store import charges, registry, wallets
from mesh.clock import monotonic_ms
from mesh.db import Database
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import metrics
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, check_books, owner, replica, tenant

WRITING = re.compile(
    r"(INSERT INTO|DELETE FROM|UPDATE) (transfers|holds|usage|audit|checkpoints|outcomes|hold_links|budgets"
    r"|budget_versions|rules|limit_sets|open_holds|open_grants)\b"
)


def batches(way: str = "plain") -> float:
    """Return how many batches this process decided in a way."""
    return metrics.REGISTRY.get_sample_value("mandate_ledger_batches_total", {"way": way}) or 0.0


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
    before = batches(), batches("not_plain")
    for number in range(5):
        assert await spender.place(f"a{number}", 2) == Granted(2, 2 * TOKEN_MICROS, replayed=False)
    assert await spender.wallet() == (999 * TOKEN_MICROS, 10 * TOKEN_MICROS)
    settled = await asyncio.gather(*(spender.settle(f"a{number}", 1) for number in range(5)))
    assert all(isinstance(one, Settled) and one.charged_micros == TOKEN_MICROS for one in settled)
    assert batches() - before[0] >= 6
    assert batches("not_plain") == before[1]
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


async def test_an_agent_that_moved_is_known_whoever_told_the_database(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await warm(spender)
    assert isinstance(await spender.place("a", 1), Granted)
    await ledger.database.execute(
        "INSERT INTO nodes (id, path_version, organization_id, path) VALUES ($1, 5, $2, $3)",
        spender.path[-1], spender.organization, list(spender.path),
    )  # fmt: skip
    assert isinstance(await spender.place("b", 1), StalePath)


async def test_one_organization_waits_for_no_other_ones_books_to_be_told_of_paths(ledger: RunningLedger) -> None:
    one, two = sorted(
        [await tenant(ledger, 1_000 * TOKEN_MICROS) for _ in range(2)], key=lambda each: each.organization
    )
    await warm(one)
    facts = [registry.NodeFact(each.path[-1], each.organization, each.path, 5) for each in (one, two)]
    async with owner(ledger.house) as connection:
        async with connection.transaction():
            await connection.execute("SELECT lock_organization($1)", two.organization)
            telling = asyncio.create_task(registry.put_nodes(ledger.database, facts))
            answers: list[object] = []
            for number in range(200):
                answers.append(await one.place(f"a{number}", 1))
                if isinstance(answers[-1], StalePath):
                    break
                await asyncio.sleep(0.02)
            assert isinstance(answers[-1], StalePath)
            assert not telling.done()
        await telling


async def test_a_database_that_lost_commits_is_not_taken_for_what_it_was(ledger: RunningLedger) -> None:
    """A standby that never got them is as here, and as many turns are begun on it as were lost."""
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await warm(spender)
    async with owner(ledger.house) as connection:
        turn = await connection.fetchval("SELECT turn FROM turns WHERE organization_id = $1", spender.organization)
        last = await connection.fetchval("SELECT max(at) FROM checkpoints")
        assert isinstance(await spender.place("lost", 100), Granted)
        await connection.execute("SET session_replication_role = replica")
        for table in ("holds", "open_holds"):
            await connection.execute(f"DELETE FROM {table} WHERE request_id = 'lost'")  # noqa: S608
        await connection.execute("DELETE FROM checkpoints WHERE at > $1", last)
        await connection.execute("UPDATE turns SET turn = $2 WHERE organization_id = $1", spender.organization, turn)
        await connection.execute("SET session_replication_role = origin")
        await wallets.post(ledger.database, spender.organization, "more", "purchase", TOKEN_MICROS, "", "test", "")
        assert isinstance(await spender.place("a", 1), Granted)
        await check_books(connection, spender.organization)


async def test_a_clock_that_stood_still_decides_nothing(ledger: RunningLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    await warm(spender)
    assert isinstance(await spender.place("a", 1), Granted)
    moment, lost = monotonic_ms(), batches("turn_lost")
    monkeypatch.setattr(remembering, "monotonic_ms", lambda: moment)
    await asyncio.sleep(1.2)
    assert isinstance(await spender.place("b", 1), Granted)
    assert batches("turn_lost") == lost + 1
    held_at = await ledger.database.value("SELECT clock_timestamp() - held_at FROM holds WHERE request_id = 'b'")
    assert held_at.total_seconds() < 1


async def test_every_column_of_a_plain_batch_is_what_a_walk_writes(ledger: RunningLedger) -> None:
    written: list[object] = []
    for walked in (True, False):
        spender = await tenant(ledger, 10**9)
        books = Remembering(ledger.database)
        await warm(spender)
        assert isinstance((await books.place(spender.organization, [(spender.placing("first", 1), True)]))[0], Granted)
        place = replace(spender.placing("odd", 10_000), end_user='Jané "q" \\ \x7f\u2028', api_key_id="k\n")
        settle = Settling(
            "odd", place.prices[0], Usage(11, 12, 13, 14, 15), 777, True, "client_gone", 499, 101, 102, 103, True,
            "reported", 7, "messages",
        )  # fmt: skip
        before = batches()
        if walked:
            await charges.place(ledger.database, spender.organization, [(place, True)])
            await charges.settle(ledger.database, spender.organization, [settle])
        else:
            await books.place(spender.organization, [(place, True)])
            await books.settle(spender.organization, [settle])
            assert batches() == before + 2
        async with owner(ledger.house) as connection:
            written.append(await rows_of(connection, spender))
    assert written[0] == written[1]


async def rows_of(connection: Any, spender: Tenant) -> object:
    """Return all that is written of the request "odd", without times, ids and the tenant's own names."""
    own = (
        "organization_id",
        "path",
        "agent_id",
        "held_at",
        "used_at",
        "posted_at",
        "holder_id",
        "limit_set",
        "debit",
        "credit",
    )
    rows: list[object] = []
    for table, key in (("usage", "request_id"), ("holds", "request_id"), ("transfers", "key")):
        row = await connection.fetchrow(
            f"SELECT * FROM {table} WHERE organization_id = $1 AND {key} = 'odd'",  # noqa: S608
            spender.organization,
        )
        rows.append({name: value for name, value in row.items() if name not in own})
    line: str = await connection.fetchval(
        "SELECT line FROM audit WHERE organization_id = $1 ORDER BY seq DESC LIMIT 1", spender.organization
    )
    for name in spender.path:
        line = line.replace(name, "")
    return rows, re.sub('"time":"[^"]*"', "", line)


async def test_no_more_is_remembered_than_there_is_room_for(
    ledger: RunningLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "ENTRIES_MAX", 12)
    books = Remembering(ledger.database)
    spenders = [await tenant(ledger, 1_000 * TOKEN_MICROS) for _ in range(6)]
    for spender in spenders:
        await warm(spender)
    for number in range(3):
        for spender in spenders:
            placed = await books.place(spender.organization, [(spender.placing(f"a{number}", 1), True)])
            assert isinstance(placed[0], Granted)
            assert books.entries <= 12


async def test_every_function_that_writes_the_books_begins_a_turn(ledger: RunningLedger) -> None:
    """Each locks the organization itself, or is called by those alone that do."""
    async with owner(ledger.house) as connection:
        rows = await connection.fetch(
            "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'ledger'::regnamespace AND prokind = 'f'"
        )
    sources = {row["proname"]: row["prosrc"] for row in rows}
    calls = {
        name: {other for other in sources if other != name and re.search(rf"\b{other}\(", source)}
        for name, source in sources.items()
    }
    writing = {name for name, source in sources.items() if WRITING.search(source)}
    locking = {"lock_organization"}
    while more := {name for name in sources if name not in locking and calls[name] & locking}:
        locking |= more
    apart = {"post_plain", "thin_checkpoints"}  # begins a turn of its own; deletes nothing that is remembered

    def covered(name: str) -> bool:
        callers = {other for other in sources if name in calls[other]}
        return name in locking | apart or (bool(callers) and all(covered(other) for other in callers))

    assert {name for name in writing if not covered(name)} == set()
    assert len(writing) > 15


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

    async def deaf(db: Database, books: Books, batch: Plain) -> None:
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
