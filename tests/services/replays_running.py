"""Runs under a key for tests: two gateways' worth of Replays over a real database."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
import pytest

from gateway_svc import repeats
from gateway_svc.repeats import Apart, Keyed, Retention, Wish
from gateway_svc.replays import Fresh, Kept, Limits, Replay, Replays, Run
from gateway_svc.who import Agent
from mesh import db, ids
from mesh.db import Database
from mesh.errors import MeshError
from mesh.testing import House
from tests.services.identity_running import fresh

HOUR = 3600
LIMITS = Limits(100, 1024 * 1024, 8 * 1024 * 1024, Retention(24 * HOUR, 30 * 24 * HOUR))
LAPSED = timedelta(seconds=repeats.LAPSE_SECONDS + 1)
BODY = b'{"model": "mock-model"}'


@dataclass(frozen=True, slots=True)
class Pair:
    """Two gateways over one database, one agent's requests, and the database's owner to let time pass."""

    one: Replays
    two: Replays
    database: Database
    owner: asyncpg.Connection
    agent: Agent
    key: bytes

    async def begin(self, replays: Replays, wish: Wish, body: bytes = BODY) -> Fresh | Apart | Replay:
        request = repeats.request_sha256("POST", "/v1/chat/completions", body)
        begun = await replays.begin(wish, self.agent, request, ids.new(ids.Kind.REQUEST))
        if not isinstance(begun, Kept):
            return begun
        async with replays.opened(begun) as replay:
            return replay

    async def run(self, replays: Replays, wish: Wish, body: bytes = BODY) -> Run:
        begun = await self.begin(replays, wish, body)
        assert isinstance(begun, Fresh)
        return begun.run

    async def finished(self, wish: Wish, answer: bytes = b'{"answer": 1}') -> Run:
        run = await self.run(self.one, wish)
        run.recorder.whole(200, answer, {"x-mandate-max-tokens": "5"})
        await self.one.finished(run, run.recorder.transcript())
        return run

    async def reason(self, beginning: Awaitable[object]) -> str:
        with pytest.raises(MeshError) as refused:
            await beginning
        return refused.value.reason

    async def aged(self, by: timedelta) -> None:
        """Let time pass for this agent's rows."""
        await self.owner.execute(
            "UPDATE gateway.replays SET beat_at = beat_at - $2::interval, created_at = created_at - $2::interval,"
            " transcript_until = transcript_until - $2::interval, row_until = row_until - $2::interval"
            " WHERE agent_id = $1",
            self.agent.id,
            by,
        )

    async def rows(self) -> list[asyncpg.Record]:
        return await self.owner.fetch(
            "SELECT * FROM gateway.replays WHERE agent_id = $1 ORDER BY created_at LIMIT 1000", self.agent.id
        )


def an_agent() -> Agent:
    return Agent(ids.new(ids.Kind.AGENT), ids.new(ids.Kind.ORGANIZATION), (), 1, "", suspended=False, expires_at=None)


@asynccontextmanager
async def replays_running(house: House) -> AsyncGenerator[Pair]:
    """Open two gateways' worth of Replays for an agent of their own."""
    key = secrets.token_bytes(32)
    owner = await asyncpg.connect(house.owner_dsn.reveal())
    try:
        async with (
            db.connect(house.dsn("gateway"), service="gateway") as first,
            db.connect(house.dsn("gateway"), service="gateway") as second,
        ):
            yield Pair(Replays(first, key, LIMITS), Replays(second, key, LIMITS), first, owner, an_agent(), key)
    finally:
        await owner.close()


def keyed() -> Keyed:
    return Keyed(fresh("key"))
