"""Rate limits over a real Valkey, and what they should say: GCRA in plain integers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gateway_svc.limits import Limit, Taken
from gateway_svc.rates import Rates
from mesh import cache
from mesh.secret import Secret

MINUTE_MS = 60_000


@asynccontextmanager
async def rates_running(url: Secret) -> AsyncGenerator[Rates]:
    """Keep rate limits, with a connection of their own, during the block."""
    async with cache.connect(url) as redis:
        rates = Rates(redis)
        task = asyncio.ensure_future(rates.run())
        await asyncio.sleep(0)
        try:
            yield rates
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


@dataclass(frozen=True)
class Bucket:
    level: int
    at_ms: int
    since_ms: int
    gone_ms: int  # when the pace of its last change has emptied it

    def after(self, limit: int, now_ms: int) -> int:
        return 0 if now_ms > self.gone_ms else max(0, self.level - limit * (now_ms - self.at_ms))


NONE = Bucket(0, 0, 0, 0)


@dataclass
class Model:
    buckets: dict[str, Bucket] = field(default_factory=dict)

    def level(self, limit: Limit, now_ms: int) -> int:
        return self.buckets.get(limit.key, NONE).after(limit.per_minute, now_ms)

    def levels(self, limits: tuple[Limit, ...], now_ms: int) -> tuple[int, ...]:
        return tuple(self.level(limit, now_ms) for limit in limits)

    def take(self, limits: tuple[Limit, ...], tokens: int, now_ms: int) -> bool:
        """Take of every bucket where it fits into all."""
        after = {limit: self.level(limit, now_ms) + limit.asked(tokens) * MINUTE_MS for limit in limits}
        if any(level > limit.per_minute * MINUTE_MS for limit, level in after.items()):
            return False
        for limit, level in after.items():
            self._fill(limit, level, now_ms)
        return True

    def correct(self, taken: Taken, tokens: int, now_ms: int) -> None:
        for limit in taken.limits:
            before = self.level(limit, now_ms)
            units = (tokens - limit.asked(taken.tokens)) * MINUTE_MS
            if limit.kind == "tokens" and units > 0:
                most = min(2 * limit.per_minute * MINUTE_MS, 2**53 - 1)
                self._fill(limit, max(before, min(before + units, most)), now_ms)
            elif limit.kind == "tokens" and units < 0 and before and self.buckets[limit.key].since_ms <= taken.at_ms:
                self._fill(limit, max(0, before + units), now_ms)

    def _fill(self, limit: Limit, level: int, now_ms: int) -> None:
        since_ms = self.buckets[limit.key].since_ms if self.level(limit, now_ms) else now_ms
        gone_ms = now_ms + min(-(-level // limit.per_minute), 2 * MINUTE_MS)
        self.buckets[limit.key] = Bucket(level, now_ms, since_ms, gone_ms)
