"""What many askers of one key get, and what a commit may read."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ledger_svc.commits import Asker
from ledger_svc.holds import Differs, Granted, Posting, Settled, Voiding
from ledger_svc.store import charges, wallets
from mesh import db
from mesh.errors import MeshError
from tests.conftest import RunningLedger
from tests.services.ledger_running import FLAT_MICROS, TOKEN_MICROS, Tenant, asked, check_books, owner, tenant


async def commits_of(spender: Tenant) -> int:
    """Return how many commits touched the wallet."""
    count: int = await spender.ledger.database.value(
        "SELECT count(*) FROM checkpoints c JOIN accounts a ON a.id = c.account_id "
        "WHERE a.organization_id = $1 AND a.kind = 'wallet'",
        spender.organization,
    )
    return count


async def test_a_storm_of_one_key_is_one_hold_one_settlement_and_few_commits(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    before = await commits_of(spender)
    placed: list[Any] = await asyncio.gather(*(spender.place("a", 2) for _ in range(2_000)))
    assert sorted({one.replayed for one in placed}) == [False, True]
    assert sum(not one.replayed for one in placed) == 1
    settled: list[Any] = await asyncio.gather(*(spender.settle("a", 1) for _ in range(2_000)))
    assert sum(not one.replayed for one in settled) == 1
    assert await spender.wallet() == (999 * TOKEN_MICROS, 0)
    assert await commits_of(spender) - before == 2


async def test_another_request_under_the_key_is_told_apart_from_repeats_in_the_same_moment(
    ledger: RunningLedger,
) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    answers = await asyncio.gather(*(spender.place("a", 2 + number % 2) for number in range(20)))
    assert [type(one) for one in answers] == [Granted, Differs] * 10


async def test_an_asker_that_fails_at_its_answer_keeps_it_from_nobody_else(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)

    def fail(_: object) -> None:
        raise RuntimeError

    spender.commits.place(spender.organization, spender.placing("a", 1), 0, Asker(), fail)
    assert isinstance(await spender.place("b", 1), Granted)
    assert await spender.wallet() == (10 * TOKEN_MICROS, 2 * TOKEN_MICROS)


async def test_who_waits_with_one_that_is_gone_is_answered_all_the_same(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, TOKEN_MICROS)
    await spender.place("first", 1)
    gone = asyncio.create_task(spender.place("a", 1, wait_ms=2_000))
    stays = asyncio.create_task(spender.place("a", 1, wait_ms=2_000))
    await asyncio.sleep(0.05)
    gone.cancel()
    await spender.void("first")
    assert isinstance(await stays, Granted)


def charge(spender: Tenant, key: str) -> Posting:
    return Posting(key, spender.path[-1], 4, "key", "", "mock", "mock-flat", FLAT_MICROS)


async def test_a_hold_and_a_charge_at_once_never_pass_for_each_other(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * FLAT_MICROS)
    held = replace(spender.placing("a", 0, model="mock-flat"), input_tokens_max=FLAT_MICROS)
    assert isinstance(await asked(spender.commits.place, spender.organization, held, 0), Granted)
    assert await asked(spender.commits.post, spender.organization, charge(spender, "a")) == Differs("phase")
    assert isinstance(await asked(spender.commits.post, spender.organization, charge(spender, "b")), Settled)
    placing = replace(held, request_id="b")
    assert await asked(spender.commits.place, spender.organization, placing, 0) == Differs("phase")
    assert await spender.wallet() == (9 * FLAT_MICROS, FLAT_MICROS)


async def test_only_what_was_bought_passes_for_a_purchase_and_is_refunded(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 0)
    transfer = wallets.NewTransfer("k", "purchase", "receivable", "adjustments", 500, "", False)
    await wallets.post_batch(ledger.database, spender.organization, [transfer], "test")
    bought = await wallets.post(ledger.database, spender.organization, "k", "purchase", 500, "", "test", "")
    assert (bought.status, bought.field) == (wallets.DIFFERS, "kind")
    refund = await wallets.post(ledger.database, spender.organization, "r", "refund", -500, "k", "test", "")
    assert refund.status == wallets.NO_PURCHASE


@pytest.mark.parametrize("walk", ["replay", "void", "overage"])
async def test_what_is_walked_through_reads_the_checkpoints_of_its_own_accounts_alone(
    ledger: RunningLedger, walk: str
) -> None:
    others, spender = await tenant(ledger, 1_000 * TOKEN_MICROS), await tenant(ledger, 1_000 * TOKEN_MICROS)
    for number in range(400):
        await charges.place(ledger.database, others.organization, [(others.placing(f"h{number}", 1), True)])
    replayed, settling = (spender.placing("a", 1), True), spender.settling("b", 5)
    items = [(spender.placing(key, 1), True) for key in ("a", "b", "c")]
    await charges.place(ledger.database, spender.organization, items)

    class Counting:
        """One connection in one transaction, as far as `charges` needs a database."""

        def __init__(self, connection: db.Connection) -> None:
            self._connection = connection

        async def one(self, query: str, *values: object) -> Any:
            return await self._connection.fetchrow(query, *values)

    async with ledger.database.transaction() as tx:
        counting: Any = Counting(tx)
        read = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'checkpoints'"
        await charges.place(counting, spender.organization, [replayed])  # its plans are made for a walk
        before = await tx.fetchval(read) or 0
        match walk:
            case "replay":
                await charges.place(counting, spender.organization, [replayed])
            case "void":
                await charges.void(counting, spender.organization, [Voiding("c", spender.path[-1], "never sent")])
            case _:
                await charges.settle(counting, spender.organization, [settling])
        assert (await tx.fetchval(read) or 0) - before < 60
    async with owner(ledger.house) as connection:
        await check_books(connection, spender.organization)


async def test_an_error_is_everybodys_who_asked_the_same(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    bad = replace(spender.placing("a", 1), api_key_id="\x00")
    answers = await asyncio.gather(
        *(asked(spender.commits.place, spender.organization, bad, 0) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(answer, MeshError) for answer in answers)
