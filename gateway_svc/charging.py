"""Hold, settle and void through one stream to the ledger: neighbours share a message, each keeps its own answer.

A hold is dispatched only while this process's lease lives: the last beat that the ledger echoed was sent at most 3 s
ago, and the ledger lapses a holder after 5 s. What is unanswered when the stream breaks is sent again on the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from itertools import chain

import grpc

from gateway_svc import wire
from gateway_svc.calls import unless_cancelled_there
from gateway_svc.holds import Charged, Grant, Place, Refused, Report
from gateway_svc.inflight import Answer, Inflight, Item
from mandate.ledger.v1 import charges_pb2, charges_pb2_grpc
from mesh import client, ids
from mesh.clock import monotonic_ms
from mesh.errors import Code, MeshError, Unavailable
from mesh.telemetry import logs

BEAT_MS = 500
GATHER_MS = 1.0  # between two messages: a message costs as much as ten items, and the ledger gathers for longer
LEASE_MS = 3_000
SILENCE_MS_MAX = 1_500  # without an echo for so long, another replica is tried
HOLD_SECONDS_MAX = 5
UNLEASED_SECONDS_MAX = 1  # a ledger that has been away for a lease is not waited for as long
SETTLE_SECONDS_MAX = 30
AGAIN_SECONDS, AGAIN_SECONDS_MAX = 0.1, 5.0  # before an item that the ledger could not take is sent again
AGAIN_TRIES_MAX = 6  # after so many the wait is the longest
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.05, 0.5
AGAIN = {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.INTERNAL}  # says nothing of what was written

BROKEN = (grpc.aio.AioRpcError, asyncio.InvalidStateError, Unavailable)  # the second: a write after the end

Stream = grpc.aio.StreamStreamCall[charges_pb2.ChargeRequest, charges_pb2.ChargeResponse]

log = logs.get(__name__)


class Ledger:
    """This process as a holder of holds."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = charges_pb2_grpc.ChargeServiceStub(channel)
        self._inflight = Inflight()
        self._holder_id = ids.new(ids.Kind.HOLDER)
        self._lease_until_ms = float("-inf")
        self._beat = 0
        self._beats_sent_ms: dict[int, float] = {}

    @property
    def leased(self) -> bool:
        """Return whether this process may dispatch what it holds."""
        return monotonic_ms() <= self._lease_until_ms

    def may_dispatch(self, grant: Grant) -> bool:
        """Return whether a grant is still this holder's."""
        return grant.holder_id == self._holder_id and self.leased

    async def hold(self, place: Place) -> Grant | Refused:
        """Ask for a hold; ACCOUNTING_UNAVAILABLE when no answer comes in time, and then the hold is void."""
        if self._inflight.full:
            raise _unavailable()
        seconds = HOLD_SECONDS_MAX if self.leased else UNLEASED_SECONDS_MAX
        item = self._inflight.add_hold(wire.place_message(place), self._holder_id, seconds)
        answered = False
        try:
            answer = await item.answer
            answered = True
        except TimeoutError:
            raise _unavailable() from None
        finally:
            if not answered:  # also where an answer came in the same moment: nobody would use it
                self._give_up(item, place)
        if not isinstance(answer, charges_pb2.HoldAnswer):
            raise _unavailable()
        try:
            return wire.hold_outcome(answer, place, item.holder_id)
        except MeshError as error:
            if error.reason == "STALE_PATH" or error.code not in AGAIN:
                raise
            # The ledger may have lost its database after the commit: such a hold would stay open as long as we live.
            self._void(place, "outcome unknown")
            raise _unavailable() from None

    def void(self, grant: Grant, reason: str) -> None:
        """Give back a hold from which no byte went upstream; sent until it is answered."""
        self._inflight.add_void(
            charges_pb2.VoidHold(request_id=grant.request_id, agent_id=grant.agent_id, reason=reason)
        )

    def settle(self, report: Report) -> Awaitable[Charged]:
        """Charge what was used; the report is on its way at once, and sent until it is answered, whoever waits."""
        return self._charged(report, self._add(report))

    async def _charged(self, report: Report, item: Item) -> Charged:
        try:
            answer = await item.answer  # whoever leaves it leaves the report on its way
        except TimeoutError:
            log.warn("settle.late", request_id=report.request_id)
            raise _pending() from None
        if not isinstance(answer, charges_pb2.SettleAnswer):
            raise _pending()
        try:
            return wire.settle_outcome(answer)
        except MeshError as error:
            log.warn("settle.refused", request_id=report.request_id, reason=error.reason)
            raise _pending() from None

    def settle_later(self, report: Report) -> None:
        """Charge what was used without waiting for the answer."""
        self._add(report)

    async def drain(self, seconds: float) -> None:
        """Wait until everything that was sent is answered."""
        if unanswered := await self._inflight.settled(seconds):
            log.warn("ledger.drain_incomplete", unanswered=unanswered)

    async def run(self) -> None:
        """Keep a stream open for ever."""
        pause_seconds = RETRY_SECONDS_MIN
        while True:
            was_leased_until = self._lease_until_ms
            await self._converse()
            renewed = self._lease_until_ms > was_leased_until
            pause_seconds = RETRY_SECONDS_MIN if renewed else min(pause_seconds * 2, RETRY_SECONDS_MAX)
            await asyncio.sleep(pause_seconds)

    def _add(self, report: Report) -> Item:
        return self._inflight.add_settle(
            wire.settle_message(report), lambda: wire.settle_message(report.at_ceiling()), SETTLE_SECONDS_MAX
        )

    def _give_up(self, item: Item, place: Place) -> None:
        self._inflight.drop(item)
        if item.sent:
            self._void(place, "caller gave up")

    def _void(self, place: Place, reason: str) -> None:
        self._inflight.add_void(
            charges_pb2.VoidHold(request_id=place.request_id, agent_id=place.agent_id, reason=reason)
        )

    async def _converse(self) -> None:
        stream: Stream = self._stub.Charge(metadata=client.metadata())
        self._inflight.send_all_again()
        self._beats_sent_ms.clear()
        tasks = [asyncio.ensure_future(self._write(stream)), asyncio.ensure_future(self._read(stream))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                failure = task.exception()
                if isinstance(failure, BROKEN):
                    log.warn("ledger.stream_broken", error=type(failure).__name__)
                elif failure is not None:
                    raise failure
        finally:
            stream.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, stream: Stream) -> None:
        opened_ms = monotonic_ms()
        next_beat_ms = opened_ms
        sent_ms = float("-inf")
        while True:
            now_ms = monotonic_ms()
            if now_ms - max(opened_ms, self._lease_until_ms - LEASE_MS) > SILENCE_MS_MAX:
                log.warn("ledger.silent")
                return
            if (early_ms := sent_ms + GATHER_MS - now_ms) > 0 and self._inflight.waiting:
                await asyncio.sleep(early_ms / 1000)
            message = self._inflight.next_message(with_holds=self.leased)
            if now_ms >= next_beat_ms:
                next_beat_ms = now_ms + BEAT_MS
                message = message or charges_pb2.ChargeRequest()
                message.holder_id = self._holder_id
                message.beat = self._count_beat(now_ms)
            if message is None:
                await self._inflight.wait((next_beat_ms - now_ms) / 1000)
                continue
            sent_ms = monotonic_ms()
            await unless_cancelled_there(stream.write(message))

    def _count_beat(self, now_ms: float) -> int:
        self._beat += 1
        self._beats_sent_ms[self._beat] = now_ms
        for old in [beat for beat in self._beats_sent_ms if beat < self._beat - 16]:
            del self._beats_sent_ms[old]
        return self._beat

    async def _read(self, stream: Stream) -> None:
        while True:
            response = await unless_cancelled_there(stream.read())
            if not isinstance(response, charges_pb2.ChargeResponse):
                return
            if response.lapsed:
                self._lapse()
                return
            sent_ms = self._beats_sent_ms.get(response.beat)
            if sent_ms is not None:
                self._renew(sent_ms)
            for answer in chain(response.holds, response.settles, response.voids):
                self._take(answer)

    def _renew(self, sent_ms: float) -> None:
        was_leased = self.leased
        self._lease_until_ms = max(self._lease_until_ms, sent_ms + LEASE_MS)
        if not was_leased:
            self._inflight.wake()  # holds wait for a lease

    def _take(self, answer: Answer) -> None:
        fault = answer.fault if answer.WhichOneof("outcome") == "fault" else None
        item = None if fault is None else self._inflight.item(answer)
        if fault is None or item is None or isinstance(answer, charges_pb2.HoldAnswer):
            self._inflight.resolve(answer)
        elif fault.code in AGAIN:
            seconds = min(AGAIN_SECONDS * 2**item.tries, AGAIN_SECONDS_MAX)
            item.tries = min(item.tries + 1, AGAIN_TRIES_MAX)
            asyncio.get_running_loop().call_later(seconds, self._inflight.send_again, item)
        elif fault.code == Code.INVALID_ARGUMENT and item.instead is not None:
            # The hold would stay open as long as we live: what it covers is charged, and listed as an estimate.
            log.warn("settle.unreadable", request_id=answer.request_id, reason=fault.reason)
            item.question, item.instead = item.instead(), None
            self._inflight.send_again(item)
        else:
            self._inflight.resolve(answer)

    def _lapse(self) -> None:
        log.warn("ledger.lapsed", holder_id=self._holder_id)
        self._holder_id = ids.new(ids.Kind.HOLDER)
        self._lease_until_ms = float("-inf")
        self._inflight.fail_holds(self._holder_id)


def _unavailable() -> Unavailable:
    return Unavailable("ACCOUNTING_UNAVAILABLE", "the ledger cannot take this now", retry_after_ms=500)


def _pending() -> Unavailable:
    return Unavailable("SETTLEMENT_PENDING", "the model answered, and its charge is still to be committed")
