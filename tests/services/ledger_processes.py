"""Ledgers as processes of their own over one database, as a test runs, loads and kills them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ledger_svc import price_list
from ledger_svc.__main__ import PRICES
from ledger_svc.commits import Commits
from ledger_svc.price_book import PriceBook
from ledger_svc.service import Ledger
from ledger_svc.store import prices as price_store
from ledger_svc.store import registry
from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import wallets_pb2
from mesh import audit_keys, children, client, db, ports, testing
from mesh.clock import SystemClock
from mesh.testing import House, TestIssuer
from mesh.tls import Certificates
from tests.conftest import RunningLedger

CONTRACTS = (*pb.DESCRIPTOR.services_by_name.values(), *wallets_pb2.DESCRIPTOR.services_by_name.values())
PATIENT_MS = 60_000  # of a call that waits its turn among a thousand


@dataclass
class Process:
    """One ledger process, always at the same address."""

    house: House
    base_port: int = field(default_factory=lambda: children.free_port() - ports.GRPC["ledger"])
    child: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.base_port + ports.GRPC['ledger']}"

    async def start(self) -> None:
        """Begin to start; it dies with this process, however that ends."""
        environ = {
            "MANDATE_HOME": str(self.house.home.path),
            "MANDATE_BASE_PORT": str(self.base_port),
            "MANDATE_ENV_FILE": "",
            "MANDATE_DRAIN_SECONDS": "1",
            "MANDATE_LEDGER_DATABASE_URL": self.house.dsn("ledger").reveal(),
        }
        self.child = await asyncio.create_subprocess_exec(
            *children.leashed((sys.executable, "-m", "ledger_svc"), None, signal.SIGKILL),
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    async def kill(self) -> None:
        """End it as a power cut would."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                self.child.kill()
            await self.child.wait()

    @asynccontextmanager
    async def channel(self, *, as_service: str = "gateway") -> AsyncGenerator[grpc.aio.Channel]:
        """Open a connection of its own."""
        certificates = Certificates(self.house.home.tls, as_service)
        channel = client.connect("ledger", self.address, certificates, CONTRACTS)
        async with client.connected(channel):
            yield channel

    async def ready(self) -> None:
        async with asyncio.timeout(30), self.channel() as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True)


@dataclass(frozen=True)
class Ledgers:
    """Two processes, and the tests' own way to their database."""

    own: RunningLedger
    processes: tuple[Process, Process]

    @asynccontextmanager
    async def channels(self, count: int, *, as_service: str = "gateway") -> AsyncGenerator[list[grpc.aio.Channel]]:
        """Open so many connections, to one process and the other in turn."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(self.processes[number % 2].channel(as_service=as_service))
                for number in range(count)
            ]


@asynccontextmanager
async def processes(house: House) -> AsyncGenerator[tuple[Process, Process]]:
    """Run two ledgers over a house."""
    audit_keys.ensure(house.home, SystemClock().now())
    pair = (Process(house), Process(house))
    try:
        for process in pair:
            await process.start()
        for process in pair:
            await process.ready()
        yield pair
    finally:
        for process in pair:
            await process.kill()


@asynccontextmanager
async def owned(house: House, issuer: TestIssuer) -> AsyncGenerator[RunningLedger]:
    """Open the tests' own way to a house's database: tenants, budgets and books, without a server."""
    async with db.connect(house.dsn("ledger"), service="ledger", size_max=4) as database:
        await price_store.put(database, price_list.parse(PRICES.read_text(encoding="utf-8"), 100))
        await registry.put_keys(database, [(issuer.key_id, issuer.jwk)])
        prices = PriceBook(database)
        await prices.refresh()
        yield RunningLedger(house, "", database, Ledger(database, Commits(database), prices))


@asynccontextmanager
async def two_ledgers(directory: Path, issuer: TestIssuer) -> AsyncGenerator[Ledgers]:
    """Run two ledgers over a database of their own: their sweepers end the leases of silent holders."""
    async with testing.house(directory) as house, owned(house, issuer) as own, processes(house) as pair:
        yield Ledgers(own, pair)


def charge(key: str, agent: str, **changes: Any) -> pb.PostCharge:
    """Return a charge of a tenth of a credit."""
    values: dict[str, Any] = {
        "request_id": key,
        "agent_id": agent,
        "path_version": 4,
        "amount_micros": 100_000,
        "provider": "mcp",
        "model": "search",
    }
    return pb.PostCharge(**(values | changes))
