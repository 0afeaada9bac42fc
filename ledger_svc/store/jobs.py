"""The table of jobs: schedule, claim, finish, list and revive."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from mesh.db import Database, Row

DONE_KEPT = timedelta(days=7)
LEASES_KEPT = timedelta(days=30)
JOBS_PRUNED_MAX, LEASES_PRUNED_MAX = 5_000, 1_000  # a call, as the functions say themselves
RESOLVED_MAX = 500  # holds a call of resolve_by_rule, likewise
LIVING = "done_at IS NULL AND dead_at IS NULL"


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job whose lease is ours; `claim` tells it from later claims."""

    kind: str
    key: str
    payload: str
    attempts: int
    claim: int
    late_ms: int


async def schedule(db: Database, kind: str, key: str, payload: Mapping[str, str], after: timedelta) -> bool:
    """Record a job; False when its key was scheduled before."""
    text = json.dumps(dict(payload), sort_keys=True, separators=(",", ":"))
    fresh: bool = await db.value("SELECT schedule_job($1, $2, $3, now() + $4::interval)", kind, key, text, after)
    return fresh


async def claim(db: Database, kinds: Sequence[str], limit: int, lease: timedelta) -> list[Claimed]:
    """Claim due jobs of these kinds for the time of a lease, the longest due first."""
    rows = await db.rows(
        "SELECT kind, key, payload, attempts, claim, late_ms FROM claim_jobs($1, $2, $3)",
        list(kinds),
        limit,
        int(lease / timedelta(milliseconds=1)),
    )
    return [Claimed(*row.values()) for row in rows]


async def renew(db: Database, job: Claimed, lease: timedelta) -> bool:
    """Extend a lease; False when somebody else has claimed the job meanwhile."""
    return await _change(db, job, "due_at = now() + $4::interval", lease)


async def finish(db: Database, job: Claimed) -> bool:
    """Record that a job is done."""
    return await _change(db, job, "done_at = now()")


async def again(db: Database, job: Claimed, after: timedelta) -> bool:
    """Record that a job went well and is to be done again."""
    return await _change(db, job, "due_at = now() + $4::interval, attempts = 0, last_error = ''", after)


async def fail(db: Database, job: Claimed, error: str, after: timedelta) -> bool:
    """Record that a job failed and is to be tried again."""
    return await _change(db, job, "due_at = now() + $4::interval, last_error = $5", after, error)


async def bury(db: Database, job: Claimed, error: str) -> bool:
    """Give a job up."""
    return await _change(db, job, "dead_at = now(), last_error = $4", error)


async def _change(db: Database, job: Claimed, change: str, *values: object) -> bool:
    query = f"UPDATE jobs SET {change} WHERE kind = $1 AND key = $2 AND claims = $3 AND {LIVING}"  # noqa: S608
    return await db.execute(query, job.kind, job.key, job.claim, *values) == "UPDATE 1"


async def dead(db: Database, after: tuple[str, str], limit: int) -> list[Row]:
    """Return jobs that were given up, by kind and key; `after` is the last one seen."""
    return await db.rows(
        "SELECT kind, key, attempts, last_error, scheduled_at, dead_at FROM jobs "
        "WHERE dead_at IS NOT NULL AND (kind, key) > ($1, $2) ORDER BY kind, key LIMIT $3",
        *after,
        limit,
    )


async def revive(db: Database, kind: str, key: str) -> bool:
    """Let a dead job run again at once; False when there is none."""
    tag = await db.execute(
        "UPDATE jobs SET dead_at = NULL, attempts = 0, due_at = now() "
        "WHERE kind = $1 AND key = $2 AND dead_at IS NOT NULL",
        kind,
        key,
    )
    return tag == "UPDATE 1"


async def exists(db: Database, kind: str, key: str) -> bool:
    """Say whether a job of this key was ever scheduled, as far as it is kept."""
    found: bool = await db.value("SELECT EXISTS (SELECT 1 FROM jobs WHERE kind = $1 AND key = $2)", kind, key)
    return found


async def sweep_uncertain(db: Database, organization_id: str, grace: timedelta) -> int:
    """Make lapsed holders' holds uncertain, at most 500 a call, and schedule the rule for them; return how many."""
    count: int = await db.value(
        "SELECT sweep_uncertain($1, $2)", organization_id, int(grace / timedelta(milliseconds=1))
    )
    return count


async def resolve_by_rule(db: Database, organization_id: str, grace: timedelta) -> tuple[int, bool]:
    """Decide uncertain holds by the organization's rule; return how many were, and whether some wait for it still."""
    row = await db.one(
        "SELECT decided, waits FROM resolve_by_rule($1, $2)", organization_id, int(grace / timedelta(milliseconds=1))
    )
    return row["decided"], row["waits"]


async def prune_leases(db: Database) -> int:
    """Forget the leases of holders long gone; return how many."""
    count: int = await db.value("SELECT prune_leases(now() - $1::interval)", LEASES_KEPT)
    return count


async def prune_done(db: Database) -> int:
    """Forget jobs that are done; return how many."""
    count: int = await db.value("SELECT prune_jobs(now() - $1::interval)", DONE_KEPT)
    return count
