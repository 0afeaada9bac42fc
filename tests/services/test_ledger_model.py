from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from ledger_svc import remembering
from ledger_svc.holds import (
    Differs,
    Ended,
    Granted,
    Placed,
    Posted,
    Posting,
    Refused,
    Settled,
    SettleOutcome,
    Voided,
    VoidOutcome,
)
from ledger_svc.store import budgets, grants, wallets
from mesh import ids
from tests.conftest import RunningLedger
from tests.services import ledger_running
from tests.services.ledger_model import Model
from tests.services.ledger_running import TOKEN_MICROS, Tenant, asked, check_books, forget_checkpoints, move_time

FEW = settings(
    max_examples=25,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],
)
MANY = settings(FEW, max_examples=400, derandomize=False)
SOME = st.integers(0, 12)  # tokens
MUCH = st.integers(0, 40)
MICROS = st.integers(1, 12).map(lambda tokens: tokens * TOKEN_MICROS) | st.integers(1, 12 * TOKEN_MICROS)
PICK = st.integers(0, 7)  # which of what there is
PERIODS = st.sampled_from(["daily", "monthly", "total"])
FIRST_NOON = datetime(2100, 1, 1, 12, tzinfo=UTC)
FIRST_MIDNIGHT = datetime(2100, 1, 1, tzinfo=UTC)
BUDGETS_MAX, LOTS_MAX = 12, 8

OPERATIONS = st.one_of(
    st.tuples(st.just("place"), PICK, SOME, SOME),
    st.tuples(st.just("place"), PICK, SOME, st.just(12)),
    st.tuples(st.just("place"), PICK, SOME, st.just(12), MICROS),
    st.tuples(st.just("place_again"), PICK),
    st.tuples(st.just("settle"), PICK, st.integers(0, 16)),
    st.tuples(st.just("settle"), PICK, st.integers(0, 16)),
    st.tuples(st.just("charge"), PICK, MICROS),
    st.tuples(st.just("charge"), PICK, MICROS),
    st.tuples(st.just("void"), PICK),
    st.tuples(st.just("lapse")),
    st.tuples(st.just("resolve"), PICK, st.none() | SOME),
    st.tuples(st.just("purchase"), MUCH),
    st.tuples(st.just("refund"), PICK, MICROS),
    st.tuples(st.just("adjust"), st.integers(-8 * TOKEN_MICROS, 8 * TOKEN_MICROS)),
    st.tuples(st.just("grant"), PICK, MICROS, st.none() | st.integers(0, 3)),
    st.tuples(st.just("grant"), PICK, MICROS, st.just(1)),
    st.tuples(st.just("take_back"), PICK),
    st.tuples(st.just("expire")),
    st.tuples(st.just("create"), PICK, PERIODS, MUCH, st.booleans()),
    st.tuples(st.just("limit"), PICK, MUCH),
    st.tuples(st.just("switch"), PICK, st.booleans()),
    st.tuples(st.just("tomorrow")),
    st.tuples(st.just("tomorrow")),
    st.tuples(st.just("forget")),
)
POSTED = {wallets.POSTED: "posted", wallets.SHORT: "short", wallets.ABOVE_PURCHASE: "above"}


@pytest.fixture(scope="module", autouse=True)
def always_tried() -> Generator[None]:
    """Try every batch from what is remembered, however often it was no use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remembering, "SKIPPED_MAX", 1)
        yield


@dataclass
class Pair:
    """The ledger and its model, side by side."""

    agents: list[Tenant]
    owner: asyncpg.Connection
    model: Model = field(default_factory=lambda: Model(TOKEN_MICROS))
    keys: list[str] = field(default_factory=list)
    placed: dict[str, tuple[Tenant, int, int, int, Placed]] = field(default_factory=dict)
    number: Callable[[], int] = field(default_factory=lambda: count().__next__)

    @property
    def first(self) -> Tenant:
        return self.agents[0]

    @property
    def database(self) -> Any:
        return self.first.ledger.database

    def key(self) -> str:
        return f"k{self.number()}"

    def agent(self, pick: int) -> Tenant:
        return self.agents[pick % len(self.agents)]

    async def place(self, pick: int, least: int, more: int, cost_max: int = 0) -> None:
        tenant, key = self.agent(pick), self.key()
        expected = self.model.place(key, tenant.path, least + more, least, cost_max)
        placed = await tenant.place(key, least + more, least, cost_max_micros=cost_max)
        assert said_of_place(placed) == expected
        self.placed[key] = tenant, least + more, least, cost_max, placed
        self.keys += [key] if expected[0] == "granted" else []

    async def place_again(self, pick: int) -> None:
        if self.placed:
            key = list(self.placed)[-1 - pick % len(self.placed)]
            tenant, wanted, least, cost_max, placed = self.placed[key]
            assert isinstance(placed, (Granted, Refused))
            self.model.expire()
            again = await tenant.place(key, wanted, least, cost_max_micros=cost_max)
            assert again == replace(placed, replayed=True)

    async def charge(self, pick: int, amount: int) -> None:
        tenant, key = self.agent(pick), self.key()
        expected = self.model.charge(key, tenant.path, amount)
        posting = Posting(key, tenant.path[-1], 4, "key", "", "mcp", "search", amount)
        assert said_of_charge(await asked(tenant.commits.post, tenant.organization, posting), amount) == expected

    async def settle(self, pick: int, tokens: int) -> None:
        if self.keys:
            key = self.keys[-1 - pick % len(self.keys)]
            assert said_of_settle(await self.first.settle(key, tokens)) == self.model.settle(key, tokens)

    async def void(self, pick: int) -> None:
        if self.keys:
            key = self.keys[-1 - pick % len(self.keys)]
            assert said_of_void(await self.placed[key][0].void(key)) == self.model.void(key)

    async def lapse(self) -> None:
        self.model.lapse()
        await self.first.lapse()
        holder = (await self.first.again()).holder
        self.agents = [replace(agent, holder=holder) for agent in self.agents]
        self.placed = {
            key: (replace(tenant, holder=holder), wanted, least, cost_max, placed)
            for key, (tenant, wanted, least, cost_max, placed) in self.placed.items()
        }

    async def resolve(self, pick: int, tokens: int | None) -> None:
        if self.keys:
            key, actual = self.keys[-1 - pick % len(self.keys)], None if tokens is None else tokens * TOKEN_MICROS
            expected = self.model.resolve(key, actual)
            resolved = await wallets.resolve(
                self.database, self.first.organization, self.key(), key, actual, "test", "looked"
            )
            assert {1: "done", 2: "none", 3: "decided", 4: "above"}[resolved.status] == expected

    async def purchase(self, tokens: int) -> None:
        if tokens:
            key = self.key()
            assert await self._post(key, "purchase", tokens * TOKEN_MICROS) == self.model.purchase(
                key, tokens * TOKEN_MICROS
            )

    async def refund(self, pick: int, amount: int) -> None:
        if self.model.bought:
            purchase = list(self.model.bought)[pick % len(self.model.bought)]
            assert await self._post(self.key(), "refund", -amount, purchase) == self.model.refund(purchase, amount)

    async def adjust(self, amount: int) -> None:
        if amount:
            assert await self._post(self.key(), "adjustment", amount) == self.model.adjust(amount)

    async def grant(self, pick: int, amount: int, days: int | None) -> None:
        if len(self.model.lots) < LOTS_MAX:
            expires = None if days is None else self.model.day + days
            at = None if expires is None else FIRST_MIDNIGHT + timedelta(days=expires)
            category, source = [("promotional", "promotions"), ("paid", "purchases")][pick % 2]
            new = grants.NewGrant(ids.new(ids.Kind.GRANT), self.key(), amount, pick // 2, at, category, "welcome")
            made = await grants.make(self.database, self.first.organization, new, "test")
            said = {grants.MADE: "made", grants.BORN_EXPIRED: "born expired"}[made.status]
            assert said == self.model.grant(new.id, source, amount, pick // 2, expires)

    async def take_back(self, pick: int) -> None:
        if self.model.lots:
            lot = list(self.model.lots)[pick % len(self.model.lots)]
            done = await grants.void(self.database, self.first.organization, lot, self.key(), "test", "mistake")
            assert {grants.VOIDED: "voided", grants.ENDED: "ended"}[done.status] == self.model.take_back(lot)

    async def expire(self) -> None:
        self.model.expire()
        await grants.expire(self.database, self.first.organization)

    async def create(self, pick: int, period: str, limit: int, auto: bool) -> None:  # noqa: FBT001
        if len(self.model.budgets) < BUDGETS_MAX:
            nodes = [node for agent in self.agents for node in agent.path]
            target = nodes[pick % len(nodes)]
            budget_id = await self.first.budget(limit * TOKEN_MICROS, target=target, period=period, auto_disable=auto)
            self.model.create(budget_id, target, period, limit * TOKEN_MICROS, auto=auto)

    async def limit(self, pick: int, limit: int) -> None:
        if self.model.budgets:
            budget = list(self.model.budgets.values())[pick % len(self.model.budgets)]
            budget.limit = limit * TOKEN_MICROS
            await self._change(budget.id, limit_micros=budget.limit)

    async def switch(self, pick: int, disabled: bool) -> None:  # noqa: FBT001
        if self.model.budgets:
            budget = list(self.model.budgets.values())[pick % len(self.model.budgets)]
            budget.disabled = disabled
            await self._change(budget.id, disabled=disabled)

    async def tomorrow(self) -> None:
        self.model.day += 1
        await self.begin()

    async def forget(self) -> None:
        await forget_checkpoints(self.owner, self.first.organization)
        await self.owner.execute("DELETE FROM open_holds WHERE organization_id = $1", self.first.organization)
        open_ = sum(hold.phase == "held" for hold in self.model.holds.values())
        assert await self.owner.fetchval("SELECT rebuild_open_holds($1)", self.first.organization) == open_

    async def begin(self) -> None:
        noon = FIRST_NOON + timedelta(days=self.model.day)
        await move_time(self.owner, self.first.organization, noon.isoformat())

    async def compare(self) -> None:
        model, organization = self.model, self.first.organization
        assert await self.first.wallet() == (model.wallet.settled, model.wallet.held)
        rows = await self.owner.fetch(
            "SELECT a.kind, b.settled FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b "
            "WHERE a.organization_id = $1 AND a.kind <> 'budget' AND b.settled <> 0",
            organization,
        )
        assert {row["kind"]: row["settled"] for row in rows} == model.balances
        if model.budgets:
            rows = await budgets.of_organization(self.database, organization, None, 100)
            found = {row["id"]: (row["settled_micros"], row["held_micros"], row["disabled"]) for row in rows}
            windows = {name: budget.window(model.day) for name, budget in model.budgets.items()}
            assert found == {
                name: (-window.settled, window.held, model.budgets[name].disabled) for name, window in windows.items()
            }
        if model.lots:
            lots = (await grants.of_organization(self.database, organization, "", LOTS_MAX)).grants
            assert {lot.id: lot.remaining_micros for lot in lots} == model.remaining()
        await self._compare_ends()

    async def _compare_ends(self) -> None:
        rows = await self.owner.fetch(
            "SELECT request_id, array_agg(phase) AS phases FROM ends WHERE organization_id = $1 GROUP BY 1",
            self.first.organization,
        )
        expected = {key: hold.ends for key, hold in self.model.holds.items() if hold.ends}
        assert {row["request_id"]: set(row["phases"]) for row in rows} == expected
        rows = await self.owner.fetch(
            "SELECT request_id FROM open_holds WHERE organization_id = $1", self.first.organization
        )
        assert {row["request_id"] for row in rows} == {
            key for key, hold in self.model.holds.items() if hold.phase == "held"
        }

    async def _post(self, key: str, kind: str, amount: int, purchase: str = "") -> str:
        posted = await wallets.post(self.database, self.first.organization, key, kind, amount, purchase, "test", "")
        return POSTED[posted.status]

    async def _change(self, budget_id: str, *, limit_micros: int | None = None, disabled: bool | None = None) -> None:
        await budgets.change(
            self.database, self.first.organization, budget_id, self.key(), "test",
            limit_micros=limit_micros, disabled=disabled,
        )  # fmt: skip


def said_of_place(placed: Placed) -> tuple[str, int]:
    match placed:
        case Granted(output_tokens=tokens, ceiling_micros=ceiling):
            assert ceiling == tokens * TOKEN_MICROS
            return "granted", tokens
        case Refused(refusal=refusal):
            return refusal.name, 0
        case _:
            raise AssertionError(placed)


def said_of_charge(posted: Posted, amount: int) -> str:
    match posted:
        case Settled(charged_micros=charged):
            assert charged == amount
            return "settled"
        case Refused(refusal=refusal):
            return refusal.name
        case _:
            raise AssertionError(posted)


def said_of_settle(outcome: SettleOutcome) -> tuple[str, int, int]:
    match outcome:
        case Settled(charged_micros=charged, replayed=True):
            return "settled", charged, 0
        case Settled(charged_micros=charged, breach_micros=breach):
            return "settled", charged, breach
        case Differs(field="usage.output_tokens"):
            return "differs", 0, 0
        case Ended(how=how):
            return how, 0, 0
        case _:
            raise AssertionError(outcome)


def said_of_void(outcome: VoidOutcome) -> str:
    match outcome:
        case Voided():
            return "voided"
        case Ended(how=how):
            return how
        case Differs(field=field):
            return field


async def agents_of(ledger: RunningLedger) -> list[Tenant]:
    first = await ledger_running.tenant(ledger, 0)
    _, workspace, group, _ = first.path
    second = await first.under(ids.new(ids.Kind.AGENT), workspace, group)
    third = await first.under(ids.new(ids.Kind.AGENT), workspace, ids.new(ids.Kind.AGENT_GROUP))
    return [first, second, third]


async def agree(ledger: RunningLedger, operations: list[tuple[object, ...]]) -> None:
    async with ledger_running.owner(ledger.house) as owner:
        pair = Pair(await agents_of(ledger), owner)
        await pair.begin()
        await pair.purchase(60)
        for name, *values in operations:
            await getattr(pair, str(name))(*values)
            await pair.compare()
        await check_books(owner, pair.first.organization)
        await pair.forget()
        await pair.compare()
        await pair.place(0, 1, 3)
        await pair.settle(0, 2)
        await pair.compare()
        await check_books(owner, pair.first.organization)


@FEW
@example(operations=[("grant", 0, 9, 1), ("place", 0, 4, 0), ("tomorrow",), ("charge", 0, 200), ("settle", 0, 2)])
@example(operations=[("place", 0, 1, 12, 700), ("place", 0, 4, 0, 700), ("place_again", 0), ("settle", 0, 3)])
@example(operations=[("create", 3, "total", 1, True), ("charge", 0, 200), ("charge", 0, 1), ("switch", 0, False)])
@given(operations=st.lists(OPERATIONS, min_size=20, max_size=50))
async def test_the_ledger_and_a_model_of_it_agree_after_every_step(
    ledger: RunningLedger, operations: list[tuple[object, ...]]
) -> None:
    await agree(ledger, operations)


@pytest.mark.chaos_long
@pytest.mark.timeout(1800)
@MANY
@given(operations=st.lists(OPERATIONS, min_size=20, max_size=120))
async def test_the_ledger_and_a_model_of_it_agree_for_long(
    ledger: RunningLedger, operations: list[tuple[object, ...]]
) -> None:
    await agree(ledger, operations)
