from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mandate.ledger.v1 import wallets_pb2, wallets_pb2_grpc
from mesh import db, ids
from mesh.client import call
from mesh.errors import Exhausted
from tests.services.ledger_processes import PATIENT_MS, Ledgers, charge
from tests.services.ledger_running import Tenant, check_books, owner, tenant
from tests.services.test_ledger_stream import hold, settle

WRITERS, TURNS, READERS = 32, 12, 2
CREDIT = 1_000_000
# In one snapshot, by organization: all lines, all lines on real accounts, what checkpoints say of them, and whatever no
# commit may ever leave behind.
READ = {
    "lines": "SELECT coalesce(sum(amount_micros), 0) FROM entries WHERE organization_id = $1",
    "funds": "SELECT coalesce(sum(e.amount_micros), 0) FROM entries e JOIN accounts a ON a.id = e.account_id "
    "WHERE e.organization_id = $1 AND a.kind <> 'budget'",
    "balances": "SELECT sum(b.settled) FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b "
    "WHERE a.organization_id = $1 AND a.kind <> 'budget'",
    "wallet and its history": "SELECT b.settled - x.moved FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b "
    "CROSS JOIN LATERAL (SELECT coalesce(sum(e.amount_micros), 0) AS moved FROM entries e WHERE e.account_id = a.id) x "
    "WHERE a.organization_id = $1 AND a.kind = 'wallet'",
    "revenue and its usage": "SELECT b.settled - (SELECT coalesce(sum(charged_micros + breach_micros), 0) FROM usage "
    "WHERE organization_id = $1) FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b "
    "WHERE a.organization_id = $1 AND a.kind = 'revenue'",
    "held and its holds": "SELECT b.held - (SELECT coalesce(sum(h.ceiling_micros), 0) FROM open_holds o JOIN holds h "
    "USING (organization_id, request_id) WHERE o.organization_id = $1) FROM accounts a "
    "CROSS JOIN LATERAL balance_of(a.id) b WHERE a.organization_id = $1 AND a.kind = 'wallet'",
    "broken floors": "SELECT count(*) FROM accounts a CROSS JOIN LATERAL balance_of(a.id) b "
    "LEFT JOIN LATERAL rule_of(a.budget_id) r ON true "
    "WHERE a.organization_id = $1 AND (a.kind = 'wallet' OR a.kind = 'budget') "
    "AND (b.held < 0 OR b.settled - b.held < CASE a.kind WHEN 'budget' THEN r.floor ELSE 0 END)",
}


@dataclass
class Bank:
    """One organization, its agents, and what the writers were told."""

    first: Tenant
    agents: list[str]
    said: Counter[str] = field(default_factory=Counter)
    wallet: int = 0

    @property
    def organization(self) -> str:
        return self.first.organization


@dataclass(frozen=True)
class Writer:
    """One client of the bank, on a connection to one of the processes."""

    bank: Bank
    number: int
    charges: Any
    wallets: Any

    async def work(self) -> None:
        chance = random.Random(self.number)  # noqa: S311  # the same work each time
        for turn in range(TURNS):
            what = chance.choice([self.hold, self.hold, self.post, self.buy, self.move])
            await what(f"{self.number}.{turn}", chance)

    async def hold(self, key: str, chance: random.Random) -> None:
        agent, holder = chance.choice(self.bank.agents), ids.new(ids.Kind.HOLDER)
        holds = [hold(f"{key}.{place}", agent) for place in range(4)]
        placed = (await self._ask(self.charges.PlaceHolds, pb.PlaceHoldsRequest(holder_id=holder, holds=holds))).holds
        granted = [answer.request_id for answer in placed if answer.HasField("granted")]
        self.bank.said["granted"] += len(granted)
        self.bank.said["refused"] += len(placed) - len(granted)
        if granted:
            void = pb.VoidHold(request_id=granted.pop(), agent_id=agent, reason="not needed")
            await self._ask(self.charges.VoidHolds, pb.VoidHoldsRequest(voids=[void]))
        if granted:
            request = pb.SettleHoldsRequest(settles=[settle(one, agent) for one in granted])
            for answer in (await self._ask(self.charges.SettleHolds, request)).settles:
                self.bank.wallet -= answer.settled.charged_micros

    async def post(self, key: str, chance: random.Random) -> None:
        charges = [
            charge(f"{key}.{place}", chance.choice(self.bank.agents), amount_micros=chance.randint(1, CREDIT))
            for place in range(4)
        ]
        for answer in (await self._ask(self.charges.PostCharges, pb.PostChargesRequest(charges=charges))).charges:
            self.bank.wallet -= answer.posted.charged_micros
            self.bank.said[answer.WhichOneof("outcome") or ""] += 1

    async def buy(self, key: str, chance: random.Random) -> None:
        amount = chance.randint(-CREDIT, CREDIT * 3) or 1
        request = wallets_pb2.AdjustCreditsRequest(
            organization_id=self.bank.organization, amount_micros=amount, reason="by hand", request_id=key
        )
        try:
            await self._ask(self.wallets.AdjustCredits, request)
        except Exhausted:
            self.bank.said["short"] += 1
        else:
            self.bank.wallet += amount

    async def move(self, key: str, chance: random.Random) -> None:
        """Buy, and give some of it back, or neither."""
        bought, back = chance.randint(1, CREDIT), chance.randint(1, 3 * CREDIT)
        transfers = [
            wallets_pb2.NewTransfer(
                request_id=f"{key}.b", kind="promotion", debit_account="purchases", credit_account="wallet",
                amount_micros=bought, reason="bought", linked=True,
            ),
            wallets_pb2.NewTransfer(
                request_id=f"{key}.r", kind="reversal", debit_account="wallet", credit_account="purchases",
                amount_micros=back, reason="given back",
            ),
        ]  # fmt: skip
        request = wallets_pb2.PostTransfersRequest(organization_id=self.bank.organization, transfers=transfers)
        said = [one.HasField("posted") for one in (await self._ask(self.wallets.PostTransfers, request)).transfers]
        assert said in ([True, True], [False, False])
        self.bank.said["moved" if said[0] else "short"] += 1
        self.bank.wallet += (bought - back) if said[0] else 0

    async def _ask(self, method: Any, request: Any) -> Any:
        return await call(method, request, timeout_ms=PATIENT_MS)


async def read_until(ledgers: Ledgers, organization: str, over: asyncio.Event) -> int:
    """Read everything in one snapshot, again and again; return how often."""
    reads = 0
    async with db.connect(ledgers.own.house.dsn("ledger"), service="ledger", size_max=1) as database:
        while not over.is_set():
            async with database.transaction() as snapshot:
                await snapshot.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                for what, query in READ.items():
                    found = [row[0] for row in await snapshot.fetch(query, organization)]
                    assert set(found) <= {0, None}, (what, found)  # no row: the account is still to be made
            reads += 1
            await asyncio.sleep(0.02)
    return reads


async def run(ledgers: Ledgers, bank: Bank, work: Callable[[list[Writer]], Awaitable[None]]) -> int:
    """Let the writers work while the readers read; return how often those did."""
    over = asyncio.Event()
    async with (
        ledgers.channels(4) as gateways,
        ledgers.channels(4, as_service="operator") as operators,
        asyncio.TaskGroup() as group,
    ):
        readers = [group.create_task(read_until(ledgers, bank.organization, over)) for _ in range(READERS)]
        await work([writer(bank, number, gateways, operators) for number in range(WRITERS)])
        over.set()
    return sum(reader.result() for reader in readers)


def writer(bank: Bank, number: int, gateways: list[grpc.aio.Channel], operators: list[grpc.aio.Channel]) -> Writer:
    charges: Any = rpc.ChargeServiceStub(gateways[number % 4])
    wallets: Any = wallets_pb2_grpc.WalletServiceStub(operators[number % 4])
    return Writer(bank, number, charges, wallets)


async def test_while_thirty_two_write_through_two_ledgers_every_reader_sees_whole_books(ledgers: Ledgers) -> None:
    first = await tenant(ledgers.own, 60 * CREDIT)
    others = [await first.under(ids.new(ids.Kind.AGENT), *first.path[1:3]) for _ in range(3)]
    for period, limit in (("daily", 90), ("monthly", 100), ("total", 120)):
        await first.budget(limit * CREDIT, target=first.organization, period=period)
    for agent in (first, *others):
        await agent.budget(25 * CREDIT, period="daily")
    bank = Bank(first, [one.path[-1] for one in (first, *others)], wallet=60 * CREDIT)

    async def work(writers: list[Writer]) -> None:
        await asyncio.gather(*(one.work() for one in writers))

    reads = await run(ledgers, bank, work)
    assert reads >= READERS
    assert await first.wallet() == (bank.wallet, 0)
    assert min(bank.said[what] for what in ("granted", "refused", "posted", "moved", "short")) > 0, bank.said
    async with owner(ledgers.own.house) as connection:
        await check_books(connection, first.organization)
