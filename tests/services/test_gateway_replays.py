"""What a request under a key gets, whatever became of the one before it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from dataclasses import dataclass
from datetime import timedelta

import pytest

from gateway_svc import repeats
from gateway_svc import replays as module
from gateway_svc.recorded import Recorded
from gateway_svc.recording import EVENTS
from gateway_svc.repeats import Apart, Keyed, Retries, Wish
from gateway_svc.replays import Fresh, Replay, Replays
from mesh.errors import AlreadyExists
from tests.services.replays_running import LAPSED, LIMITS, Pair, an_agent, keyed

WINDOW = timedelta(seconds=repeats.RETRY_WINDOW_SECONDS)
MINUTE = timedelta(minutes=1)


def bounded(pair: Pair, **limits: int) -> Replays:
    return Replays(pair.database, pair.key, dataclasses.replace(LIMITS, **limits))


@pytest.mark.parametrize("wish", [Keyed("raced"), Retries(1), Retries(0)])
async def test_of_requests_that_race_in_two_gateways_one_runs(pair: Pair, wish: Wish) -> None:
    both = [pair.one, pair.two] * 25
    outcomes = await asyncio.gather(*(pair.begin(each, wish) for each in both), return_exceptions=True)
    others = [outcome for outcome in outcomes if not isinstance(outcome, Fresh)]
    assert len(others) == 49
    if wish == Retries(0):  # each is a request of its own; one has the record
        assert set(others) == {Apart()}
    else:
        assert {getattr(other, "reason", other) for other in others} == {"IDEMPOTENCY_RUNNING"}


async def test_of_retries_that_race_for_an_old_key_one_runs(pair: Pair) -> None:
    await pair.finished(Retries(0))
    await pair.aged(WINDOW + MINUTE)
    both = [pair.one, pair.two] * 25
    outcomes = await asyncio.gather(*(pair.begin(each, Retries(1)) for each in both), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(Fresh) == 1


async def test_a_finished_run_is_replayed_by_any_gateway(pair: Pair) -> None:
    wish = keyed()
    run = await pair.finished(wish)
    assert await pair.begin(pair.two, wish) == Replay(
        status=200,
        content_type="application/json",
        headers={"x-mandate-max-tokens": "5", "idempotency-replayed": "true"},
        body=b'{"answer": 1}',
        request_id=run.place.request_id,
    )


@dataclass(slots=True)
class FakeClient:
    """A client that notes what was on its way when its last byte came, and may leave."""

    pair: Pair
    sent: list[bytes] = dataclasses.field(default_factory=list[bytes])
    states: list[str] = dataclasses.field(default_factory=list[str])
    left: bool = False

    def gone(self) -> bool:
        return self.left

    async def begin(self, headers: dict[str, str]) -> None:
        self.sent.append(str(headers).encode())

    async def write(self, data: bytes) -> None:
        self.states += [row["state"] for row in await self.pair.rows()]
        if not self.left:
            self.sent.append(data)

    async def end(self, last: bytes) -> None:
        await self.write(last)


@pytest.mark.parametrize("left", [False, True])
async def test_a_stream_is_replayed_as_its_events_though_its_client_left(pair: Pair, left: bool) -> None:  # noqa: FBT001
    wish = keyed()
    client = FakeClient(pair, left=left)
    recorded = Recorded(client, pair.one, await pair.run(pair.one, wish))
    await recorded.begin({"x-mandate-max-tokens": "9"})
    await recorded.write(b"data: 1\n\n")
    await recorded.end(b"data: [DONE]\n\n")
    replay = await pair.begin(pair.two, wish)
    assert isinstance(replay, Replay)
    assert (replay.content_type, replay.body) == (EVENTS, b"data: 1\n\ndata: [DONE]\n\n")
    assert client.states == ["running", "finished"]  # kept before the last byte


async def test_a_running_request_is_asked_for_again_later(pair: Pair) -> None:
    wish = keyed()
    await pair.run(pair.one, wish)
    assert await pair.reason(pair.begin(pair.two, wish)) == "IDEMPOTENCY_RUNNING"


@pytest.mark.parametrize("is_finished", [False, True])
async def test_another_request_under_the_same_key_is_refused(pair: Pair, is_finished: bool) -> None:  # noqa: FBT001
    wish = keyed()
    await (pair.finished(wish) if is_finished else pair.run(pair.one, wish))
    assert await pair.reason(pair.begin(pair.two, wish, b"{}")) == "IDEMPOTENCY_MISMATCH"


async def test_a_key_is_its_agents_own(pair: Pair) -> None:
    wish = keyed()
    await pair.finished(wish)
    other = dataclasses.replace(pair, agent=an_agent())
    assert isinstance(await other.begin(pair.two, wish), Fresh)


async def test_the_outcome_of_a_gateway_that_died_is_unknown_and_not_run_again(pair: Pair) -> None:
    wish = keyed()
    run = await pair.run(pair.one, wish)
    await pair.aged(LAPSED)
    with pytest.raises(AlreadyExists, match=run.place.request_id) as refused:
        await pair.begin(pair.two, wish)
    assert refused.value.reason == "IDEMPOTENCY_OUTCOME_UNKNOWN"


async def test_a_beat_keeps_a_run_alive(pair: Pair) -> None:
    wish = keyed()
    await pair.run(pair.one, wish)
    await pair.aged(LAPSED)
    await pair.one.beat()
    assert await pair.reason(pair.begin(pair.two, wish)) == "IDEMPOTENCY_RUNNING"


async def test_one_gateways_beat_says_nothing_of_anothers_runs(pair: Pair) -> None:
    wish = keyed()
    await pair.run(pair.one, wish)
    await pair.run(pair.two, keyed())
    await pair.aged(LAPSED)
    await pair.two.beat()
    assert await pair.reason(pair.begin(pair.two, wish)) == "IDEMPOTENCY_OUTCOME_UNKNOWN"


async def test_the_loop_beats_by_itself(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.02)
    wish = keyed()
    await pair.run(pair.one, wish)
    await pair.aged(LAPSED)
    reason = ""
    beating = asyncio.ensure_future(pair.one.run())
    try:
        for _ in range(500):
            reason = await pair.reason(pair.begin(pair.two, wish))
            if reason == "IDEMPOTENCY_RUNNING":
                break
            await asyncio.sleep(0.02)
        assert reason == "IDEMPOTENCY_RUNNING"
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating


async def test_an_outcome_that_comes_late_is_known_from_then_on(pair: Pair) -> None:
    wish = keyed()
    run = await pair.run(pair.one, wish)
    await pair.aged(LAPSED)
    run.recorder.whole(200, b"late", {})
    await pair.one.finished(run, run.recorder.transcript())
    assert isinstance(await pair.begin(pair.two, wish), Replay)


async def test_an_abandoned_run_beats_no_more(pair: Pair) -> None:
    wish = keyed()
    pair.one.abandoned(await pair.run(pair.one, wish))
    await pair.aged(LAPSED)
    await pair.one.beat()
    assert await pair.reason(pair.begin(pair.two, wish)) == "IDEMPOTENCY_OUTCOME_UNKNOWN"


async def test_a_run_that_dispatched_nothing_leaves_nothing(pair: Pair) -> None:
    wish = keyed()
    await pair.one.dropped(await pair.run(pair.one, wish))
    assert await pair.rows() == []
    assert isinstance(await pair.begin(pair.two, wish, b"{}"), Fresh)


async def test_dropping_a_run_leaves_its_successor_alone(pair: Pair) -> None:
    first = await pair.run(pair.one, Retries(0))
    await pair.aged(LAPSED)
    second = await pair.run(pair.two, Retries(0))
    await pair.one.dropped(first)
    assert [row["request_id"] for row in await pair.rows()] == [second.place.request_id]


async def test_finishing_a_run_leaves_its_successor_alone(pair: Pair) -> None:
    first = await pair.run(pair.one, Retries(0))
    await pair.aged(LAPSED)
    second = await pair.run(pair.two, Retries(0))
    first.recorder.whole(200, b"first", {})
    await pair.one.finished(first, first.recorder.transcript())
    assert [(row["request_id"], row["state"]) for row in await pair.rows()] == [(second.place.request_id, "running")]


@pytest.mark.parametrize(
    ("age", "reason"),
    [(timedelta(hours=24) + MINUTE, "IDEMPOTENCY_EXPIRED"), (timedelta(days=30) - MINUTE, "IDEMPOTENCY_EXPIRED")],
)
async def test_a_key_outlives_its_answer(pair: Pair, age: timedelta, reason: str) -> None:
    wish = keyed()
    await pair.finished(wish)
    await pair.aged(age)
    assert await pair.reason(pair.begin(pair.two, wish)) == reason
    await pair.two.prune()
    assert await pair.reason(pair.begin(pair.two, wish)) == reason
    assert [row["transcript"] for row in await pair.rows()] == [None]


async def test_an_answer_is_given_until_its_time_is_over(pair: Pair) -> None:
    wish = keyed()
    await pair.finished(wish)
    await pair.aged(timedelta(hours=24) - MINUTE)
    await pair.two.prune()
    assert isinstance(await pair.begin(pair.two, wish), Replay)


@pytest.mark.parametrize("pruned", [False, True])
async def test_a_key_whose_time_is_over_is_free(pair: Pair, pruned: bool) -> None:  # noqa: FBT001
    wish = keyed()
    await pair.finished(wish)
    await pair.aged(timedelta(days=30) + MINUTE)
    if pruned:
        await pair.two.prune()
        assert await pair.rows() == []
    assert isinstance(await pair.begin(pair.two, wish, b"{}"), Fresh)


async def test_a_run_that_goes_on_is_never_pruned(pair: Pair) -> None:
    await pair.run(pair.one, keyed())
    await pair.aged(timedelta(days=31))
    await pair.one.beat()
    await pair.two.prune()
    assert len(await pair.rows()) == 1


async def test_an_answer_past_the_bound_is_served_and_not_kept(pair: Pair) -> None:
    wish = keyed()
    await pair.finished(wish, b"x" * (LIMITS.transcript_bytes_max + 1))
    assert await pair.reason(pair.begin(pair.two, wish)) == "IDEMPOTENCY_EXPIRED"


async def test_an_answer_as_large_as_the_bound_is_kept(pair: Pair) -> None:
    wish = keyed()
    answer = secrets.token_bytes(LIMITS.transcript_bytes_max)
    await pair.finished(wish, answer)
    replay = await pair.begin(pair.two, wish)
    assert isinstance(replay, Replay)
    assert replay.body == answer


DEDUPE = [
    # how the first attempt stands, how long ago, the retry count of the next, what that gets
    ("none", timedelta(0), 0, Fresh),
    ("none", timedelta(0), 1, Fresh),
    ("running", timedelta(0), 0, Apart),
    ("running", timedelta(0), 1, "IDEMPOTENCY_RUNNING"),
    ("running", LAPSED, 0, Fresh),
    ("running", LAPSED, 1, "IDEMPOTENCY_OUTCOME_UNKNOWN"),
    ("running", WINDOW - MINUTE, 2, "IDEMPOTENCY_OUTCOME_UNKNOWN"),
    ("running", WINDOW + MINUTE, 1, Fresh),
    ("finished", timedelta(0), 0, Fresh),
    ("finished", timedelta(0), 1, Replay),
    ("finished", WINDOW - MINUTE, 2, Replay),
    ("finished", WINDOW - MINUTE, 0, Fresh),
    ("finished", WINDOW + MINUTE, 1, Fresh),
]


@pytest.mark.parametrize(("first", "age", "count", "expected"), DEDUPE)
async def test_only_what_an_sdk_calls_a_retry_is_a_repeat(
    pair: Pair, first: str, age: timedelta, count: int, expected: type | str
) -> None:
    if first != "none":
        await (pair.finished(Retries(0)) if first == "finished" else pair.run(pair.one, Retries(0)))
        await pair.aged(age)
    beginning = pair.begin(pair.two, Retries(count))
    if isinstance(expected, str):
        assert await pair.reason(beginning) == expected
    else:
        assert type(await beginning) is expected


async def test_a_retry_gets_the_answer_of_the_latest_request_like_it(pair: Pair) -> None:
    await pair.finished(Retries(0), b"first")
    await pair.finished(Retries(0), b"second")
    replay = await pair.begin(pair.two, Retries(1))
    assert isinstance(replay, Replay)
    assert replay.body == b"second"


async def test_what_is_kept_for_retries_goes_when_they_can_come_no_more(pair: Pair) -> None:
    await pair.finished(Retries(0))
    await pair.aged(WINDOW + MINUTE)
    await pair.two.prune()
    assert await pair.rows() == []


async def test_pruning_takes_so_many_batches_and_no_more(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRUNE_BATCH", 2)
    monkeypatch.setattr(module, "PRUNE_BATCHES_MAX", 2)
    await pair.two.prune()
    for _ in range(5):
        await pair.finished(keyed())
    await pair.aged(timedelta(days=31))
    assert not await pair.two.prune()
    assert len(await pair.rows()) == 1
    assert await pair.two.prune()
    assert await pair.rows() == []


async def test_two_gateways_prune_at_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRUNE_BATCH", 3)
    for _ in range(20):
        await pair.finished(keyed())
    await pair.aged(timedelta(days=31))
    async with asyncio.timeout(20):
        while await pair.rows():
            await asyncio.gather(pair.one.prune(), pair.two.prune())


async def test_a_gateway_has_so_many_runs_and_no_more(pair: Pair) -> None:
    small = bounded(pair, runs_max=2)
    runs = [await pair.run(small, keyed()) for _ in range(2)]
    assert await pair.reason(pair.begin(small, keyed())) == "OVERLOADED"
    await small.dropped(runs[0])
    assert isinstance(await pair.begin(small, keyed()), Fresh)


async def test_a_run_that_ended_gives_its_memory_back(pair: Pair) -> None:
    small = dataclasses.replace(pair, one=bounded(pair, memory_bytes_max=250))
    wishes = [keyed() for _ in range(3)]
    for wish in wishes:
        await small.finished(wish, b"x" * 60)
    for wish in wishes:
        assert isinstance(await pair.begin(pair.two, wish), Replay)


async def test_refused_repeats_take_no_place(pair: Pair) -> None:
    wish = keyed()
    await pair.run(pair.one, wish)
    small = bounded(pair, runs_max=1)
    for _ in range(3):
        assert await pair.reason(pair.begin(small, wish)) == "IDEMPOTENCY_RUNNING"
