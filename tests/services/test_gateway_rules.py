from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway_svc import pushed
from gateway_svc import rules as rules_module
from gateway_svc.policies import ANYTHING, Terms
from gateway_svc.pushed import FRESH_MS, Changes
from gateway_svc.rules import Rules
from gateway_svc.store import change_log, policies
from gateway_svc.store.change_log import policies_on
from mesh import db, ids
from mesh.db import Database
from mesh.errors import Unavailable
from mesh.testing import House
from tests.services.identity_running import fresh

READ = Terms(max_tokens_per_request=5)


@pytest.fixture
async def database(house: House) -> AsyncIterator[Database]:
    async with db.connect(house.dsn("gateway"), service="gateway") as opened:
        yield opened


class Counted(Database):
    """A pool that counts statements and can be taken away or slowed down."""

    def __init__(self, inner: Database) -> None:
        self._inner = inner
        self.reads = 0
        self.polls = 0
        self.down = False
        self.told: dict[str, Any] = {}  # what polls are told instead
        self.on_read: Callable[[], Awaitable[None]] | None = None

    async def rows(self, query: str, *values: object) -> list[db.Row]:
        self._check()
        self.reads += 1
        found = await self._inner.rows(query, *values)
        if self.on_read is not None:
            await self.on_read()
        return found

    async def one(self, query: str, *values: object) -> Any:
        self._check()
        self.polls += 1
        return dict(await self._inner.one(query, *values)) | self.told

    def _check(self) -> None:
        if self.down:
            raise Unavailable("DATABASE_UNAVAILABLE", "the database cannot be reached")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while True:
            if holds():
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def following(database: Database) -> AsyncGenerator[Rules]:
    changes = Changes(database)
    rules = Rules(database, changes)
    task = asyncio.ensure_future(changes.run())
    try:
        await until(lambda: rules.fresh)
        yield rules
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def a_path() -> tuple[str, ...]:
    kinds = (ids.Kind.ORGANIZATION, ids.Kind.WORKSPACE, ids.Kind.AGENT_GROUP, ids.Kind.AGENT)
    return tuple(ids.new(kind) for kind in kinds)


async def add(database: Database, organization_id: str, target_id: str, terms: Terms = READ) -> str:
    policy_id = ids.new(ids.Kind.POLICY)
    async with database.transaction() as tx:
        await policies.add(tx, policies.NewPolicy(policy_id, organization_id, target_id, fresh("policy"), terms))
        await change_log.record(tx, policies_on(target_id))
    return policy_id


async def seen_after_ms(rules: Rules, path: tuple[str, ...], limit: int | None) -> float:
    started = time.monotonic()
    async with asyncio.timeout(5):
        while True:
            if (await rules.of(path)).max_tokens_per_request == limit:
                return (time.monotonic() - started) * 1000
            await asyncio.sleep(0.002)


async def refused_after_ms(rules: Rules, path: tuple[str, ...]) -> float:
    started = time.monotonic()
    async with asyncio.timeout(5):
        while True:
            try:
                await rules.of(path)
            except Unavailable:
                return (time.monotonic() - started) * 1000
            await asyncio.sleep(0.002)


async def test_an_agent_whose_policies_do_not_change_is_read_once(database: Database) -> None:
    counted, path = Counted(database), a_path()
    async with following(counted) as rules:
        assert await rules.of(path) == ANYTHING
        reads, polls = counted.reads, counted.polls
        deadline = time.monotonic() + 2 * FRESH_MS / 1000
        while time.monotonic() < deadline:
            assert await rules.of(path) == ANYTHING
            await asyncio.sleep(0.01)
    assert (reads, counted.reads) == (1, 1)
    assert 4 <= counted.polls - polls <= 9


async def test_a_change_on_any_level_is_seen_within_a_second_and_disturbs_no_other_path(database: Database) -> None:
    counted, path, other = Counted(database), a_path(), a_path()
    async with following(counted) as rules:
        await rules.of(other)
        for limit, target_id in zip((40, 30, 20, 10), path, strict=True):
            await rules.of(path)
            await add(database, path[0], target_id, Terms(max_tokens_per_request=limit))
            assert await seen_after_ms(rules, path, limit) < 1_000
        before = counted.reads
        await rules.of(other)
        assert counted.reads == before


async def test_what_was_read_before_a_change_that_is_known_is_read_again(database: Database) -> None:
    counted, path = Counted(database), a_path()

    async def change_and_be_seen() -> None:
        counted.on_read = None
        await add(database, path[0], path[0])
        polls = counted.polls
        await until(lambda: counted.polls >= polls + 2)

    async with following(counted) as rules:
        counted.on_read = change_and_be_seen
        assert (await rules.of(path)).max_tokens_per_request == 5
    assert counted.reads == 2


async def test_without_the_loop_what_is_kept_counts_for_700_ms(database: Database) -> None:
    counted, path = Counted(database), a_path()
    rules = Rules(counted, Changes(counted))
    assert await rules.of(path) == ANYTHING
    await add(database, path[0], path[3])
    assert FRESH_MS / 2 < await seen_after_ms(rules, path, 5) < 1_000
    assert not rules.fresh
    assert counted.reads == 2


@pytest.mark.parametrize(
    "told",
    [
        {"server_since": datetime(2026, 1, 1, tzinfo=UTC)},  # after a failover
        {"latest": 0},  # a backup of before
        {"oldest": 2**62},  # what came in between was pruned
        {"subjects": ["policies:org_x"] * change_log.READ_MAX},  # more than is read at once
    ],
)
async def test_what_cannot_be_followed_drops_all_that_is_kept(database: Database, told: dict[str, Any]) -> None:
    await add(database, ids.new(ids.Kind.ORGANIZATION), fresh("target"))
    counted, path = Counted(database), a_path()
    async with following(counted) as rules:
        await rules.of(path)
        assert counted.reads == 1
        counted.told = told
        polls = counted.polls
        await until(lambda: counted.polls >= polls + 2)
        await rules.of(path)
    assert counted.reads > 1  # again, where a poll drops it while it is read


async def test_while_postgresql_is_away_nothing_is_allowed_once_what_is_kept_is_unproved(database: Database) -> None:
    counted, path = Counted(database), a_path()
    async with following(counted) as rules:
        await rules.of(path)
        counted.down = True
        assert await refused_after_ms(rules, path) <= FRESH_MS + 50
        assert not rules.fresh
        with pytest.raises(Unavailable):
            await rules.of(a_path())
        await add(database, path[0], path[1])
        counted.down = False
        assert await seen_after_ms(rules, path, 5) < 1_000


async def test_a_reading_that_takes_too_long_is_an_outage(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(database)
    monkeypatch.setattr(pushed, "READ_MS_MAX", 20)
    counted.on_read = lambda: asyncio.sleep(10)
    with pytest.raises(Unavailable) as raised:
        await Rules(counted, Changes(counted)).of(a_path())
    assert raised.value.reason == "DATABASE_UNAVAILABLE"


async def test_many_who_ask_at_once_share_one_reading(database: Database) -> None:
    counted, path = Counted(database), a_path()
    rules = Rules(counted, Changes(counted))
    await asyncio.gather(*(rules.of(path) for _ in range(200)))
    assert counted.reads == 1


async def test_what_is_kept_is_bounded_and_the_one_asked_for_last_stays(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules_module, "ENTRIES_MAX", 3)
    counted, paths = Counted(database), [a_path() for _ in range(4)]
    async with following(counted) as rules:
        for path in (*paths[:3], paths[0], paths[3]):
            await rules.of(path)
        assert counted.reads == 4
        await rules.of(paths[0])
        assert counted.reads == 4
        await rules.of(paths[1])
        assert counted.reads == 5


async def test_a_revision_never_appears_behind_a_higher_one(database: Database) -> None:
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    before = (await change_log.since(database, 0)).latest
    async with database.transaction() as tx:
        await change_log.record(tx, "policies:first")
        second = asyncio.ensure_future(add(database, organization_id, "second"))
        await asyncio.sleep(0.3)  # enough for the second, were it not to wait for the commit of the first
        assert (await change_log.since(database, before)).subjects == []
    await second
    found = await change_log.since(database, before)
    assert list(found.subjects) == ["policies:first", "policies:second"]
    assert found.follow(before)


async def test_old_changes_are_pruned_and_who_missed_them_is_told(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    monkeypatch.setattr(change_log, "KEPT_MAX", 5)
    before = (await change_log.since(database, 0)).latest
    for _ in range(12):
        await add(database, organization_id, fresh("target"))
    found = await change_log.since(database, before)
    assert await database.value("SELECT count(*) FROM changes") == 5
    assert not found.follow(before)
    assert found.follow(found.latest)
    assert found.follow(found.latest - 5)
    assert not found.follow(found.latest + 1)  # an order that was undone
