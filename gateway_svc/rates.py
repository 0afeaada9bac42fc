"""Requests and tokens per minute, exact over all replicas: takes and corrections that come together share a script.

An idle sender sends at once, and what comes while it waits for an answer goes in the next batch. An agent that no rate
limits never waits for Valkey; one that has a limit gets 503 while Valkey is away.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from gateway_svc.limits import FULL_MINUTES_MAX, MINUTE_MS, NOTHING_TAKEN, Taken, exceeded, limits, too_large
from gateway_svc.policies import Rate
from gateway_svc.store import rates as store
from gateway_svc.store.rates import Answered, Lost, Operation, Outcome
from mesh.cache import OUTAGES, REPLY_SECONDS_MAX
from mesh.clock import monotonic_ms
from mesh.errors import Unavailable
from mesh.telemetry import logs

BATCH_MAX = 128
WAITING_MAX = 10_000
CORRECTION_SECONDS = 0.02  # after which corrections are sent that no take has carried along
WAIT_MS_MAX = 1_500  # a take that was not sent for so long is not sent at all

log = logs.get(__name__)


@dataclass(slots=True, eq=False)
class Item:
    """An operation on its way; nobody waits for the answer of a correction."""

    operation: Operation
    answer: asyncio.Future[Outcome] | None = None
    added_ms: float = field(default_factory=monotonic_ms)


class Rates:
    """The rate limits of all agents."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: deque[Item] = deque()
        self._woken = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._running = False
        self._later = False  # whether corrections that nobody waits for are about to be sent
        self._connection: AbstractConnection | None = None

    async def run(self) -> None:
        """Send what waits, for ever; whoever waits when this ends, or asks afterwards, gets an error."""
        batch: list[Item] = []
        self._running = True
        try:
            while True:
                await self._woken.wait()
                self._woken.clear()
                while batch := self._next_batch():
                    await self._send(batch)
                self._idle.set()
        finally:
            self._running = False
            self._fail([*batch, *self._waiting], "RatesEnded")
            self._waiting.clear()
            self._idle.set()
            if self._connection is not None:
                await self._connection.disconnect(nowait=True)
                self._connection = None

    async def take(self, organization_id: str, rates: Sequence[Rate], tokens: int) -> Taken:
        """Count one request of so many tokens on every level, or on none: RATE_LIMIT_EXCEEDED, TOKENS_ABOVE_RATE.

        Each target may stand in `rates` once. A caller that is cancelled has taken nothing, not even the request.
        """
        of_path = limits(organization_id, tuple(rates))
        if not of_path:
            return NOTHING_TAKEN
        if (never := too_large(of_path, tokens)) is not None:
            raise never
        asked = tuple(limit.asked(tokens) for limit in of_path)
        match await self._asked(Operation(organization_id, of_path, asked)):
            case Answered(at_ms, granted=True, levels=levels):
                after = tuple(level + amount * MINUTE_MS for level, amount in zip(levels, asked, strict=True))
                return Taken(organization_id, tokens, at_ms, of_path, after)
            case Answered(at_ms, levels=levels):
                raise exceeded(Taken(organization_id, tokens, at_ms, of_path, levels), asked)
            case Lost():
                raise _unavailable()

    def correct(self, taken: Taken, tokens: int) -> None:
        """Count what was used instead of the bound that was taken, with the next batch; the request stays counted.

        A correction that Valkey does not get leaves the bound standing. What has leaked away is not given back.
        """
        differences = [
            (limit, min(tokens - asked, limit.per_minute * FULL_MINUTES_MAX))
            for limit in taken.limits
            if limit.kind == "tokens" and (asked := limit.asked(taken.tokens)) != tokens
        ]
        if differences:
            changed, amounts = zip(*differences, strict=True)
            self._add(Item(Operation(taken.organization_id, changed, amounts, taken.at_ms)))

    async def ping(self) -> bool:
        """Return whether Valkey answers."""
        try:
            await self._redis.execute_command("PING")
        except (*OUTAGES, RedisError):
            return False
        return True

    async def drain(self, seconds: float) -> None:
        """Wait until all that was asked and corrected is with Valkey."""
        self._woken.set()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            log.warn("rates.drain_incomplete", waiting=len(self._waiting))

    async def _asked(self, operation: Operation) -> Outcome:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._add(Item(operation, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            if not answer.cancelled():  # it came in the same moment
                self._give_back(operation, answer.result())
            raise

    def _add(self, item: Item) -> None:
        if not self._running or len(self._waiting) >= WAITING_MAX:
            self._fail([item], "RatesFull" if self._running else "RatesEnded")
            return
        self._waiting.append(item)
        self._idle.clear()
        if item.answer is not None:
            self._woken.set()
        elif not self._later:
            self._later = True
            asyncio.get_running_loop().call_later(CORRECTION_SECONDS, self._wake)

    def _wake(self) -> None:
        self._later = False
        self._woken.set()

    def _give_back(self, operation: Operation, outcome: Outcome) -> None:
        """Undo a take that nobody learned of, its request included."""
        if isinstance(outcome, Answered) and outcome.granted:
            amounts = tuple(-amount for amount in operation.amounts)
            self._add(Item(dataclasses.replace(operation, amounts=amounts, taken_ms=outcome.at_ms)))

    def _next_batch(self) -> list[Item]:
        """Take what is sent next, without those who left or have waited too long."""
        batch: list[Item] = []
        late: list[Item] = []
        oldest_ms = monotonic_ms() - WAIT_MS_MAX
        while self._waiting and len(batch) < BATCH_MAX:
            item = self._waiting.popleft()
            if item.answer is None:
                batch.append(item)
            elif not item.answer.done():
                (late if item.added_ms < oldest_ms else batch).append(item)
        self._fail(late, "RatesLate")
        return batch

    async def _send(self, batch: Sequence[Item]) -> None:
        operations = [item.operation for item in batch]
        try:
            async with asyncio.timeout(REPLY_SECONDS_MAX):
                outcomes = await store.run(await self._connected(), operations)
        except (*OUTAGES, RedisError) as error:
            self._fail(batch, type(error).__name__)
            return
        lost: dict[str, list[Item]] = {}
        for item, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Lost):
                lost.setdefault(outcome.error, []).append(item)
            elif item.answer is not None:
                self._tell(item.operation, item.answer, outcome)
        for error, items in lost.items():
            self._fail(items, error)

    def _tell(self, operation: Operation, answer: asyncio.Future[Outcome], outcome: Answered) -> None:
        if answer.cancelled():
            self._give_back(operation, outcome)
        else:
            answer.set_result(outcome)

    async def _connected(self) -> AbstractConnection:
        """Return the connection that is ours alone; it connects again by itself where it is not connected.

        The client would send again what it has no answer to, and a correction would count twice.
        """
        if self._connection is None:
            self._connection = self._redis.connection_pool.make_connection()
            self._connection.socket_timeout = None  # a batch has its own time, and one limit costs a third of two
        elif self._connection.is_connected and await self._connection.can_read():
            # Nothing was asked: these are the end of the stream, which the pool overlooks where it awaits notices.
            await self._connection.disconnect(nowait=True)
        return self._connection

    def _fail(self, items: Sequence[Item], error: str) -> None:
        if items:
            takes = [item.answer for item in items if item.answer is not None]
            log.warn("rates.unavailable", error=error, takes=len(takes), corrections=len(items) - len(takes))
            for answer in takes:
                if not answer.done():
                    answer.set_result(Lost(error))


def _unavailable() -> Unavailable:
    return Unavailable("RATE_LIMITS_UNAVAILABLE", "the rate limits cannot be checked", retry_after_ms=500)
