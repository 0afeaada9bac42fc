from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import pytest

from ledger_svc import price_list, pricing
from ledger_svc.__main__ import PRICES
from ledger_svc.pricing import Price, Usage
from ledger_svc.store import budgets, registry, rules
from ledger_svc.store import prices as price_store
from mandate.ledger.v1 import charges_pb2 as pb
from mesh import ids
from tests.conftest import RunningLedger
from tests.services.ledger_running import (
    TOKEN_MICROS,
    Tenant,
    check_books,
    forget_checkpoints,
    move_time,
    owner,
    tenant,
)
from tests.services.test_ledger_stream import Gateway, hold, settle, stream

SPENDERS, AGENTS, ASIDE, PART = 4, 8, 8, 100  # ASIDE: parts that each spender has in flight from the beginning
PLENTY = 10**13
ROUTE = pb.Route(provider="mock", model="mock-model")
TOKENS = 10


@pytest.fixture
async def as_shipped(ledger: RunningLedger) -> AsyncGenerator[None]:
    """Bring the shipped prices back after the test: all tests of a session share them."""
    yield
    await put_prices(ledger, PRICES.read_text(encoding="utf-8"))


async def put_prices(ledger: RunningLedger, text: str) -> str:
    """Start the ledger with another list, as it were, and return the id of what the test's route costs then."""
    await price_store.put(ledger.database, price_list.parse(text, 100))
    await ledger.ledger.prices.refresh()
    price = ledger.ledger.prices.in_force(ROUTE.provider, ROUTE.model)
    assert price
    return price.id


@dataclass
class Fleet:
    """Agents in two groups, where each of them stands by now, and the spenders' holds in flight."""

    first: Tenant
    paths: list[tuple[str, ...]]
    versions: dict[str, int]
    open: dict[str, str] = field(default_factory=dict)  # the agent of each hold
    asked: int = 0
    settled: int = 0
    refused: int = 0
    rising: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def organization(self) -> str:
        return self.first.organization

    @property
    def ledger(self) -> RunningLedger:
        return self.first.ledger


@dataclass(frozen=True)
class Spender:
    """One stream that places and settles a hundred holds at a time."""

    fleet: Fleet
    gateway: Gateway
    number: int
    holder: str = field(default_factory=lambda: ids.new(ids.Kind.HOLDER))

    async def spend(self) -> None:
        """Put many in flight, then settle as many as are placed until it is over, then settle the rest."""
        chance, own = random.Random(self.number), dict[str, str]()  # noqa: S311  # the same work each time
        for _ in range(ASIDE):
            own |= await self._place()
        self.fleet.rising.set()
        while not self.fleet.over.is_set():
            own |= await self._place()
            await self._settle({key: own.pop(key) for key in chance.sample(list(own), min(PART, len(own)))})
        own |= await self._place()
        while own:
            await self._settle({key: own.pop(key) for key in list(own)[:PART]})

    async def _place(self) -> dict[str, str]:
        keys = [f"h{self.fleet.asked + place}" for place in range(PART)]
        self.fleet.asked += PART
        waiting = {key: self.fleet.paths[int(key[1:]) % AGENTS][-1] for key in keys}
        granted: dict[str, str] = {}
        while waiting:
            holds = [
                hold(key, agent, path_version=self.fleet.versions[agent], routes=[ROUTE], output_tokens_wanted=TOKENS)
                for key, agent in waiting.items()
            ]
            for answer in (await self.gateway.ask(pb.ChargeRequest(holder_id=self.holder, holds=holds))).holds:
                assert answer.fault.reason in {"", "STALE_PATH"}, answer
                if answer.HasField("fault"):
                    continue  # its agent was moved: ask again from where it stands now
                agent = waiting.pop(answer.request_id)
                if answer.HasField("granted"):
                    granted[answer.request_id] = agent
                else:
                    self.fleet.refused += 1
        self.fleet.open |= granted
        return granted

    async def _settle(self, holds: dict[str, str]) -> None:
        settles = [
            settle(key, agent, usage=pb.TokenUsage(output_tokens=int(key[1:]) % TOKENS)) for key, agent in holds.items()
        ]
        for answer in (await self.gateway.ask(pb.ChargeRequest(settles=settles))).settles:
            assert answer.HasField("settled"), answer
            self.fleet.settled += 1
            del self.fleet.open[answer.request_id]


async def fleet_of(ledger: RunningLedger) -> Fleet:
    first = await tenant(ledger, PLENTY)
    _, workspace, group, _ = first.path
    groups = [group, ids.new(ids.Kind.AGENT_GROUP)]
    agents = [await first.under(ids.new(ids.Kind.AGENT), workspace, groups[number % 2]) for number in range(AGENTS - 1)]
    paths = [one.path for one in (first, *agents)]
    return Fleet(first, paths, {path[-1]: 4 for path in paths})


@asynccontextmanager
async def in_flight(fleet: Fleet) -> AsyncGenerator[None]:
    """Keep thousands of holds in flight within the block; at its end all are settled."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for number in range(SPENDERS):
            gateway = await stack.enter_async_context(stream(fleet.ledger))
            group.create_task(Spender(fleet, gateway, number).spend())
        await fleet.rising.wait()
        try:
            yield
        finally:
            fleet.over.set()


async def while_they_run(fleet: Fleet, changes: Sequence[Callable[[], Awaitable[Any]]], least: int = 100) -> None:
    """Make each change once so many more holds were settled since the one before."""
    for change in changes:
        seen = fleet.settled
        await until(lambda: fleet.settled >= seen + least)  # noqa: B023  # it is awaited in this very turn
        await change()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110  # what is waited for is another's progress
            await asyncio.sleep(0.005)


# What each window must have spent by the facts of usage alone: a hold counts in the window that its own moment was in,
# and in each that was opened later and begins before it.
WINDOWS = """
SELECT b.id, a.window_start, a.opening_micros, c.settled, c.held,
       (SELECT coalesce(sum(u.charged_micros), 0) FROM usage u
         WHERE u.organization_id = $1 AND b.target_id = ANY (u.path) AND u.held_at >= a.window_start
           AND (u.held_at < a.opened_at
                OR a.window_start = (window_of($1, b.period, u.held_at)).starts)) AS spent
  FROM accounts a JOIN budgets b ON b.id = a.budget_id CROSS JOIN LATERAL balance_of(a.id) c
 WHERE a.organization_id = $1
"""


async def check_windows(connection: asyncpg.Connection, organization: str) -> int:
    rows = await connection.fetch(WINDOWS, organization)
    for row in rows:
        assert (row["settled"], row["held"]) == (-row["spent"], 0), dict(row)
    return len(rows)


async def check_charges(connection: asyncpg.Connection, ledger: RunningLedger, organization: str) -> set[str]:
    """Recompute each charge from the price that its hold was made at, and return these prices' ids."""
    rows = await connection.fetch(
        "SELECT u.*, h.price_ids FROM usage u JOIN holds h USING (organization_id, request_id) "
        "WHERE organization_id = $1",
        organization,
    )
    prices: dict[str, Price] = {}
    for row in rows:
        assert row["price_ids"] == [row["price_id"]]
        if row["price_id"] not in prices:
            prices[row["price_id"]] = await ledger.ledger.prices.version(row["price_id"])
        usage = Usage(output_tokens=row["output_tokens"])
        cost = pricing.cost_micros(prices[row["price_id"]], usage, row["outcome"])
        assert row["charged_micros"] + row["breach_micros"] == cost, dict(row)
    return set(prices)


@dataclass(frozen=True)
class Hand:
    """Whoever changes things meanwhile."""

    fleet: Fleet
    connection: asyncpg.Connection

    async def limit(self, budget_id: str, limit_micros: int) -> None:
        await self._change(budget_id, limit_micros=limit_micros)

    async def switch(self, budget_id: str, *, disabled: bool) -> None:
        await self._change(budget_id, disabled=disabled)

    async def move(self, number: int) -> None:
        """Move an agent to the other group."""
        path = self.fleet.paths[number]
        other = self.fleet.paths[number + 1]
        self.fleet.paths[number] = (*other[:3], path[-1])
        fact = registry.NodeFact(path[-1], path[0], self.fleet.paths[number], self.fleet.versions[path[-1]] + 1)
        await registry.put_nodes(self.fleet.ledger.database, [fact])
        self.fleet.versions[path[-1]] += 1

    async def zone(self, name: str) -> None:
        key = ids.new(ids.Kind.REQUEST)
        changed = (name, None, None)
        assert not await rules.change(self.fleet.ledger.database, self.fleet.organization, key, "test", changed)

    async def time(self, moment: str) -> None:
        async with self.connection.transaction():
            await self.connection.execute("SELECT lock_organization($1)", self.fleet.organization)
            await move_time(self.connection, self.fleet.organization, moment)

    async def forget(self) -> None:
        """Delete every checkpoint: no balance is another one then."""
        balances = (
            "SELECT a.id, b.settled, b.held FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b "
            "WHERE a.organization_id = $1 ORDER BY a.id"
        )
        organization = self.fleet.organization
        async with self.connection.transaction():
            await self.connection.execute("SELECT lock_organization($1)", organization)
            before = await self.connection.fetch(balances, organization)
            await forget_checkpoints(self.connection, organization)
            assert await self.connection.fetch(balances, organization) == before

    async def lose_worklist(self) -> None:
        """Delete the list of open holds: it comes back as it was."""
        organization = self.fleet.organization
        listed = "SELECT * FROM open_holds WHERE organization_id = $1 ORDER BY request_id"
        async with self.connection.transaction():
            await self.connection.execute("SELECT lock_organization($1)", organization)
            before = await self.connection.fetch(listed, organization)
            await self.connection.execute("DELETE FROM open_holds WHERE organization_id = $1", organization)
            count = await self.connection.fetchval("SELECT rebuild_open_holds($1)", organization)
            assert (count, await self.connection.fetch(listed, organization)) == (len(before), before)

    async def lose_worklist_for_a_while(self) -> None:
        organization = self.fleet.organization
        await self.connection.execute("DELETE FROM open_holds WHERE organization_id = $1", organization)
        await asyncio.sleep(0.05)
        await self.connection.execute("SELECT rebuild_open_holds($1)", organization)

    async def _change(self, budget_id: str, **changes: Any) -> None:
        key = ids.new(ids.Kind.REQUEST)
        await budgets.change(self.fleet.ledger.database, self.fleet.organization, budget_id, key, "test", **changes)


async def test_budgets_change_while_thousands_of_holds_are_in_flight(ledger: RunningLedger) -> None:
    fleet = await fleet_of(ledger)
    first = fleet.first
    cap = await first.budget(PLENTY, target=first.organization)
    group = await first.budget(PLENTY, target=first.path[2], period="daily")
    async with owner(ledger.house) as connection:
        hand = Hand(fleet, connection)
        changes: list[Callable[[], Awaitable[Any]]] = [
            lambda: first.budget(PLENTY, target=first.path[1], period="monthly"),
            lambda: first.budget(PLENTY, period="total"),
            lambda: hand.limit(cap, 2_000),
            lambda: hand.limit(cap, PLENTY),
            lambda: hand.switch(group, disabled=True),
            lambda: hand.switch(group, disabled=False),
            lambda: first.budget(7_000_000, target=first.path[2]),
        ]
        async with in_flight(fleet):
            assert len(fleet.open) >= 1_000
            await while_they_run(fleet, changes[:3])
            await until(lambda: fleet.refused > 0)
            await changes[3]()
            await while_they_run(fleet, changes[4:])
        assert fleet.settled > 3_000
        await check_books(connection, first.organization)
        assert await check_windows(connection, first.organization) == 5


@pytest.mark.usefixtures("as_shipped")
async def test_agents_prices_and_time_change_while_thousands_of_holds_are_in_flight(ledger: RunningLedger) -> None:
    fleet = await fleet_of(ledger)
    first = fleet.first
    dearer = json.loads(PRICES.read_text(encoding="utf-8"))
    (entry,) = [one for one in dearer["models"] if one["model"] == ROUTE.model]
    entry["micros_per_mtok"]["output"] *= 3
    for node in first.path:
        for period in ("daily", "monthly", "total"):
            await first.budget(PLENTY, target=node, period=period)
    async with owner(ledger.house) as connection:
        hand = Hand(fleet, connection)
        await hand.time("2100-01-31T09:00:00Z")
        changes: list[Callable[[], Awaitable[Any]]] = [
            lambda: hand.move(0),
            lambda: put_prices(ledger, json.dumps(dearer)),
            lambda: hand.zone("Pacific/Auckland"),
            lambda: first.budget(PLENTY, target=first.path[1], period="daily"),
            lambda: hand.time("2100-02-01T00:30:00Z"),  # a new day and month, from here on by the clocks over there
            lambda: hand.move(0),
            lambda: hand.zone("America/New_York"),
            lambda: hand.time("2100-02-01T11:30:00Z"),  # midnight over there
        ]
        async with in_flight(fleet):
            await while_they_run(fleet, changes)
        await check_books(connection, first.organization)
        # The total ones, the monthly and daily ones with those they were made in, and the new one's.
        assert await check_windows(connection, first.organization) == 4 + 4 * 3 + 4 * 4 + 3
        assert len(await check_charges(connection, ledger, first.organization)) == 2


async def test_a_budget_made_while_the_worklist_is_lost_counts_what_is_in_flight(ledger: RunningLedger) -> None:
    first = await tenant(ledger, PLENTY)
    await first.place("a", 7)
    await first.place("b", 5)
    async with owner(ledger.house) as connection:
        await connection.execute("DELETE FROM open_holds WHERE organization_id = $1", first.organization)
        cap = await first.budget(20 * TOKEN_MICROS)
        assert await first.spent(cap) == (0, 12 * TOKEN_MICROS, False)
        await first.settle("a", 6)
        await first.void("b")
        assert await first.spent(cap) == (6 * TOKEN_MICROS, 0, False)
        await check_books(connection, first.organization)


async def test_what_is_derived_may_be_lost_while_thousands_of_holds_are_in_flight(ledger: RunningLedger) -> None:
    fleet = await fleet_of(ledger)
    first = fleet.first
    cap = await first.budget(PLENTY, target=first.organization, period="daily")
    await first.budget(PLENTY, target=first.path[1])
    async with owner(ledger.house) as connection:
        hand = Hand(fleet, connection)
        changes = [hand.forget, hand.lose_worklist, hand.lose_worklist_for_a_while, hand.forget, hand.forget]
        async with in_flight(fleet):
            await while_they_run(fleet, changes)
            await hand.limit(cap, 1)
            await hand.forget()
            await until(lambda: fleet.refused > 0)
            await hand.limit(cap, PLENTY)
        assert await connection.fetchval("SELECT rebuild_open_holds($1)", first.organization) == 0
        left = "SELECT count(*) FROM open_holds WHERE organization_id = $1"
        assert await connection.fetchval(left, first.organization) == 0
        await check_books(connection, first.organization)
        assert await check_windows(connection, first.organization) == 2
