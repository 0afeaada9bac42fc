"""What is read from the database once and kept for as long as it is proved that it has not changed.

One loop asks PostgreSQL five times a second what has changed; whatever stands on a subject of a change is dropped.
What is kept counts for 700 ms after the moment for which the loop, or its own reading, has proved it. While the loop
finds no answer all is read anew, once in 700 ms at most; while that fails too nothing is known, and nobody gets in.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Generic, Protocol, TypeVar

from gateway_svc.calls import Calls
from gateway_svc.store import change_log
from mesh.clock import monotonic_ms
from mesh.db import Database, StatementError
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import logs

FRESH_MS = 700
POLL_MS = 200
POLL_MS_MAX = 500
READ_MS_MAX = 2_000
READS_MAX = 3

Key = TypeVar("Key")
Value = TypeVar("Value")

log = logs.get(__name__)


class Follower(Protocol):
    """Whatever keeps copies of what changes."""

    def forget(self, subjects: Iterable[str]) -> None:
        """Drop what stands on any of some subjects."""
        ...

    def forget_all(self) -> None:
        """Drop everything: what has changed can't be told."""
        ...


class Changes:
    """Follows what changes, for all who keep copies of it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._followers: list[Follower] = []  # one for each kind of copy
        self._server_since: datetime | None = None
        self._proved_at_ms = float("-inf")  # the start of the last poll that was answered
        self.revision = 0

    @property
    def fresh(self) -> bool:
        """Return whether the loop has proved within 700 ms what is kept."""
        return self.proves(float("-inf"))

    def proves(self, read_at_ms: float) -> bool:
        """Return whether what was read then, and not dropped since, was true within the last 700 ms."""
        return monotonic_ms() - max(read_at_ms, self._proved_at_ms) < FRESH_MS

    def tell(self, follower: Follower) -> None:
        """Let a follower hear of all changes from now on."""
        self._followers.append(follower)

    async def run(self) -> None:
        """Follow what changes, for ever."""
        while True:
            began_ms = monotonic_ms()
            try:
                async with asyncio.timeout(POLL_MS_MAX / 1000):
                    self._take(await change_log.since(self._db, self.revision), began_ms)
            except (MeshError, StatementError, TimeoutError) as failure:
                log.warn("changes.unavailable", error=type(failure).__name__)
            await asyncio.sleep(max(0.0, began_ms + POLL_MS - monotonic_ms()) / 1000)

    def _take(self, news: change_log.News, began_ms: float) -> None:
        # Another server, after a failover, may not have all that was read from the one before.
        followed = news.server_since == self._server_since and news.follow(self.revision)
        for follower in self._followers:
            if followed:
                follower.forget(news.subjects)
            else:
                follower.forget_all()
        self._server_since, self.revision, self._proved_at_ms = news.server_since, news.latest, began_ms


@dataclass(frozen=True, slots=True)
class _Entry(Generic[Value]):
    value: Value
    read_at_ms: float  # when its reading began


class _Reading:
    """One reading of one key, until it ends or a change to the key is heard of."""


class Pushed(Generic[Key, Value]):
    """Values by key, at most `entries_max`; each is dropped when one of the subjects of its key changes.

    `read` gives a value with the revision that it was read at, as of one moment.
    """

    def __init__(
        self,
        changes: Changes,
        read: Callable[[Key], Awaitable[tuple[int, Value]]],
        subjects: Callable[[Key], Iterable[str]],
        *,
        entries_max: int,
        reads_at_once_max: int,
    ) -> None:
        self._changes = changes
        self._read = read
        self._subjects = subjects
        self._entries_max = entries_max
        self._entries: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        self._by_subject: dict[str, set[Key]] = {}
        self._reading: dict[Key, _Reading] = {}
        self._reads: Calls[_Reading, _Entry[Value] | None] = Calls()
        self._at_once = asyncio.Semaphore(reads_at_once_max)  # who waits is a request in flight; those are bounded
        changes.tell(self)

    @property
    def size(self) -> int:
        """Return how many entries are kept."""
        return len(self._entries)

    @property
    def fresh(self) -> bool:
        """Return whether what is kept is known to be true without another reading."""
        return self._changes.fresh

    async def of(self, key: Key) -> Value:
        """Return the value of a key; DATABASE_UNAVAILABLE when it is not known and can't be read."""
        entry = self._entries.get(key)
        if entry is not None and self._changes.proves(entry.read_at_ms):
            self._entries.move_to_end(key)
            return entry.value
        try:
            async with asyncio.timeout(READ_MS_MAX / 1000):  # a connection that says nothing is given up much later
                return await self._anew(key)
        except TimeoutError:
            raise _unreadable("the database does not answer in time") from None

    def forget(self, subjects: Iterable[str]) -> None:
        """Drop what stands on any of some subjects."""
        for subject in subjects:
            for key in tuple(self._by_subject.get(subject, ())):
                self._forget(key)

    def forget_all(self) -> None:
        """Drop everything: what has changed can't be told."""
        self._entries.clear()
        self._reading.clear()
        self._by_subject.clear()

    async def _anew(self, key: Key) -> Value:
        """Read a value, again where a change came after the reading, or may have come."""
        for _ in range(READS_MAX):
            entry = self._entries.get(key)
            if entry is None or not self._changes.proves(entry.read_at_ms):
                reading = self._reading.get(key) or self._begin(key)
                entry = await self._reads.share(reading, partial(self._finish, key, reading))
            if entry is not None:
                return entry.value
        raise _unreadable("it changes faster than it can be read")

    def _begin(self, key: Key) -> _Reading:
        reading = self._reading[key] = _Reading()
        for subject in self._subjects(key):
            self._by_subject.setdefault(subject, set()).add(key)
        return reading

    async def _finish(self, key: Key, reading: _Reading) -> _Entry[Value] | None:
        """Read a value and keep it; None where a change was heard of meanwhile that it may not show."""
        try:
            async with asyncio.timeout(READ_MS_MAX / 1000), self._at_once:
                began_ms, heard_of = monotonic_ms(), self._changes.revision
                revision, value = await self._read(key)
        except BaseException:
            if self._reading.get(key) is reading:
                self._forget(key)
            raise
        if self._reading.get(key) is not reading:
            return None
        if revision < heard_of or not self._changes.proves(began_ms):
            self._forget(key)
            return None
        return self._keep(key, _Entry(value, began_ms))

    def _keep(self, key: Key, entry: _Entry[Value]) -> _Entry[Value]:
        del self._reading[key]
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._entries_max:
            self._forget(next(iter(self._entries)))
        return entry

    def _forget(self, key: Key) -> None:
        self._entries.pop(key, None)
        self._reading.pop(key, None)
        for subject in self._subjects(key):
            keys = self._by_subject.get(subject, set())
            keys.discard(key)
            if not keys:
                self._by_subject.pop(subject, None)


def _unreadable(why: str) -> Unavailable:
    return Unavailable("DATABASE_UNAVAILABLE", why, retry_after_ms=200)
