"""Identity's loops: the watch hub, delivery to the ledger right after a commit, and the sweep of old sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from identity_svc.directory import Change
from identity_svc.store import changes, people
from mesh import deadline
from mesh.clock import Clock, monotonic_ms
from mesh.db import Database
from mesh.errors import MeshError, Unavailable
from mesh.outbox import Outbox
from mesh.telemetry import logs

BEAT_SECONDS = 0.2
BEAT_AGE_MS_MAX = 300  # an older look at the database vouches for nothing
CHANGES_MAX = 1_000  # of one beat
MISSED_MAX = 10_000
QUEUE_MAX = 50  # ten seconds of beats
STREAMS_MAX = 500

FLUSH_MS_MAX = 2_000
ANSWER_MS = 50  # kept for the answer after a flush

SWEEP_SECONDS = 600.0
SESSIONS_KEPT = timedelta(days=30)

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Beat:
    """What one look at the database found: everything up to `revision` has been sent when this has been."""

    revision: int
    changes: tuple[Change, ...] = ()
    reset: bool = False
    read_at_ms: float = 0.0

    @property
    def is_stale(self) -> bool:
        """Say whether the look was too long ago; changes are news at any age."""
        return not self.changes and monotonic_ms() - self.read_at_ms > BEAT_AGE_MS_MAX


class _Stream:
    """What waits for one watcher."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Beat | None] = asyncio.Queue(QUEUE_MAX)
        self.cut_off = False

    def put(self, beat: Beat) -> None:
        """Queue a beat; a watcher that is ten seconds behind is cut off and may come again with its cursor."""
        if self.queue.full():
            self.cut_off = True
            self.end()
        else:
            self.queue.put_nowait(beat)

    def end(self) -> None:
        """Let the watcher's loop end, whatever waits for it."""
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


class Hub:
    """Reads the changes once for all watchers of this process; what can't be read is not vouched for."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._revision = 0
        self._streams: set[_Stream] = set()
        self._closed = False

    @property
    def watchers(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    async def open(self) -> None:
        """Learn where things stand; before the first watcher, who would miss what happened in between."""
        self._revision = await changes.latest(self._db)

    async def run(self) -> None:
        """Look every 200 ms, for ever; while the database can't be read, no beat goes out."""
        while True:
            try:
                await self.look()
            except MeshError as error:
                log.warn("watch.silent", reason=error.reason)
            await asyncio.sleep(BEAT_SECONDS)

    async def close(self) -> None:
        """End every stream; watchers go to another replica."""
        self._closed = True
        for stream in self._streams:
            stream.end()

    async def watch(self, cursor: int) -> AsyncGenerator[Beat]:
        """Yield what was missed since `cursor` (0: only where things stand), then every beat."""
        with self._joined() as stream:
            first = await self._missed(cursor)
            yield first
            sent = first.revision
            while (beat := await stream.queue.get()) is not None:
                if beat.is_stale:
                    continue
                news = tuple(change for change in beat.changes if change.revision > sent)
                sent = max(sent, beat.revision)
                yield Beat(sent, news)
            if stream.cut_off:
                raise Unavailable(
                    "WATCH_TOO_SLOW", "the watcher fell behind; go on from its cursor", retry_after_ms=100
                )

    @contextmanager
    def _joined(self) -> Generator[_Stream]:
        if self._closed or len(self._streams) >= STREAMS_MAX:
            raise Unavailable("OVERLOADED", "no more watchers are taken here", retry_after_ms=500)
        stream = _Stream()
        self._streams.add(stream)  # before the first look, so that no change falls between the two
        try:
            yield stream
        finally:
            self._streams.discard(stream)

    async def _missed(self, cursor: int) -> Beat:
        revision = await changes.latest(self._db)
        if cursor == 0:
            return Beat(revision)
        if cursor > revision:
            return Beat(revision, reset=True)  # the cursor comes from another database
        missed = await changes.after(self._db, cursor, MISSED_MAX + 1)
        if len(missed) > MISSED_MAX:
            return Beat(revision, reset=True)
        return Beat(missed[-1].revision if missed else revision, tuple(missed))

    async def look(self) -> None:
        """Read what changed since the last look and give every watcher a beat."""
        found_count = CHANGES_MAX
        while found_count == CHANGES_MAX:
            began_ms = monotonic_ms()
            found = await changes.after(self._db, self._revision, CHANGES_MAX)
            found_count = len(found)
            self._revision = found[-1].revision if found else self._revision
            for stream in self._streams:
                stream.put(Beat(self._revision, tuple(found), read_at_ms=began_ms))


class Delivery:
    """Waits, for a while, until the ledger has what was just committed; the outbox's own loop does what is left."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        # One at a time: while the ledger is away, waiting calls must not take the database's connections with them.
        self._turn = asyncio.Lock()

    async def settle(self) -> None:
        """Deliver now, within 2 s and the caller's deadline; what fails is left to the loop, which is woken."""
        limit_ms = max(1.0, deadline.budget_ms(FLUSH_MS_MAX + ANSWER_MS) - ANSWER_MS)
        try:
            async with asyncio.timeout(limit_ms / 1000), self._turn:
                with deadline.within(limit_ms):
                    await self._outbox.flush()
        except (MeshError, TimeoutError) as error:
            log.warn("ledger.not_told_yet", error=type(error).__name__)
            self._outbox.kick()


async def sweep(db: Database, clock: Clock) -> None:
    """Delete sessions that expired a month ago, some every ten minutes, for ever."""
    while True:
        try:
            await people.sweep_sessions(db, clock.now() - SESSIONS_KEPT)
        except MeshError as error:
            log.warn("sessions.not_swept", reason=error.reason)
        await asyncio.sleep(SWEEP_SECONDS)
