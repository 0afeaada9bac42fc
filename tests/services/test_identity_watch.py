from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest

from identity_svc.store import changes
from identity_svc.worker import Hub
from mandate.identity.v1 import directory_pb2, people_pb2
from mandate.identity.v1 import keys_pb2 as pb
from mesh import db
from mesh.caller import acting
from mesh.client import call
from mesh.clock import monotonic_ms
from mesh.errors import Unavailable
from mesh.testing import House
from tests.services.identity_running import Running, as_owner, fresh, identity_running

WAIT_SECONDS = 10


class Watching:
    """One stream, read beat by beat."""

    def __init__(self, stream: grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]) -> None:
        self._stream = stream

    async def beat(self) -> pb.WatchResponse:
        async with asyncio.timeout(WAIT_SECONDS):
            answer = await self._stream.read()
        assert isinstance(answer, pb.WatchResponse), "the stream ended"
        return answer

    async def until(self, subject_id: str) -> pb.WatchResponse:
        while True:
            beat = await self.beat()
            if any(change.subject_id == subject_id for change in beat.changes):
                return beat

    async def collect(self, beats: list[pb.WatchResponse]) -> None:
        while True:
            beats.append(await self.beat())

    async def to_the_end(self) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while isinstance(await self._stream.read(), pb.WatchResponse):
                pass


@asynccontextmanager
async def watching(identity: Running, cursor: int = 0) -> AsyncGenerator[Watching]:
    stream = identity.gateway_keys.Watch(pb.WatchRequest(cursor=cursor))
    try:
        yield Watching(stream)
    finally:
        stream.cancel()


@pytest.fixture(scope="module")
async def identity(house: House) -> AsyncIterator[Running]:
    async with identity_running(house) as running:
        yield running


@pytest.fixture(scope="module")
async def replica(house: House) -> AsyncIterator[Running]:
    async with identity_running(house) as running:
        yield running


async def test_a_new_watcher_learns_where_things_stand(identity: Running) -> None:
    await identity.organization(await identity.sign_up())
    async with watching(identity) as watch:
        first = await watch.beat()
        second = await watch.beat()
    assert first.revision > 0
    assert (len(first.changes), first.reset) == (0, False)
    assert second.revision >= first.revision


async def test_every_replica_hears_of_a_revocation_within_a_second(identity: Running, replica: Running) -> None:
    session = await identity.sign_up()
    issued = await identity.issue(session, (await identity.family(session)).agent_id)
    request = pb.RevokeApiKeyRequest(api_key_id=issued.api_key.id, request_id=fresh())
    async with watching(identity) as here, watching(replica) as there:
        await here.beat()
        await there.beat()
        with acting(await identity.caller_of(session)):
            await call(identity.keys.RevokeApiKey, request)
        began_ms = monotonic_ms()
        await asyncio.gather(here.until(issued.api_key.id), there.until(issued.api_key.id))
        assert monotonic_ms() - began_ms < 1_000


async def test_what_ends_or_changes_is_told(identity: Running) -> None:
    session = await identity.sign_up()
    async with watching(identity) as watch:
        await watch.beat()
        family = await identity.family(session)
        with acting(await identity.caller_of(session)):
            suspend = directory_pb2.SuspendAgentRequest(agent_id=family.agent_id, request_id=fresh())
            await call(identity.directory.SuspendAgent, suspend)
        await call(identity.people.LogOut, people_pb2.LogOutRequest(access_token=session.access_token))
        expected = [
            family.organization_id,
            session.person.id,
            family.workspace_id,
            family.agent_group_id,
            family.agent_id,
            family.agent_id,
            session.id,
        ]
        told: list[str] = []
        while len(told) < len(expected):
            told += [change.subject_id for change in (await watch.beat()).changes]
    assert told == expected


async def test_a_watcher_goes_on_from_its_cursor(identity: Running) -> None:
    session = await identity.sign_up()
    async with watching(identity) as watch:
        cursor = (await watch.beat()).revision
    family = await identity.family(session)
    async with watching(identity, cursor) as watch:
        missed = await watch.beat()
        after = await watch.beat()
    assert [change.subject_id for change in missed.changes][-1] == family.agent_id
    assert missed.revision == missed.changes[-1].revision
    assert all(change.revision > cursor for change in missed.changes)
    assert not after.changes


async def test_writers_at_once_are_told_in_order_and_none_is_missed(identity: Running) -> None:
    sessions = [await identity.sign_up() for _ in range(8)]
    async with watching(identity) as watch:
        cursor = (await watch.beat()).revision
        made = {each.id for each in await asyncio.gather(*(identity.organization(session) for session in sessions))}
        told: list[pb.Change] = []
        while not made <= {change.subject_id for change in told}:
            told += (await watch.beat()).changes
    revisions = [change.revision for change in told]
    assert revisions == sorted(set(revisions))
    async with watching(identity, cursor) as again:
        missed = await again.beat()
    assert list(missed.changes)[: len(told)] == told


async def test_a_cursor_from_the_future_is_reset(identity: Running) -> None:
    async with watching(identity, 2**62) as watch:
        assert (await watch.beat()).reset


async def test_a_watcher_who_missed_more_than_10_000_changes_is_reset(house: House, identity: Running) -> None:
    await identity.organization(await identity.sign_up())
    async with watching(identity) as watch:
        cursor = (await watch.beat()).revision
        async with as_owner(house) as owner:
            await owner.execute(
                "INSERT INTO changes (subject_id, at) SELECT 'filler', now() FROM generate_series(1, 10001)"
            )
        told = 0
        while told < 10_001:  # who watches all the while is not
            told += len((await watch.beat()).changes)
    async with watching(identity, cursor) as watch:
        beat = await watch.beat()
        assert (beat.reset, len(beat.changes)) == (True, 0)
        assert beat.revision >= cursor + 10_001


async def test_no_beat_vouches_for_a_database_that_does_not_answer(house: House, identity: Running) -> None:
    beats: list[pb.WatchResponse] = []
    async with watching(identity) as watch, as_owner(house) as owner:
        await watch.beat()
        reading = asyncio.ensure_future(watch.collect(beats))
        async with owner.transaction():
            await owner.execute("LOCK TABLE changes IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(0.5)  # beats that had been read by then arrive
            before = len(beats)
            await asyncio.sleep(1.0)
            silent = len(beats) == before
        await asyncio.sleep(1.0)
        reading.cancel()
    assert silent
    assert len(beats) > before


async def test_a_second_writer_waits_for_the_first_to_commit(house: House, identity: Running) -> None:
    now = identity.parts.clock.now()

    async def write() -> int:
        async with database.transaction() as tx:
            return await changes.record(tx, None, "second", now)

    async with db.connect(house.dsn("identity"), service="identity") as database:
        async with database.transaction() as tx:
            first = await changes.record(tx, None, "first", now)
            second = asyncio.ensure_future(write())
            done, _ = await asyncio.wait({second}, timeout=0.3)
            assert not done
        assert await second > first


async def test_a_watcher_that_leaves_is_forgotten(house: House) -> None:
    async with identity_running(house) as identity:
        async with watching(identity) as watch:
            await watch.beat()
            assert identity.parts.hub.watchers == 1
        async with asyncio.timeout(WAIT_SECONDS):
            while identity.parts.hub.watchers:  # noqa: ASYNC110  # the server learns of it when it pleases
                await asyncio.sleep(0.02)


async def test_a_watcher_that_falls_behind_is_cut_off(house: House) -> None:
    async with db.connect(house.dsn("identity"), service="identity") as database:
        hub = Hub(database)
        await hub.open()
        slow = hub.watch(0)
        await anext(slow)
        for _ in range(60):
            await hub.look()
        with pytest.raises(Unavailable) as cut:
            async for _ in slow:
                pass
        assert cut.value.reason == "WATCH_TOO_SLOW"


async def test_a_closing_hub_ends_its_streams_and_takes_no_more(house: House) -> None:
    async with identity_running(house) as identity, watching(identity) as watch:
        await watch.beat()
        await identity.parts.hub.close()
        await watch.to_the_end()
        with pytest.raises(Unavailable):
            await anext(identity.parts.hub.watch(0))
