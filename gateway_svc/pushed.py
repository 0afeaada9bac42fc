"""What is read from the database once and kept for as long as a loop proves that it has not changed.

The loop asks five times a second what has changed, and what it hears of is dropped. An entry is usable for 700 ms after
the last good answer was asked for; without one each request reads for itself, and where that fails so does the request.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Generic, TypeVar

from gateway_svc.calls import Calls
from gateway_svc.store.change_log import ChangeLog, News
from mesh.clock import monotonic_ms
from mesh.db import Database, StatementError
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import logs

FRESH_MS = 700
POLL_EVERY_SECONDS = 0.2
POLL_SECONDS_MAX = 0.5
READ_SECONDS_MAX = 2.0

Key = TypeVar("Key")
Value = TypeVar("Value")

log = logs.get(__name__)


class Pushed(Generic[Key, Value]):
    """Values by key, at most `entries_max`; each is dropped when one of the subjects of its key changes."""

    def __init__(
        self,
        db: Database,
        changes: ChangeLog,
        read: Callable[[Key], Awaitable[Value]],
        subjects: Callable[[Key], Iterable[str]],
        *,
        entries_max: int,
        reads_at_once_max: int,
    ) -> None:
        self._db = db
        self._log = changes
        self._read = read
        self._subjects = subjects
        self._entries_max = entries_max
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._by_subject: dict[str, set[Key]] = {}
        self._reads: Calls[tuple[Key, int], Value] = Calls()
        self._reading: dict[Key, object] = {}  # the newest read of a key, until a change to it is heard of
        self._at_once = asyncio.Semaphore(reads_at_once_max)  # who waits is a request in flight; those are bounded
        self._server_since: datetime | None = None
        self._revision = 0
        self._news_heard = 0
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
        return await self._reads.share((key, self._news_heard), lambda: self._fill(key))

    async def run(self) -> None:
        """Follow the changes for ever."""
        while True:
            began_at_ms = monotonic_ms()
            try:
                async with asyncio.timeout(POLL_SECONDS_MAX):
                    self._take(await self._log.since(self._db, self._revision))
                self._polled_at_ms = began_at_ms
            except (MeshError, StatementError, TimeoutError) as failure:
                log.warn("changes.unavailable", table=self._log.table, error=type(failure).__name__)
            await asyncio.sleep(POLL_EVERY_SECONDS)

    def _take(self, news: News) -> None:
        if news.server_since == self._server_since and news.latest == self._revision:
            return
        # Another server, after a failover, may lack what was read from the one before.
        if news.server_since != self._server_since or not news.whole:
            self._entries.clear()
            self._by_subject.clear()
            self._reading.clear()
        for subject in news.subjects:
            for key in tuple(self._by_subject.get(subject, ())):
                self._forget(key)
        self._server_since, self._revision = news.server_since, news.latest
        self._news_heard += 1

    async def _fill(self, key: Key) -> Value:
        """Read a value, and keep it unless a change was heard of meanwhile that it may not show."""
        mine = self._reading[key] = object()
        for subject in self._subjects(key):
            self._by_subject.setdefault(subject, set()).add(key)
        try:
            async with asyncio.timeout(READ_SECONDS_MAX), self._at_once:
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
