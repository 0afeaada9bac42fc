"""Kill PostgreSQL and the ledger under load, again and again: whatever was acknowledged is there, and only once."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import grpc
import pytest

from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import audit_keys, certificates, children, ids, migrations
from mesh.client import call
from mesh.clock import SystemClock
from mesh.embedded.postgres import STOP_SIGNAL, Postgres
from mesh.embedded.provision import SERVICES, provision
from mesh.home import Home
from mesh.secret import Secret
from mesh.testing import House, TestIssuer
from tests.conftest import RunningLedger
from tests.journeys.ledger_load import ITEMS_MAX, Load, holders
from tests.services import ledger_processes
from tests.services.ledger_processes import PATIENT_MS, Process
from tests.services.ledger_running import Tenant, check_books, owner, tenant

SPENDERS = 64
BOUGHT_MICROS = 10**12
RECOVERY_SECONDS = 5.0
LOADED_SECONDS = 0.7

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


@dataclass
class Cluster:
    """A durable PostgreSQL that can be killed and started again."""

    server: Postgres
    _life: AsyncExitStack = field(default_factory=AsyncExitStack)
    _child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        await self.server.prepare()
        self._child = await self._life.enter_async_context(
            children.started(self.server.argv(), self.server.ready, account=self.server.account, stop=STOP_SIGNAL)
        )

    async def kill(self) -> None:
        assert self._child is not None
        os.kill(self._child.pid, signal.SIGKILL)
        await self.stop()

    async def stop(self) -> None:
        await self._life.aclose()


@dataclass(frozen=True)
class Standing:
    """The database and the ledger that are killed, and the tests' own way to look."""

    cluster: Cluster
    process: Process
    own: RunningLedger

    @property
    def parts(self) -> dict[str, Cluster | Process]:
        return {"postgres": self.cluster, "ledger": self.process}


@asynccontextmanager
async def standing(directory: Path, issuer: TestIssuer) -> AsyncGenerator[Standing]:
    async with AsyncExitStack() as stack:
        home = Home.open(directory / "database")
        stack.callback(home.wipe)
        cluster = Cluster(Postgres.of(home, children.free_port(), durable=True))
        stack.push_async_callback(cluster.stop)
        await cluster.start()
        own_home = Home.open(directory / "home")
        certificates.ensure(own_home, SystemClock())
        audit_keys.ensure(own_home, SystemClock().now())
        passwords = {service: own_home.secret(f"mandate_{service}") for service in SERVICES}
        provisioned = await provision(cluster.server.owner_dsn, passwords)
        await migrations.migrate(provisioned.owner_dsn, "ledger")
        house = House(own_home, provisioned, Secret(""))
        own = await stack.enter_async_context(ledger_processes.owned(house, issuer))
        process = Process(house)
        stack.push_async_callback(process.kill)
        await process.start()
        await process.ready()
        yield Standing(cluster, process, own)


@dataclass(frozen=True)
class Silence:
    """How long nobody was answered: since the kill, and since the part was started again."""

    seconds: float
    after_start_seconds: float


async def killed(part: Cluster | Process, load: Load) -> Silence:
    """Kill a part and start it again at once."""
    killed_at = time.monotonic()
    await part.kill()
    await part.start()
    started_at = time.monotonic()
    async with asyncio.timeout(4 * RECOVERY_SECONDS):
        while load.heard_at < started_at:  # noqa: ASYNC110  # what is waited for is another's word
            await asyncio.sleep(0.01)
    return Silence(load.heard_at - killed_at, load.heard_at - started_at)


async def check_stored(connection: asyncpg.Connection, organization: str, load: Load) -> None:
    """Check that everything that was acknowledged by now is there, as it was acknowledged."""
    said = {
        "SELECT request_id, ceiling_micros FROM holds WHERE organization_id = $1 AND status = 1": dict(load.granted),
        "SELECT request_id, charged_micros FROM usage WHERE organization_id = $1": dict(load.settled),
        "SELECT request_id, 0 FROM outcomes WHERE organization_id = $1 AND phase = 'voided'": dict.fromkeys(
            load.voided, 0
        ),
    }
    for query, acknowledged in said.items():
        stored = {row[0]: row[1] for row in await connection.fetch(query, organization)}
        assert acknowledged.items() <= stored.items(), acknowledged.items() - stored.items()


async def check_whole(connection: asyncpg.Connection, organization: str, load: Load) -> None:
    """Check one snapshot of the books while they are written."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await check_books(connection, organization)
    await check_stored(connection, organization, load)


async def check_ends(connection: asyncpg.Connection, organization: str, load: Load) -> None:
    """Check that each hold came to one end, or is open under a lease that lives, and is on the worklist then."""
    rows = await connection.fetch(
        """
        SELECT h.request_id, l.lapsed_at IS NULL AS lives,
               EXISTS (SELECT 1 FROM open_holds o
                        WHERE o.organization_id = h.organization_id AND o.request_id = h.request_id) AS open,
               array(SELECT phase FROM ends e WHERE e.organization_id = h.organization_id
                        AND e.request_id = h.request_id AND e.phase <> 'uncertain') AS ends
          FROM holds h JOIN leases l USING (holder_id) WHERE h.organization_id = $1 AND h.status = 1
        """,
        organization,
    )
    assert {row["request_id"] for row in rows} == set(load.granted)
    for row in rows:
        key = row["request_id"]
        if key in load.kept:
            assert (row["ends"], row["open"], row["lives"]) == ([], True, True), dict(row)
        else:
            end = "voided" if key in load.voided else "settled"
            assert (row["ends"], row["open"]) == ([end], False), dict(row)


async def ask_all_again(channel: grpc.aio.Channel, load: Load) -> None:
    """Ask again for everything under the same keys, and hear the same, flagged."""
    stub: Any = rpc.ChargeServiceStub(channel)
    holder = ids.new(ids.Kind.HOLDER)
    keys = list(load.granted)
    for part in (keys[start : start + ITEMS_MAX] for start in range(0, len(keys), ITEMS_MAX)):
        holds = [load.place(key, load.agent_of(int(key.partition(".")[0]))) for key in part]
        request = pb.PlaceHoldsRequest(holder_id=holder, holds=holds)
        for answer in (await call(stub.PlaceHolds, request, timeout_ms=PATIENT_MS)).holds:
            assert (answer.granted.ceiling_micros, answer.granted.replayed) == (load.granted[answer.request_id], True)
    keys = list(load.settled)
    for part in (keys[start : start + ITEMS_MAX] for start in range(0, len(keys), ITEMS_MAX)):
        settles = [load.settlement(key, load.agent_of(int(key.partition(".")[0]))) for key in part]
        request = pb.SettleHoldsRequest(settles=settles)
        for answer in (await call(stub.SettleHolds, request, timeout_ms=PATIENT_MS)).settles:
            assert (answer.settled.charged_micros, answer.settled.replayed) == (load.settled[answer.request_id], True)


async def agents_of(own: RunningLedger) -> tuple[Tenant, list[str]]:
    """Make an organization of four agents with budgets above each."""
    first = await tenant(own, BOUGHT_MICROS)
    others = [await first.under(ids.new(ids.Kind.AGENT), *first.path[1:3]) for _ in range(3)]
    for node in first.path:
        await first.budget(BOUGHT_MICROS, target=node, period="daily")
    return first, [one.path[-1] for one in (first, *others)]


@pytest.mark.parametrize(
    "rounds", [pytest.param(2, marks=pytest.mark.chaos), pytest.param(20, marks=pytest.mark.chaos_long)]
)
async def test_what_was_acknowledged_outlives_every_kill(
    tmp_path: Path, issuer: TestIssuer, capsys: pytest.CaptureFixture[str], rounds: int
) -> None:
    took: dict[str, list[Silence]] = {"postgres": [], "ledger": []}
    async with standing(tmp_path, issuer) as at, at.process.channel() as channel, holders(channel) as ways:
        first, agents = await agents_of(at.own)
        load = Load(agents)
        async with load.spending(ways, SPENDERS):
            for _ in range(rounds):
                for name, part in at.parts.items():
                    await asyncio.sleep(LOADED_SECONDS)
                    took[name].append(await killed(part, load))
                    async with owner(at.own.house) as connection:
                        await check_whole(connection, first.organization, load)
        async with owner(at.own.house) as connection:
            await check_whole(connection, first.organization, load)
            await check_ends(connection, first.organization, load)
            await ask_all_again(channel, load)
            await check_whole(connection, first.organization, load)
            assert await connection.fetchval(
                "SELECT count(*) FROM usage WHERE organization_id = $1", first.organization
            ) == len(load.settled)
        held = sum(load.granted[key] for key in load.kept)
        assert await first.wallet() == (BOUGHT_MICROS - sum(load.settled.values()), held)
    with capsys.disabled():
        told = ", ".join(f"{name} {longest(each):.2f} s (half {usual(each):.2f} s)" for name, each in took.items())
        sys.stdout.write(
            f"\n{rounds} kills each, {SPENDERS} spenders, {len(load.settled)} charges: longest silence {told}; "
            f"asked again {dict(load.asked_again)}\n"
        )
    for each in took.values():
        assert usual(each) <= RECOVERY_SECONDS, took
        # PostgreSQL's own recovery waits for the disk, which others may use: what comes after it is the ledger's.
        assert max(one.after_start_seconds for one in each) <= RECOVERY_SECONDS, took


def longest(each: list[Silence]) -> float:
    return max(one.seconds for one in each)


def usual(each: list[Silence]) -> float:
    return median(one.seconds for one in each)
