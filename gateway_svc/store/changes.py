"""The order of changes to what gateways keep in memory: who writes one, and what has changed since a revision."""

from __future__ import annotations

from dataclasses import dataclass

from mesh.db import Connection, Database

CHANGES_KEPT = 10_000  # a gateway that is further behind drops all that it knows

# ruff: noqa: S608  # only the table's name, one of those below, is ever put into a statement


@dataclass(frozen=True, slots=True)
class Change:
    """A subject of which cached copies are no longer true."""

    revision: int
    subject_id: str


@dataclass(frozen=True, slots=True)
class Changes:
    """One table of changes: (revision GENERATED ALWAYS AS IDENTITY PRIMARY KEY, subject_id text)."""

    table: str

    async def record(self, tx: Connection, subject_id: str) -> None:
        """Write a change; from here to the commit no other writer gets a revision.

        The lock stands in a statement of its own: revisions must be drawn after it was granted, or a lower one could
        become visible after a higher one.
        """
        await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 3))", f"gateway:{self.table}")
        query = f"INSERT INTO {self.table} (subject_id) VALUES ($1) RETURNING revision"
        revision = int(await tx.fetchval(query, subject_id) or 0)
        await tx.execute(f"DELETE FROM {self.table} WHERE revision <= $1", revision - CHANGES_KEPT)

    async def since(self, db: Database, revision: int, limit: int) -> list[Change]:
        """Return the change that had a revision, and what changed after it, oldest first."""
        query = f"SELECT revision, subject_id FROM {self.table} WHERE revision >= $1 ORDER BY revision LIMIT $2"
        return [Change(row["revision"], row["subject_id"]) for row in await db.rows(query, revision, limit)]

    async def latest(self, db: Database) -> int:
        """Return the highest revision, 0 when nothing ever changed."""
        revision: int = await db.value(f"SELECT coalesce(max(revision), 0) FROM {self.table}")
        return revision


ROUTES = Changes("route_changes")
