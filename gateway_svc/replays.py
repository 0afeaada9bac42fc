"""Completions asked for under a key: run once, and given again. What a repeat gets is decided in `repeats`.

Every run begun here ends in one of three ways: `finished`, `dropped` where nothing was dispatched, or `abandoned`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TypeAlias, TypeVar

from gateway_svc import repeats
from gateway_svc.recording import REPLAYED, Recorder, Transcript, opened, packed
from gateway_svc.repeats import Apart, Retention, Wish
from gateway_svc.shares import Shares
from gateway_svc.store import replays as store
from gateway_svc.store.replays import Held, Place, Sealed
from gateway_svc.who import Agent
from mesh import failpoints, sealing
from mesh.db import Database, StatementError
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import logs, metrics

BEAT_SECONDS = 5.0
PRUNE_SECONDS = 3600.0
PRUNE_BATCH, PRUNE_BATCHES_MAX = 500, 100
FINISH_TRIES_MAX, FINISH_SECONDS_MAX = 4, 5.0
FINISH_PAUSE_SECONDS = 0.1  # doubled for each further try
DRAIN_SECONDS_MAX = 4.0  # a process has 5 s after its completions before it is killed
ROOM_SHARE = Fraction(1, 4)  # one organization's, of the memory for answers that are recorded or given again
INLINE_BYTES_MAX = 32 * 1024  # more is packed and sealed on a thread, so that other completions go on
FAILURES = (MeshError, StatementError, TimeoutError)  # of the table; none may end a loop or take an answer back

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one process, and how long outcomes under a client's own key are kept."""

    runs_max: int
    transcript_bytes_max: int
    memory_bytes_max: int
    kept: Retention


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One completion that has its key; what the client is sent goes into its recorder too."""

    place: Place
    kept: Retention
    recorder: Recorder = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fresh:
    """The request runs now, and its outcome is kept."""

    run: Run


@dataclass(frozen=True, slots=True)
class Kept:
    """There is an answer, still sealed."""

    place: Place  # of the run that made it
    answer: Sealed = field(repr=False)


@dataclass(frozen=True, slots=True)
class Replay:
    """The answer that the first run gave; a stream is replayed as its events."""

    status: int
    content_type: str
    headers: dict[str, str]
    body: bytes = field(repr=False)
    request_id: str  # of the run that made it


Made = TypeVar("Made")
Beginning: TypeAlias = Fresh | Apart | Kept


class Replays:
    """The runs of this process, and the way to all that were kept."""

    def __init__(self, db: Database, sealing_key: bytes, limits: Limits) -> None:
        self._db = db
        self._key = sealing_key
        self._limits = limits
        self._room = Shares(limits.memory_bytes_max, ROOM_SHARE)
        self._runs: dict[Run, None] = {}
        self._leaving: dict[Run, None] = {}  # rows that are to go and may still be there

    async def begin(self, wish: Wish, agent: Agent, request_sha256: bytes, request_id: str) -> Beginning:
        """Admit a request as the only one of its key; the refusals are IDEMPOTENCY_* errors."""
        if len(self._runs) + len(self._leaving) >= self._limits.runs_max:
            raise Unavailable("OVERLOADED", "too many requests at once", retry_after_ms=500)
        key = repeats.key_sha256(wish, agent.id, request_sha256)
        place = Place(agent.id, agent.organization_id, key, request_sha256, request_id)
        recorder = Recorder(self._limits.transcript_bytes_max, self._room, agent.organization_id)
        run = Run(place, repeats.retention(wish, self._limits.kept), recorder)
        self._runs[run] = None
        try:
            held = await store.begin(self._db, place, repeats.grace(wish), run.kept.row_seconds)
        except BaseException:
            self._leave(run)  # it may have been written all the same
            raise
        if held is None:
            return Fresh(run)
        self._close(run)
        return _repeat(wish, place, held)

    @asynccontextmanager
    async def opened(self, kept: Kept) -> AsyncGenerator[Replay]:
        """Unseal an answer to be given again within the block; OVERLOADED while its organization has too many open."""
        place, sealed = kept.place, kept.answer.transcript
        if sealed is None:
            raise repeats.expired(place.request_id)
        try:
            told = await _aside(len(sealed), partial(_open, self._key, place, kept.answer, sealed))
        except sealing.BrokenSeal as error:
            log.warn("replay.broken_seal", request_id=place.request_id, agent=place.agent_id, error=str(error))
            raise repeats.expired(place.request_id) from None
        body = told.body or b""
        if not self._room.take(place.organization_id, len(body)):
            metrics.SHED.labels("replays").inc()
            raise Unavailable("OVERLOADED", "too many answers are given again at once", retry_after_ms=1_000)
        try:
            yield Replay(told.status, told.content_type, {**told.headers, **REPLAYED}, body, place.request_id)
        finally:
            self._room.give_back(place.organization_id, len(body))

    async def finished(self, run: Run, transcript: Transcript) -> None:
        """Keep a run's outcome; to be awaited before the client has its last byte.

        Where it can't be written the answer stands all the same: the row stays as it is, and once its beat is old a
        repeat is told that the outcome is unknown.
        """
        failpoints.reach("gateway.replay.keeping")
        try:
            async with asyncio.timeout(FINISH_SECONDS_MAX):
                sealed = await self._sealed(run.place, transcript)
                if not await self._write(run, sealed):
                    log.warn("replay.superseded", request_id=run.place.request_id)
        except FAILURES as error:
            log.warn("replay.not_kept", request_id=run.place.request_id, error=_name(error))
        finally:
            self._close(run)
        failpoints.reach("gateway.replay.kept")

    async def dropped(self, run: Run) -> None:
        """Free the key of a run of which nothing was dispatched, or nothing that is to be kept came."""
        self._leave(run)
        try:
            await self._drop()
        except FAILURES as error:
            log.warn("replay.not_dropped", request_id=run.place.request_id, error=_name(error))

    def abandoned(self, run: Run) -> None:
        """Let go of a run whose outcome nobody knows; does nothing where it has ended."""
        if run in self._runs:
            log.warn("replay.abandoned", request_id=run.place.request_id)
            self._close(run)

    async def run(self) -> None:
        """Beat for what runs here, and forget what is over."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._beat_always())
            loops.create_task(self._prune_always())

    async def drain(self) -> None:
        """Free, as far as the database lets us, the keys that are still to go."""
        try:
            async with asyncio.timeout(DRAIN_SECONDS_MAX):
                await self._drop()
        except FAILURES as error:
            log.warn("replay.not_drained", left=len(self._leaving), error=_name(error))

    async def beat(self) -> None:
        """Renew all rows of this process in one statement."""
        if self._runs:
            await store.beat(self._db, [run.place for run in self._runs])
        await self._drop()

    async def prune(self) -> bool:
        """Forget what is over, so many batches and no more; False where some may be left."""
        for _ in range(PRUNE_BATCHES_MAX):
            cleared = await store.clear_transcripts(self._db, PRUNE_BATCH)
            if max(cleared, await store.delete_rows(self._db, PRUNE_BATCH)) < PRUNE_BATCH:
                return True
        return False

    async def _beat_always(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            try:
                async with asyncio.timeout(BEAT_SECONDS):
                    await self.beat()
            except FAILURES as error:
                log.warn("replay.beat_failed", runs=len(self._runs), error=_name(error))

    async def _prune_always(self) -> None:
        while True:
            done = False
            try:
                done = await self.prune()
            except FAILURES as error:
                log.warn("replay.prune_failed", error=_name(error))
            await asyncio.sleep(PRUNE_SECONDS if done else BEAT_SECONDS)

    async def _write(self, run: Run, sealed: Sealed) -> bool:
        for tried in range(FINISH_TRIES_MAX - 1):
            try:
                return await store.finish(self._db, run.place, sealed, run.kept)
            except MeshError as error:
                log.warn("replay.kept_late", request_id=run.place.request_id, error=_name(error))
            await asyncio.sleep(FINISH_PAUSE_SECONDS * 2**tried)
        return await store.finish(self._db, run.place, sealed, run.kept)

    async def _sealed(self, place: Place, transcript: Transcript) -> Sealed:
        if transcript.body is None:
            return Sealed(transcript.status, transcript.head(), None)
        body = transcript.body
        return await _aside(len(body), partial(_seal, self._key, place, transcript, body))

    async def _drop(self) -> None:
        if leaving := tuple(self._leaving):
            await store.drop(self._db, [run.place for run in leaving])
            for run in leaving:
                self._leaving.pop(run, None)

    def _leave(self, run: Run) -> None:
        self._close(run)
        self._leaving[run] = None

    def _close(self, run: Run) -> None:
        self._runs.pop(run, None)
        run.recorder.close()


def _repeat(wish: Wish, place: Place, held: Held) -> Apart | Kept:
    decided = repeats.repeated(wish, place.request_sha256, held.standing)
    if isinstance(decided, Apart):
        return decided
    if held.answer is None:
        raise repeats.expired(held.standing.request_id)
    return Kept(replace(place, request_id=held.standing.request_id), held.answer)


async def _aside(size_bytes: int, work: Callable[[], Made]) -> Made:
    return work() if size_bytes <= INLINE_BYTES_MAX else await asyncio.to_thread(work)


def _seal(key: bytes, place: Place, transcript: Transcript, body: bytes) -> Sealed:
    head = transcript.head()
    sealed = sealing.seal(key, packed(body), _binding(place, transcript.status, head))
    return Sealed(transcript.status, head, sealed)


def _open(key: bytes, place: Place, answer: Sealed, sealed: bytes) -> Transcript:
    plaintext = sealing.unseal(key, sealed, _binding(place, answer.status, answer.head))
    return opened(answer.status, answer.head, plaintext)


def _binding(place: Place, status: int, head: str) -> tuple[str, ...]:
    """Bind an answer to its row, and to those of the row's columns that are told with it."""
    key, request = place.key_sha256.hex(), place.request_sha256.hex()
    return (
        "gateway",
        "replays",
        place.organization_id,
        place.agent_id,
        key,
        request,
        place.request_id,
        str(status),
        head,
    )


def _name(error: BaseException) -> str:
    return error.reason if isinstance(error, MeshError) else type(error).__name__
