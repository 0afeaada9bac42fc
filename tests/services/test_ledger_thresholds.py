from __future__ import annotations

import json

import pytest

from ledger_svc.holds import Granted, Posting, Refusal, Refused, Settled
from ledger_svc.store import budgets, charges
from mesh import ids
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, check_books, owner, tenant


async def told(spender: Tenant, budget: str, kind: str = "budget.threshold") -> list[int]:
    """Return the percentages that events told of a budget, in their order; every one is in the audit chain as well."""
    rows = await spender.ledger.database.rows(
        "SELECT detail FROM events WHERE organization_id = $1 AND type = $2 AND subject_id = $3 ORDER BY revision",
        spender.organization,
        kind,
        budget,
    )
    lines = await spender.ledger.database.rows(
        "SELECT 1 FROM audit WHERE organization_id = $1 AND strpos(line, $2) > 0 AND strpos(line, $3) > 0",
        spender.organization,
        f'"{kind}"',
        budget,
    )
    assert len(rows) == len(lines)
    return [json.loads(row["detail"]).get("percent", 0) for row in rows]


async def spend(spender: Tenant, *tokens: int) -> None:
    """Hold and settle completions of so many tokens in one batch."""
    keys = [ids.new(ids.Kind.REQUEST) for _ in tokens]
    items = [(spender.placing(key, count), True) for key, count in zip(keys, tokens, strict=True)]
    assert all(
        isinstance(placed, Granted)
        for placed in await charges.place(spender.ledger.database, spender.organization, items)
    )
    settlings = [spender.settling(key, count) for key, count in zip(keys, tokens, strict=True)]
    await charges.settle(spender.ledger.database, spender.organization, settlings)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([(49,)], []),
        ([(49,), (1,)], [50]),
        ([(25, 25)], [50]),
        ([(50,), (29,), (1,), (19,), (1,)], [50, 80, 100]),
        ([(80,)], [50, 80]),
        ([(30, 30, 30, 10)], [50, 80, 100]),
    ],
)
async def test_what_takes_a_budget_across_a_threshold_is_told_once(
    ledger: RunningLedger, batches: list[tuple[int, ...]], expected: list[int]
) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    budget = await spender.budget(100 * TOKEN_MICROS)
    roomy = await spender.budget(1_000 * TOKEN_MICROS)
    for batch in batches:
        await spend(spender, *batch)
    assert await told(spender, budget) == expected
    assert await told(spender, roomy) == []


async def test_a_threshold_is_told_of_what_becomes_uncertain_and_of_one_phase_charges(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    budget = await spender.budget(100 * TOKEN_MICROS)
    await spender.place("a", 60)
    await spender.lapse()
    assert await told(spender, budget) == [50]
    again = await spender.again()
    await spend(again, 25)
    assert await told(spender, budget) == [50, 80]
    posting = Posting("tool", spender.path[-1], 4, "key", "", "mcp", "search", 15 * TOKEN_MICROS)
    assert isinstance((await charges.post(ledger.database, spender.organization, [posting]))[0], Settled)
    assert await told(spender, budget) == [50, 80, 100]


async def test_a_budget_that_is_used_up_stops_its_target_says_so_and_is_enabled_again(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 1_000 * TOKEN_MICROS)
    budget = await spender.budget(100 * TOKEN_MICROS, auto_disable=True)
    await spend(spender, 60, 40)
    assert await told(spender, budget) == [50, 80, 100]
    assert await told(spender, budget, "budget.disabled") == [0]
    assert (await spender.spent(budget))[2]
    refused = await spender.place("more", 1)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.DISABLED
    await budgets.change(
        ledger.database, spender.organization, budget, "raise", "test", limit_micros=200 * TOKEN_MICROS, disabled=False
    )
    rows = await ledger.database.rows(
        "SELECT 1 FROM events WHERE organization_id = $1 AND type = 'budget.enabled'", spender.organization
    )
    assert len(rows) == 1
    assert isinstance(await spender.place("then", 1), Granted)
    async with owner(ledger.house) as connection:
        await check_books(connection, spender.organization)


async def test_a_target_takes_a_hundred_budgets(ledger: RunningLedger) -> None:
    spender = await tenant(ledger, 0)
    made = [await spender.budget(1) for _ in range(100)]
    assert len(set(made)) == 100
    new = budgets.NewBudget(
        ids.new(ids.Kind.BUDGET), ids.new(ids.Kind.REQUEST), spender.path[-1], "daily", 1, auto_disable=False
    )
    assert (await budgets.create(ledger.database, spender.organization, new, "test")).full
