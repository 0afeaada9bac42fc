"""Events: a stream of what happened, from a cursor on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import aclosing, contextmanager
from typing import Any

import grpc

from ledger_svc import wire
from ledger_svc.store import events
from mandate.ledger.v1 import events_pb2 as pb
from mandate.ledger.v1 import events_pb2_grpc as rpc
from mesh.db import Database, Row
from mesh.errors import Unavailable, invalid

BEAT_SECONDS = 0.2
EVENTS_MAX = 500  # of one answer
STREAMS_MAX = 50  # of this process: each looks into the database at every beat
Context = grpc.aio.ServicerContext[Any, Any]


class EventServicer(rpc.EventServiceServicer):
    """Implements mandate.ledger.v1.EventService; every stream ends once `stopping` is set."""

    def __init__(self, db: Database, stopping: asyncio.Event) -> None:
        self._db = db
        self._stopping = stopping
        self._streams = 0

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        if request.cursor < 0:
            raise invalid("cursor", "must not be negative")
        with self._joined():
            async with aclosing(self._follow(request.cursor)) as answers:
                async for answer in answers:
                    yield answer

    async def _follow(self, cursor: int) -> AsyncGenerator[pb.WatchResponse]:
        newest = await events.newest(self._db)
        sent = cursor or newest
        if cursor > newest:  # it comes from another database
            sent = newest
            yield pb.WatchResponse(revision=newest, reset=True)
        while not self._stopping.is_set():
            rows = await events.after(self._db, sent, EVENTS_MAX)
            # Revisions have no gaps but for what was forgotten.
            reset = bool(rows) and rows[0]["revision"] != sent + 1
            sent = rows[-1]["revision"] if rows else sent
            yield pb.WatchResponse(revision=sent, events=[_event(row) for row in rows], reset=reset)
            if len(rows) < EVENTS_MAX:
                await self._rest()

    async def _rest(self) -> None:
        try:
            async with asyncio.timeout(BEAT_SECONDS):
                await self._stopping.wait()
        except TimeoutError:
            return

    @contextmanager
    def _joined(self) -> Generator[None]:
        if self._stopping.is_set() or self._streams >= STREAMS_MAX:
            raise Unavailable("OVERLOADED", "no more watchers are taken here", retry_after_ms=500)
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1


def _event(row: Row) -> pb.Event:
    return pb.Event(
        revision=row["revision"],
        organization_id=row["organization_id"],
        type=row["type"],
        subject_id=row["subject_id"],
        detail=row["detail"],
        time=wire.stamp(row["recorded_at"]),
    )
