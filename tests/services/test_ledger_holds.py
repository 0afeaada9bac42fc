from __future__ import annotations

import asyncio
from dataclasses import replace

from ledger_svc.holds import Differs, Granted, NoHold, Refusal, Refused, Settled, StalePath
from ledger_svc.store import charges
from mesh import ids
from tests.conftest import RunningLedger
from tests.services.ledger_running import FLAT_MICROS, TOKEN_MICROS, asked, check_books, move_time, owner, tenant


async def test_an_exhausted_wallet_is_named_and_a_budget_that_is_only_in_use_is_not_disabled(
    ledger: RunningLedger,
) -> None:
    spender = await tenant(ledger, 5 * TOKEN_MICROS)
    budget = await spender.budget(6 * TOKEN_MICROS, auto_disable=True)
    assert isinstance(await spender.place("a", 4), Granted)
    refused = await spender.place("b", 6)
    assert refused == Refused(Refusal.EXHAUSTED, "wallet", "", TOKEN_MICROS, replayed=False)
    assert await spender.spent(budget) == (0, 4 * TOKEN_MICROS, False)


async def test_a_budget_that_was_exceeded_stops_the_rest_of_its_own_batch(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    budget = await spender.budget(10 * TOKEN_MICROS, auto_disable=True)
    await spender.place("spent", 8)
    await spender.settle("spent", 8)
    items = [(spender.placing(f"h{number}", wanted), True) for number, wanted in enumerate((1, 5, 1))]
    placed = await charges.place(ledger.database, spender.organization, items)
    assert placed == [
        Granted(1, TOKEN_MICROS, replayed=False),
        Refused(Refusal.EXHAUSTED, budget, spender.path[-1], 3 * TOKEN_MICROS, replayed=False),
        Refused(Refusal.DISABLED, budget, spender.path[-1], 0, replayed=False),
    ]


async def test_a_request_that_no_window_could_pay_does_not_disable_the_budget(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    budget = await spender.budget(10 * TOKEN_MICROS, auto_disable=True)
    refused = await spender.place("absurd", 11, 11)
    assert refused == Refused(Refusal.EXHAUSTED, budget, spender.path[-1], TOKEN_MICROS, replayed=False)
    assert isinstance(await spender.place("next", 4), Granted)


async def test_a_settlement_that_uses_a_budget_up_disables_it(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    budget = await spender.budget(4 * TOKEN_MICROS, auto_disable=True)
    await spender.place("a", 4)
    await spender.settle("a", 4)
    assert await spender.spent(budget) == (4 * TOKEN_MICROS, 0, True)


async def test_of_two_budgets_on_one_target_the_tighter_counts(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    await spender.budget(50 * TOKEN_MICROS)
    tighter = await spender.budget(3 * TOKEN_MICROS)
    assert await spender.place("a", 9, 1) == Granted(3, 3 * TOKEN_MICROS, replayed=False)
    refused = await spender.place("b", 9, 1)
    assert isinstance(refused, Refused)
    assert (refused.refusal, refused.account_id) == (Refusal.IN_FLIGHT, tighter)


async def test_a_completion_that_cost_nothing_is_settled_without_a_transfer(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    await spender.place("a", 4)
    assert await spender.settle("a", 0) == Settled(0, 10 * TOKEN_MICROS, 0, replayed=False)
    assert await spender.settle("a", 0) == Settled(0, 10 * TOKEN_MICROS, 0, replayed=True)
    assert await spender.wallet() == (10 * TOKEN_MICROS, 0)


async def test_a_batch_of_replays_alone_answers_and_writes_nothing(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    items = [(spender.placing(f"h{number}", 2), True) for number in range(3)]
    settlings = [spender.settling(f"h{number}", 1) for number in range(3)]
    await charges.place(ledger.database, spender.organization, items)
    await charges.settle(ledger.database, spender.organization, settlings)
    async with owner(ledger.house) as connection:
        tables = ("holds", "transfers", "usage", "checkpoints", "audit")
        count = "SELECT " + ", ".join(f"(SELECT count(*) FROM {table}) AS {table}" for table in tables)  # noqa: S608
        before = await connection.fetchrow(count)
        placed = await charges.place(ledger.database, spender.organization, items)
        settled = await charges.settle(ledger.database, spender.organization, settlings)
        assert await connection.fetchrow(count) == before
    assert placed == [Granted(2, 2 * TOKEN_MICROS, replayed=True)] * 3
    assert settled == [Settled(TOKEN_MICROS, 7 * TOKEN_MICROS, 0, replayed=True)] * 3


async def test_a_key_that_is_used_for_another_request_is_refused_by_the_field(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    other = await spender.under(ids.new(ids.Kind.AGENT), *spender.path[1:3])
    await spender.place("a", 2, 1)
    assert await spender.place("a", 3, 1) == Differs("output_tokens_wanted")
    assert await spender.place("a", 2, 2) == Differs("output_tokens_min")
    assert await spender.place("a", 2, 1, model="mock-flat") == Differs("routes")
    assert await other.place("a", 2, 1) == Differs("agent_id")
    await spender.settle("a", 1)
    assert await spender.settle("a", 2) == Differs("usage.output_tokens")
    assert await spender.settle("a", 1, model="mock-flat") == Differs("route")


async def test_an_agent_that_nobody_registered_has_no_path_of_any_version(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 10 * TOKEN_MICROS)
    unknown = replace(spender.placing("a", 1), agent_id=ids.new(ids.Kind.AGENT), path_version=-1)
    assert await asked(spender.commits.place, spender.organization, unknown, 0) == StalePath()
    stale = replace(spender.placing("a", 1), path_version=3)
    assert await asked(spender.commits.place, spender.organization, stale, 0) == StalePath()


async def test_a_refusal_is_the_answer_for_ever(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 0)
    first = await spender.place("a", 1)
    funded = await tenant(ledger, 0)
    assert first == Refused(Refusal.EXHAUSTED, "wallet", "", TOKEN_MICROS, replayed=False)
    await ledger.database.execute(
        "SELECT post_by_hand($1, 'k', 'purchase', 1000000, '', 'test', '')", spender.organization
    )
    assert await spender.place("a", 1) == Refused(Refusal.EXHAUSTED, "wallet", "", TOKEN_MICROS, replayed=True)
    assert isinstance(await spender.place("b", 1), Granted)
    assert await funded.settle("a", 1) == NoHold()


async def test_a_hold_from_before_midnight_is_settled_in_its_own_day(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    budget = await spender.budget(10 * TOKEN_MICROS, period="daily")
    async with owner(ledger.house) as connection:
        await move_time(connection, spender.organization, "2101-03-31T23:59:59.9Z")
        assert isinstance(await spender.place("a", 10), Granted)
        refused = await spender.place("b", 1)
        assert isinstance(refused, Refused)
        await move_time(connection, spender.organization, "2101-04-01T00:00:00Z")
        assert await spender.spent(budget) == (0, 0, False)
        assert isinstance(await spender.place("c", 10), Granted)
        assert await spender.settle("a", 10) == Settled(10 * TOKEN_MICROS, 90 * TOKEN_MICROS, 0, replayed=False)
        assert await spender.spent(budget) == (0, 10 * TOKEN_MICROS, False)
        yesterday = await connection.fetchval(
            "SELECT (balance_of(id)).settled FROM accounts "
            "WHERE budget_id = $1 AND window_start = '2101-03-31T00:00:00Z'",
            budget,
        )
        assert yesterday == -10 * TOKEN_MICROS
        await check_books(connection, spender.organization)


async def test_a_month_ends_at_midnight_in_utc(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    monthly, total = [await spender.budget(50 * TOKEN_MICROS, period=period) for period in ("monthly", "total")]
    async with owner(ledger.house) as connection:
        await move_time(connection, spender.organization, "2101-03-31T23:59:59.9999Z")
        await spender.place("a", 7)
        await move_time(connection, spender.organization, "2101-04-01T00:00:00Z")
        await spender.settle("a", 7)
    assert await spender.spent(monthly) == (0, 0, False)
    assert await spender.spent(total) == (7 * TOKEN_MICROS, 0, False)


async def test_late_settlements_of_free_and_paid_holds_in_one_batch_keep_the_books(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 100 * TOKEN_MICROS)
    items = [(spender.placing("paid", 4), True), (spender.placing("free", 0), True)]
    await charges.place(ledger.database, spender.organization, items)
    await spender.lapse()
    await charges.settle(
        ledger.database, spender.organization, [spender.settling("paid", 3), spender.settling("free", 0)]
    )
    async with owner(ledger.house) as connection:
        await check_books(connection, spender.organization)


async def test_a_key_twice_in_one_queue_is_answered_twice_and_charged_once(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, FLAT_MICROS)
    await spender.place("taken", model="mock-flat")
    pending = [asyncio.ensure_future(spender.place("a", model="mock-flat", wait_ms=200)) for _ in range(3)]
    await asyncio.sleep(0.05)
    pending += [asyncio.ensure_future(spender.place("a", model="mock-flat", wait_ms=200)) for _ in range(3)]
    await asyncio.sleep(0.02)
    await spender.void("taken")
    answers = await asyncio.gather(*pending)
    assert all(isinstance(answer, Granted) for answer in answers)
    assert [answer.replayed for answer in answers if isinstance(answer, Granted)].count(False) == 1
    assert await spender.wallet() == (FLAT_MICROS, FLAT_MICROS)
