from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit, urlunsplit

import pytest

from gateway_svc.aliases import NO_ALIAS, Aliases
from gateway_svc.pushed import FRESH_MS, READS_MAX, Changes, Pushed
from gateway_svc.routing import Alias, Limits, Target
from gateway_svc.rules import Rules
from gateway_svc.store import change_log, routes
from mesh import db, ids
from mesh.clock import monotonic_ms
from mesh.db import Database
from mesh.errors import Unavailable
from mesh.secret import Secret
from mesh.testing import House
from tests.fakes.cable import Cable, cable
from tests.services.identity_running import fresh

SEEN_SECONDS_MAX = 1.0
TARGETS = (Target("openai", "gpt-6-sol", 3), Target("openai", "llama-4", 0, 1, Limits(32_000, 4_000)))


@pytest.fixture(scope="module")
async def database(house: House) -> AsyncIterator[Database]:
    async with db.connect(house.dsn("gateway"), service="gateway") as connected:
        yield connected


@asynccontextmanager
async def running(loop: Callable[[], Awaitable[None]]) -> AsyncGenerator[None]:
    task = asyncio.ensure_future(loop())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def following(database: Database) -> AsyncGenerator[Aliases]:
    changes = Changes(database)
    aliases = Aliases(database, changes)
    async with running(changes.run):
        await until(lambda: aliases.fresh)
        yield aliases


async def until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if seen():
                return
            await asyncio.sleep(0.005)


async def sees(aliases: Aliases, organization_id: str, expected: dict[str, Alias]) -> None:
    """Wait for at most as long as a change may take."""
    async with asyncio.timeout(SEEN_SECONDS_MAX):
        while True:
            if await aliases.of(organization_id) == expected:
                return
            await asyncio.sleep(0.01)


async def add(database: Database, organization_id: str, name: str) -> Alias:
    alias = Alias(ids.new(ids.Kind.ROUTE), name, TARGETS)
    async with database.transaction() as tx:
        await routes.add(tx, alias, organization_id)
    return alias


async def touch(database: Database, *subjects: str) -> None:
    async with database.transaction() as tx:
        for subject in subjects:
            await change_log.record(tx, subject)


async def test_every_replica_sees_an_alias_come_change_and_go_within_a_second(database: Database) -> None:
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(following(database)) for _ in range(2)]

        async def all_see(expected: dict[str, Alias]) -> None:
            await asyncio.gather(*(sees(replica, organization_id, expected) for replica in replicas))

        await all_see({})
        alias = await add(database, organization_id, "fast")
        await all_see({"fast": alias})
        changed = Alias(alias.route_id, "faster", TARGETS[:1])
        async with database.transaction() as tx:
            await routes.change(tx, changed, organization_id)
        await all_see({"faster": changed})
        async with database.transaction() as tx:
            await routes.remove(tx, alias.route_id, organization_id)
        await all_see({})


async def test_what_is_known_is_not_read_again(database: Database) -> None:
    organization_id, other = ids.new(ids.Kind.ORGANIZATION), ids.new(ids.Kind.ORGANIZATION)
    await add(database, organization_id, "fast")
    async with following(database) as aliases:
        first = await aliases.of(organization_id)
        assert await aliases.of(other) is NO_ALIAS
        await add(database, ids.new(ids.Kind.ORGANIZATION), "fast")  # somebody else's
        await asyncio.sleep(0.5)
        assert await aliases.of(organization_id) is first


@asynccontextmanager
async def through(house: House) -> AsyncGenerator[tuple[Cable, Database]]:
    """Reach PostgreSQL through a cable."""
    parts = urlsplit(house.dsn("gateway").reveal())
    async with cable(f"{parts.hostname}:{parts.port}") as line:
        login = parts.netloc.rpartition("@")[0]
        dsn = Secret(urlunsplit(parts._replace(netloc=f"{login}@{line.address}")))
        async with db.connect(dsn, service="gateway") as connected:
            yield line, connected


async def test_without_the_database_what_is_known_counts_for_700_ms_and_then_nothing_does(house: House) -> None:
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    async with through(house) as (line, database), following(database) as aliases:
        known = await aliases.of(organization_id)
        line.unplug()
        unplugged_at_ms = monotonic_ms()
        await asyncio.sleep(0.1)
        assert await aliases.of(organization_id) is known
        with pytest.raises(Unavailable):
            await sees(aliases, organization_id, {"what": Alias("is", "never", TARGETS)})
        assert monotonic_ms() - unplugged_at_ms <= FRESH_MS + 250
        assert not aliases.fresh
        line.plug()
        await until(lambda: aliases.fresh)
        assert await aliases.of(organization_id) is known


async def test_what_changed_while_the_database_was_away_is_seen_with_the_first_answer(
    house: House, database: Database
) -> None:
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    async with through(house) as (line, own), following(own) as aliases:
        assert await aliases.of(organization_id) is NO_ALIAS
        line.unplug()
        await until(lambda: not aliases.fresh)
        alias = await add(database, organization_id, "fast")
        line.plug()
        await until(lambda: aliases.fresh)
        assert await aliases.of(organization_id) == {"fast": alias}


async def test_while_the_changes_are_not_heard_a_reading_counts_for_700_ms_and_no_longer(database: Database) -> None:
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    aliases = Aliases(database, Changes(database))  # and nobody runs its loop
    assert await aliases.of(organization_id) is NO_ALIAS
    alias = await add(database, organization_id, "fast")
    await sees(aliases, organization_id, {"fast": alias})
    assert not aliases.fresh


class Readings:
    """Values that a test holds back: the reads of each key in the order in which they began."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, asyncio.Future[int]]] = []

    async def read(self, key: str) -> tuple[int, int]:
        future = asyncio.get_running_loop().create_future()
        self.begun.append((key, future))
        return 2**62, await future

    async def next(self, count: int) -> asyncio.Future[int]:
        await until(lambda: len(self.begun) >= count)
        return self.begun[count - 1][1]


def pushed(changes: Changes, readings: Readings, entries_max: int = 100) -> Pushed[str, int]:
    return Pushed(
        changes,
        readings.read,
        lambda key: key.split(),
        entries_max=entries_max,
        reads_at_once_max=3,
    )


async def test_a_read_during_which_its_subject_changed_counts_for_nobody(
    database: Database,
) -> None:
    readings, changes = Readings(), Changes(database)
    values = pushed(changes, readings)
    async with running(changes.run):
        await until(lambda: values.fresh)
        early = asyncio.ensure_future(values.of("a"))
        before = await readings.next(1)
        await touch(database, "a")
        await asyncio.sleep(0.5)
        late = asyncio.ensure_future(values.of("a"))
        (await readings.next(2)).set_result(2)
        assert await late == 2
        before.set_result(1)
        assert await early == 2
        assert await values.of("a") == 2
        assert len(readings.begun) == 2


async def test_a_server_that_lacks_what_was_heard_of_tells_nothing(database: Database) -> None:
    reads = 0

    async def read(_: str) -> tuple[int, int]:
        nonlocal reads
        reads += 1
        return changes.revision - 1, 1

    await touch(database, "x")
    changes = Changes(database)
    values = Pushed(changes, read, lambda key: key.split(), entries_max=10, reads_at_once_max=3)
    async with running(changes.run):
        await until(lambda: values.fresh)
        with pytest.raises(Unavailable):
            await values.of("a")
    assert (reads, values.size) == (READS_MAX, 0)


async def test_one_loop_serves_all_that_is_kept_and_disturbs_nothing_else(database: Database) -> None:
    changes, organization_id = Changes(database), ids.new(ids.Kind.ORGANIZATION)
    aliases, rules = Aliases(database, changes), Rules(database, changes)
    async with running(changes.run):
        await until(lambda: changes.fresh)
        await rules.of((organization_id,))
        assert await aliases.of(organization_id) is NO_ALIAS
        alias = await add(database, organization_id, "fast")
        await sees(aliases, organization_id, {"fast": alias})
        assert (rules.size, aliases.size) == (1, 1)


async def test_so_many_values_are_read_at_once_and_no_more(database: Database) -> None:
    readings = Readings()
    values = pushed(Changes(database), readings)
    asking = [asyncio.ensure_future(values.of(key)) for key in "abcde"]
    await asyncio.sleep(0.05)
    assert len(readings.begun) == 3
    for count in range(1, 6):
        (await readings.next(count)).set_result(count)
    assert await asyncio.gather(*asking) == [1, 2, 3, 4, 5]


async def test_a_read_that_takes_too_long_is_unavailable(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway_svc.pushed.READ_MS_MAX", 50)
    with pytest.raises(Unavailable):
        await pushed(Changes(database), Readings()).of("a")


async def test_a_read_that_fails_leaves_nothing_behind(database: Database) -> None:
    readings, changes = Readings(), Changes(database)
    values = pushed(changes, readings)
    async with running(changes.run):
        await until(lambda: values.fresh)
        asking = asyncio.ensure_future(values.of("a"))
        (await readings.next(1)).set_exception(Unavailable("DATABASE_UNAVAILABLE", "away"))
        with pytest.raises(Unavailable):
            await asking
        assert not values._by_subject  # pyright: ignore[reportPrivateUsage]
        assert not values._reading  # pyright: ignore[reportPrivateUsage]


async def test_an_entry_goes_with_any_subject_of_its_key_and_no_more_are_kept_than_may_be(database: Database) -> None:
    readings, changes = Readings(), Changes(database)
    values = pushed(changes, readings, entries_max=2)

    async def reads(key: str) -> bool:
        """Say whether asking for a key reads it."""
        before = len(readings.begun)
        asking = asyncio.ensure_future(values.of(key))
        await asyncio.sleep(0.01)
        if len(readings.begun) == before:
            await asking
            return False
        readings.begun[-1][1].set_result(0)
        await asking
        return True

    async with running(changes.run):
        await until(lambda: values.fresh)
        assert [await reads(key) for key in ("a b", "b c", "a b", "b c")] == [True, True, False, False]
        await touch(database, "c")
        await asyncio.sleep(0.5)
        assert [await reads(key) for key in ("a b", "b c")] == [False, True]
        await touch(database, "x", "b")
        await asyncio.sleep(0.5)
        assert [await reads(key) for key in ("a b", "b c")] == [True, True]
        assert [await reads(key) for key in ("d", "b c", "a b")] == [True, False, True]
        assert values._by_subject.keys() == {"a", "b", "c"}  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("behind", ["far", "pruned", "another server"])
async def test_who_cannot_be_told_all_that_changed_forgets_everything(database: Database, behind: str) -> None:
    organization_id = ids.new(ids.Kind.ORGANIZATION)
    await touch(database, "x")
    async with following(database) as aliases:
        known = await aliases.of(organization_id)
        if behind == "far":
            await touch(database, *(f"other-{number}" for number in range(change_log.READ_MAX)))
        elif behind == "pruned":
            await database.execute("DELETE FROM changes")
        else:  # as after a failover
            aliases._changes._server_since = datetime(2026, 1, 1, tzinfo=UTC)  # pyright: ignore[reportPrivateUsage]
        await until(lambda: aliases.size == 0)
        assert await aliases.of(organization_id) == known
        alias = await add(database, organization_id, "fast")
        await sees(aliases, organization_id, {"fast": alias})


async def test_nobody_gets_a_revision_while_an_earlier_one_cannot_be_seen(database: Database) -> None:
    async with database.transaction() as tx:
        await change_log.record(tx, "first")
        following = asyncio.ensure_future(touch(database, "second"))
        await asyncio.sleep(0.2)
        assert not following.done()
        before = (await change_log.since(database, 0)).latest
    await following
    news = await change_log.since(database, before)
    assert (news.subjects, news.follow(before)) == (["first", "second"], True)


async def test_of_changes_the_newest_10_000_are_kept(database: Database) -> None:
    await touch(database, "x")
    await database.execute("INSERT INTO changes (subject) SELECT 'y' FROM generate_series(1, 10_050)")
    await touch(database, "z")
    assert await database.value("SELECT count(*) FROM changes") == change_log.KEPT_MAX


class Storm:
    """Routes that come all the time to a few organizations, and callers who know how many must be seen."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.committed: dict[str, list[float]] = {ids.new(ids.Kind.ORGANIZATION): [] for _ in range(12)}
        self.late: list[tuple[str, int]] = []
        self.over = asyncio.Event()

    async def change(self, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # a test's choices
        while not self.over.is_set():
            subject = chance.choice(list(self.committed))
            with contextlib.suppress(ZeroDivisionError):
                async with self.database.transaction() as tx:
                    await routes.add(tx, Alias(ids.new(ids.Kind.ROUTE), fresh("v"), TARGETS), subject)
                    if chance.random() < 0.2:
                        raise ZeroDivisionError
                self.committed[subject].append(monotonic_ms())
            await asyncio.sleep(0.02)

    async def ask(self, aliases: Aliases, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        while not self.over.is_set():
            subject, since_ms = chance.choice(list(self.committed)), monotonic_ms() - 1_000 * SEEN_SECONDS_MAX
            owed = min(sum(at_ms < since_ms for at_ms in self.committed[subject]), routes.ROUTES_MAX)
            if len(await aliases.of(subject)) < owed:
                self.late.append((subject, owed))
            await asyncio.sleep(0.001)


async def test_no_answer_is_more_than_a_second_behind_under_a_storm_of_changes(database: Database) -> None:
    storm = Storm(database)
    async with following(database) as one, following(database) as other, asyncio.TaskGroup() as group:
        for seed in range(3):
            group.create_task(storm.change(seed))
        for seed, replica in enumerate((one, one, other)):
            group.create_task(storm.ask(replica, 100 + seed))
        await asyncio.sleep(4)
        storm.over.set()
    assert sum(map(len, storm.committed.values())) > 50
    assert not storm.late
