from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import grpc
import pytest

from ledger_svc.keys import LedgerKeys
from ledger_svc.service import Ledger
from ledger_svc.service.events import EVENTS_MAX
from ledger_svc.store import events
from mandate.ledger.v1 import events_pb2 as pb
from mandate.ledger.v1 import events_pb2_grpc as rpc
from mesh import ids
from mesh.clock import monotonic_ms
from tests.conftest import RunningLedger
from tests.services.ledger_running import owner

EMIT = "SELECT emit_events($1, now(), $2, $3, $4)"


class Watching:
    """One stream, read answer by answer."""

    def __init__(self, stream: grpc.aio.UnaryStreamCall[pb.WatchRequest, pb.WatchResponse]) -> None:
        self._stream = stream

    async def beat(self) -> pb.WatchResponse:
        async with asyncio.timeout(10):
            answer = await self._stream.read()
        assert isinstance(answer, pb.WatchResponse), "the stream ended"
        return answer

    async def news(self, count: int) -> list[pb.Event]:
        """Return the next events."""
        found: list[pb.Event] = []
        while len(found) < count:
            found += (await self.beat()).events
        return found

    async def to_the_end(self) -> None:
        async with asyncio.timeout(10):
            while isinstance(await self._stream.read(), pb.WatchResponse):
                pass


@asynccontextmanager
async def watching(
    ledger: RunningLedger, cursor: int = 0, *, service: str = "edge", address: str = ""
) -> AsyncGenerator[Watching]:
    async with ledger.house.channel("ledger", address or ledger.address, as_service=service) as channel:
        stream = rpc.EventServiceStub(channel).Watch(pb.WatchRequest(cursor=cursor))
        try:
            yield Watching(stream)
        finally:
            stream.cancel()


async def emit(ledger: RunningLedger, *types: str, subject: str = "x") -> None:
    organization = ids.new(ids.Kind.ORGANIZATION)
    await ledger.database.execute(EMIT, organization, list(types), [subject] * len(types), ['{"a":1}'] * len(types))


@pytest.mark.parametrize("service", ["edge", "gateway"])
async def test_what_happens_is_told_at_once_and_in_order(ledger: RunningLedger, service: str) -> None:
    async with watching(ledger, service=service) as watch:
        first = await watch.beat()
        assert (len(first.events), first.reset) == (0, False)
        began_ms = monotonic_ms()
        await emit(ledger, "budget.threshold", "budget.disabled", subject="bud_x")
        found = await watch.news(2)
        assert monotonic_ms() - began_ms < 1_000
    assert [event.revision for event in found] == [first.revision + 1, first.revision + 2]
    assert [(event.type, event.subject_id, event.detail) for event in found] == [
        ("budget.threshold", "bud_x", '{"a":1}'),
        ("budget.disabled", "bud_x", '{"a":1}'),
    ]
    assert found[0].organization_id.startswith("org_")
    assert found[0].HasField("time")


async def test_a_watcher_goes_on_from_its_cursor_over_any_number(ledger: RunningLedger) -> None:
    await emit(ledger, "one")
    cursor = await events.newest(ledger.database)
    await emit(ledger, *(str(number) for number in range(EVENTS_MAX + 3)))
    async with watching(ledger, cursor) as watch:
        beat = await watch.beat()
        rest = await watch.news(3)
    assert (len(beat.events), beat.revision, beat.reset) == (EVENTS_MAX, cursor + EVENTS_MAX, False)
    assert [event.type for event in (*beat.events, *rest)] == [str(number) for number in range(EVENTS_MAX + 3)]


async def test_a_quiet_ledger_beats(ledger: RunningLedger) -> None:
    async with watching(ledger) as watch:
        first = await watch.beat()
        began_ms = monotonic_ms()
        beats = [await watch.beat() for _ in range(5)]
    assert monotonic_ms() - began_ms < 5_000
    assert [(beat.revision, len(beat.events)) for beat in beats] == [(first.revision, 0)] * 5


async def test_no_event_becomes_visible_after_a_later_one(ledger: RunningLedger) -> None:
    async with watching(ledger) as watch:
        revision = (await watch.beat()).revision
        async with ledger.database.transaction() as slow:
            await slow.execute(EMIT, "org_a", ["slow"], ["x"], ["{}"])
            quick = asyncio.create_task(emit(ledger, "quick"))
            for _ in range(3):
                assert not (await watch.beat()).events
            assert not quick.done()
        await quick
        assert [(event.revision - revision, event.type) for event in await watch.news(2)] == [(1, "slow"), (2, "quick")]


async def test_an_event_of_a_commit_that_failed_leaves_no_gap(ledger: RunningLedger) -> None:
    before = await events.newest(ledger.database)

    async def fail() -> None:
        async with ledger.database.transaction() as tx:
            await tx.execute(EMIT, "org_a", ["never"], ["x"], ["{}"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    await emit(ledger, "after")
    found = await events.after(ledger.database, before, 10)
    assert [(row["revision"], row["type"]) for row in found] == [(before + 1, "after")]


async def test_many_writers_leave_no_gap(ledger: RunningLedger) -> None:
    async with watching(ledger) as watch:
        revision = (await watch.beat()).revision
        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(emit(ledger, f"{number}", f"{number}"))
        found = await watch.news(100)
    assert [event.revision for event in found] == list(range(revision + 1, revision + 101))
    assert sorted(event.type for event in found) == sorted([str(number) for number in range(50)] * 2)


async def test_a_cursor_that_is_too_old_or_of_another_database_is_told_so(ledger: RunningLedger) -> None:
    await emit(ledger, "old", "old", "old")
    oldest = await events.newest(ledger.database)
    async with owner(ledger.house) as connection:
        await connection.execute("UPDATE events SET recorded_at = now() - interval '31 days'")
    assert await events.prune(ledger.database) >= 2
    assert await events.newest(ledger.database) == oldest, "the newest stays, so that the next follows it"
    await emit(ledger, "new")
    assert await events.prune(ledger.database) == 1
    for cursor, reset, revision in ((oldest - 2, True, oldest + 1), (oldest, False, oldest + 1)):
        async with watching(ledger, cursor) as watch:
            beat = await watch.beat()
            assert (beat.reset, beat.revision, [event.type for event in beat.events]) == (reset, revision, ["new"])
    async with watching(ledger, oldest + 1_000) as watch:
        beat = await watch.beat()
        assert (beat.reset, beat.revision) == (True, oldest + 1)


async def test_events_are_forgotten_only_from_the_front(ledger: RunningLedger) -> None:
    await emit(ledger, "a", "b", "c")
    newest = await events.newest(ledger.database)
    async with owner(ledger.house) as connection:
        await connection.execute(
            "UPDATE events SET recorded_at = now() - interval '31 days' WHERE revision = $1", newest - 1
        )
    await events.prune(ledger.database)
    found = await events.after(ledger.database, newest - 3, 10)
    assert [row["type"] for row in found] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("service", "cursor", "code"),
    [
        ("identity", 0, grpc.StatusCode.PERMISSION_DENIED),
        ("operator", 0, grpc.StatusCode.PERMISSION_DENIED),
        ("edge", -1, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_who_may_not_watch_is_refused(
    ledger: RunningLedger, service: str, cursor: int, code: grpc.StatusCode
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with watching(ledger, cursor, service=service) as watch:
            await watch.beat()
    assert refused.value.code() == code


async def test_streams_end_when_the_ledger_stops(ledger: RunningLedger) -> None:
    built = Ledger(ledger.database, ledger.ledger.commits, ledger.ledger.prices)
    keys = LedgerKeys(ledger.database)
    async with ledger.house.serving("ledger", built.registrations(), keys, built.resolve) as address:
        async with watching(ledger, address=address) as watch:
            await watch.beat()
            await built.end_streams()
            await watch.to_the_end()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async with watching(ledger, address=address) as watch:
                await watch.beat()
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
