"""Mandate's database and roles in a PostgreSQL cluster, embedded or not; tables and grants are the migrations'."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg

from mesh import services
from mesh.secret import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

DATABASE = "mandate"
OWNER = "mandate_owner"
MAINTENANCE = "postgres"
SERVICES = tuple(service.name for service in services.SERVICES if service.database)
LOCK = 7_214_530_118  # advisory: two `migrate` at once take turns
SCRAM_ITERATIONS = 4096  # PostgreSQL's default


@dataclass(frozen=True, slots=True)
class Provisioned:
    """The addresses that provisioning ends in: the schemas' owner, and each service as its own role."""

    owner_dsn: Secret
    services: Mapping[str, Secret]


async def provision(owner_dsn: Secret, passwords: Mapping[str, Secret]) -> Provisioned:
    """Make the database and one login role for each service of `passwords`; doing it again changes nothing.

    An address that names a database of its own keeps it; one that names none, or `postgres`, gets `mandate`. The owner
    needs CREATEROLE, and CREATEDB where the database is missing.
    """
    found = addresses(owner_dsn, passwords)
    database = _database(owner_dsn)
    async with _turn(owner_dsn, otherwise=_address(owner_dsn, MAINTENANCE)) as connection:
        await _roles(connection, passwords)
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
            await connection.execute(f"CREATE DATABASE \"{database}\" OWNER {OWNER} ENCODING 'UTF8' TEMPLATE template0")
        await _database_rights(connection, database, passwords)
    async with _turn(found.owner_dsn) as connection:
        await connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    return found


def addresses(owner_dsn: Secret, passwords: Mapping[str, Secret]) -> Provisioned:
    """Return the addresses that `provision` ends in, without a look at the database."""
    database = _database(owner_dsn)
    return Provisioned(
        _address(owner_dsn, database),
        {name: _address(owner_dsn, database, _role(name), password) for name, password in passwords.items()},
    )


@contextlib.asynccontextmanager
async def _turn(dsn: Secret, *, otherwise: Secret | None = None) -> AsyncGenerator[asyncpg.Connection]:
    """Connect, to `otherwise` while the database is missing, and wait for our turn."""
    try:
        connection = await asyncpg.connect(dsn.reveal(), timeout=15)
    except asyncpg.InvalidCatalogNameError:
        if otherwise is None:
            raise
        connection = await asyncpg.connect(otherwise.reveal(), timeout=15)
    try:
        await connection.execute("SET client_min_messages = error; SET lock_timeout = '30s'")
        await connection.execute("SELECT pg_advisory_lock($1)", LOCK)
        yield connection
    finally:
        await connection.close(timeout=5)


async def _roles(connection: asyncpg.Connection, passwords: Mapping[str, Secret]) -> None:
    known = {row["rolname"] for row in await connection.fetch("SELECT rolname FROM pg_roles")}
    if OWNER not in known:
        await connection.execute(f"CREATE ROLE {OWNER} NOLOGIN")
    if not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        await connection.execute(
            f"GRANT {OWNER} TO CURRENT_USER"
        )  # a role's creator may give it, yet not take its place
    for name, password in passwords.items():
        role = _role(name)
        verb = "ALTER" if role in known else "CREATE"
        await connection.execute(f"{verb} ROLE {role} LOGIN PASSWORD '{_verifier(password)}'")


async def _database_rights(connection: asyncpg.Connection, database: str, passwords: Mapping[str, Secret]) -> None:
    await connection.execute(f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC')
    await connection.execute(f'GRANT ALL ON DATABASE "{database}" TO {OWNER}')
    for name in passwords:
        await connection.execute(f'GRANT CONNECT ON DATABASE "{database}" TO {_role(name)}')
        await connection.execute(f'ALTER ROLE {_role(name)} IN DATABASE "{database}" SET search_path = {name}')


def _database(owner_dsn: Secret) -> str:
    named = urlsplit(owner_dsn.reveal()).path.lstrip("/")
    return DATABASE if named in {"", MAINTENANCE} else named


def _role(service: str) -> str:
    if service not in SERVICES:
        raise ValueError(f"no such service: {service}")
    return f"mandate_{service}"


def _address(dsn: Secret, database: str, user: str | None = None, password: Secret | None = None) -> Secret:
    parts = urlsplit(dsn.reveal())
    netloc = parts.netloc
    if user is not None and password is not None:
        netloc = f"{user}:{quote(password.reveal(), safe='')}@{netloc.rpartition('@')[2]}"
    return Secret(urlunsplit((parts.scheme, netloc, f"/{database}", parts.query, "")))


def _verifier(password: Secret) -> str:
    """Return what PostgreSQL stores for a password (RFC 5802, RFC 7677), so that no statement or log holds the text."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.reveal().encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"
