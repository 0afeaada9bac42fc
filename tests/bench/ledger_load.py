"""Load on a ledger process over its real contract: many holders of holds on one stream, and callers without one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from statistics import quantiles

import grpc

from mandate.ledger.v1 import charges_pb2, charges_pb2_grpc
from mesh import ids
from mesh.ids import Kind
from tests.bench.ledger_standing import Fleet

TOKENS_IN, TOKENS_OUT = 100, 16
Stream = grpc.aio.StreamStreamCall[charges_pb2.ChargeRequest, charges_pb2.ChargeResponse]


@dataclass
class Figures:
    """Complete charges, and how long each took from asking for the hold to the answer of its settlement."""

    seconds: float = 0.0
    taken_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Complete charges a second."""
        return len(self.taken_ms) / self.seconds

    @property
    def p99_ms(self) -> float:
        """The slowest of a hundred."""
        return quantiles(self.taken_ms, n=100)[98]

    @property
    def p50_ms(self) -> float:
        """The one in the middle."""
        return quantiles(self.taken_ms, n=2)[0]


def hold(fleet: Fleet, number: int) -> charges_pb2.PlaceHold:
    """Return a request for a hold of the next agent."""
    return charges_pb2.PlaceHold(
        request_id=ids.new(Kind.REQUEST),
        agent_id=fleet.agents[number % len(fleet.agents)][-1],
        path_version=4,
        routes=[charges_pb2.Route(provider="mock", model="mock-model")],
        input_tokens_max=TOKENS_IN,
        output_tokens_wanted=TOKENS_OUT,
        output_tokens_min=TOKENS_OUT,
        choices=1,
        wait_ms_max=250,
        api_key_id="key",
    )


def settlement(request_id: str, agent_id: str) -> charges_pb2.SettleHold:
    """Return what its completion used."""
    return charges_pb2.SettleHold(
        request_id=request_id,
        agent_id=agent_id,
        usage=charges_pb2.TokenUsage(input_tokens=80, output_tokens=12),
        outcome="ok",
        http_status=200,
        latency_ms=812,
        overhead_ms=4,
        first_token_ms=120,
        streamed=True,
    )


class Completions:
    """Completions in flight on one stream; each settles once its hold is granted, then another begins."""

    def __init__(self, fleet: Fleet, seconds: float) -> None:
        self.figures = Figures()
        self.begun: dict[str, tuple[float, str]] = {}
        self._fleet = fleet
        self._number = 0
        self._started = time.perf_counter()
        self._until = self._started + seconds
        self._beat = 1

    def holds(self, count: int) -> list[charges_pb2.PlaceHold]:
        """Begin so many."""
        asked = [hold(self._fleet, self._number + offset) for offset in range(count)]
        self._number += count
        now = time.perf_counter()
        self.begun.update((place.request_id, (now, place.agent_id)) for place in asked)
        return asked

    def go_on(self, response: charges_pb2.ChargeResponse) -> charges_pb2.ChargeRequest:
        """Take answers in and return what follows from them."""
        now = time.perf_counter()
        request = charges_pb2.ChargeRequest()
        for answer in response.holds:
            assert answer.WhichOneof("outcome") == "granted", answer
            request.settles.append(settlement(answer.request_id, self.begun[answer.request_id][1]))
        for answer in response.settles:
            assert answer.WhichOneof("outcome") == "settled", answer
            self.figures.taken_ms.append((now - self.begun.pop(answer.request_id)[0]) * 1000)
        if now < self._until:
            request.holds.extend(self.holds(len(response.settles)))
        if now - self._started > self._beat:
            self._beat += 1
            request.beat = self._beat
        self.figures.seconds = now - self._started
        return request


async def charge_over_stream(channel: grpc.aio.Channel, fleet: Fleet, holders: int, seconds: float) -> Figures:
    """Keep so many completions in flight on one stream."""
    stream: Stream = charges_pb2_grpc.ChargeServiceStub(channel).Charge()
    load = Completions(fleet, seconds)
    request = charges_pb2.ChargeRequest(holder_id=ids.new(Kind.HOLDER), beat=1, holds=load.holds(holders))
    await stream.write(request)
    while load.begun:
        response = await stream.read()
        assert isinstance(response, charges_pb2.ChargeResponse), "the stream ended"
        request = load.go_on(response)
        if request.holds or request.settles or request.beat:
            await stream.write(request)
    stream.cancel()
    return load.figures


async def call_unary(call: Callable[[int], Awaitable[object]], callers: int, seconds: float) -> Figures:
    """Let so many callers call, each one after its answer again."""
    figures, started = Figures(), time.perf_counter()

    async def caller(number: int) -> None:
        while (begun := time.perf_counter()) - started < seconds:
            await call(number)
            number += callers
            figures.taken_ms.append((time.perf_counter() - begun) * 1000)

    await asyncio.gather(*(caller(number) for number in range(callers)))
    figures.seconds = time.perf_counter() - started
    return figures
