"""PostgreSQL through asyncpg: one pool a process, transactions that can be seen, outages as Unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from mesh.errors import Unavailable
from mesh.secret import Secret
from mesh.settings import SettingsError
from mesh.telemetry import logs, traces

Connection: TypeAlias = asyncpg.Connection | PoolConnectionProxy
Row: TypeAlias = asyncpg.Record

START_SECONDS_MAX = 30
STATEMENT_SECONDS_MAX = 10
OUTAGES = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TooManyConnectionsError,
    asyncpg.OutOfMemoryError,
    asyncpg.DiskFullError,
    asyncpg.PostgresSystemError,
    asyncpg.PostgresIOError,
    # What an operator, a failover or a neighbour does to a statement that is itself in order.
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.QueryCanceledError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)

StatementError = asyncpg.PostgresError  # what the server refuses, outages aside

log = logs.get(__name__)


class Database:
    """The pool of one service's role."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    @asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """Lend one connection; each statement commits by itself."""
        with traces.doing("postgresql", **{"db.system.name": "postgresql"}):
            try:
                async with self._pool.acquire(timeout=STATEMENT_SECONDS_MAX) as connection:
                    yield connection
            except OUTAGES as error:
                log.warn("database.unavailable", error=type(error).__name__)
                raise Unavailable(
                    "DATABASE_UNAVAILABLE", "the database cannot be reached", retry_after_ms=500
                ) from None

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection]:
        """Lend one connection inside a transaction (READ COMMITTED) that commits when the block ends well."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def rows(self, query: str, *values: object) -> list[Row]:
        """Run one statement and return all its rows; the query states its own limit."""
        async with self.connection() as connection:
            return await connection.fetch(query, *values)

    async def row(self, query: str, *values: object) -> Row | None:
        """Run one statement and return its first row."""
        async with self.connection() as connection:
            return await connection.fetchrow(query, *values)

    async def one(self, query: str, *values: object) -> Row:
        """Run one statement that always answers a row, such as a call of a function."""
        row = await self.row(query, *values)
        if row is None:
            raise LookupError("a statement that always answers a row answered none")
        return row

    async def value(self, query: str, *values: object) -> Any:
        """Run one statement and return the first column of its first row."""
        async with self.connection() as connection:
            return await connection.fetchval(query, *values)

    async def execute(self, query: str, *values: object) -> str:
        """Run one statement and return its command tag."""
        async with self.connection() as connection:
            return await connection.execute(query, *values)

    async def close(self) -> None:
        """Give every connection back, by force after 5 s."""
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()


@asynccontextmanager
async def connect(
    dsn: Secret, *, service: str, size_min: int = 1, size_max: int = 10, settings: dict[str, str] | None = None
) -> AsyncGenerator[Database]:
    """Open a pool, waiting up to 30 s for a server that is still starting."""
    server_settings = {
        "application_name": f"mandate-{service}",
        "search_path": service,
        "jit": "off",  # our statements are short; compiling them costs more than running them
        **(settings or {}),
    }
    try:
        pool = await _wait_for_pool(dsn, size_min, size_max, server_settings)
    except asyncpg.PostgresError as error:  # no outage: a wrong password, a database that isn't there
        problem = f"the server refuses it ({type(error).__name__})"
        raise SettingsError(f"MANDATE_{service.upper()}_DATABASE_URL", problem) from None
    database = Database(pool)
    try:
        yield database
    finally:
        await database.close()


async def _left_as_found(_: object) -> None:
    """Reset nothing: no statement of ours changes its session, and asyncpg itself has ended an open transaction."""


async def _wait_for_pool(dsn: Secret, size_min: int, size_max: int, server_settings: dict[str, str]) -> asyncpg.Pool:
    patience = asyncio.get_running_loop().time() + START_SECONDS_MAX
    while True:
        try:
            return await asyncpg.create_pool(
                dsn.reveal(),
                min_size=size_min,
                max_size=size_max,
                command_timeout=STATEMENT_SECONDS_MAX,
                max_inactive_connection_lifetime=120,
                reset=_left_as_found,
                server_settings=server_settings,
            )
        except OUTAGES as error:
            if asyncio.get_running_loop().time() > patience:
                raise Unavailable("DATABASE_UNAVAILABLE", "the database cannot be reached") from error
            await asyncio.sleep(0.1)
