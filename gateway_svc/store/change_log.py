"""The order of changes to what gateways keep in memory: who writes one, and what has changed since a revision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mesh.db import Connection, Database

CHANGES_KEPT = 10_000  # who is further behind is told so
READ_MAX = 1_000

# ruff: noqa: S608  # only the table's name, one of those below, is ever put into a statement


@dataclass(frozen=True, slots=True)
class News:
    """What one look told: which server was asked, the newest revision, and the subjects that changed.

    `whole`: these are all that changed after the revision asked about; nothing was pruned, left off or undone.
    """

    server_since: datetime
    latest: int
    subjects: Sequence[str]
    whole: bool


@dataclass(frozen=True, slots=True)
class ChangeLog:
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

    async def since(self, db: Database, revision: int) -> News:
        """Return what changed after a revision, 0 for the beginning, as of one moment."""
        query = f"""
            SELECT pg_postmaster_start_time() AS server_since,
              (SELECT coalesce(max(revision), 0) FROM {self.table}) AS latest,
              EXISTS (SELECT FROM {self.table} WHERE revision = $1) AS known,
              ARRAY(SELECT subject_id FROM {self.table} WHERE revision > $1 ORDER BY revision LIMIT $2) AS subjects
            """
        row = await db.one(query, revision, READ_MAX)
        latest, subjects = row["latest"], row["subjects"]
        whole = (row["known"] or latest == revision) and len(subjects) < READ_MAX
        return News(row["server_since"], latest, subjects, whole)


ROUTES = ChangeLog("route_changes")
