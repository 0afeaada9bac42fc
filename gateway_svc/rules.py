"""Which policy holds for an agent: those of its levels merged, on every replica within a second of a change."""

from __future__ import annotations

from functools import partial

from gateway_svc.policies import Policy, merge, policy
from gateway_svc.pushed import Changes, Pushed
from gateway_svc.store import change_log
from gateway_svc.store import policies as store
from gateway_svc.verdicts import Level
from mesh.db import Database

ENTRIES_MAX = 20_000
READS_AT_ONCE_MAX = 6  # of the pool's 10 connections, so that no loop waits for one

Path = tuple[str, ...]


class Rules(Pushed[Path, Policy]):
    """The merged policies of the agents seen lately, by the ids on their paths; `of(path)` gives them."""

    def __init__(self, db: Database, changes: Changes) -> None:
        super().__init__(
            changes,
            partial(_read, db),
            lambda path: map(change_log.policies_on, path),
            entries_max=ENTRIES_MAX,
            reads_at_once_max=READS_AT_ONCE_MAX,
        )


async def levels(db: Database, path: Path) -> tuple[int, tuple[Level, ...]]:
    """Return the policies on a path, from the organization down, and the revision that they were read at."""
    found = await store.in_force(db, path)
    ordered = sorted(found.policies, key=lambda stored: (path.index(stored.target_id), stored.id))
    return found.revision, tuple(
        Level(stored.target_id, stored.id, policy(stored.terms, stored.target_id)) for stored in ordered
    )


async def _read(db: Database, path: Path) -> tuple[int, Policy]:
    revision, found = await levels(db, path)
    return revision, merge(level.policy for level in found)
