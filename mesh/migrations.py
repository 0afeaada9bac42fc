"""Plain SQL migrations, forward only: `<service>_svc/migrations/NNNN_name.sql`, each applied once, in order, checked.

Several starters at once are safe: one applies, the others wait. A file that starts with `-- no-transaction` runs
statement by statement, for CREATE INDEX CONCURRENTLY.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from mesh.secret import Secret

FILE_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
NO_TRANSACTION = "-- no-transaction"
LOCK_SECONDS_MAX = 120


class MigrationError(Exception):
    """A migration is out of order, was changed after it ran, or failed; the text names the file."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file."""

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> bytes:
        """Return what tells an edited file from the one that ran."""
        return hashlib.sha256(self.sql.encode()).digest()


async def migrate(owner: Secret, service: str) -> list[str]:
    """Bring one service's schema up to date as the schemas' owner; return the names of the files applied."""
    connection = await asyncpg.connect(owner.reveal())
    try:
        await _lock(connection, service)
        return await _apply_all(connection, service, migrations_of(service))
    finally:
        await connection.close()


def migrations_of(service: str) -> list[Migration]:
    """Read a service's files in order; none when it keeps nothing."""
    spec = importlib.util.find_spec(f"{service}_svc")
    if spec is None or not spec.submodule_search_locations:
        raise MigrationError(f"{service}: no such service")
    folder = Path(spec.submodule_search_locations[0]) / "migrations"
    found = [(path, FILE_NAME.match(path.name)) for path in sorted(folder.glob("*.sql"))]
    if wrong := [path.name for path, match in found if match is None]:
        raise MigrationError(f"{service}/{wrong[0]}: must be called NNNN_name.sql")
    migrations = [Migration(int(match[1]), path.name, path.read_text()) for path, match in found if match]
    for before, after in itertools.pairwise(migrations):
        if before.version == after.version:
            raise MigrationError(f"{service}/{after.name}: {before.name} has the same number")
    return migrations


async def _lock(connection: asyncpg.Connection, service: str) -> None:
    # Polled: a waiter blocked inside PostgreSQL would deadlock with CREATE INDEX CONCURRENTLY.
    patience = asyncio.get_running_loop().time() + LOCK_SECONDS_MAX
    while not await connection.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", f"migrate:{service}"):
        if asyncio.get_running_loop().time() > patience:
            raise MigrationError(f"{service}: another migration has been running for {LOCK_SECONDS_MAX} s")
        await asyncio.sleep(0.1)


async def _apply_all(connection: asyncpg.Connection, service: str, migrations: list[Migration]) -> list[str]:
    await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {service}")
    await connection.execute(
        f"""
        CREATE TABLE IF NOT EXISTS {service}.schema_migrations (
          version    integer PRIMARY KEY,
          name       text NOT NULL,
          checksum   bytea NOT NULL,
          applied_at timestamptz NOT NULL DEFAULT now()
        )
        """
    )
    rows = await connection.fetch(f"SELECT version, checksum FROM {service}.schema_migrations")  # noqa: S608  # our own name
    done: dict[int, bytes] = {row["version"]: row["checksum"] for row in rows}
    applied: list[str] = []
    for migration in migrations:
        if migration.version in done:
            if done[migration.version] != migration.checksum:
                raise MigrationError(f"{service}/{migration.name}: was changed after it ran")
            continue
        if done and migration.version < max(done):
            raise MigrationError(f"{service}/{migration.name}: comes before {max(done):04d}, which has run")
        await _apply(connection, service, migration)
        applied.append(migration.name)
    return applied


async def _apply(connection: asyncpg.Connection, service: str, migration: Migration) -> None:
    record = f"INSERT INTO {service}.schema_migrations (version, name, checksum) VALUES ($1, $2, $3)"  # noqa: S608
    values = (migration.version, migration.name, migration.checksum)
    try:
        await connection.execute(f"SET search_path = {service}; SET lock_timeout = '5s'")
        if migration.sql.startswith(NO_TRANSACTION):
            for statement in filter(str.strip, migration.sql.split(";\n")):
                await connection.execute(statement)
            await connection.execute(record, *values)
            return
        async with connection.transaction():
            await connection.execute(migration.sql)
            await connection.execute(record, *values)
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{service}/{migration.name}: {error}") from error
