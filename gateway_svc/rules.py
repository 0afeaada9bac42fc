"""Which policy holds for an agent: those of its levels merged, kept while nothing on its path has changed.

One loop asks PostgreSQL five times a second what has changed; a change drops every path that it stands on. What is kept
counts for 700 ms after the moment for which the loop, or the reading itself, has proved it. While the loop finds no
answer each agent's policies are read anew; while those can't be read either nobody gets in.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime

from gateway_svc.calls import Calls
from gateway_svc.policies import Policy, merge, policy
from gateway_svc.store import policies as store
from gateway_svc.store import policy_changes as changes
from gateway_svc.verdicts import Level
from mesh.clock import monotonic_ms
from mesh.db import Database, StatementError
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import logs

FRESH_MS = 700
POLL_MS = 200
POLL_MS_MAX = 500
READ_MS_MAX = 2_000
READS_MAX = 3
READS_AT_ONCE_MAX = 6  # of the pool's 10 connections, so that the loop never waits for one
ENTRIES_MAX = 20_000

Path = tuple[str, ...]

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    policy: Policy
    read_at_ms: float  # when its reading began


class Rules:
    """The merged policies of the agents seen lately."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._entries: OrderedDict[Path, _Entry] = OrderedDict()
        self._by_target: dict[str, set[Path]] = {}
        self._reads: Calls[Path, Policy] = Calls()
        self._reading = asyncio.Semaphore(READS_AT_ONCE_MAX)
        self._server_since: datetime | None = None
        self._revision = 0
        self._proved_at_ms = float("-inf")  # the start of the last poll that was answered

    @property
    def fresh(self) -> bool:
        """Return whether the loop has proved within 700 ms what is kept."""
        return monotonic_ms() - self._proved_at_ms < FRESH_MS

    async def over(self, path: Path) -> Policy:
        """Return what the policies on a path come to together; DATABASE_UNAVAILABLE when they can't be read."""
        entry = self._entries.get(path)
        if entry is not None and self._proves(entry.read_at_ms):
            self._entries.move_to_end(path)
            return entry.policy
        try:
            async with asyncio.timeout(READ_MS_MAX / 1000):  # a connection that says nothing is given up much later
                return await self._reads.share(path, lambda: self._read(path))
        except TimeoutError:
            raise _unreadable("the database does not say in time what the policies are") from None

    async def run(self) -> None:
        """Follow what changes, for ever."""
        while True:
            began_ms = monotonic_ms()
            try:
                async with asyncio.timeout(POLL_MS_MAX / 1000):
                    self._take(await changes.since(self._db, self._revision), began_ms)
            except (MeshError, StatementError, TimeoutError) as failure:
                log.warn("policies.poll_failed", error=type(failure).__name__)
            await asyncio.sleep(max(0.0, began_ms + POLL_MS - monotonic_ms()) / 1000)

    def _take(self, seen: changes.Changes, began_ms: float) -> None:
        # Another server, after a failover, may not have all that was read from the one before.
        if seen.server_since != self._server_since or not seen.follow(self._revision):
            self._entries.clear()
            self._by_target.clear()
        for target_id in seen.targets:
            for path in tuple(self._by_target.get(target_id, ())):
                self._forget(path)
        self._server_since, self._revision, self._proved_at_ms = seen.server_since, seen.latest, began_ms

    def _proves(self, read_at_ms: float) -> bool:
        """Return whether what was read then, and not dropped since, was true within the last 700 ms."""
        return monotonic_ms() - max(read_at_ms, self._proved_at_ms) < FRESH_MS

    async def _read(self, path: Path) -> Policy:
        for _ in range(READS_MAX):
            async with self._reading:  # who waits here is one of the completions in flight, which are bounded
                began_ms = monotonic_ms()
                revision, found = await levels(self._db, path)
            # Else a change came after it, or may have come.
            if revision >= self._revision and self._proves(began_ms):
                return self._keep(path, _Entry(merge(level.policy for level in found), began_ms))
        raise _unreadable("the policies change faster than they can be read")

    def _keep(self, path: Path, entry: _Entry) -> Policy:
        self._forget(path)
        self._entries[path] = entry
        for target_id in path:
            self._by_target.setdefault(target_id, set()).add(path)
        if len(self._entries) > ENTRIES_MAX:
            self._forget(next(iter(self._entries)))
        return entry.policy

    def _forget(self, path: Path) -> None:
        if self._entries.pop(path, None) is None:
            return
        for target_id in path:
            paths = self._by_target[target_id]
            paths.discard(path)
            if not paths:
                del self._by_target[target_id]


async def levels(db: Database, path: Path) -> tuple[int, tuple[Level, ...]]:
    """Return the policies on a path, from the organization down, and the revision that they were read at."""
    found = await store.in_force(db, path)
    ordered = sorted(found.policies, key=lambda stored: (path.index(stored.target_id), stored.id))
    return found.revision, tuple(
        Level(stored.target_id, stored.id, policy(stored.terms, stored.target_id)) for stored in ordered
    )


def _unreadable(why: str) -> Unavailable:
    return Unavailable("DATABASE_UNAVAILABLE", why, retry_after_ms=200)
