"""SQL of people, their sessions and memberships."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from identity_svc.directory import ORGANIZATIONS_MAX, Person, Session, Standing
from identity_svc.store import changes
from mesh import ids
from mesh.db import Connection, Database, Row

SWEEP_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Credential:
    """A person and the hash that their password is checked against."""

    person: Person
    password_hash: str


async def add(tx: Connection, email: str, name: str, password_hash: str, at: datetime) -> Person | None:
    """Add a person; None when the email is taken."""
    row = await tx.fetchrow(
        """
        INSERT INTO people (id, email, name, password_hash, created_at)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (email) DO NOTHING
        RETURNING id, email, name, created_at
        """,
        ids.new(ids.Kind.PERSON),
        email,
        name,
        password_hash,
        at,
    )
    return _person(row) if row is not None else None


async def credential_of(db: Database, email: str) -> Credential | None:
    """Return who has an email, with the password's hash."""
    row = await db.row("SELECT id, email, name, created_at, password_hash FROM people WHERE email = $1", email)
    return Credential(_person(row), row["password_hash"]) if row is not None else None


async def rehash(db: Database, person_id: str, old_hash: str, new_hash: str) -> None:
    """Replace a password's hash by one of today's strength, unless the password was changed meanwhile."""
    await db.execute(
        "UPDATE people SET password_hash = $3 WHERE id = $1 AND password_hash = $2", person_id, old_hash, new_hash
    )


async def person(db: Database, person_id: str) -> Person | None:
    """Return a person."""
    row = await db.row("SELECT id, email, name, created_at FROM people WHERE id = $1", person_id)
    return _person(row) if row is not None else None


async def grants(db: Database, person_id: str) -> dict[str, str]:
    """Return a person's role in each of their organizations."""
    rows = await db.rows(
        """
        SELECT organization_id, role
          FROM memberships
         WHERE person_id = $1
         ORDER BY organization_id
         LIMIT $2
        """,
        person_id,
        ORGANIZATIONS_MAX,
    )
    return {row["organization_id"]: row["role"] for row in rows}


async def open_session(
    tx: Connection, person_id: str, token_sha256: bytes, at: datetime, expires_at: datetime
) -> Session:
    """Record a login by the digest of its bearer."""
    session = Session(ids.new(ids.Kind.SESSION), person_id, at, expires_at)
    await tx.execute(
        "INSERT INTO sessions (id, person_id, token_sha256, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)",
        session.id,
        person_id,
        token_sha256,
        at,
        expires_at,
    )
    return session


async def close_session(tx: Connection, token_sha256: bytes, at: datetime) -> None:
    """End a session and tell those who watch; doing it again, or for a bearer that nobody holds, changes nothing."""
    session_id: str | None = await tx.fetchval(
        "UPDATE sessions SET revoked_at = $2 WHERE token_sha256 = $1 AND revoked_at IS NULL RETURNING id",
        token_sha256,
        at,
    )
    if session_id is not None:
        await changes.record(tx, None, session_id, at)


async def standing(db: Database, token_sha256: bytes, now: datetime) -> Standing | None:
    """Return whose live session a bearer's digest names, with all roles as of the same moment."""
    row = await db.row(
        """
        SELECT s.id, s.person_id, s.expires_at,
               array_agg(m.organization_id ORDER BY m.organization_id)
                 FILTER (WHERE m.organization_id IS NOT NULL) AS organization_ids,
               array_agg(m.role ORDER BY m.organization_id)
                 FILTER (WHERE m.organization_id IS NOT NULL) AS roles
          FROM sessions s
          LEFT JOIN memberships m ON m.person_id = s.person_id
         WHERE s.token_sha256 = $1 AND s.revoked_at IS NULL AND s.expires_at > $2
         GROUP BY s.id
        """,
        token_sha256,
        now,
    )
    if row is None:
        return None
    pairs = zip(row["organization_ids"] or (), row["roles"] or (), strict=True)
    return Standing(row["id"], row["person_id"], row["expires_at"], dict(pairs))


async def sweep_sessions(db: Database, expired_before: datetime) -> None:
    """Delete up to 1,000 sessions that expired long ago."""
    await db.execute(
        """
        DELETE FROM sessions
         WHERE id IN (SELECT id FROM sessions WHERE expires_at < $1 ORDER BY expires_at LIMIT $2)
        """,
        expired_before,
        SWEEP_MAX,
    )


def _person(row: Row) -> Person:
    return Person(row["id"], row["email"], row["name"], row["created_at"])
