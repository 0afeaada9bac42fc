"""Random histories of lots, checked against the rule as Python says it, from the facts alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count

import asyncpg
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ledger_svc.grants import Lot, burned
from ledger_svc.store import grants, wallets
from mesh import ids
from mesh.clock import SystemClock
from tests.conftest import RunningLedger
from tests.services.ledger_running import TOKEN_MICROS, Tenant, check_books, move_time, owner, tenant

FEW = settings(max_examples=40, deadline=None, database=None, derandomize=True, phases=(Phase.generate, Phase.shrink),
               suppress_health_check=[HealthCheck.too_slow])  # fmt: skip
SOME = st.integers(1, 30)
PICK = st.integers(0, 9)
OPERATIONS = st.one_of(
    st.tuples(st.just("give"), SOME, st.integers(0, 2), st.none() | st.integers(1, 9)),
    st.tuples(st.just("give"), SOME, st.integers(0, 2), st.none() | st.integers(1, 9)),
    st.tuples(st.just("void"), PICK),
    st.tuples(st.just("adjust"), st.integers(-30, 30).filter(bool)),
    st.tuples(st.just("hold"), SOME),
    st.tuples(st.just("hold"), SOME),
    st.tuples(st.just("settle"), PICK, st.integers(0, 30)),
    st.tuples(st.just("settle"), PICK, st.integers(0, 30)),
    st.tuples(st.just("lapse")),
    st.tuples(st.just("pass_hours"), st.integers(1, 4)),
    st.tuples(st.just("cut")),
)
SPENT = """
SELECT coalesce(sum(CASE WHEN d.kind = 'wallet' THEN t.amount_micros ELSE -t.amount_micros END) FILTER (
         WHERE t.kind IN ('charge', 'overage', 'suspend', 'release') AND t.seq > $2), 0)::bigint AS spent,
       coalesce(sum(CASE WHEN d.kind = 'wallet' THEN -t.amount_micros ELSE t.amount_micros END), 0)::bigint AS settled
  FROM transfers t JOIN accounts d ON d.id = t.debit JOIN accounts c ON c.id = t.credit
 WHERE t.organization_id = $1 AND t.seq <= $3 AND 'wallet' IN (d.kind, c.kind)
"""


@dataclass
class History:
    """What happens to one tenant."""

    spender: Tenant
    connection: asyncpg.Connection
    at: datetime
    lots: list[str] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    number: Callable[[], int] = field(default_factory=lambda: count().__next__)

    @property
    def organization(self) -> str:
        return self.spender.organization

    async def give(self, tokens: int, priority: int, hours: int | None) -> None:
        new = grants.NewGrant(
            id=ids.new(ids.Kind.GRANT),
            request_id=f"g{self.number()}",
            amount_micros=tokens * TOKEN_MICROS,
            priority=priority,
            expires_at=None if hours is None else self.at + timedelta(hours=hours),
            category="promotional",
            reason="test",
        )
        made = await grants.make(self.spender.ledger.database, self.organization, new, "test")
        assert made.status == grants.MADE
        self.lots.append(made.grant_id)

    async def void(self, lot: int) -> None:
        if self.lots:
            name = self.lots[lot % len(self.lots)]
            database = self.spender.ledger.database
            voided = await grants.void(database, self.organization, name, f"v{self.number()}", "test", "test")
            assert voided.status in {grants.VOIDED, grants.ENDED}

    async def adjust(self, tokens: int) -> None:
        key, database = f"a{self.number()}", self.spender.ledger.database
        await wallets.post(database, self.organization, key, "adjustment", tokens * TOKEN_MICROS, "", "test", "test")

    async def hold(self, tokens: int) -> None:
        self.holds.append(f"h{self.number()}")
        await self.spender.place(self.holds[-1], tokens)

    async def settle(self, hold: int, tokens: int) -> None:
        if self.holds:
            await self.spender.settle(self.holds[hold % len(self.holds)], tokens)

    async def lapse(self) -> None:
        await self.spender.lapse()
        self.spender = await self.spender.again()

    async def pass_hours(self, hours: int) -> None:
        self.at += timedelta(hours=hours)
        await move_time(self.connection, self.organization, self.at.isoformat())
        waits = await grants.expire(self.spender.ledger.database, self.organization)
        settled, held = await self.spender.wallet()
        assert not waits or settled == held, "credits that nothing covers outlived their end"

    async def cut(self) -> None:
        await self.connection.execute("SELECT cut_grants($1, $2)", self.organization, self.at)

    async def check(self) -> None:
        """Recompute every cut from the grants, the burns before it and the transfers up to it."""
        made = await self.connection.fetch("SELECT * FROM grants WHERE organization_id = $1", self.organization)
        cuts = await self.connection.fetch(
            "SELECT * FROM grant_cuts WHERE organization_id = $1 ORDER BY number", self.organization
        )
        left = {row["id"]: row["amount_micros"] for row in made}
        before = 0
        for number, cut in enumerate(cuts, 1):
            assert cut["number"] == number
            wallet = await self.connection.fetchrow(SPENT, self.organization, before, cut["transfer_seq"])
            assert wallet
            if before:
                assert cut["spent_micros"] == wallet["spent"]
            lots = [
                Lot(row["id"], row["seq"], row["priority"], row["expires_at"], left[row["id"]])
                for row in made
                if row["seq"] <= cut["transfer_seq"]
            ]
            gone = await self.connection.fetch(
                "SELECT * FROM grant_burns WHERE organization_id = $1 AND cut = $2", self.organization, number
            )
            found = {row["grant_id"]: row["amount_micros"] for row in gone if row["cause"] == "spent"}
            assert found == burned(lots, wallet["spent"], wallet["settled"])
            for row in gone:
                left[row["grant_id"]] -= row["amount_micros"]
            assert all(amount >= 0 for amount in left.values())
            before = cut["transfer_seq"]

    async def derived(self) -> list[tuple[object, ...]]:
        rows = await self.connection.fetch(
            "SELECT * FROM open_grants WHERE organization_id = $1 ORDER BY grant_id", self.organization
        )
        return [tuple(row.values()) for row in rows]


@FEW
@given(operations=st.lists(OPERATIONS, min_size=10, max_size=30))
async def test_the_database_burns_what_the_rule_says(
    ledger: RunningLedger, operations: list[tuple[str, *tuple[int, ...]]]
) -> None:
    spender = await tenant(ledger, 20 * TOKEN_MICROS)
    async with owner(ledger.house) as connection:
        history = History(spender, connection, SystemClock().now())
        for name, *values in operations:
            await getattr(history, name)(*values)
        await history.check()
        kept = await history.derived()
        await connection.execute("SELECT rebuild_open_grants($1)", history.organization)
        assert await history.derived() == kept
        listed = await grants.of_organization(ledger.database, history.organization, "", 100)
        settled, _ = await spender.wallet()
        remaining = sum(grant.remaining_micros for grant in listed.grants)
        assert remaining <= settled
        assert await connection.fetchval("SELECT granted_micros($1)", history.organization) == remaining
        await history.cut()
        assert [one.remaining_micros for one in (await again(ledger, history)).grants] == [
            one.remaining_micros for one in listed.grants
        ]
        await check_books(connection, history.organization)


async def again(ledger: RunningLedger, history: History) -> grants.Found:
    return await grants.of_organization(ledger.database, history.organization, "", 100)
