"""A tenant of a running ledger as a test drives it: holds and settlements through group commits, and its books."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import asyncpg

from ledger_svc import pricing
from ledger_svc.commits import Asker, Commits
from ledger_svc.holds import Placed, Placing, SettleOutcome, Settling, Voiding, VoidOutcome
from ledger_svc.store import budgets, charges, registry, wallets
from mesh import db, ids
from mesh.errors import MeshError
from mesh.testing import House
from tests.conftest import RunningLedger

TOKEN_MICROS = 200  # an output token of mock-model
FLAT_MICROS = 1_000_000  # a request of mock-flat


@dataclass(frozen=True)
class Tenant:
    """An organization with one agent, and a holder that spends for it."""

    ledger: RunningLedger
    commits: Commits
    path: tuple[str, ...]
    holder: str

    @property
    def organization(self) -> str:
        return self.path[0]

    def placing(
        self, key: str, wanted: int, least: int | None = None, *, model: str = "mock-model", cost_max_micros: int = 0
    ) -> Placing:
        price = self.ledger.ledger.prices.in_force("mock", model)
        assert price
        bound = pricing.bound([price], 0, wanted, 1)
        assert isinstance(bound, pricing.Bound)
        least = wanted if least is None else least
        return Placing(
            key, self.holder, self.path[-1], 4, "key", (price,), 0, wanted, least, 1, bound,
            cost_max_micros=cost_max_micros,
        )  # fmt: skip

    def settling(self, key: str, tokens: int, *, model: str = "mock-model") -> Settling:
        price = self.ledger.ledger.prices.in_force("mock", model)
        assert price
        usage = pricing.Usage(output_tokens=tokens)
        cost = pricing.cost_micros(price, usage, "ok")
        return Settling(key, price, usage, cost, False, "ok", 200, 5, 1, 2, False)

    async def place(
        self,
        key: str,
        wanted: int = 1,
        least: int | None = None,
        *,
        model: str = "mock-model",
        wait_ms: int = 0,
        cost_max_micros: int = 0,
    ) -> Placed:
        placing = self.placing(key, wanted, least, model=model, cost_max_micros=cost_max_micros)
        return await asked(self.commits.place, self.organization, placing, wait_ms)

    async def settle(self, key: str, tokens: int, *, model: str = "mock-model") -> SettleOutcome:
        return await asked(self.commits.settle, self.organization, self.settling(key, tokens, model=model))

    async def void(self, key: str) -> VoidOutcome:
        return await asked(self.commits.void, self.organization, Voiding(key, self.path[-1], "never sent"))

    async def wallet(self) -> tuple[int, int]:
        """Return what the wallet has settled and held."""
        found = await wallets.balance(self.ledger.database, self.organization)
        return found.settled_micros, found.held_micros

    async def budget(
        self, limit_micros: int, *, target: str = "", period: str = "total", auto_disable: bool = False
    ) -> str:
        """Open a budget on the agent, or on another node of the path, and return its id."""
        new = budgets.NewBudget(
            ids.new(ids.Kind.BUDGET),
            ids.new(ids.Kind.REQUEST),
            target or self.path[-1],
            period,
            limit_micros,
            auto_disable,
        )
        return (await budgets.create(self.ledger.database, self.organization, new, "test")).id

    async def spent(self, budget_id: str) -> tuple[int, int, bool]:
        """Return what a budget's current window has settled and holds, and whether it is disabled."""
        row = await budgets.get(self.ledger.database, budget_id)
        assert row
        return row["settled_micros"], row["held_micros"], row["disabled"]

    async def under(self, agent: str, *above: str) -> Tenant:
        """Register another agent of the organization, below the nodes `above`, and spend for it."""
        path = (self.organization, *above, agent)
        facts = [
            registry.NodeFact(node, path[0], path[: depth + 1], depth + 1) for depth, node in enumerate(path) if depth
        ]
        await registry.put_nodes(self.ledger.database, facts)
        return replace(self, path=path)

    async def lapse(self) -> None:
        """Let the holder fall silent for ever: its holds become uncertain."""
        await self.ledger.database.execute(
            "UPDATE leases SET lapsed_at = clock_timestamp() WHERE holder_id = $1", self.holder
        )
        await charges.mark_uncertain(self.ledger.database, self.organization)

    async def again(self) -> Tenant:
        """Return the same tenant with a new holder."""
        holder = ids.new(ids.Kind.HOLDER)
        assert await charges.open_lease(self.ledger.database, holder)
        return replace(self, holder=holder)


async def asked(ask: Callable[..., None], *question: Any) -> Any:
    """Put a question to the commits and return its answer, or raise it."""
    heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    asker = Asker()

    def hear(outcome: Any) -> None:
        if not heard.done():
            heard.set_result(outcome)

    ask(*question, asker, hear)
    try:
        outcome = await heard
    finally:
        asker.gone = True
    if isinstance(outcome, MeshError):
        raise outcome
    return outcome


async def tenant(ledger: RunningLedger, credits_micros: int, commits: Commits | None = None) -> Tenant:
    """Make an organization with so much in its wallet."""
    path = await ledger.tenant(credits_micros)
    return await Tenant(ledger, commits or ledger.ledger.commits, path, "").again()


@asynccontextmanager
async def owner(house: House) -> AsyncGenerator[asyncpg.Connection]:
    """Connect as the schemas' owner."""
    connection = await asyncpg.connect(house.owner_dsn.reveal(), server_settings={"search_path": "ledger"})
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def replica(house: House) -> AsyncGenerator[Commits]:
    """Run the commits of another process of the ledger: its own pool, its own queues."""
    async with db.connect(house.dsn("ledger"), service="ledger", size_max=4) as database:
        commits = Commits(database)
        yield commits
        await commits.drain()


async def check_books(connection: asyncpg.Connection, organization: str) -> None:
    """Check what must hold of an organization's books at any time."""
    assert not await connection.fetchval(
        "SELECT sum(amount_micros) FROM entries WHERE organization_id = $1", organization
    )
    accounts = await connection.fetch(
        "SELECT a.id, a.kind, r.settled AS counted, r.held AS counted_held, b.settled, b.held "
        "FROM recount($1) r JOIN accounts a ON a.id = r.account_id CROSS JOIN LATERAL balance_of(a.id) b",
        organization,
    )
    for account in accounts:
        assert (account["settled"], account["held"]) == (account["counted"], account["counted_held"]), dict(account)
        assert account["kind"] != "wallet" or account["settled"] >= account["held"] >= 0
    for table in ("transfers", "usage", "audit"):
        seqs = await connection.fetch(
            f"SELECT seq FROM {table} WHERE organization_id = $1 ORDER BY seq",  # noqa: S608
            organization,
        )
        assert [row["seq"] for row in seqs] == list(range(1, len(seqs) + 1))
    await _check_chain(connection, organization)


async def _check_chain(connection: asyncpg.Connection, organization: str) -> None:
    head = hashlib.sha256(organization.encode()).digest()
    for row in await connection.fetch(
        "SELECT line, hash FROM audit WHERE organization_id = $1 ORDER BY seq", organization
    ):
        head = hashlib.sha256(head + row["line"].encode()).digest()
        assert head == row["hash"]


async def forget_checkpoints(connection: asyncpg.Connection, organization: str) -> None:
    """Delete everything that is derived from the organization's facts and kept for speed."""
    await connection.execute(
        "DELETE FROM checkpoints WHERE account_id IN (SELECT id FROM accounts WHERE organization_id = $1)", organization
    )


async def move_time(connection: asyncpg.Connection, organization: str, moment: str) -> None:
    """Bring the organization's time to `moment` (ISO 8601): it never goes back behind its last fact."""
    async with connection.transaction():
        await connection.execute("SELECT lock_organization($1)", organization)
        await connection.execute(
            "SELECT append_audit($1, $2::text::timestamptz, '{test}', '{time.moved}', '{clock}', '{\"{}\"}')",
            organization,
            moment,
        )
