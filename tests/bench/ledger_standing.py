"""A ledger on a durable cluster with many agents under one organization, for the benchmarks to load."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from ledger_svc import price_list, pricing
from ledger_svc.__main__ import PRICES
from ledger_svc.holds import Placing, Settling
from ledger_svc.price_book import PriceBook
from ledger_svc.pricing import Price, Usage
from ledger_svc.store import budgets, registry, wallets
from ledger_svc.store import prices as price_store
from mandate.ledger.v1 import charges_pb2
from mesh import audit_keys, certificates, children, client, db, ids, migrations, ports
from mesh.clock import SystemClock
from mesh.db import Database
from mesh.embedded import postgres
from mesh.embedded.postgres import ENVIRONMENT, Postgres
from mesh.embedded.provision import SERVICES, provision
from mesh.home import Home
from mesh.ids import Kind
from mesh.secret import Secret
from mesh.tls import Certificates

WORKSPACES, GROUPS_EACH, AGENTS_EACH = 2, 5, 20
LIMIT = 10**15
TPS = re.compile(r"tps = ([0-9.]+)")
SCALE, CLIENTS = 10, 8


@dataclass(frozen=True)
class Standing:
    """A durable cluster with the ledger's schema, and what serves it."""

    home: Home
    server: Postgres
    dsn: Secret
    owner_dsn: Secret
    database: Database
    prices: PriceBook

    async def pgbench(self, seconds: int) -> float:
        """Return the transactions a second of TPC-B, scale 10, 8 clients, on the same server."""
        printed = await self._pgbench("-n", "-c", str(CLIENTS), "-j", "2", "-T", str(seconds))
        found = TPS.search(printed)
        assert found, printed
        return float(found[1])

    async def prepare_pgbench(self) -> None:
        """Make the tables of TPC-B."""
        await self._pgbench("-i", "-q", "-s", str(SCALE))

    async def _pgbench(self, *options: str) -> str:
        process = await asyncio.create_subprocess_exec(
            str(self.server.programs / "pgbench"),
            *options,
            self.server.owner_dsn.reveal(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=ENVIRONMENT,
        )
        printed, _ = await process.communicate()
        return printed.decode()


@asynccontextmanager
async def standing(directory: Path, *, pool: int = 8) -> AsyncGenerator[Standing]:
    """Start a durable cluster and bring the ledger's schema up to date."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(postgres.running(directory / "database", durable=True))
        home = Home.open(directory / "home")
        certificates.ensure(home, SystemClock())
        audit_keys.ensure(home, SystemClock().now())
        provisioned = await provision(
            server.owner_dsn, {service: home.secret(f"mandate_{service}") for service in SERVICES}
        )
        await migrations.migrate(provisioned.owner_dsn, "ledger")
        dsn = provisioned.services["ledger"]
        database = await stack.enter_async_context(db.connect(dsn, service="ledger", size_max=pool))
        await price_store.put(database, price_list.parse(PRICES.read_text(), 100))
        prices = PriceBook(database)
        await prices.refresh()
        yield Standing(home, server, dsn, provisioned.owner_dsn, database, prices)


@asynccontextmanager
async def serving(at: Standing, module: str = "ledger_svc") -> AsyncGenerator[grpc.aio.Channel]:
    """Run the ledger as a process of its own, as `mandate up` does, and open a gateway's channel to it."""
    base_port = children.free_port() - ports.GRPC["ledger"]
    environ = {
        "MANDATE_HOME": str(at.home.path),
        "MANDATE_BASE_PORT": str(base_port),
        "MANDATE_ENV_FILE": "",
        "MANDATE_DRAIN_SECONDS": "1",
        "MANDATE_LEDGER_DATABASE_URL": at.dsn.reveal(),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, env=environ, stderr=asyncio.subprocess.DEVNULL
    )
    address = f"127.0.0.1:{base_port + ports.GRPC['ledger']}"
    channel = client.connect(
        "ledger", address, Certificates(at.home.tls, "gateway"), charges_pb2.DESCRIPTOR.services_by_name.values()
    )
    try:
        async with client.connected(channel):
            async with asyncio.timeout(30):
                await channel.channel_ready()
            yield channel
    finally:
        process.terminate()
        await process.wait()


@dataclass(frozen=True)
class Fleet:
    """An organization with 200 agents, and a holder that spends for them."""

    organization: str
    agents: tuple[tuple[str, ...], ...]
    holder: str
    price: Price

    def placing(self, number: int, output: int = 16) -> Placing:
        """Return the next request for a hold, of one agent after the other."""
        bound = pricing.bound([self.price], 100, output, 1)
        assert isinstance(bound, pricing.Bound)
        agent = self.agents[number % len(self.agents)][-1]
        return Placing(
            ids.new(Kind.REQUEST), self.holder, agent, 4, "key", (self.price,), 100, output, output, 1, bound
        )

    def settling(self, placing: Placing) -> Settling:
        """Return what a completion used of its hold."""
        usage = Usage(input_tokens=80, output_tokens=12)
        cost = pricing.cost_micros(self.price, usage, "ok")
        return Settling(placing.request_id, self.price, usage, cost, False, "ok", 200, 812, 4, 120, True)


async def fleet(at: Standing, *, windows: bool) -> Fleet:
    """Make an organization of 2 workspaces, 10 groups and 200 agents; each node with three budgets, or none."""
    organization = ids.new(Kind.ORGANIZATION)
    facts = [registry.NodeFact(organization, organization, (organization,), 1)]
    nodes, agents = [organization], []
    for _ in range(WORKSPACES):
        workspace = (organization, ids.new(Kind.WORKSPACE))
        for _ in range(GROUPS_EACH):
            group = (*workspace, ids.new(Kind.AGENT_GROUP))
            agents += [(*group, ids.new(Kind.AGENT)) for _ in range(AGENTS_EACH)]
            nodes.append(group[-1])
        nodes.append(workspace[-1])
    facts += [registry.NodeFact(path[-1], organization, path, 4) for path in agents]
    await registry.put_nodes(at.database, facts)
    await wallets.post(at.database, organization, "bought", "purchase", LIMIT, "", "bench", "")
    if windows:
        for node in [*nodes, *(path[-1] for path in agents)]:
            for period in ("daily", "monthly", "total"):
                new = budgets.NewBudget(ids.new(Kind.BUDGET), ids.new(Kind.REQUEST), node, period, LIMIT, False)
                await budgets.create(at.database, organization, new, "bench")
    price = at.prices.in_force("mock", "mock-model")
    assert price
    return Fleet(organization, tuple(agents), "", price)  # the ledger's own holder: it never lapses
