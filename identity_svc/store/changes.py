"""The order of changes: who writes one, and what has changed since a revision."""

from __future__ import annotations

from datetime import datetime

from identity_svc.directory import Change
from mesh.db import Connection, Database

LOCK = "identity:changes"


async def record(tx: Connection, organization_id: str | None, subject_id: str, at: datetime) -> int:
    """Write a change and return its revision; from here to the commit no other writer gets a revision.

    The lock stands in a statement of its own: revisions must be drawn after it was granted, or a lower one could
    become visible after a higher one.
    """
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 3))", LOCK)
    query = "INSERT INTO changes (organization_id, subject_id, at) VALUES ($1, $2, $3) RETURNING revision"
    return int(await tx.fetchval(query, organization_id, subject_id, at) or 0)


async def after(db: Database, revision: int, limit: int) -> list[Change]:
    """Return what changed after a revision, oldest first, at most `limit`."""
    rows = await db.rows(
        "SELECT revision, subject_id FROM changes WHERE revision > $1 ORDER BY revision LIMIT $2", revision, limit
    )
    return [Change(row["revision"], row["subject_id"]) for row in rows]


async def latest(db: Database) -> int:
    """Return the highest revision, 0 when nothing ever changed."""
    revision: int = await db.value("SELECT coalesce(max(revision), 0) FROM changes")
    return revision
