from __future__ import annotations

import asyncio
import dataclasses
import itertools
import operator
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from gateway_svc.limits import NOTHING_TAKEN, RateExceeded, Taken, TokensAboveRate, limits
from gateway_svc.policies import PER_MINUTE_MAX, Rate
from gateway_svc.rates import WAITING_MAX, Rates
from mesh import cache, ids
from mesh.embedded import valkey
from mesh.embedded.valkey import Valkey
from mesh.errors import Unavailable
from mesh.secret import Secret
from tests.fakes.cable import Cable, cable
from tests.services.rates_running import MINUTE_MS, Model, rates_running

LEVELS = ("agt_1", "ws_1", "org_1")
LIMITS = (1, 7, 60, 6_000, 600_000, 60_000_000, PER_MINUTE_MAX)

per_minute = st.sampled_from(LIMITS)
rate = st.builds(Rate, st.sampled_from(LEVELS), st.none() | per_minute, per_minute)
paths = st.lists(rate, min_size=1, unique_by=lambda each: each.target_id)
tokens = st.sampled_from((1, 3, 59, 6_000, 1_000_000, 10**13))
steps = st.lists(st.tuples(paths, tokens, st.none() | tokens, st.sampled_from((0, 0, 1, 5))), max_size=12)
with_io = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Valkey]:
    async with valkey.running(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture(scope="module")
async def redis(server: Valkey) -> AsyncIterator[Redis]:
    async with cache.connect(server.url) as client:
        yield client


@pytest.fixture(scope="module")
async def rates(server: Valkey) -> AsyncIterator[Rates]:
    async with rates_running(server.url) as running:
        yield running


@pytest.fixture(scope="module")
async def second(server: Valkey) -> AsyncIterator[Rates]:
    async with rates_running(server.url) as running:
        yield running


@pytest.fixture
async def line(server: Valkey) -> AsyncIterator[Cable]:
    async with cable(f"127.0.0.1:{server.port}") as laid:
        yield laid


@pytest.fixture
async def distant(server: Valkey, line: Cable) -> AsyncIterator[Rates]:
    url = Secret(server.url.reveal().replace(f"127.0.0.1:{server.port}", line.address))
    async with rates_running(url) as running:
        yield running


def organization() -> str:
    return ids.new(ids.Kind.ORGANIZATION)


def requests(per_minute: int, target_id: str = "agt_1") -> list[Rate]:
    return [Rate(target_id, per_minute, None)]


def minute_of_tokens(per_minute: int, target_id: str = "agt_1") -> list[Rate]:
    return [Rate(target_id, None, per_minute)]


async def outcome(rates: Rates, organization_id: str, path: Sequence[Rate], tokens: int = 1) -> Taken | RateExceeded:
    try:
        return await rates.take(organization_id, path, tokens)
    except RateExceeded as refused:
        return refused


def most(path: Sequence[Rate]) -> int:
    """Return how many tokens one request may be at most."""
    return min((rate.tokens_per_minute for rate in path if rate.tokens_per_minute is not None), default=1)


async def found(rates: Rates, organization_id: str, path: Sequence[Rate]) -> Taken:
    """Return how buckets stand, by asking for more than fits where a limit on tokens is not empty."""
    tokens = most(path)
    told = await outcome(rates, organization_id, path, tokens)
    if isinstance(told, RateExceeded):
        return told.taken
    asked = [limit.asked(tokens) * MINUTE_MS for limit in told.limits]
    return dataclasses.replace(told, levels=tuple(map(operator.sub, told.levels, asked)))


@with_io
@given(steps)
async def test_takes_and_corrections_are_what_the_model_says(rates: Rates, steps: Any) -> None:
    organization_id, model, before = organization(), Model(), NOTHING_TAKEN
    for path, wanted, used, pause_ms in steps:
        await asyncio.sleep(pause_ms / 1000)
        if used is not None:
            rates.correct(before, used)  # goes in the batch of the take, and so is done in the same millisecond
        tokens = min(wanted, most(path))
        told = await outcome(rates, organization_id, path, tokens)
        taken = told.taken if isinstance(told, RateExceeded) else told
        if used is not None:
            model.correct(before, used, taken.at_ms)
        levels = model.levels(taken.limits, taken.at_ms)
        granted = model.take(taken.limits, tokens, taken.at_ms)
        assert granted is isinstance(told, Taken)
        assert taken.levels == (model.levels(taken.limits, taken.at_ms) if granted else levels)
        before = told if isinstance(told, Taken) else NOTHING_TAKEN


@with_io
@given(st.sampled_from((6_000, 600_000)), st.lists(st.tuples(st.integers(1, 4_000), st.sampled_from((0, 1, 7)))))
async def test_no_window_of_t_ms_sees_more_than_the_limit_and_what_leaks_in_t(
    rates: Rates, second: Rates, limit: int, asked: list[tuple[int, int]]
) -> None:
    organization_id, path = organization(), minute_of_tokens(limit)

    async def ask(of: Rates, tokens: int, delay_ms: int) -> Taken | RateExceeded:
        await asyncio.sleep(delay_ms / 1000)
        return await outcome(of, organization_id, path, tokens)

    pairs = zip(itertools.cycle((rates, second)), asked, strict=False)
    told = await asyncio.gather(*(ask(of, *each) for of, each in pairs))
    granted = sorted((each.at_ms, each.tokens) for each in told if isinstance(each, Taken))
    for first in range(len(granted)):
        within = 0
        for at_ms, tokens in granted[first:]:
            within += tokens
            assert within * MINUTE_MS <= limit * (MINUTE_MS + at_ms - granted[first][0])


async def test_of_many_at_once_over_two_gateways_exactly_the_limit_is_let_in(rates: Rates, second: Rates) -> None:
    organization_id, path = organization(), requests(20)
    told = await asyncio.gather(*(outcome(of, organization_id, path) for of in (rates, second) for _ in range(50)))
    taken = [each for each in told if isinstance(each, Taken)]
    times_ms = [each.at_ms for each in taken]
    assert max(times_ms) - min(times_ms) < MINUTE_MS / 20  # no room for one more has leaked out
    assert len(taken) == 20
    assert sorted(each.limits[0].remaining(each.levels[0]) for each in taken) == list(range(20))


async def test_a_storm_over_two_gateways_and_three_levels_counts_each_take_once_on_all(
    rates: Rates, second: Rates
) -> None:
    organization_id, agents = organization(), [f"agt_{number}" for number in range(5)]
    top = [Rate("org_1", 900, 90_000), Rate("ws_1", 700, 100_000)]
    of_agents = [[Rate(agent, 200, 40_000), *top] for agent in agents]
    storm = zip(itertools.cycle((rates, second)), itertools.cycle(of_agents), range(2_000), strict=False)
    told = await asyncio.gather(*(outcome(of, organization_id, path, 1 + number % 300) for of, path, number in storm))
    taken = [each for each in told if isinstance(each, Taken)]
    assert len(told) - len(taken) == sum(_full(each) for each in told if isinstance(each, RateExceeded)) > 0
    for path in of_agents:
        now = await found(rates, organization_id, path)
        for limit, level in zip(now.limits, now.levels, strict=True):
            own = [each for each in taken if limit in each.limits]
            asked = sum(limit.asked(each.tokens) for each in own)
            leaked = limit.per_minute * (now.at_ms - min(each.at_ms for each in own))
            assert level == asked * MINUTE_MS - leaked > 0


def _full(refused: RateExceeded) -> bool:
    taken = refused.taken
    return any(
        level + limit.asked(taken.tokens) * MINUTE_MS > limit.per_minute * MINUTE_MS
        for limit, level in zip(taken.limits, taken.levels, strict=True)
    )


async def test_a_level_that_is_full_takes_nothing_of_the_others(rates: Rates) -> None:
    organization_id, full = organization(), requests(1, "org_1")
    await rates.take(organization_id, full, 1)
    both = [*minute_of_tokens(10), *full]
    for _ in range(3):
        assert isinstance(await outcome(rates, organization_id, both, 9), RateExceeded)
    assert (await found(rates, organization_id, minute_of_tokens(10))).levels == (0,)


async def test_what_is_larger_than_a_limit_of_any_level_is_refused_and_takes_nothing(
    rates: Rates, redis: Redis
) -> None:
    organization_id, path = organization(), [Rate("agt_1", 5, 1_000), Rate("ws_1", None, 99), Rate("org_1", 5, 100)]
    with pytest.raises(TokensAboveRate) as raised:
        await rates.take(organization_id, path, 101)
    assert (raised.value.reason, raised.value.details["limit"]) == ("TOKENS_ABOVE_RATE", "tokens per minute of ws_1")
    assert raised.value.message == "this asks for 101 tokens; the limit is 99 a minute"
    await rates.drain(1)
    assert await redis.exists(*(limit.key for limit in limits(organization_id, tuple(path)))) == 0
    assert isinstance(await rates.take(organization_id, path, 99), Taken)


async def test_takes_that_come_together_share_a_script(rates: Rates, redis: Redis) -> None:
    async def scripts() -> int:
        stats: dict[str, Any] = await redis.info("commandstats")
        return stats.get("cmdstat_evalsha", {}).get("calls", 0)

    organization_id = organization()
    await rates.take(organization_id, requests(1_000), 1)
    before = await scripts()
    await asyncio.gather(*(rates.take(organization_id, requests(1_000), 1) for _ in range(64)))
    assert await scripts() - before <= 2


async def test_a_correction_counts_what_was_used(rates: Rates) -> None:
    organization_id, path = organization(), [Rate("agt_1", 5, 1_000)]
    taken = await rates.take(organization_id, path, 900)
    rates.correct(taken, 100)
    now = await found(rates, organization_id, path)
    leaked_ms = now.at_ms - taken.at_ms
    assert now.levels == (1 * MINUTE_MS - 5 * leaked_ms, 100 * MINUTE_MS - 1_000 * leaked_ms)


async def test_what_has_leaked_away_is_not_given_back(rates: Rates) -> None:
    organization_id, path = organization(), minute_of_tokens(60_000_000)
    old = await rates.take(organization_id, path, 1_000)  # a millisecond's worth
    await asyncio.sleep(0.005)
    new = await rates.take(organization_id, path, 60_000_000)
    rates.correct(old, 0)
    now = await found(rates, organization_id, path)
    assert now.levels == (60_000_000 * (MINUTE_MS - (now.at_ms - new.at_ms)),)


async def test_more_than_was_asked_for_counts_up_to_two_minutes(rates: Rates) -> None:
    organization_id, path = organization(), minute_of_tokens(100)
    rates.correct(await rates.take(organization_id, path, 10), 10**30)
    refused = await outcome(rates, organization_id, path, 100)
    assert isinstance(refused, RateExceeded)
    assert refused.retry_after_ms is not None
    assert 119_000 < refused.retry_after_ms <= 120_000


async def test_a_bucket_that_is_empty_is_not_kept(rates: Rates, redis: Redis) -> None:
    organization_id, path = organization(), minute_of_tokens(600)
    (key,) = (limit.key for limit in limits(organization_id, tuple(path)))
    taken = await rates.take(organization_id, path, 300)
    assert 29_000 < await redis.pttl(key) <= 30_000
    rates.correct(taken, 0)
    await rates.drain(1)
    assert await redis.exists(key) == 0


@pytest.mark.parametrize(("before", "after", "fits"), [(100, 1_000, 910), (1_000, 100, 10)])
async def test_a_limit_that_changes_keeps_what_was_taken(rates: Rates, before: int, after: int, fits: int) -> None:
    organization_id = organization()
    await rates.take(organization_id, minute_of_tokens(before), 90)
    assert isinstance(await outcome(rates, organization_id, minute_of_tokens(after), fits + 20), RateExceeded)
    await rates.take(organization_id, minute_of_tokens(after), fits)


async def test_a_lowered_limit_keeps_nobody_out_longer_than_the_old_one_did(rates: Rates, redis: Redis) -> None:
    organization_id = organization()
    taken = await rates.take(organization_id, minute_of_tokens(1_000_000), 1_000_000)
    assert isinstance(await outcome(rates, organization_id, minute_of_tokens(1)), RateExceeded)
    assert await redis.pttl(taken.limits[0].key) <= MINUTE_MS


async def test_the_largest_limit_is_exact_to_one_token(rates: Rates) -> None:
    organization_id, path = organization(), minute_of_tokens(PER_MINUTE_MAX)
    told = await asyncio.gather(
        *(outcome(rates, organization_id, path, tokens) for tokens in (PER_MINUTE_MAX - 1, 2, 1, 1))
    )
    assert len({(each.taken if isinstance(each, RateExceeded) else each).at_ms for each in told}) == 1
    assert [isinstance(each, Taken) for each in told] == [True, False, True, False]


async def test_a_caller_that_is_cancelled_at_any_moment_has_taken_nothing(rates: Rates) -> None:
    organization_id, path = organization(), [Rate("agt_1", 10, 1_000)]
    cancelled = 0
    for turns in itertools.count():
        task = asyncio.ensure_future(rates.take(organization_id, path, 10))
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.done():
            break
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        cancelled += task.cancelled()
        await rates.drain(1)
        assert (await found(rates, organization_id, path)).levels == (0, 0)
        organization_id = organization()
    assert cancelled > 5


async def test_a_caller_that_is_cancelled_as_its_answer_comes_has_taken_nothing(rates: Rates) -> None:
    organization_id, path = organization(), [Rate("agt_1", 10, 1_000)]

    async def neighbour() -> None:
        await rates.take(organization(), path, 10)
        task.cancel()  # its answer came in the same batch, and it has not gone on yet

    before = asyncio.ensure_future(neighbour())
    task = asyncio.ensure_future(rates.take(organization_id, path, 10))
    await asyncio.wait([before, task])
    assert task.cancelled()
    assert (await found(rates, organization_id, path)).levels == (0, 0)


async def test_a_script_that_valkey_forgot_is_told_again(rates: Rates, redis: Redis) -> None:
    organization_id = organization()
    await rates.take(organization_id, requests(5), 1)
    await redis.script_flush()
    taken = await rates.take(organization_id, requests(5), 1)
    assert taken.limits[0].remaining(taken.levels[0]) == 3


async def test_a_connection_that_was_closed_while_idle_is_made_anew(rates: Rates, redis: Redis) -> None:
    organization_id = organization()
    await rates.take(organization_id, requests(5), 1)
    assert await redis.client_kill_filter(_type="normal", skipme=True) >= 1
    await asyncio.sleep(0.05)
    await rates.take(organization_id, requests(5), 1)


async def test_without_valkey_a_take_fails_and_a_correction_leaves_the_bound(distant: Rates, line: Cable) -> None:
    organization_id, path = organization(), minute_of_tokens(100)
    taken = await distant.take(organization_id, path, 90)
    line.unplug()
    with pytest.raises(Unavailable) as raised:
        await distant.take(organization_id, path, 1)
    assert (raised.value.reason, raised.value.retry_after_ms) == ("RATE_LIMITS_UNAVAILABLE", 500)
    distant.correct(taken, 0)
    await distant.drain(2)
    line.plug()
    now = await found(distant, organization_id, path)
    assert now.levels == (90 * MINUTE_MS - 100 * (now.at_ms - taken.at_ms),)


async def test_an_answer_that_never_comes_is_waited_for_once_and_nothing_is_sent_again(
    distant: Rates, rates: Rates, line: Cable
) -> None:
    organization_id, path = organization(), minute_of_tokens(1_000)
    first = await distant.take(organization_id, path, 400)
    await distant.take(organization_id, path, 400)
    line.mute()
    distant.correct(first, 0)
    with pytest.raises(Unavailable):
        await distant.take(organization_id, path, 100)
    now = await found(rates, organization_id, path)
    assert now.levels == (500 * MINUTE_MS - 1_000 * (now.at_ms - first.at_ms),)  # each counted, and once


async def test_whoever_waits_when_the_loop_ends_gets_an_error(server: Valkey, line: Cable) -> None:
    url = Secret(server.url.reveal().replace(f"127.0.0.1:{server.port}", line.address))
    async with rates_running(url) as ending:
        await ending.take(organization(), requests(5), 1)
        line.mute()
        asking = [asyncio.ensure_future(ending.take(organization(), requests(5), 1)) for _ in range(200)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in asking)
    assert {type(told) for told in await asyncio.gather(*asking, return_exceptions=True)} == {Unavailable}
    with pytest.raises(Unavailable):
        await ending.take(organization(), requests(5), 1)
    assert await ending.take(organization(), [], 1) is NOTHING_TAKEN


async def test_so_many_may_wait_and_no_more(distant: Rates, line: Cable) -> None:
    organization_id = organization()
    await distant.take(organization_id, requests(5), 1)
    line.mute()
    asking = [asyncio.ensure_future(distant.take(organization_id, requests(5), 1))]
    await asyncio.sleep(0.01)  # it is on its way, and those behind it are not
    asking += [asyncio.ensure_future(distant.take(organization_id, requests(5), 1)) for _ in range(WAITING_MAX)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in asking)
    with pytest.raises(Unavailable):
        async with asyncio.timeout(0.5):
            await distant.take(organization_id, requests(5), 1)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_what_waited_too_long_is_not_sent(distant: Rates, rates: Rates, line: Cable) -> None:
    organization_id, path = organization(), minute_of_tokens(1_000)
    await distant.take(organization_id, path, 1)
    line.mute()
    lost = asyncio.ensure_future(distant.take(organization_id, path, 100))
    await asyncio.sleep(0.01)
    late = asyncio.ensure_future(distant.take(organization_id, path, 500))
    async with asyncio.timeout(3):  # a second batch would be waited for two seconds more
        assert {type(told) for told in await asyncio.gather(lost, late, return_exceptions=True)} == {Unavailable}
    assert (await found(rates, organization_id, path)).levels[0] <= 101 * MINUTE_MS
