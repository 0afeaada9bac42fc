"""The order of changes to what gateways keep in memory: who writes one, and what has changed since a revision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from mesh.db import Connection, Database

KEPT_MAX = 10_000  # who is further behind is told so
READ_MAX = 1_000
LOCK = "gateway:changes"
LATEST = "(SELECT coalesce(max(revision), 0) FROM changes)"  # for reads of what changes, as of the same moment
ADD = "INSERT INTO changes (subject) VALUES ($1) RETURNING revision"
PRUNE = "DELETE FROM changes WHERE revision <= $1"
SINCE = """
SELECT pg_postmaster_start_time() AS server_since,
  coalesce(min(revision), 0) AS oldest, coalesce(max(revision), 0) AS latest,
  ARRAY(SELECT subject FROM changes WHERE revision > $1 ORDER BY revision LIMIT $2) AS subjects
FROM changes
"""


@dataclass(frozen=True, slots=True)
class News:
    """What one look at the order told: which server was asked, the revisions that it has, and the subjects changed."""

    server_since: datetime
    oldest: int
    latest: int
    subjects: Sequence[str]

    def follow(self, revision: int) -> bool:
        """Return whether `subjects` is all that changed after a revision: nothing was pruned, left off or undone."""
        return self.oldest <= revision + 1 and revision <= self.latest and len(self.subjects) < READ_MAX


def policies_on(target_id: str) -> str:
    """Name the policies on one organization, workspace, group or agent."""
    return f"policies:{target_id}"


def routes_of(organization_id: str) -> str:
    """Name the routes of one organization."""
    return f"routes:{organization_id}"


async def record(tx: Connection, subject: str) -> None:
    """Write a change; from here to the commit no other writer gets a revision, so none appears behind a higher one.

    The lock stands in a statement of its own: a revision must be drawn after it was granted.
    """
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 3))", LOCK)
    revision = cast("int", await tx.fetchval(ADD, subject))
    await tx.execute(PRUNE, revision - KEPT_MAX)


async def since(db: Database, revision: int) -> News:
    """Return what changed after a revision, and how far the order goes, as of one moment."""
    row = await db.one(SINCE, revision, READ_MAX)
    return News(row["server_since"], row["oldest"], row["latest"], row["subjects"])
