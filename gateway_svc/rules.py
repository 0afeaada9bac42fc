"""Which policy holds for an agent: those of its four levels merged, read anew twice a second."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from gateway_svc.calls import Calls
from gateway_svc.policies import Policy, merge, policy
from gateway_svc.store import policies as store
from mesh.clock import monotonic_ms
from mesh.db import Database

KEPT_MS = 500
ENTRIES_MAX = 20_000


@dataclass(frozen=True, slots=True)
class _Entry:
    policy: Policy
    until_ms: float


class Rules:
    """The merged policies of the agents seen lately."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._entries: OrderedDict[tuple[str, ...], _Entry] = OrderedDict()
        self._reads: Calls[tuple[str, ...], Policy] = Calls()

    async def over(self, path: tuple[str, ...]) -> Policy:
        """Return what the policies on a path come to together; DATABASE_UNAVAILABLE when they can't be read."""
        entry = self._entries.get(path)
        if entry is not None and entry.until_ms > monotonic_ms():
            return entry.policy
        return await self._reads.share(path, lambda: self._read(path))

    async def _read(self, path: tuple[str, ...]) -> Policy:
        until_ms = monotonic_ms() + KEPT_MS  # from before the read: a change during it is seen in time
        merged = merge(policy(stored.terms, stored.target_id) for stored in await store.policies_on(self._db, path))
        self._entries.pop(path, None)
        self._entries[path] = _Entry(merged, until_ms)
        if len(self._entries) > ENTRIES_MAX:
            self._entries.popitem(last=False)
        return merged
