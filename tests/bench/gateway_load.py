"""Load on one gateway from a few connections, each of which asks again once it is answered; every answer is checked.

Connections are kept alive and written to directly: the generator takes a few microseconds an answer of the core that it
shares. What differs from the provider's own bytes is checked after the slice, so that reading it slows nobody down.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import cast

import httptools

from tests.bench import upstream_mock as mock
from tests.bench.gateway_answers import Charge, WrongAnswer, check_stream, check_whole
from tests.bench.gateway_processes import cpu_seconds, stolen

ANSWERS_MIN = 8  # a slice is longer where a slow gateway gives fewer
SLICE_SECONDS_MAX = DRAIN_SECONDS = 60
POLL_SECONDS = 0.05
KEPT_MAX = 200_000  # answers of one slice that wait for their check
WHOLE, STREAM = "whole", "stream"
CHECKS: Mapping[str, Callable[[bytes], Charge | None]] = {WHOLE: check_whole, STREAM: check_stream}
EXPECTED = {WHOLE: mock.WHOLE, STREAM: b"".join(mock.STREAM)}


@dataclass(frozen=True)
class Target:
    """Something that is asked: its port, its requests by kind, and the processes behind it by name, its own first."""

    name: str
    port: int
    requests: Mapping[str, Sequence[bytes]]
    processes: Mapping[str, int]
    governed: bool = False  # each answer must say its charge


@dataclass(frozen=True)
class Slice:
    """What was measured of one target for a while."""

    rate: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float  # to the answer's first byte
    cpu_us: Mapping[str, float]  # an answer, by process
    stolen: float  # share of the machine's time that the host kept
    charges: Sequence[Charge]  # of all answers, also those before and after the timed ones


@dataclass
class Load:
    """What the connections of one slice share."""

    kind: str
    most: int | None = None  # answers; None: until it is stopped
    stopped: bool = False
    asked: int = 0
    answered: int = 0
    first_ms: list[float] = field(default_factory=list)
    taken_ms: list[float] = field(default_factory=list)
    kept: list[bytes] = field(default_factory=list)

    def more(self) -> bool:
        """Say whether another request begins."""
        if self.stopped or (self.most is not None and self.asked >= self.most):
            return False
        self.asked += 1
        return True

    def take(self, body: bytes, began: float, first: float) -> None:
        """Take in one answer."""
        now = time.perf_counter()
        self.answered += 1
        self.first_ms.append((first - began) * 1000)
        self.taken_ms.append((now - began) * 1000)
        if body != EXPECTED[self.kind]:
            if len(self.kept) >= KEPT_MAX:
                raise WrongAnswer(f"more than {KEPT_MAX} answers in one slice")
            self.kept.append(body)


class Connection(asyncio.Protocol):
    """One connection, which asks one question after the other until the load says that it is enough."""

    def __init__(self, load: Load, requests: Sequence[bytes]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._load = load
        self._requests = itertools.cycle(requests)
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, WrongAnswer) as error:
            self._fail(error)

    def on_body(self, body: bytes) -> None:
        if not self._parts:
            self._first = time.perf_counter()
        self._parts.append(body)

    def on_message_complete(self) -> None:
        body, status = b"".join(self._parts), self._parser.get_status_code()
        if status != 200:
            self._fail(WrongAnswer(f"{status}: {body[:500]!r}"))
            return
        if not self._parser.should_keep_alive():
            self._fail(WrongAnswer("the connection is not kept"))
            return
        self._load.take(body, self._began, self._first)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(exc or WrongAnswer("the connection was closed"))

    def _next(self) -> None:
        if self.done.done():
            return
        if not self._load.more():
            self.done.set_result(None)
            self._transport.close()
            return
        self._parts = []
        self._parser = httptools.HttpResponseParser(self)
        self._began = time.perf_counter()
        self._transport.write(next(self._requests))

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self._transport.abort()


async def drive(target: Target, kind: str, connections: int, seconds: float, warm_seconds: float) -> Slice:
    """Ask from so many connections: unmeasured first, then for `seconds`; wait for what is still unanswered then."""
    load = Load(kind)
    begun = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        asking = asyncio.create_task(_ask(target, load, connections))
        await _until(asking, begun + warm_seconds)
        before, ticks, skipped, started = cpu_seconds(target.processes), stolen(), load.answered, time.perf_counter()
        await _until(asking, started + seconds)
        while load.answered - skipped < ANSWERS_MIN and time.perf_counter() - started < SLICE_SECONDS_MAX:
            await _until(asking, time.perf_counter() + POLL_SECONDS)
        elapsed, counted = time.perf_counter() - started, load.answered
        after, ticks_after = cpu_seconds(target.processes), stolen()
        load.stopped = True
        await asyncio.wait_for(asking, DRAIN_SECONDS)
    finally:
        gc.enable()
    if counted - skipped < ANSWERS_MIN:
        raise WrongAnswer(f"{target.name} gave {counted - skipped} answers in {elapsed:.1f} s")
    taken_ms = load.taken_ms[skipped:counted]
    return Slice(
        rate=(counted - skipped) / elapsed,
        p50_ms=median(taken_ms),
        p99_ms=quantiles(taken_ms, n=100, method="inclusive")[98],
        first_p50_ms=median(load.first_ms[skipped:counted]),
        cpu_us={name: (after[name] - before[name]) * 1e6 / (counted - skipped) for name in before},
        stolen=(ticks_after[0] - ticks[0]) / (ticks_after[1] - ticks[1]),
        charges=_checked(target, load),
    )


async def ask_exactly(target: Target, kind: str, connections: int, count: int) -> Sequence[Charge]:
    """Ask so often, however long it takes; return the charges."""
    load = Load(kind, most=count)
    await _ask(target, load, connections)
    assert load.answered == count
    return _checked(target, load)


async def _ask(target: Target, load: Load, connections: int) -> None:
    loop = asyncio.get_running_loop()
    requests = target.requests[load.kind]
    asking: list[asyncio.Future[None]] = []
    for number in range(connections):
        mine = requests[number::connections] or requests
        _, connection = await loop.create_connection(lambda mine=mine: Connection(load, mine), "127.0.0.1", target.port)
        asking.append(connection.done)
    try:
        await asyncio.gather(*asking)
    except (WrongAnswer, OSError, httptools.HttpParserError) as error:
        error.add_note(f"asking {target.name}, {load.kind}, {connections} connections, after {load.answered} answers")
        raise


async def _until(asking: asyncio.Task[None], moment: float) -> None:
    """Wait for a moment, unless asking fails before."""
    done, _ = await asyncio.wait([asking], timeout=max(0.0, moment - time.perf_counter()))
    if done:
        await asking


def _checked(target: Target, load: Load) -> Sequence[Charge]:
    """Check what is not the provider's bytes, and that a governed gateway said each charge."""
    found = [charge for body in load.kept if (charge := CHECKS[load.kind](body))]
    if target.governed and len(found) != load.answered:
        raise WrongAnswer(f"{load.answered} answers of {target.name}, {len(found)} charges")
    return found
