"""Requests and tokens per minute, exact over all replicas: one script in Valkey counts every level of a path at once.

Each counter holds the last 61 one-second buckets, so no window of 60 seconds ever sees more than its limit. An agent
that no rate limits never waits for Valkey; one that has a limit gets 503 while Valkey is away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway_svc.policies import Rate
from mesh.cache import OUTAGES
from mesh.errors import Exhausted, Unavailable
from mesh.telemetry import logs

# KEYS: counters. ARGV: for each counter its limit and what is asked of it. Takes all or nothing.
# Answers: {second, taken, then for each counter: used before, milliseconds until there is room or until it is empty}.
TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1])
local now_ms = now * 1000 + math.floor(tonumber(time[2]) / 1000)
local answer = {now, 1}
for index, key in ipairs(KEYS) do
  local limit, asked = tonumber(ARGV[2 * index - 1]), tonumber(ARGV[2 * index])
  local flat = redis.call('HGETALL', key)
  local seconds, counts, used = {}, {}, 0
  for at = 1, #flat, 2 do
    local second = tonumber(flat[at])
    if second <= now - 61 then
      redis.call('HDEL', key, flat[at])
    else
      seconds[#seconds + 1] = second
      counts[second] = tonumber(flat[at + 1])
      used = used + counts[second]
    end
  end
  table.sort(seconds)
  local wait_ms, left = 0, used
  local fits = left + asked <= limit
  for _, second in ipairs(seconds) do
    if not fits and left + asked <= limit then break end
    left = left - counts[second]
    wait_ms = (second + 61) * 1000 - now_ms
  end
  if not fits then answer[2] = 0 end
  answer[#answer + 1] = used
  answer[#answer + 1] = wait_ms
end
if answer[2] == 1 then
  for index, key in ipairs(KEYS) do
    redis.call('HINCRBY', key, now, ARGV[2 * index])
    redis.call('EXPIRE', key, 62)
  end
end
return answer
"""
CORRECT = """
for index, key in ipairs(KEYS) do
  if redis.call('HEXISTS', key, ARGV[1]) == 1 then redis.call('HINCRBY', key, ARGV[1], ARGV[2]) end
end
return 1
"""

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Counter:
    """One limit of one target; `asked` is what this request takes of it."""

    target_id: str
    kind: str  # requests or tokens
    limit: int
    asked: int

    @property
    def key(self) -> str:
        """Return its name in Valkey."""
        return f"gateway:rate:{self.kind}:{self.target_id}"


@dataclass(frozen=True, slots=True)
class Reading:
    """A counter after this request."""

    counter: Counter
    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request took, in which second, and how each counter stands."""

    second: int
    readings: tuple[Reading, ...]

    def headers(self) -> dict[str, str]:
        """Return `x-ratelimit-*` in OpenAI's form for the counters with least room."""
        headers: dict[str, str] = {}
        for kind in ("requests", "tokens"):
            of_kind = [reading for reading in self.readings if reading.counter.kind == kind]
            if of_kind:
                tightest = min(of_kind, key=lambda reading: reading.remaining)
                headers[f"x-ratelimit-limit-{kind}"] = str(tightest.counter.limit)
                headers[f"x-ratelimit-remaining-{kind}"] = str(tightest.remaining)
                headers[f"x-ratelimit-reset-{kind}"] = f"{tightest.reset_ms / 1000:.3f}s"
        return headers


NOTHING_TAKEN = Taken(0, ())


class RateExceeded(Exhausted):
    """A rate limit is reached; carries the headers that say when there is room."""

    def __init__(self, taken: Taken, retry_after_ms: int, limit: str) -> None:
        text = f"rate limit reached ({limit}); try again in {retry_after_ms / 1000:.1f}s"
        super().__init__("RATE_LIMIT_EXCEEDED", text, retry_after_ms=retry_after_ms, limit=limit)
        self.taken = taken


class Rates:
    """The counters of all agents."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.register_script(TAKE)
        self._correct = redis.register_script(CORRECT)

    async def take(self, rates: Sequence[Rate], tokens: int) -> Taken:
        """Count one request of so many tokens on every level, or on none: RATE_LIMIT_EXCEEDED."""
        counters = [counter for rate in rates for counter in _counters(rate, tokens)]
        if not counters:
            return NOTHING_TAKEN
        arguments = [number for counter in counters for number in (counter.limit, counter.asked)]
        try:
            answer = cast("list[int]", await self._take([counter.key for counter in counters], arguments))
        except (*OUTAGES, RedisError) as error:
            log.warn("rates.unavailable", error=type(error).__name__)
            raise Unavailable(
                "RATE_LIMITS_UNAVAILABLE", "the rate limits cannot be checked", retry_after_ms=500
            ) from None
        return _read(answer, counters)

    async def correct(self, taken: Taken, tokens: int) -> None:
        """Replace the bound that was taken by what was used; while Valkey is away the bound stands."""
        by_difference: dict[int, list[str]] = {}
        for reading in taken.readings:
            counter = reading.counter
            if counter.kind == "tokens" and counter.asked != tokens:
                by_difference.setdefault(tokens - counter.asked, []).append(counter.key)
        try:
            for difference, keys in by_difference.items():
                await self._correct(keys, [taken.second, difference])
        except (*OUTAGES, RedisError) as error:
            log.warn("rates.unavailable", error=type(error).__name__)

    async def ping(self) -> bool:
        """Return whether Valkey answers."""
        try:
            await self._redis.execute_command("PING")
        except (*OUTAGES, RedisError):
            return False
        return True


def _counters(rate: Rate, tokens: int) -> list[Counter]:
    counters: list[Counter] = []
    if rate.requests_per_minute is not None:
        counters.append(Counter(rate.target_id, "requests", rate.requests_per_minute, 1))
    if rate.tokens_per_minute is not None:
        # A request larger than the whole limit needs an empty window.
        asked = min(tokens, rate.tokens_per_minute)
        counters.append(Counter(rate.target_id, "tokens", rate.tokens_per_minute, asked))
    return counters


def _read(answer: Sequence[int], counters: Sequence[Counter]) -> Taken:
    second, taken = answer[0], answer[1] == 1
    readings: list[Reading] = []
    retry_after_ms, reached = 0, ""
    for counter, used, wait_ms in zip(counters, answer[2::2], answer[3::2], strict=True):
        fits = used + counter.asked <= counter.limit
        after = used + (counter.asked if taken else 0)
        readings.append(
            Reading(counter, max(0, counter.limit - after), wait_ms if wait_ms > 0 or not taken else 61_000)
        )
        if not fits and wait_ms >= retry_after_ms:
            retry_after_ms, reached = wait_ms, f"{counter.kind} per minute of {counter.target_id}"
    result = Taken(second, tuple(readings))
    if not taken:
        raise RateExceeded(result, max(1, retry_after_ms), reached)
    return result
