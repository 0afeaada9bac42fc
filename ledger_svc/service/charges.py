"""The hot path: one stream a gateway process, items in, answers out as their commits land."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc

from ledger_svc import pricing, wire
from ledger_svc.commits import Commits
from ledger_svc.holds import (
    Granted,
    Lapsed,
    NoHold,
    Placed,
    Placing,
    SettleOutcome,
    Settling,
    StalePath,
    Voiding,
    VoidOutcome,
)
from ledger_svc.price_book import PriceBook
from ledger_svc.store import charges, registry
from mandate.ledger.v1 import charges_pb2 as pb
from mandate.ledger.v1 import charges_pb2_grpc as rpc
from mesh import ids
from mesh.db import Database
from mesh.errors import Internal, MeshError, NotFound, invalid
from mesh.telemetry import logs, traces

AGENTS_MAX = 100_000  # remembered; an agent never changes its organization
HOLDS_MAX = 100_000  # whose prices are remembered; the table knows the others
ROUTES_MAX, CHOICES_MAX, WAIT_MS_MAX, ITEMS_MAX, KEY_MAX, REASON_MAX = 8, 128, 250, 1_000, 64, 200
END_USER_MAX = 128
OUTCOMES = frozenset({"ok", "client_gone", "upstream_error", "upstream_cut"})

Context = grpc.aio.ServicerContext[pb.ChargeRequest, pb.ChargeResponse]
Outcome = TypeVar("Outcome", Placed, SettleOutcome, VoidOutcome)

log = logs.get(__name__)


class ChargeServicer(rpc.ChargeServiceServicer):
    """Implements mandate.ledger.v1.ChargeService."""

    def __init__(self, db: Database, commits: Commits, prices: PriceBook) -> None:
        self._db = db
        self._commits = commits
        self._prices = prices
        self._organizations: dict[str, str] = {}
        self._finding: dict[str, asyncio.Task[str | None]] = {}
        self._price_ids: dict[tuple[str, str], list[str]] = {}

    async def Charge(
        self, request_iterator: AsyncIterator[pb.ChargeRequest], context: Context
    ) -> AsyncIterator[pb.ChargeResponse]:
        answers = Answers()
        async for first in request_iterator:
            if ids.kind_of(first.holder_id) is not ids.Kind.HOLDER:
                raise invalid("holder_id", "must be named in the first message of a stream")
            if not await charges.open_lease(self._db, first.holder_id):
                yield pb.ChargeResponse(lapsed=True)
                return
            stream = Stream(self, first.holder_id, answers)
            reading = asyncio.create_task(stream.read(first, request_iterator))
            try:
                while (response := await answers.next(reading)) is not None:
                    yield response
            finally:
                reading.cancel()
                stream.close()
            return

    async def place(self, holder_id: str, message: pb.PlaceHold) -> Placed:
        """Price one request and queue it for its organization's next commit."""
        _check_place(message)
        organization_id = await self._organization_of(message.agent_id)
        if organization_id is None:
            return StalePath()
        placing = self._placing(holder_id, message)
        placed = await self._commits.place(organization_id, placing, min(message.wait_ms_max, WAIT_MS_MAX))
        if isinstance(placed, Granted) and not placed.replayed:
            if len(self._price_ids) >= HOLDS_MAX:
                self._price_ids.clear()
            self._price_ids[organization_id, message.request_id] = [price.id for price in placing.prices]
        return placed

    async def settle(self, message: pb.SettleHold) -> SettleOutcome:
        """Cost one completion at its hold's price and queue it."""
        _check_settle(message)
        organization_id = await self._organization_of(message.agent_id)
        if organization_id is None:
            return NoHold()
        price_ids = self._price_ids.pop((organization_id, message.request_id), None)
        if price_ids is None:  # placed by another replica, or settled before
            found = await charges.price_ids_of(self._db, organization_id, [message.request_id])
            price_ids = found.get(message.request_id)
        if price_ids is None:
            return NoHold()
        if not 0 <= message.route < len(price_ids):
            raise invalid("route", "the hold has no such route")
        price = await self._prices.version(price_ids[message.route])
        usage = wire.usage_of(message.usage)
        settling = Settling(
            request_id=message.request_id,
            price=price,
            usage=usage,
            cost_micros=pricing.cost_micros(price, usage, message.outcome),
            estimated=message.estimated,
            outcome=message.outcome,
            http_status=message.http_status,
            latency_ms=message.latency_ms,
            overhead_ms=message.overhead_ms,
            first_token_ms=message.first_token_ms,
            streamed=message.streamed,
        )
        return await self._commits.settle(organization_id, settling)

    async def void(self, message: pb.VoidHold) -> VoidOutcome:
        """Queue a hold to be given back."""
        _check_key("request_id", message.request_id)
        _check_key("reason", message.reason, length_min=0, length_max=REASON_MAX)
        organization_id = await self._organization_of(message.agent_id)
        if organization_id is None:
            raise NotFound("AGENT_NOT_FOUND", f"no agent {message.agent_id!r}"[:200], agent=message.agent_id[:64])
        voiding = Voiding(message.request_id, message.agent_id, message.reason)
        return await self._commits.void(organization_id, voiding)

    async def renew(self, holder_id: str) -> bool:
        """Record a beat."""
        return await charges.renew_lease(self._db, holder_id)

    async def _organization_of(self, agent_id: str) -> str | None:
        known = self._organizations.get(agent_id)
        if known is None and ids.kind_of(agent_id) is ids.Kind.AGENT:
            # One look-up serves all items that wait for it, and leaves them in their order.
            finding = self._finding.get(agent_id)
            if finding is None:
                finding = self._finding[agent_id] = asyncio.create_task(self._find(agent_id))
            known = await asyncio.shield(finding)
        return known

    async def _find(self, agent_id: str) -> str | None:
        try:
            found = await registry.organization_of(self._db, agent_id)
        finally:
            del self._finding[agent_id]
        if found is not None:
            if len(self._organizations) >= AGENTS_MAX:
                self._organizations.clear()
            self._organizations[agent_id] = found
        return found

    def _placing(self, holder_id: str, message: pb.PlaceHold) -> Placing:
        prices: list[pricing.Price] = []
        for route in message.routes:
            price = self._prices.in_force(route.provider, route.model)
            if price is None:
                raise NotFound("PRICE_NOT_FOUND", f"no price for {route.model!r}"[:200], model=route.model[:100])
            prices.append(price)
        bound = pricing.bound(prices, message.input_tokens_max, message.output_tokens_wanted, message.choices)
        if isinstance(bound, pricing.Unpriceable):
            raise invalid("input_tokens_max", "the request is too large to be priced")
        return Placing(
            request_id=message.request_id,
            holder_id=holder_id,
            agent_id=message.agent_id,
            path_version=message.path_version,
            api_key_id=message.api_key_id,
            prices=tuple(prices),
            input_tokens_max=message.input_tokens_max,
            output_wanted=message.output_tokens_wanted,
            output_min=message.output_tokens_min,
            choices=message.choices,
            bound=bound,
            end_user=message.end_user,
        )


class Answers:
    """Gathers answers until the stream can take them, so that many travel in one message."""

    def __init__(self) -> None:
        self._response = pb.ChargeResponse()
        self._some = asyncio.Event()

    def add(self, fill: Callable[[pb.ChargeResponse], object]) -> None:
        """Put an answer into the message that goes out next."""
        fill(self._response)
        self._some.set()

    async def next(self, reading: asyncio.Task[None]) -> pb.ChargeResponse | None:
        """Return what has gathered, waiting for the first; None when the client has said its last and got its last."""
        if not self._some.is_set():
            waiting = asyncio.create_task(self._some.wait())
            try:
                await asyncio.wait({waiting, reading}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
        if not self._some.is_set():
            await reading
            return None
        self._some.clear()
        response, self._response = self._response, pb.ChargeResponse()
        return response


class Stream:
    """One gateway's stream: its items in flight die with it, its commits do not."""

    def __init__(self, servicer: ChargeServicer, holder_id: str, answers: Answers) -> None:
        self._servicer = servicer
        self._holder_id = holder_id
        self._answers = answers
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewing: asyncio.Task[Any] | None = None

    async def read(self, first: pb.ChargeRequest, rest: AsyncIterator[pb.ChargeRequest]) -> None:
        """Take every message in; end when the client is done and all its items are answered."""
        self._take(first)
        async for request in rest:
            self._take(request)
        while self._tasks:
            await asyncio.wait(self._tasks)

    def close(self) -> None:
        """Forget the items that are still queued; their gateway sends them again."""
        for task in self._tasks:
            task.cancel()

    def _take(self, request: pb.ChargeRequest) -> None:
        if len(request.holds) + len(request.settles) + len(request.voids) > ITEMS_MAX:
            raise invalid("holds", f"a message holds at most {ITEMS_MAX} items")
        if request.beat and (self._renewing is None or self._renewing.done()):
            self._renewing = self._start(self._renew(request.beat))
        for settle in request.settles:
            self._start(self._settle(settle))
        for void in request.voids:
            self._start(self._void(void))
        for hold in request.holds:
            self._start(self._place(hold))

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _renew(self, beat: int) -> None:
        try:
            alive = await self._servicer.renew(self._holder_id)
        except MeshError as error:
            log.warn("lease.not_renewed", holder_id=self._holder_id, reason=error.reason)
            return
        self._answers.add(lambda response: response.MergeFrom(pb.ChargeResponse(beat=beat, lapsed=not alive)))

    async def _place(self, message: pb.PlaceHold) -> None:
        with traces.serving("ledger.place", message.traceparent or None):
            outcome = await _caught(self._servicer.place(self._holder_id, message))
        if isinstance(outcome, Lapsed):
            self._answers.add(lambda response: response.MergeFrom(pb.ChargeResponse(lapsed=True)))
        answer = wire.hold_answer(message.request_id, outcome)
        self._answers.add(lambda response: response.holds.append(answer))

    async def _settle(self, message: pb.SettleHold) -> None:
        with traces.serving("ledger.settle", message.traceparent or None):
            outcome = await _caught(self._servicer.settle(message))
        answer = wire.settle_answer(message.request_id, outcome)
        self._answers.add(lambda response: response.settles.append(answer))

    async def _void(self, message: pb.VoidHold) -> None:
        answer = wire.void_answer(message.request_id, await _caught(self._servicer.void(message)))
        self._answers.add(lambda response: response.voids.append(answer))


async def _caught(work: Any) -> Any:
    try:
        return await work
    except MeshError as error:
        return error
    except Exception as bug:  # noqa: BLE001  # the chain cannot see an item's task, and each item gets an answer
        log.error("charge.bug", bug)
        return Internal("INTERNAL", "the ledger failed on this")


def _check_key(name: str, text: str, *, length_min: int = 1, length_max: int = KEY_MAX) -> None:
    if not length_min <= len(text) <= length_max or "\x00" in text:
        raise invalid(name, f"must have {length_min} to {length_max} characters, none of them NUL")


def _check_place(message: pb.PlaceHold) -> None:
    _check_key("request_id", message.request_id)
    _check_key("api_key_id", message.api_key_id, length_min=0)
    _check_key("end_user", message.end_user, length_min=0, length_max=END_USER_MAX)
    if not 1 <= len(message.routes) <= ROUTES_MAX:
        raise invalid("routes", f"must be 1 to {ROUTES_MAX}")
    if not 1 <= message.choices <= CHOICES_MAX:
        raise invalid("choices", f"must be 1 to {CHOICES_MAX}")
    for name in ("input_tokens_max", "output_tokens_wanted", "output_tokens_min"):
        if not 0 <= getattr(message, name) <= pricing.TOKENS_MAX:
            raise invalid(name, f"must be 0 to {pricing.TOKENS_MAX}")
    if message.output_tokens_min > message.output_tokens_wanted:
        raise invalid("output_tokens_min", "must not be above output_tokens_wanted")


def _check_settle(message: pb.SettleHold) -> None:
    _check_key("request_id", message.request_id)
    for field in message.usage.DESCRIPTOR.fields:
        if not 0 <= getattr(message.usage, field.name) <= pricing.TOKENS_MAX:
            raise invalid(f"usage.{field.name}", f"must be 0 to {pricing.TOKENS_MAX}")
    if message.outcome not in OUTCOMES:
        raise invalid("outcome", f"must be one of {', '.join(sorted(OUTCOMES))}")
