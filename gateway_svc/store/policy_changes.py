"""The order in which policies changed: who writes a change, and what has changed since a revision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from mesh.db import Connection, Database

KEPT_MAX = 10_000
READ_MAX = 1_000
LOCK = "gateway:policy_changes"
ADD = "INSERT INTO policy_changes (target_id) VALUES ($1) RETURNING revision"
PRUNE = "DELETE FROM policy_changes WHERE revision <= $1"
SINCE = """
SELECT pg_postmaster_start_time() AS server_since,
  coalesce(min(revision), 0) AS oldest, coalesce(max(revision), 0) AS latest,
  ARRAY(SELECT target_id FROM policy_changes WHERE revision > $1 ORDER BY revision LIMIT $2) AS targets
FROM policy_changes
"""


@dataclass(frozen=True, slots=True)
class Changes:
    """What one look at the order told: which server was asked, the revisions that it holds, and the targets changed."""

    server_since: datetime
    oldest: int
    latest: int
    targets: Sequence[str]

    def follow(self, revision: int) -> bool:
        """Return whether `targets` is all that changed after a revision: nothing was pruned, left off or undone."""
        return self.oldest <= revision + 1 and revision <= self.latest and len(self.targets) < READ_MAX


async def record(tx: Connection, target_id: str) -> None:
    """Write a change; from here to the commit no other writer gets a revision, so none appears behind a higher one.

    The lock stands in a statement of its own: a revision must be drawn after it was granted.
    """
    await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 3))", LOCK)
    revision = cast("int", await tx.fetchval(ADD, target_id))
    await tx.execute(PRUNE, revision - KEPT_MAX)


async def since(db: Database, revision: int) -> Changes:
    """Return what changed after a revision, and how far the order goes, as of one moment."""
    row = await db.one(SINCE, revision, READ_MAX)
    return Changes(row["server_since"], row["oldest"], row["latest"], row["targets"])
