"""What happened, for those who watch."""

from __future__ import annotations

from datetime import timedelta

from mesh.db import Database, Row

KEPT = timedelta(days=30)
PRUNED_MAX = 5_000  # a call of prune_events, as it says itself


async def newest(db: Database) -> int:
    """Return the highest revision, 0 when nothing ever happened."""
    revision: int = await db.value("SELECT coalesce(max(revision), 0) FROM events")
    return revision


async def after(db: Database, revision: int, limit: int) -> list[Row]:
    """Return events after a revision, oldest first."""
    return await db.rows(
        "SELECT revision, organization_id, type, subject_id, detail, recorded_at FROM events "
        "WHERE revision > $1 ORDER BY revision LIMIT $2",
        revision,
        limit,
    )


async def prune(db: Database) -> int:
    """Forget the oldest events past their time, at most 5,000; the newest always stays. Return how many."""
    count: int = await db.value("SELECT prune_events(now() - $1::interval)", KEPT)
    return count
