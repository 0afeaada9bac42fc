"""Facts on their way from a service's outbox into the ledger's audit chain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from mandate.ledger.v1 import audit_pb2 as pb
from mandate.ledger.v1 import audit_pb2_grpc
from mesh import audit, caller, db, ids
from mesh.audit import Fact
from mesh.client import call
from mesh.db import Database
from mesh.testing import House
from tests.conftest import RunningLedger
from tests.services.audit_running import chain, looping
from tests.services.ledger_running import owner
from tests.services.test_vault_process import environment, keyring, vault


@asynccontextmanager
async def sending(house: House, ledger: RunningLedger) -> AsyncGenerator[tuple[Database, grpc.aio.Channel]]:
    """Lend the vault's database and its channel to the ledger."""
    async with (
        db.connect(house.dsn("vault"), service="vault") as database,
        house.channel("ledger", ledger.address, as_service="vault") as channel,
    ):
        yield database, channel


async def note(database: Database, organization: str, *subjects: str) -> None:
    with caller.acting(caller.Caller("edge")):
        for subject in subjects:
            async with database.transaction() as tx:
                await audit.record(tx, Fact(organization, "credential.added", subject, {"provider": "openai"}))


async def test_facts_of_many_writers_are_counted_without_a_gap_and_delivered_in_order(
    house: House, ledger: RunningLedger
) -> None:
    organization = ids.new(ids.Kind.ORGANIZATION)
    async with sending(house, ledger) as (database, channel):

        async def failing() -> None:
            with contextlib.suppress(ZeroDivisionError):
                async with database.transaction() as tx:
                    with caller.acting(caller.Caller("edge")):
                        await audit.record(tx, Fact(organization, "credential.added", "never", {}))
                    raise ZeroDivisionError

        async with looping(audit.delivery(database, "vault", channel)):
            writers = [note(database, organization, f"{n}.a", f"{n}.b") for n in range(20)]
            await asyncio.gather(*writers, *(failing() for _ in range(5)))
            entries = await chain(ledger, organization, 40)
    assert [entry["detail"]["source_seq"] for entry in entries] == list(range(1, 41))
    assert {entry["actor"] for entry in entries} == {"service:edge"}
    for n in range(20):
        order = [entry["subject"] for entry in entries if entry["subject"].startswith(f"{n}.")]
        assert order == [f"{n}.a", f"{n}.b"]


async def test_a_delivery_that_was_never_heard_of_is_made_again_and_counts_once(
    house: House, ledger: RunningLedger
) -> None:
    organization = ids.new(ids.Kind.ORGANIZATION)
    async with sending(house, ledger) as (database, channel):
        await note(database, organization, "one", "two")
        run = audit.delivery(database, "vault", channel)
        async with owner(house) as connection:
            # The facts arrive, and their sender dies before it can note that they did: its transaction is undone.
            payloads = await connection.fetch("SELECT payload FROM vault.audit_outbox ORDER BY id")
        facts = [pb.AuditFact.FromString(row["payload"]) for row in payloads]
        await call(audit_pb2_grpc.AuditServiceStub(channel).AppendAudit, pb.AppendAuditRequest(facts=facts))
        await note(database, organization, "three")
        async with looping(run):
            entries = await chain(ledger, organization, 3)
            await _empty(database)
    assert [entry["subject"] for entry in entries] == ["one", "two", "three"]


async def test_facts_outlive_a_vault_that_is_killed(house: House, ledger: RunningLedger, tmp_path: Path) -> None:
    organization = ids.new(ids.Kind.ORGANIZATION)
    environ = environment(house, keyring(tmp_path / "keyring.json")) | {"MANDATE_LEDGER_ADDRESS": ledger.address}
    count = "SELECT count(*) FROM audit WHERE organization_id = $1"
    noted: list[str] = []
    over = asyncio.Event()
    async with sending(house, ledger) as (database, channel):

        async def noting() -> None:
            while not over.is_set():
                noted.append(str(len(noted)))
                await note(database, organization, noted[-1])
                await asyncio.sleep(0.002)

        async with asyncio.TaskGroup() as group:
            group.create_task(noting())
            for _ in range(3):
                async with vault(environ) as process:
                    delivered = await ledger.database.value(count, organization)
                    await chain(ledger, organization, delivered + 50)
                    process.kill()
            over.set()
        async with looping(audit.delivery(database, "vault", channel)):
            entries = await chain(ledger, organization, len(noted))
    assert [entry["subject"] for entry in entries] == noted


async def test_facts_wait_for_a_ledger_that_is_away(house: House, ledger: RunningLedger) -> None:
    organization = ids.new(ids.Kind.ORGANIZATION)
    async with (
        sending(house, ledger) as (database, channel),
        house.channel("ledger", "127.0.0.1:9", as_service="vault") as nobody,
    ):
        async with looping(audit.delivery(database, "vault", nobody)):
            await note(database, organization, "one")
            await asyncio.sleep(0.2)
            mine = "SELECT count(*) FROM audit_outbox WHERE position($1::bytea IN payload) > 0"
            assert await database.value(mine, organization.encode()) == 1
        async with looping(audit.delivery(database, "vault", channel)):
            assert [entry["subject"] for entry in await chain(ledger, organization, 1)] == ["one"]


async def test_a_fact_that_the_ledger_refuses_is_logged_and_holds_up_no_other(
    house: House, ledger: RunningLedger, caplog: pytest.LogCaptureFixture
) -> None:
    organization = ids.new(ids.Kind.ORGANIZATION)
    async with sending(house, ledger) as (database, channel):
        delivering = audit.delivery(database, "vault", channel)
        async with looping(delivering):
            await note(database, organization, "one")
            await chain(ledger, organization, 1)
            async with owner(house) as connection:  # as if the vault's database were put back to an older state
                await connection.execute(
                    "UPDATE vault.audit_counts SET last_seq = 0 WHERE organization_id = $1", organization
                )
            await note(database, organization, "other", "two")
            entries = await chain(ledger, organization, 2)
            await _empty(database)
    assert [entry["subject"] for entry in entries] == ["one", "two"]
    assert "audit.refused" in [record.getMessage() for record in caplog.records]


async def _empty(database: Database) -> None:
    async with asyncio.timeout(10):
        while True:
            if not await database.value("SELECT count(*) FROM audit_outbox"):
                return
            await asyncio.sleep(0.02)
