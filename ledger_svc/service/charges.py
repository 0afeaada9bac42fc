"""The hot path: one stream a gateway process, items in, answers out after their commits; the same without a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc

from ledger_svc import wire
from ledger_svc.commits import Answer, Asker
from ledger_svc.holds import Lapsed, Placed, SettleOutcome, VoidOutcome
from ledger_svc.service.intake import Intake
from ledger_svc.store import charges
from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import ids
from mesh.db import Database
from mesh.errors import MeshError, Unavailable, invalid
from mesh.telemetry import logs

ITEMS_MAX = 1_000  # of one message
BEAT_SECONDS = 0.2  # a lease is at least a second
BEATS_MAX = 10_000  # holders whose last beat is remembered

Context = grpc.aio.ServicerContext[Any, Any]
Message = TypeVar("Message")
Outcome = TypeVar("Outcome")

log = logs.get(__name__)


class ChargeServicer(rpc.ChargeServiceServicer):
    """Implements mandate.ledger.v1.ChargeService."""

    def __init__(self, db: Database, intake: Intake) -> None:
        self._db = db
        self._intake = intake
        self._beats: dict[str, float] = {}

    async def Charge(
        self, request_iterator: AsyncIterator[pb.ChargeRequest], context: Context
    ) -> AsyncIterator[pb.ChargeResponse]:
        async for first in request_iterator:
            _check_holder(first.holder_id)
            if not await charges.open_lease(self._db, first.holder_id):
                yield pb.ChargeResponse(lapsed=True)
                return
            stream = Stream(self._db, self._intake, first.holder_id)
            reading = asyncio.create_task(stream.read(first, request_iterator))
            try:
                while (response := await stream.next(reading)) is not None:
                    yield response
            finally:
                reading.cancel()
                stream.close()
            return

    async def PlaceHolds(self, request: pb.PlaceHoldsRequest, context: Context) -> pb.PlaceHoldsResponse:
        _check_holder(request.holder_id)
        _check_count("holds", request.holds)
        await self._beat(request.holder_id)
        outcomes = await _all(request.holds, partial(self._intake.place, request.holder_id))
        answers = [wire.hold_answer(hold.request_id, outcome) for hold, outcome in outcomes]
        return pb.PlaceHoldsResponse(holds=answers)

    async def SettleHolds(self, request: pb.SettleHoldsRequest, context: Context) -> pb.SettleHoldsResponse:
        _check_count("settles", request.settles)
        outcomes = await _all(request.settles, self._intake.settle)
        answers = [wire.settle_answer(settle.request_id, outcome) for settle, outcome in outcomes]
        return pb.SettleHoldsResponse(settles=answers)

    async def VoidHolds(self, request: pb.VoidHoldsRequest, context: Context) -> pb.VoidHoldsResponse:
        _check_count("voids", request.voids)
        outcomes = await _all(request.voids, self._intake.void)
        return pb.VoidHoldsResponse(voids=[wire.void_answer(void.request_id, outcome) for void, outcome in outcomes])

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> pb.RenewLeaseResponse:
        _check_holder(request.holder_id)
        return pb.RenewLeaseResponse(lapsed=not await charges.renew_lease(self._db, request.holder_id))

    async def PostCharges(self, request: pb.PostChargesRequest, context: Context) -> pb.PostChargesResponse:
        _check_count("charges", request.charges)
        outcomes = await _all(request.charges, self._intake.post)
        answers = [wire.post_answer(charge.request_id, outcome) for charge, outcome in outcomes]
        return pb.PostChargesResponse(charges=answers)

    async def _beat(self, holder_id: str) -> None:
        """Renew the lease that a call without a stream stands for; not at each of many calls."""
        now = asyncio.get_running_loop().time()
        if now - self._beats.get(holder_id, float("-inf")) < BEAT_SECONDS:
            return
        if not await charges.open_lease(self._db, holder_id):
            raise Unavailable("LEASE_LAPSED", "the holder's lease has lapsed")
        if len(self._beats) >= BEATS_MAX:
            self._beats.clear()
        self._beats[holder_id] = now


class Stream:
    """One gateway's stream: what it asked and was not begun dies with it, its commits do not.

    Answers gather until the stream can take them, so that many travel in one message.
    """

    def __init__(self, db: Database, intake: Intake, holder_id: str) -> None:
        self._db = db
        self._intake = intake
        self._holder_id = holder_id
        self._asker = Asker()
        self._open = 0
        self._renewing: asyncio.Task[None] | None = None
        self._response = pb.ChargeResponse()
        self._some = asyncio.Event()
        self._filled = False
        self._reading_over = False

    async def read(self, first: pb.ChargeRequest, rest: AsyncIterator[pb.ChargeRequest]) -> None:
        """Take every message in."""
        try:
            self._take(first)
            async for request in rest:
                self._take(request)
        finally:
            self._reading_over = True
            self._some.set()

    async def next(self, reading: asyncio.Task[None]) -> pb.ChargeResponse | None:
        """Return what has gathered, waiting for the first; None when the client has said its last and got its last."""
        while not self._filled:
            if self._reading_over and not self._open:
                await reading
                return None
            self._some.clear()
            await self._some.wait()
            if self._reading_over and not self._filled:
                await reading  # a bad message ends the stream
        self._filled = False
        response, self._response = self._response, pb.ChargeResponse()
        return response

    def close(self) -> None:
        """Forget the items that are still queued; their gateway sends them again."""
        self._asker.gone = True
        if self._renewing is not None:
            self._renewing.cancel()

    def _take(self, request: pb.ChargeRequest) -> None:
        if len(request.holds) + len(request.settles) + len(request.voids) > ITEMS_MAX:
            raise invalid("holds", f"a message holds at most {ITEMS_MAX} items")
        if request.beat and (self._renewing is None or self._renewing.done()):
            self._open += 1
            self._renewing = asyncio.create_task(self._renew(request.beat))
        self._open += len(request.settles) + len(request.voids) + len(request.holds)
        for settle in request.settles:
            self._intake.settle(settle, self._asker, partial(self._settled, settle.request_id))
        for void in request.voids:
            self._intake.void(void, self._asker, partial(self._voided, void.request_id))
        for hold in request.holds:
            self._intake.place(self._holder_id, hold, self._asker, partial(self._placed, hold.request_id))

    async def _renew(self, beat: int) -> None:
        try:
            alive = await charges.renew_lease(self._db, self._holder_id)
        except MeshError as error:
            log.warn("lease.not_renewed", holder_id=self._holder_id, reason=error.reason)
        else:
            self._response.beat = beat
            self._response.lapsed = self._response.lapsed or not alive
            self._filled = True
        self._answered()

    def _placed(self, request_id: str, outcome: Placed | MeshError) -> None:
        if isinstance(outcome, Lapsed):
            self._response.lapsed = True
        self._response.holds.append(wire.hold_answer(request_id, outcome))
        self._filled = True
        self._answered()

    def _settled(self, request_id: str, outcome: SettleOutcome | MeshError) -> None:
        self._response.settles.append(wire.settle_answer(request_id, outcome))
        self._filled = True
        self._answered()

    def _voided(self, request_id: str, outcome: VoidOutcome | MeshError) -> None:
        self._response.voids.append(wire.void_answer(request_id, outcome))
        self._filled = True
        self._answered()

    def _answered(self) -> None:
        self._open -= 1
        self._some.set()


async def _all(
    messages: Sequence[Message], ask: Callable[[Message, Asker, Answer[Outcome]], None]
) -> list[tuple[Message, Outcome | MeshError]]:
    """Ask for every message at once and return each with its outcome, in their order."""
    asker, outcomes = Asker(), [asyncio.get_running_loop().create_future() for _ in messages]

    def hear(future: asyncio.Future[Outcome | MeshError], outcome: Outcome | MeshError) -> None:
        if not future.done():
            future.set_result(outcome)

    try:
        for message, future in zip(messages, outcomes, strict=True):
            ask(message, asker, partial(hear, future))
        return [(message, await future) for message, future in zip(messages, outcomes, strict=True)]
    finally:
        asker.gone = True


def _check_holder(holder_id: str) -> None:
    if ids.kind_of(holder_id) is not ids.Kind.HOLDER:
        raise invalid("holder_id", "must name the holder: its id, such as the first message of a stream holds")


def _check_count(name: str, items: Sequence[object]) -> None:
    if not 1 <= len(items) <= ITEMS_MAX:
        raise invalid(name, f"must be 1 to {ITEMS_MAX}")
