"""What is read from the database once and kept for as long as a loop proves that it has not changed.

The loop asks five times a second what has changed, and what it hears of is dropped. An entry is usable for 700 ms after
the last good answer was asked for; without one each request reads for itself, and where that fails so does the request.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from gateway_svc.calls import Calls
from gateway_svc.store.changes import Changes
from mesh.clock import monotonic_ms
from mesh.db import Database
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import logs

FRESH_MS = 700
POLL_EVERY_SECONDS = 0.2
POLL_SECONDS_MAX = 1.0
READ_SECONDS_MAX = 2.0
CHANGES_MAX = 1_000  # in one poll; more drop everything

Key = TypeVar("Key")
Value = TypeVar("Value")

log = logs.get(__name__)


class Pushed(Generic[Key, Value]):
    """Values by key, at most `entries_max`; each is dropped when one of the subjects of its key changes."""

    def __init__(
        self,
        db: Database,
        changes: Changes,
        read: Callable[[Key], Awaitable[Value]],
        subjects: Callable[[Key], Iterable[str]],
        *,
        entries_max: int,
    ) -> None:
        self._db = db
        self._changes = changes
        self._read = read
        self._subjects = subjects
        self._entries_max = entries_max
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._by_subject: dict[str, set[Key]] = {}
        self._reads: Calls[tuple[Key, int | None], Value] = Calls()
        self._reading: dict[Key, object] = {}  # the newest read of a key, until a change to it is heard of
        self._revision: int | None = None
        self._polled_at_ms = float("-inf")

    @property
    def size(self) -> int:
        """Return how many entries are kept."""
        return len(self._entries)

    @property
    def fresh(self) -> bool:
        """Return whether entries are known to be true: a good poll began less than 700 ms ago."""
        return monotonic_ms() - self._polled_at_ms < FRESH_MS

    async def of(self, key: Key) -> Value:
        """Return the value of a key; DATABASE_UNAVAILABLE when it is not known and can't be read."""
        if key in self._entries and self.fresh:
            self._entries.move_to_end(key)
            return self._entries[key]
        # A read that began before the last change heard of is not shared with those who come after it.
        return await self._reads.share((key, self._revision), lambda: self._fill(key))

    async def run(self) -> None:
        """Follow the changes for ever."""
        while True:
            began_at_ms = monotonic_ms()
            try:
                async with asyncio.timeout(POLL_SECONDS_MAX):
                    await self._poll()
                self._polled_at_ms = began_at_ms
            except (MeshError, TimeoutError) as failure:
                log.warn("changes.unavailable", table=self._changes.table, error=type(failure).__name__)
            await asyncio.sleep(POLL_EVERY_SECONDS)

    async def _poll(self) -> None:
        """Hear of every change after the last one heard of, or begin anew where that one is gone from the table."""
        if self._revision is None:
            await self._begin_anew()
            return
        changes = await self._changes.since(self._db, self._revision, CHANGES_MAX)
        heard_of_last = changes[0].revision if changes else 0
        if heard_of_last != self._revision or len(changes) == CHANGES_MAX:
            await self._begin_anew()
            return
        for change in changes[1:]:
            for key in tuple(self._by_subject.get(change.subject_id, ())):
                self._forget(key)
            self._revision = change.revision

    async def _begin_anew(self) -> None:
        self._revision = await self._changes.latest(self._db)
        self._entries.clear()
        self._by_subject.clear()
        self._reading.clear()

    async def _fill(self, key: Key) -> Value:
        """Read a value, and keep it unless a change was heard of meanwhile that it may not show."""
        mine = self._reading[key] = object()
        for subject in self._subjects(key):
            self._by_subject.setdefault(subject, set()).add(key)
        try:
            async with asyncio.timeout(READ_SECONDS_MAX):
                value = await self._read(key)
        except BaseException as failure:
            if self._reading.get(key) is mine:
                self._forget(key)
            if isinstance(failure, TimeoutError):
                raise Unavailable("DATABASE_UNAVAILABLE", "the database is too slow", retry_after_ms=500) from None
            raise
        if self._reading.get(key) is mine:
            self._keep(key, value)
        return value

    def _keep(self, key: Key, value: Value) -> None:
        del self._reading[key]
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._forget(next(iter(self._entries)))

    def _forget(self, key: Key) -> None:
        self._entries.pop(key, None)
        self._reading.pop(key, None)
        for subject in self._subjects(key):
            keys = self._by_subject.get(subject, set())
            keys.discard(key)
            if not keys:
                self._by_subject.pop(subject, None)
