"""One completion from its first byte to its last: who, policy, bound, hold, dispatch, settle, reply."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

import orjson

from gateway_svc import failures
from gateway_svc.admission import Admission, Admitted, Ask
from gateway_svc.attempts import Attempts, Refusal, Unserved
from gateway_svc.bounds import input_bound
from gateway_svc.charging import Ledger
from gateway_svc.choices import Choice
from gateway_svc.dialects import Dialect
from gateway_svc.dialects.reading import Json, JsonObject
from gateway_svc.holds import Grant, Place, Refused, Route
from gateway_svc.meters.registry import METERING
from gateway_svc.passage import BROKEN_OFF, Passage
from gateway_svc.providers import BrokenOff, Call, Exchange
from gateway_svc.receipt import in_body
from gateway_svc.relay import Client, Relay
from gateway_svc.settlement import Ending
from gateway_svc.tellings.registry import TELLINGS
from gateway_svc.usage import TokenUsage
from gateway_svc.who import Agent
from mesh import failpoints
from mesh.clock import monotonic_ms
from mesh.errors import Aborted, MeshError, PermissionDenied, Unavailable
from mesh.telemetry import logs

OK, BAD_GATEWAY = 200, 502
ANSWERED = frozenset({"choices", "content", "output", "data"})  # what an answer has, in one dialect or another
JSON = "application/json"
STALE_PATH_MS_MAX = 1_000
MOVES_MAX = 3
STALE_PATH_PAUSE_SECONDS = 0.05

log = logs.get(__name__)


class ClientLeft(Exception):
    """The client went away before anything was dispatched."""


class _Moved(Exception):
    """The agent has other levels above it than those whose policies let it in."""

    def __init__(self, agent: Agent) -> None:
        super().__init__(agent.id)
        self.agent = agent


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer, and what was charged for it."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    content_type: str = JSON
    charged_micros: int = 0


class Completions:
    """The whole path of a completion."""

    def __init__(self, admission: Admission, ledger: Ledger, attempts: Attempts) -> None:
        self._admission = admission
        self._ledger = ledger
        self._attempts = attempts

    async def run(self, ask: Ask, client: Client) -> Reply | None:
        """Serve one completion; None when it was streamed to the client."""
        admitted, grant = await self._granted(ask)  # 1 who, 2 policy, 3 bound, 4 hold
        passage = Passage(admitted, grant, self._ledger, self._admission)
        try:
            self._check(passage, client)
        except BaseException:
            await passage.void("not dispatched")
            raise
        try:
            return await self._dispatch(passage, client)  # 5, 6, 7, 8
        finally:
            passage.abandon()  # does nothing where it was settled or given back

    async def count(self, ask: Ask) -> int:
        """Return how many input tokens a request would be: as its provider counts, else what it is at most."""
        choice = await self._admission.chosen(ask)
        call = Call(
            request_id=ask.request_id,
            request=choice.far.request,
            document={**choice.far.request.document, "model": choice.model.name},
            model=choice.model.name,
            output_tokens=1,
            credential=choice.credential,
            mock=ask.mock,
        )
        told = await choice.provider.count(call)
        return input_bound(choice.far.size, choice.model) if told is None else told

    async def _granted(self, ask: Ask) -> tuple[Admitted, Grant]:
        """Admit a request and hold what it may cost; anew where its agent was moved meanwhile, to other policies."""
        for _ in range(MOVES_MAX):
            admitted = await self._admission.admit(ask)
            try:
                return admitted, await self._hold(admitted)
            except _Moved as moved:
                ask = replace(ask, agent=moved.agent)
        raise Unavailable("ACCOUNTING_UNAVAILABLE", "the agent is being moved", retry_after_ms=500)

    async def _hold(self, admitted: Admitted) -> Grant:
        try:
            failpoints.reach("gateway.hold.asking")
            grant = await self._ask_ledger(admitted)
            failpoints.reach("gateway.hold.granted")
        except BaseException as failed:  # a cancelled caller has used nothing either
            self._admission.correct(admitted, 0)
            if isinstance(failed, PermissionDenied):  # its own limit on cost
                await self._admission.violated(admitted.ask, admitted.agent, failed)
            raise
        return grant

    async def _ask_ledger(self, admitted: Admitted) -> Grant:
        """Ask again for up to a second where the ledger has heard of another path than identity told us."""
        patience_ms = monotonic_ms() + STALE_PATH_MS_MAX
        agent = admitted.agent
        while True:
            try:
                outcome = await self._ledger.hold(_place(admitted, agent))
            except Aborted as stale:
                if stale.reason != "STALE_PATH":
                    raise
                if monotonic_ms() > patience_ms:
                    raise Unavailable("ACCOUNTING_UNAVAILABLE", stale.message, retry_after_ms=500) from None
            else:
                if isinstance(outcome, Refused):
                    raise outcome.error()
                return outcome
            await asyncio.sleep(STALE_PATH_PAUSE_SECONDS)
            agent = await self._admission.agent_anew(admitted.ask.key)
            if agent.path != admitted.agent.path:
                raise _Moved(agent)

    def _check(self, passage: Passage, client: Client) -> None:
        """See that somebody still waits and that the hold is still ours."""
        if client.gone():
            raise ClientLeft
        if not passage.mine:
            raise Unavailable("ACCOUNTING_UNAVAILABLE", "the ledger's lease ran out", retry_after_ms=500)

    async def _dispatch(self, passage: Passage, client: Client) -> Reply | None:
        serve = self._stream if passage.admitted.request.stream else self._whole
        try:
            served = await self._attempts.serve(passage, lambda exchange: serve(passage, exchange, client))
            return await self._refused(passage, served, client) if isinstance(served, Refusal) else served
        except BrokenOff as error:
            log.warn("upstream.cut", provider=passage.choice.model.provider, error=str(error))
            await passage.settle(BROKEN_OFF, client_gone=client.gone())
            raise failures.cut() from None
        except Unserved as nobody:
            await passage.void("not sent")
            raise nobody.error from None

    async def _refused(self, passage: Passage, refusal: Refusal, client: Client) -> Reply:
        """Tell the client what the provider said, which billed nothing."""
        passage.answered()
        ending = Ending(refusal.status, usage=None, counted_tokens=None, complete=True)
        settled = await passage.settle(ending, client_gone=client.gone())
        choice = passage.choice
        status, error = failures.told(refusal.status, refusal.body, choice.secret, own=choice.own)
        headers = passage.headers
        if refusal.status not in failures.WORTH_A_RETRY or error.get("code") == failures.NO_QUOTA_CODE:
            headers["x-should-retry"] = "false"
        elif after := failures.retry_after(refusal.retry_after):
            headers["retry-after"] = after
        ask = passage.admitted.ask
        body = TELLINGS[ask.dialect].error_body(status, error, ask.request_id)
        return Reply(status, body, headers, charged_micros=settled.charged_micros)

    async def _whole(self, passage: Passage, exchange: Exchange, client: Client) -> Reply:
        body = await exchange.body()
        passage.answered()
        far = passage.choice.far
        document = _object_of(body)
        if not document:
            raise BrokenOff("the answer is no object")
        if "error" in document and document.keys().isdisjoint(ANSWERED):
            # An error that came with the status of an answer, as routers of many providers send them.
            route = passage.admitted.choices.index(passage.choice)
            return await self._refused(passage, Refusal(route, BAD_GATEWAY, body, ""), client)
        usage, seen = usage_in(document, far.request.dialect)
        ending = Ending(exchange.status, usage, counted_tokens=None, complete=True, usage_seen=seen)
        settled = await passage.settle(ending, client_gone=client.gone())
        if far.translation is not None:
            try:
                body = orjson.dumps(far.translation.answer(document, passage.admitted.request))
            except ValueError as error:
                log.warn("upstream.foreign", provider=passage.choice.model.provider, error=type(error).__name__)
                raise failures.cut() from None
        return Reply(OK, in_body(body, settled), passage.headers, charged_micros=settled.charged_micros)

    async def _stream(self, passage: Passage, exchange: Exchange, client: Client) -> None:
        choice, request = passage.choice, passage.admitted.request
        metering = METERING[choice.far.request.dialect].meter
        if metering is None:
            raise BrokenOff("this dialect has no streams")
        translation = choice.far.translation
        translating = None if translation is None else translation.stream(request)
        await client.begin(passage.headers)
        relay = Relay(client, metering(), translating, cut=passage.admitted.policy.cut_abandoned_streams)
        ending = _judged(await relay.run(exchange), choice, failed=bool(relay.failure))
        passage.answered()
        passage.first_token_ms = relay.first_token_at_ms
        telling = TELLINGS[request.dialect]
        try:
            settled = await passage.settle(ending, client_gone=client.gone())
        except MeshError as error:
            await client.end(telling.failure_event(failures.members(error)))
            return
        if not ending.complete:
            log.warn("upstream.cut", provider=choice.model.provider, request_id=passage.admitted.ask.request_id)
            failure = failures.stream_failure(relay.failure, choice.secret, own=choice.own)
            await client.end(telling.failure_event(failure))
            return
        await client.end(telling.ending(relay.last, settled.members(), usage_wanted=request.usage_wanted))


def usage_in(document: JsonObject, dialect: Dialect) -> tuple[TokenUsage | None, bool]:
    """Return the usage that a whole answer tells, and whether it tells any."""
    return METERING[dialect].usage_of(document), document.get("usage") is not None


def _judged(ending: Ending, choice: Choice, *, failed: bool) -> Ending:
    """Trust no count of ours where the model thinks without showing it, but for an error before its first word."""
    if ending.complete or not choice.thinks_unseen:
        return ending
    return replace(ending, counted_tokens=None, wrote=ending.wrote or not failed)


def _object_of(body: bytes) -> JsonObject:
    try:
        document: Json = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _place(admitted: Admitted, agent: Agent) -> Place:
    bound = admitted.bound
    return Place(
        request_id=admitted.ask.request_id,
        agent_id=agent.id,
        path_version=agent.path_version,
        api_key_id=agent.api_key_id,
        routes=tuple(Route(choice.model.provider, choice.model.name) for choice in admitted.choices),
        input_tokens_max=bound.input_tokens_max,
        output_tokens_wanted=bound.output_tokens_wanted,
        output_tokens_min=bound.output_tokens_min,
        choices=bound.choices,
        end_user=admitted.request.end_user,
        cost_max_micros=admitted.policy.max_cost_micros_per_request or 0,
    )
