"""Spenders that never give up on a ledger, over streams and without, and what they were told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import ids
from mesh.client import call
from mesh.errors import Code, MeshError
from tests.services.test_ledger_stream import hold, settle

AGAIN_SECONDS = 0.05
BEAT_SECONDS = 1.0
ITEMS_MAX = 1_000
TOKENS = 20
AGAIN = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}
BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError)  # the second: a write after the end

Ask = Callable[[Any], Awaitable[Any]]


class Line:
    """One holder's stream: what is unanswered when it breaks is asked again on the next one."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = rpc.ChargeServiceStub(channel)
        self._holder = ids.new(ids.Kind.HOLDER)
        self._waiting: dict[tuple[str, str], tuple[Any, asyncio.Future[Any]]] = {}
        self._unsent: list[Any] = []
        self._wake = asyncio.Event()

    async def ask(self, message: Any) -> Any:
        heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[_kind(message), message.request_id] = message, heard
        self._unsent.append(message)
        self._wake.set()
        return await heard

    async def run(self) -> None:
        """Keep a stream open for ever."""
        while True:
            stream = self._stub.Charge()
            self._unsent = [message for message, _ in self._waiting.values()]
            tasks = [asyncio.ensure_future(self._write(stream)), asyncio.ensure_future(self._read(stream))]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stream.cancel()
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
            for failure in ended:
                if failure is not None and not isinstance(failure, (*BROKEN, asyncio.CancelledError)):
                    raise failure
            await asyncio.sleep(AGAIN_SECONDS)

    async def _write(self, stream: Any) -> None:
        beat = 0
        while True:
            request, beat = pb.ChargeRequest(holder_id=self._holder, beat=beat + 1), beat + 1
            for message in self._unsent[:ITEMS_MAX]:
                getattr(request, _kind(message)).append(message)
            del self._unsent[:ITEMS_MAX]
            await stream.write(request)
            if not self._unsent:
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_SECONDS):
                        await self._wake.wait()

    async def _read(self, stream: Any) -> None:
        while True:
            response = await stream.read()
            if response is grpc.aio.EOF:
                return
            for kind in ("holds", "settles", "voids"):
                for answer in getattr(response, kind):
                    _, heard = self._waiting.pop((kind, answer.request_id), (None, None))
                    if heard is not None and not heard.done():
                        heard.set_result(answer)


class Caller:
    """One holder without a stream; its calls keep its lease."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = rpc.ChargeServiceStub(channel)
        self._holder = ids.new(ids.Kind.HOLDER)

    async def ask(self, message: Any) -> Any:
        match message:
            case pb.PlaceHold():
                request = pb.PlaceHoldsRequest(holder_id=self._holder, holds=[message])
                return (await call(self._stub.PlaceHolds, request)).holds[0]
            case pb.SettleHold():
                return (await call(self._stub.SettleHolds, pb.SettleHoldsRequest(settles=[message]))).settles[0]
            case _:
                return (await call(self._stub.VoidHolds, pb.VoidHoldsRequest(voids=[message]))).voids[0]

    async def run(self) -> None:
        """Renew the lease for ever."""
        while True:
            with contextlib.suppress(MeshError):
                await call(self._stub.RenewLease, pb.RenewLeaseRequest(holder_id=self._holder))
            await asyncio.sleep(BEAT_SECONDS)


@asynccontextmanager
async def holders(channel: grpc.aio.Channel) -> AsyncGenerator[list[Line | Caller]]:
    """Keep four holders alive inside the block, two of them with a stream."""
    ways = [Line(channel), Caller(channel), Line(channel), Caller(channel)]
    alive = [asyncio.create_task(way.run()) for way in ways]
    try:
        yield ways
    finally:
        for task in alive:
            task.cancel()
        await asyncio.gather(*alive, return_exceptions=True)


@dataclass
class Load:
    """So many spenders of some agents, and everything that was acknowledged to them."""

    agents: list[str]
    granted: dict[str, int] = field(default_factory=dict)
    settled: dict[str, int] = field(default_factory=dict)
    voided: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    asked_again: Counter[str] = field(default_factory=Counter)
    heard_at: float = 0.0

    @asynccontextmanager
    async def spending(self, ways: list[Line | Caller], spenders: int) -> AsyncGenerator[None]:
        """Spend inside the block; at its end every spender finishes what it began."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(spenders):
                group.create_task(self._spend(stop, ways[number % len(ways)].ask, number))
            try:
                yield
            finally:
                stop.set()

    async def _spend(self, stop: asyncio.Event, ask: Ask, number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            key, agent = f"{number}.{turn}", self.agent_of(number)
            self.granted[key] = (await self._told(ask, self.place(key, agent))).granted.ceiling_micros
            await asyncio.sleep(0.01)
            if turn % 25 == 0:
                self.kept.add(key)  # a completion that takes long
            elif turn % 5 == 0:
                assert (await self._told(ask, pb.VoidHold(request_id=key, agent_id=agent))).HasField("voided")
                self.voided.add(key)
            else:
                answer = await self._told(ask, self.settlement(key, agent))
                self.settled[key] = answer.settled.charged_micros

    async def _told(self, ask: Ask, message: Any) -> Any:
        """Ask until there is an answer that says what was committed."""
        while True:
            try:
                answer = await ask(message)
            except MeshError as error:
                code, reason = error.code, error.reason
            else:
                if answer.WhichOneof("outcome") != "fault":
                    self.heard_at = time.monotonic()
                    return answer
                code, reason = answer.fault.code, answer.fault.reason
            assert code in AGAIN, (reason, message)
            self.asked_again[reason] += 1
            await asyncio.sleep(AGAIN_SECONDS)

    def agent_of(self, number: int) -> str:
        return self.agents[number % len(self.agents)]

    def place(self, key: str, agent: str) -> pb.PlaceHold:
        routes = [pb.Route(provider="mock", model="mock-model")]
        return hold(key, agent, routes=routes, output_tokens_wanted=TOKENS, output_tokens_min=TOKENS)

    def settlement(self, key: str, agent: str) -> pb.SettleHold:
        number, _, turn = key.partition(".")
        return settle(key, agent, usage=pb.TokenUsage(output_tokens=(int(number) + int(turn)) % TOKENS))


def _kind(message: Any) -> str:
    return {pb.PlaceHold: "holds", pb.SettleHold: "settles", pb.VoidHold: "voids"}[type(message)]
