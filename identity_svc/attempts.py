"""How often one email may fail: counted in Valkey for all replicas, in this process while Valkey is away.

An attempt is counted before it is made and forgiven when it succeeds, so that many at once find no gap.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from redis.asyncio import Redis
from redis.exceptions import RedisError

from mesh.clock import monotonic_ms
from mesh.errors import Exhausted
from mesh.telemetry import logs

REPLY_SECONDS_MAX = 0.5  # a person is waiting
COUNTERS_MAX = 10_000
OUTAGES = (RedisError, OSError)
COUNT = """
local count = redis.call('INCR', KEYS[1])
if count == 1 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return {count, redis.call('PTTL', KEYS[1])}
"""

log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """So many attempts in a window."""

    attempts_max: int
    window_ms: int


@dataclass(frozen=True, slots=True)
class Counted:
    """How many attempts a window has seen, this one among them, and how long it still lasts."""

    attempts: int
    left_ms: int


class LocalCounters:
    """Windows of this process alone; the oldest are forgotten past 10,000."""

    def __init__(self, counters_max: int = COUNTERS_MAX) -> None:
        self._windows: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._counters_max = counters_max

    def count(self, key: str, window_ms: int, now_ms: float) -> Counted:
        """Count one attempt."""
        attempts, ends_ms = self._windows.pop(key, (0, 0.0))
        if ends_ms <= now_ms:
            attempts, ends_ms = 0, now_ms + window_ms
        self._windows[key] = (attempts + 1, ends_ms)
        if len(self._windows) > self._counters_max:
            self._windows.popitem(last=False)
        return Counted(attempts + 1, int(ends_ms - now_ms))

    def forget(self, key: str) -> None:
        """Drop a window."""
        self._windows.pop(key, None)


class Attempts:
    """The limiter of logins and sign-ups."""

    def __init__(self, cache: Redis, limit: Limit) -> None:
        self._cache = cache
        self._limit = limit
        self._local = LocalCounters()

    async def count(self, action: str, email: str) -> None:
        """Count an attempt; Exhausted LOG_IN_RATE_LIMITED when there were too many."""
        counted = await self._count(_key(action, email))
        if counted.attempts > self._limit.attempts_max:
            raise Exhausted(
                "LOG_IN_RATE_LIMITED",
                "too many failed attempts with this email; try again later",
                retry_after_ms=max(counted.left_ms, 1),
                limit=str(self._limit.attempts_max),
            )

    async def forgive(self, action: str, email: str) -> None:
        """Forget the attempts of an email that turned out to know its password."""
        key = _key(action, email)
        self._local.forget(key)
        try:
            async with asyncio.timeout(REPLY_SECONDS_MAX):
                await self._cache.delete(key)
        except OUTAGES as error:
            log.warn("attempts.cache_unavailable", error=type(error).__name__)

    async def _count(self, key: str) -> Counted:
        try:
            async with asyncio.timeout(REPLY_SECONDS_MAX):
                attempts, left_ms = await self._cache.eval(COUNT, 1, key, str(self._limit.window_ms))
        except OUTAGES as error:
            log.warn("attempts.cache_unavailable", error=type(error).__name__)
            return self._local.count(key, self._limit.window_ms, monotonic_ms())
        return Counted(int(attempts), int(left_ms))


def _key(action: str, email: str) -> str:
    # A digest: the cache need not know who tries to log in.
    return f"identity:attempts:{action}:{hashlib.sha256(email.encode()).hexdigest()[:32]}"
