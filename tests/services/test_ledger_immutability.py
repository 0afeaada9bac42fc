from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from mesh.testing import TestIssuer
from tests.conftest import RunningLedger
from tests.services.audit_running import auditing
from tests.services.ledger_running import owner, tenant

FACTS = (
    "nodes", "verification_keys", "prices", "limit_sets", "budgets", "budget_versions", "accounts", "holds",
    "hold_links", "outcomes",
    "transfers", "usage", "audit", "rules",
    "grants", "grant_voids", "grant_cuts", "grant_burns",
    "audit_sources", "audit_keys", "audit_heads",
)  # fmt: skip
DERIVED = (
    "open_grants", "events", "jobs",
    "audit_subtrees",
    "checkpoints", "open_holds", "leases", "thinnings", "turns",
    "report_cursors", "report_subjects", "usage_sums", "usage_activity", "usage_shares",
)  # fmt: skip
ROLES = ("identity", "vault", "ledger", "gateway")
CHANGES = (
    "UPDATE ledger.{table} SET {column} = DEFAULT",
    "DELETE FROM ledger.{table}",
    "TRUNCATE ledger.{table}",
    "TRUNCATE ledger.{table} CASCADE",
    "MERGE INTO ledger.{table} t USING (SELECT 1) x ON true WHEN MATCHED THEN DELETE",
    "ALTER TABLE ledger.{table} ADD COLUMN extra int",
    "ALTER TABLE ledger.{table} DISABLE TRIGGER ALL",
    "ALTER TABLE ledger.{table} OWNER TO CURRENT_USER",
    "DROP TRIGGER {table}_unchanging ON ledger.{table}",
    "DROP TABLE ledger.{table}",
    "CREATE RULE off AS ON INSERT TO ledger.{table} DO INSTEAD NOTHING",
)
DETOURS = (
    "CREATE OR REPLACE FUNCTION ledger.refuse_change() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
    "DROP FUNCTION ledger.refuse_change() CASCADE",
    "SET session_replication_role = replica",
    "CREATE TABLE ledger.mine (a int)",
    "CREATE TEMP TABLE transfers (a int)",
    "DELETE FROM ledger.checkpoints",
    "UPDATE ledger.checkpoints SET settled_micros = 0",
    "SET ROLE mandate_owner",
)
REFUSED = asyncpg.InsufficientPrivilegeError


async def first_column(connection: asyncpg.Connection, table: str) -> str:
    column = await connection.fetchval(
        "SELECT attname FROM pg_attribute WHERE attrelid = ('ledger.' || $1)::regclass AND attnum = 1", table
    )
    assert isinstance(column, str)
    return column


async def test_the_facts_that_are_tested_are_all_there_are(ledger: RunningLedger) -> None:
    async with owner(ledger.house) as connection:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'")
    assert {row["tablename"] for row in rows} == {*FACTS, *DERIVED, "schema_migrations"}


@pytest.mark.parametrize("role", ROLES)
async def test_no_service_changes_a_fact(ledger: RunningLedger, role: str) -> None:
    async with owner(ledger.house) as connection:
        columns = {table: await first_column(connection, table) for table in FACTS}
    service = await asyncpg.connect(ledger.house.dsn(role).reveal())
    try:
        for table, column in columns.items():
            for change in CHANGES:
                with pytest.raises(REFUSED):
                    await service.execute(change.format(table=table, column=column))
        for detour in DETOURS:
            with pytest.raises(REFUSED):
                await service.execute(detour)
    finally:
        await service.close()


@pytest.mark.parametrize("role", [role for role in ROLES if role != "ledger"])
async def test_no_other_service_reads_or_calls_into_the_ledger(ledger: RunningLedger, role: str) -> None:
    service = await asyncpg.connect(ledger.house.dsn(role).reveal())
    try:
        for table in (*FACTS, *DERIVED, "entries", "schema_migrations"):
            with pytest.raises(REFUSED):
                await service.execute(f"SELECT count(*) FROM ledger.{table}")  # noqa: S608
        with pytest.raises(REFUSED):
            await service.execute("SELECT ledger.lock_organization('org')")
    finally:
        await service.close()


@pytest.mark.parametrize("schema", [role for role in ROLES if role != "ledger"])
async def test_the_ledger_reads_no_other_schema(ledger: RunningLedger, schema: str) -> None:
    async with owner(ledger.house) as connection:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    service = await asyncpg.connect(ledger.house.dsn("ledger").reveal())
    try:
        for row in rows:
            with pytest.raises(REFUSED):
                await service.execute(f"SELECT count(*) FROM {schema}.{row['tablename']}")  # noqa: S608
    finally:
        await service.close()


async def test_a_trigger_refuses_even_the_owner(ledger: RunningLedger, issuer: TestIssuer, tmp_path: Path) -> None:
    spender = await tenant(ledger, 1_000_000)
    budget = await spender.budget(1_000_000)
    await spender.place("a", 1)
    await ledger.database.execute(
        "INSERT INTO hold_links (organization_id, request_id, account_id) VALUES ($1, 'none', -1)", spender.organization
    )
    await spender.settle("a", 1)
    await spender.void("b")
    await spender.place("c", 1)
    await spender.void("c")
    await ledger.database.execute(
        "INSERT INTO rules VALUES ($1, 1, 'UTC', 'list', '', 'test', 'test', now())", spender.organization
    )
    await ledger.database.execute("INSERT INTO audit_sources VALUES ($1, 'vault', 1, 1)", spender.organization)
    async with auditing(ledger, issuer, tmp_path, spender) as auditor:
        await auditor.sign()
    grant = f"grt_{spender.organization}"
    await ledger.database.execute(
        "SELECT make_grant($1, $2, 'g', 1, 50, NULL, 'paid', 'test', 'test', 9)", spender.organization, grant
    )
    await ledger.database.execute("SELECT void_grant($1, $2, 'v', 'test', 'test')", spender.organization, grant)
    assert budget
    async with owner(ledger.house) as connection:
        for table in FACTS:
            column = await first_column(connection, table)
            assert await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608
            update = f"UPDATE {table} SET {column} = DEFAULT"  # noqa: S608
            for change in (update, f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):  # noqa: S608
                with pytest.raises(REFUSED, match="never changed"):
                    await connection.execute(change)
