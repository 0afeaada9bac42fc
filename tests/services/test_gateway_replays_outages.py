"""Runs under a key while the database can't be reached, or its answers are lost on the way."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from gateway_svc import replays as module
from gateway_svc.replays import Replay, Replays
from mesh import db
from mesh.errors import Unavailable
from mesh.secret import Secret
from mesh.testing import House
from tests.fakes.cable import Cable, cable
from tests.services.replays_running import LAPSED, LIMITS, Pair, keyed, replays_running


@dataclass(frozen=True, slots=True)
class Cabled:
    """A pair whose first gateway reaches the database through a cable; the second has its own way."""

    line: Cable
    pair: Pair

    async def has_rows(self, *states: str) -> None:
        """Wait for rows in these states."""
        for _ in range(500):
            if [row["state"] for row in await self.pair.rows()] == list(states):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(await self.pair.rows())


@pytest.fixture
async def cabled(house: House) -> AsyncIterator[Cabled]:
    dsn = house.dsn("gateway").reveal()
    found = re.search(r"@([^/]+)/", dsn)
    assert found
    async with replays_running(house) as pair, cable(found[1]) as line:
        through = Secret(dsn.replace(f"@{found[1]}/", f"@{line.address}/"))
        async with db.connect(through, service="gateway") as database:
            made = dataclasses.replace(pair, one=Replays(database, pair.key, LIMITS))
            await made.finished(keyed())  # statements are prepared from here on: one way there, one back
            await made.owner.execute("DELETE FROM gateway.replays WHERE agent_id = $1", made.agent.id)
            yield Cabled(line, made)


async def test_without_the_database_a_request_under_a_key_is_refused(cabled: Cabled) -> None:
    cabled.line.unplug()
    assert await cabled.pair.reason(cabled.pair.begin(cabled.pair.one, keyed())) == "DATABASE_UNAVAILABLE"
    assert await cabled.pair.rows() == []


async def test_a_begin_whose_answer_was_lost_is_taken_back(cabled: Cabled) -> None:
    pair, wish = cabled.pair, keyed()
    cabled.line.mute()
    beginning = asyncio.ensure_future(pair.begin(pair.one, wish))
    await cabled.has_rows("running")
    cabled.line.cut()
    with pytest.raises(Unavailable):
        await beginning
    await pair.one.beat()
    assert await pair.rows() == []


async def test_a_begin_that_was_cancelled_is_taken_back(cabled: Cabled) -> None:
    pair = cabled.pair
    cabled.line.mute()
    beginning = asyncio.ensure_future(pair.begin(pair.one, keyed()))
    await cabled.has_rows("running")
    beginning.cancel()
    cabled.line.cut()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    await pair.one.drain()
    assert await pair.rows() == []


async def test_an_outcome_is_written_again_until_it_stands(cabled: Cabled) -> None:
    pair, wish = cabled.pair, keyed()
    run = await pair.run(pair.one, wish)
    run.recorder.whole(200, b"kept", {})
    cabled.line.unplug()
    finishing = asyncio.ensure_future(pair.one.finished(run, run.recorder.transcript()))
    await asyncio.sleep(0.2)
    assert not finishing.done()
    cabled.line.plug()
    await finishing
    assert isinstance(await pair.begin(pair.two, wish), Replay)


async def test_an_outcome_whose_answer_was_lost_is_written_again_and_stands(cabled: Cabled) -> None:
    pair, wish = cabled.pair, keyed()
    run = await pair.run(pair.one, wish)
    run.recorder.whole(200, b"kept", {})
    cabled.line.mute()
    finishing = asyncio.ensure_future(pair.one.finished(run, run.recorder.transcript()))
    await cabled.has_rows("finished")
    cabled.line.cut()
    await finishing
    assert isinstance(await pair.begin(pair.two, wish), Replay)


async def test_an_outcome_that_cannot_be_written_is_told_and_unknown(
    cabled: Cabled, caplog: pytest.LogCaptureFixture
) -> None:
    pair, wish = cabled.pair, keyed()
    run = await pair.run(pair.one, wish)
    run.recorder.whole(200, b"lost", {})
    cabled.line.unplug()
    await pair.one.finished(run, run.recorder.transcript())
    cabled.line.plug()
    assert "replay.not_kept" in caplog.messages
    assert await pair.reason(pair.begin(pair.two, wish)) == "IDEMPOTENCY_RUNNING"
    await pair.aged(LAPSED)
    await pair.one.beat()
    assert await pair.reason(pair.begin(pair.two, wish)) == "IDEMPOTENCY_OUTCOME_UNKNOWN"


async def test_an_outcome_waits_no_longer_than_its_time(cabled: Cabled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FINISH_SECONDS_MAX", 0.2)
    run = await cabled.pair.run(cabled.pair.one, keyed())
    run.recorder.whole(200, b"slow", {})
    cabled.line.mute()
    async with asyncio.timeout(4):
        finishing = asyncio.ensure_future(cabled.pair.one.finished(run, run.recorder.transcript()))
        await asyncio.sleep(0.5)
        cabled.line.cut()
        await finishing


async def test_a_key_that_could_not_be_freed_is_freed_by_the_next_beat(cabled: Cabled) -> None:
    pair = cabled.pair
    run = await pair.run(pair.one, keyed())
    cabled.line.unplug()
    await pair.one.dropped(run)
    cabled.line.plug()
    assert len(await pair.rows()) == 1
    await pair.one.beat()
    assert await pair.rows() == []


async def test_draining_without_the_database_ends(cabled: Cabled, caplog: pytest.LogCaptureFixture) -> None:
    run = await cabled.pair.run(cabled.pair.one, keyed())
    cabled.line.unplug()
    await cabled.pair.one.dropped(run)
    await cabled.pair.one.drain()
    assert "replay.not_drained" in caplog.messages


async def test_what_the_database_refuses_takes_no_answer_back_and_ends_no_loop(
    cabled: Cabled, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    pair = cabled.pair
    run, alive = await pair.run(pair.one, keyed()), keyed()
    await pair.run(pair.one, alive)
    run.recorder.whole(200, b"lost", {})
    check = f"CHECK (agent_id <> '{pair.agent.id}') NOT VALID"
    await pair.owner.execute(f"ALTER TABLE gateway.replays ADD CONSTRAINT broken {check}")
    running = asyncio.ensure_future(pair.one.run())
    try:
        await pair.one.finished(run, run.recorder.transcript())
        for _ in range(500):
            if caplog.messages.count("replay.beat_failed") >= 2:
                break
            await asyncio.sleep(0.01)
    finally:
        await pair.owner.execute("ALTER TABLE gateway.replays DROP CONSTRAINT broken")
    assert "replay.not_kept" in caplog.messages
    assert caplog.messages.count("replay.beat_failed") >= 2
    await pair.aged(LAPSED)
    for _ in range(500):
        if await pair.reason(pair.begin(pair.two, alive)) == "IDEMPOTENCY_RUNNING":
            break
        await asyncio.sleep(0.01)
    assert await pair.reason(pair.begin(pair.two, alive)) == "IDEMPOTENCY_RUNNING"
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
