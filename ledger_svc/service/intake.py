"""What every way into the hot path shares: check an item, find whose it is and what it costs, queue it for a commit.

An item whose organization and prices are known, which nearly all are, is queued at once, without a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from ledger_svc import pricing
from ledger_svc.commits import Answer, Asker, Commits
from ledger_svc.holds import (
    Differs,
    Granted,
    NoHold,
    Placed,
    Placing,
    Posted,
    Posting,
    SettleOutcome,
    Settling,
    StalePath,
    Voiding,
    VoidOutcome,
)
from ledger_svc.price_book import PriceBook
from ledger_svc.pricing import Price, Usage
from ledger_svc.store import charges, registry
from mandate.ledger.v1 import charges_pb2 as pb
from mesh import ids
from mesh.db import Database
from mesh.errors import Internal, MeshError, NotFound, invalid
from mesh.money import MICROS_MAX
from mesh.telemetry import logs, traces

AGENTS_MAX = 100_000  # remembered; an agent never changes its organization
HOLDS_MAX = 100_000  # whose prices are remembered; the table knows the others
ROUTES_MAX, CHOICES_MAX, WAIT_MS_MAX, KEY_MAX, REASON_MAX, END_USER_MAX, NAME_MAX = 8, 128, 250, 64, 200, 128, 100
HTTP_STATUS_MAX, ATTEMPTS_MAX = 999, 100
OUTCOMES = frozenset({"ok", "client_gone", "upstream_error", "upstream_cut"})
USAGE_SOURCES = frozenset({"", "reported", "missing", "zero", "invalid", "above_bound"})
DIALECTS = frozenset({"", "chat.completions", "responses", "messages", "embeddings"})

Result = TypeVar("Result")

log = logs.get(__name__)


class Intake:
    """The way from messages to the organizations' lanes. Every answer is given once, after its commit."""

    def __init__(self, db: Database, commits: Commits, prices: PriceBook) -> None:
        self._db = db
        self._commits = commits
        self._prices = prices
        self._organizations: dict[str, str] = {}
        self._finding: dict[str, asyncio.Task[str | None]] = {}
        self._held: dict[tuple[str, str], tuple[Price, ...]] = {}  # by agent and request
        self._tasks: set[asyncio.Task[None]] = set()

    def place(self, holder_id: str, message: pb.PlaceHold, asker: Asker, answer: Answer[Placed]) -> None:
        """Queue a request for a hold."""
        span = traces.serve("ledger.place", message.traceparent) if message.traceparent else None
        answer = _ending(span, answer)
        try:
            _check_place(message)
            organization_id = self._organizations.get(message.agent_id)
            prices = self._known_prices(message)
            if organization_id is None or prices is None:
                self._start(self._place_unknown(holder_id, message, asker, answer, span), answer)
            else:
                self._queue_hold(organization_id, holder_id, message, prices, asker, answer, span)
        except MeshError as error:
            answer(error)

    def settle(self, message: pb.SettleHold, asker: Asker, answer: Answer[SettleOutcome]) -> None:
        """Queue a settlement."""
        span = traces.serve("ledger.settle", message.traceparent) if message.traceparent else None
        answer = _ending(span, answer)
        try:
            _check_settle(message)
            organization_id = self._organizations.get(message.agent_id)
            prices = self._held.pop((message.agent_id, message.request_id), None)
            if organization_id is None or prices is None:  # placed by another replica, or settled before
                self._start(self._settle_unknown(message, asker, answer, span), answer)
            else:
                self._queue_settlement(organization_id, message, prices, asker, answer, span)
        except MeshError as error:
            answer(error)

    def void(self, message: pb.VoidHold, asker: Asker, answer: Answer[VoidOutcome]) -> None:
        """Queue a hold to be given back."""

        async def find_and_queue() -> None:
            organization_id = await self._organization_of(message.agent_id)
            if organization_id is None:
                raise NotFound("AGENT_NOT_FOUND", f"no agent {message.agent_id!r}"[:200], agent=message.agent_id[:64])
            voiding = Voiding(message.request_id, message.agent_id, message.reason)
            self._commits.void(organization_id, voiding, asker, answer)

        try:
            _check_text("request_id", message.request_id)
            _check_text("reason", message.reason, length_min=0, length_max=REASON_MAX)
        except MeshError as error:
            answer(error)
        else:
            self._start(find_and_queue(), answer)

    def post(self, message: pb.PostCharge, asker: Asker, answer: Answer[Posted]) -> None:
        """Queue a charge that has its price."""

        async def find_and_queue() -> None:
            organization_id = await self._organization_of(message.agent_id)
            if organization_id is None:
                answer(StalePath())
                return
            posting = Posting(
                message.request_id,
                message.agent_id,
                message.path_version,
                message.api_key_id,
                message.end_user,
                message.provider,
                message.model,
                message.amount_micros,
            )
            self._commits.post(organization_id, posting, asker, answer)

        try:
            _check_post(message)
        except MeshError as error:
            answer(error)
        else:
            self._start(find_and_queue(), answer)

    def _start(self, work: Coroutine[Any, Any, None], answer: Answer[Any]) -> None:
        async def caught() -> None:
            try:
                await work
            except MeshError as error:
                answer(error)
            except Exception as bug:  # noqa: BLE001  # the chain cannot see an item's task, and each item gets an answer
                log.error("charge.bug", bug)
                answer(Internal("INTERNAL", "the ledger failed on this"))

        task = asyncio.create_task(caught())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _place_unknown(
        self, holder_id: str, message: pb.PlaceHold, asker: Asker, answer: Answer[Placed], span: traces.Span | None
    ) -> None:
        organization_id = await self._organization_of(message.agent_id)
        if organization_id is None:
            answer(StalePath())
            return
        prices: list[Price] = []
        for route in message.routes:
            price = await self._prices.for_route(organization_id, route.provider, route.model)
            if price is None:
                raise NotFound("PRICE_NOT_FOUND", f"no price for {route.model!r}"[:200], model=route.model[:100])
            prices.append(price)
        self._queue_hold(organization_id, holder_id, message, tuple(prices), asker, answer, span)

    def _queue_hold(  # noqa: PLR0913, PLR0917  # one parameter a part of the question
        self,
        organization_id: str,
        holder_id: str,
        message: pb.PlaceHold,
        prices: tuple[Price, ...],
        asker: Asker,
        answer: Answer[Placed],
        span: traces.Span | None,
    ) -> None:
        wanted, key = message.output_tokens_wanted, message.request_id
        bound = pricing.bound(prices, message.input_tokens_max, wanted, message.choices)
        if isinstance(bound, pricing.Unpriceable):
            raise invalid("input_tokens_max", "the request is too large to be priced")
        placing = Placing(
            key,
            holder_id,
            message.agent_id,
            message.path_version,
            message.api_key_id,
            prices,
            message.input_tokens_max,
            wanted,
            message.output_tokens_min,
            message.choices,
            bound,
            message.end_user,
            message.cost_max_micros,
        )

        def remember(placed: Placed | MeshError) -> None:
            if isinstance(placed, Granted) and not placed.replayed:
                if len(self._held) >= HOLDS_MAX:
                    self._held.clear()
                self._held[message.agent_id, key] = prices
            answer(placed)

        self._commits.place(organization_id, placing, min(message.wait_ms_max, WAIT_MS_MAX), asker, remember, span)

    async def _settle_unknown(
        self, message: pb.SettleHold, asker: Asker, answer: Answer[SettleOutcome], span: traces.Span | None
    ) -> None:
        organization_id = await self._organization_of(message.agent_id)
        found = await charges.terms_of(self._db, organization_id, message.request_id) if organization_id else None
        if organization_id is None or found is None:
            answer(NoHold())
            return
        if found.agent_id != message.agent_id:
            answer(Differs("agent_id"))
            return
        prices = tuple([await self._prices.version(price_id, route) for price_id, route in found.prices])
        self._queue_settlement(organization_id, message, prices, asker, answer, span)

    def _queue_settlement(
        self,
        organization_id: str,
        message: pb.SettleHold,
        prices: tuple[Price, ...],
        asker: Asker,
        answer: Answer[SettleOutcome],
        span: traces.Span | None,
    ) -> None:
        if not 0 <= message.route < len(prices):
            raise invalid("route", "the hold has no such route")
        price, used = prices[message.route], message.usage
        usage = Usage(
            used.input_tokens,
            used.cached_input_tokens,
            used.cache_write_tokens,
            used.output_tokens,
            used.reasoning_tokens,
        )
        settling = Settling(
            message.request_id,
            price,
            usage,
            pricing.cost_micros(price, usage, message.outcome),
            message.estimated,
            message.outcome,
            message.http_status,
            message.latency_ms,
            message.overhead_ms,
            message.first_token_ms,
            message.streamed,
            message.usage_source,
            message.attempts,
            message.dialect,
        )
        self._commits.settle(organization_id, settling, asker, answer, span)

    def _known_prices(self, message: pb.PlaceHold) -> tuple[Price, ...] | None:
        found: list[Price] = []
        for route in message.routes:
            price = self._prices.in_force(route.provider, route.model)
            if price is None:
                return None
            found.append(price)
        return tuple(found)

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


def _ending(span: traces.Span | None, answer: Answer[Result]) -> Answer[Result]:
    if span is None:
        return answer

    def answer_and_end(outcome: Result | MeshError) -> None:
        span.end()
        answer(outcome)

    return answer_and_end


def _check_text(name: str, text: str, *, length_min: int = 1, length_max: int = KEY_MAX) -> None:
    if not length_min <= len(text) <= length_max or "\x00" in text:
        raise invalid(name, f"must have {length_min} to {length_max} characters, none of them NUL")


def _check_place(message: pb.PlaceHold) -> None:
    _check_text("request_id", message.request_id)
    _check_text("api_key_id", message.api_key_id, length_min=0)
    _check_text("end_user", message.end_user, length_min=0, length_max=END_USER_MAX)
    if not 1 <= len(message.routes) <= ROUTES_MAX:
        raise invalid("routes", f"must be 1 to {ROUTES_MAX}")
    if not 1 <= message.choices <= CHOICES_MAX:
        raise invalid("choices", f"must be 1 to {CHOICES_MAX}")
    _check_tokens("input_tokens_max", message.input_tokens_max)
    _check_tokens("output_tokens_wanted", message.output_tokens_wanted)
    _check_tokens("output_tokens_min", message.output_tokens_min)
    if message.output_tokens_min > message.output_tokens_wanted:
        raise invalid("output_tokens_min", "must not be above output_tokens_wanted")
    if not 0 <= message.cost_max_micros <= MICROS_MAX:
        raise invalid("cost_max_micros", f"must be 0 to {MICROS_MAX}")


def _check_settle(message: pb.SettleHold) -> None:
    _check_text("request_id", message.request_id)
    usage = message.usage
    _check_tokens("usage.input_tokens", usage.input_tokens)
    _check_tokens("usage.cached_input_tokens", usage.cached_input_tokens)
    _check_tokens("usage.cache_write_tokens", usage.cache_write_tokens)
    _check_tokens("usage.output_tokens", usage.output_tokens)
    _check_tokens("usage.reasoning_tokens", usage.reasoning_tokens)
    if not 0 <= message.http_status <= HTTP_STATUS_MAX:
        raise invalid("http_status", f"must be 0 to {HTTP_STATUS_MAX}")
    if min(message.latency_ms, message.overhead_ms, message.first_token_ms) < 0:
        raise invalid("latency_ms", "no time that was taken is below 0, nor are overhead_ms and first_token_ms")
    if not 0 <= message.attempts <= ATTEMPTS_MAX:
        raise invalid("attempts", f"must be 0 to {ATTEMPTS_MAX}")
    _check_one_of("outcome", message.outcome, OUTCOMES)
    _check_one_of("usage_source", message.usage_source, USAGE_SOURCES)
    _check_one_of("dialect", message.dialect, DIALECTS)


def _check_one_of(name: str, text: str, words: frozenset[str]) -> None:
    if text not in words:
        raise invalid(name, f"must be one of {', '.join(repr(word) for word in sorted(words))}")


def _check_tokens(name: str, count: int) -> None:
    if not 0 <= count <= pricing.TOKENS_MAX:
        raise invalid(name, f"must be 0 to {pricing.TOKENS_MAX}")


def _check_post(message: pb.PostCharge) -> None:
    _check_text("request_id", message.request_id)
    _check_text("api_key_id", message.api_key_id, length_min=0)
    _check_text("end_user", message.end_user, length_min=0, length_max=END_USER_MAX)
    _check_text("provider", message.provider, length_max=NAME_MAX)
    if "/" in message.provider:
        raise invalid("provider", "must not hold a slash: holds know it as provider/model")
    _check_text("model", message.model, length_max=NAME_MAX)
    if not 1 <= message.amount_micros <= MICROS_MAX:
        raise invalid("amount_micros", f"must be 1 to {MICROS_MAX}")
