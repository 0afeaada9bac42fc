"""One completion from its first byte to its last: who, policy, bound, hold, credential, dispatch, settle, reply."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from gateway_svc import chat as requests
from gateway_svc import receipt as receipts
from gateway_svc import upstream_errors
from gateway_svc.bounds import Bound, Model, bound
from gateway_svc.catalog import Catalog
from gateway_svc.charging import Ledger
from gateway_svc.chat import ChatRequest
from gateway_svc.credentials import Credential, Credentials
from gateway_svc.holds import Grant, Place, Refused, Report
from gateway_svc.policies import Policy
from gateway_svc.providers import BrokenOff, Call, Exchange, NotSent, Provider
from gateway_svc.rates import Rates, Taken
from gateway_svc.receipt import Receipt
from gateway_svc.relay import Client, Relay
from gateway_svc.rules import Rules
from gateway_svc.settlement import FIRST_ERROR_STATUS, Ending, Settlement, settlement
from gateway_svc.usage import of_openai
from gateway_svc.who import Agent, Directory
from mesh.clock import monotonic_ms
from mesh.errors import Aborted, MeshError, PermissionDenied, Unauthenticated, Unavailable
from mesh.secret import Secret
from mesh.telemetry import logs, metrics

KEY_PREFIX = "cpk_"
KEY_CHARACTERS_MAX = 256
STALE_PATH_MS_MAX = 1_000
STALE_PATH_PAUSE_SECONDS = 0.05
BROKEN_OFF_STATUS = 502

log = logs.get(__name__)


class ClientLeft(Exception):
    """The client went away before anything was dispatched."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One HTTP request for a completion; `started_ms` is when it came, on the monotonic clock."""

    request_id: str
    key: Secret | None
    body: bytes
    clamp: bool
    mock: str
    started_ms: float


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may be paid for."""

    ask: Ask
    agent: Agent
    chat: ChatRequest
    model: Model
    policy: Policy
    bound: Bound
    taken: Taken


@dataclass(frozen=True, slots=True)
class Dispatched:
    """A request that is paid for and has gone upstream."""

    admitted: Admitted
    grant: Grant
    credential: Credential | None
    sent_ms: float

    @property
    def headers(self) -> dict[str, str]:
        """Return what the client is told whichever way it ends."""
        headers = self.admitted.taken.headers()
        if self.grant.output_tokens != self.admitted.chat.max_tokens:
            headers["x-mandate-max-tokens"] = str(self.grant.output_tokens)
        return headers


@dataclass(frozen=True, slots=True)
class Parts:
    """What a completion needs."""

    directory: Directory
    rules: Rules
    rates: Rates
    catalog: Catalog
    ledger: Ledger
    credentials: Credentials
    providers: Mapping[str, Provider]


class Completions:
    """The whole path of a completion."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def run(self, ask: Ask, client: Client) -> Reply | None:
        """Serve one completion; None when it was streamed to the client."""
        admitted = await self._admit(ask)  # 1 who, 2 policy, 3 bound
        grant = await self._hold(admitted)  # 4
        try:
            call, provider = await self._prepare(admitted, grant, client)  # 5
            sent_ms = monotonic_ms()
            async with provider.ask(call) as exchange:  # 6
                dispatched = Dispatched(admitted, grant, call.credential, sent_ms)
                return await self._answer(dispatched, exchange, client)  # 7, 8
        except NotSent as error:
            self._void(grant, admitted, "not sent")
            log.warn("upstream.unreachable", provider=admitted.model.provider, error=str(error))
            raise Unavailable("UPSTREAM_UNREACHABLE", "the provider cannot be reached", retry_after_ms=1_000) from None
        except BrokenOff as error:
            log.warn("upstream.cut", provider=admitted.model.provider, error=str(error))
            dispatched = Dispatched(admitted, grant, None, sent_ms=monotonic_ms())
            await self._settle(dispatched, _cut(), None, gone=client.gone())
            raise upstream_errors.cut() from None

    async def agent_of(self, key: Secret | None) -> Agent:
        """Return who a key stands for."""
        return await self._parts.directory.who(_digest(key))

    async def policy_of(self, agent: Agent) -> Policy:
        """Return what an agent may ask for."""
        return await self._parts.rules.over(agent.path)

    async def _admit(self, ask: Ask) -> Admitted:
        agent = await self.agent_of(ask.key)
        policy = await self.policy_of(agent)
        chat = requests.parse(ask.body)
        model = self._parts.catalog.model(chat.model)
        if not policy.allows(model.name):
            raise PermissionDenied("MODEL_NOT_ALLOWED", f"a policy does not allow {model.name}", field="model")
        if model.provider not in self._parts.providers:
            raise Unavailable("PROVIDER_NOT_CONFIGURED", f"the provider {model.provider} is not known here")
        bounded = bound(chat, model, policy, clamp=ask.clamp)
        taken = await self._parts.rates.take(policy.rates, bounded.tokens)
        return Admitted(ask, agent, chat, model, policy, bounded, taken)

    async def _hold(self, admitted: Admitted) -> Grant:
        """Get the hold; where identity's word of a change has not reached the ledger yet, for up to a second."""
        patience_ms = monotonic_ms() + STALE_PATH_MS_MAX
        agent = admitted.agent
        try:
            while True:
                try:
                    outcome = await self._parts.ledger.hold(_place(admitted, agent))
                    break
                except Aborted as stale:
                    if stale.reason != "STALE_PATH" or monotonic_ms() > patience_ms:
                        raise
                    self._parts.directory.forget(_digest(admitted.ask.key))
                    await asyncio.sleep(STALE_PATH_PAUSE_SECONDS)
                    agent = await self.agent_of(admitted.ask.key)
        except MeshError:
            await self._parts.rates.correct(admitted.taken, 0)
            raise
        if isinstance(outcome, Refused):
            await self._parts.rates.correct(admitted.taken, 0)
            raise outcome.error()
        return outcome

    async def _prepare(self, admitted: Admitted, grant: Grant, client: Client) -> tuple[Call, Provider]:
        """Fetch the credential, and see that the hold is still ours and somebody waits; else give the hold back."""
        provider = self._parts.providers[admitted.model.provider]
        try:
            credential = None
            if provider.needs_credential:
                credential = await self._parts.credentials.of(admitted.agent.organization_id, admitted.model.provider)
            call = Call(
                request_id=admitted.ask.request_id,
                chat=admitted.chat,
                model=admitted.model,
                output_tokens=grant.output_tokens,
                credential=credential,
                mock=admitted.ask.mock,
            )
            provider.check(call)
            if client.gone():
                raise ClientLeft
            if not self._parts.ledger.may_dispatch(grant):
                raise Unavailable("ACCOUNTING_UNAVAILABLE", "the ledger's lease ran out", retry_after_ms=500)
        except BaseException:
            self._void(grant, admitted, "not dispatched")
            raise
        return call, provider

    async def _answer(self, dispatched: Dispatched, exchange: Exchange, client: Client) -> Reply | None:
        if dispatched.admitted.chat.stream and exchange.status < FIRST_ERROR_STATUS:
            await self._stream(dispatched, exchange, client)
            return None
        body = await exchange.body()
        answered_ms = monotonic_ms()
        ending = Ending(exchange.status, _usage_of(body), None, complete=True)
        receipt = await self._settle(dispatched, ending, answered_ms, gone=client.gone())
        if exchange.status >= FIRST_ERROR_STATUS:
            return self._upstream_error(dispatched, exchange, body)
        return Reply(exchange.status, receipts.in_body(body, receipt), dispatched.headers)

    async def _stream(self, dispatched: Dispatched, exchange: Exchange, client: Client) -> None:
        await client.begin(dispatched.headers)
        relay = Relay(client)
        ending = await relay.run(exchange)
        answered_ms = monotonic_ms()
        try:
            receipt = await self._settle(
                dispatched, ending, answered_ms, gone=client.gone(), first_token_ms=relay.first_token_at_ms
            )
        except MeshError as error:
            await client.write(upstream_errors.event_of(error))
            return
        if not ending.complete:
            log.warn("upstream.cut", provider=dispatched.admitted.model.provider)
            await client.write(upstream_errors.stream_failure(relay.failure, dispatched.credential))
            return
        wanted = relay.transcript.usage_chunk if dispatched.admitted.chat.usage_wanted else None
        await client.write(receipts.at_end(wanted, receipt))

    def _upstream_error(self, dispatched: Dispatched, exchange: Exchange, body: bytes) -> Reply:
        credential, admitted = dispatched.credential, dispatched.admitted
        if exchange.status in upstream_errors.AUTH_STATUSES:
            self._parts.credentials.forget(admitted.agent.organization_id, admitted.model.provider)
        status, told = upstream_errors.told(exchange.status, body, credential)
        headers = dispatched.headers
        if exchange.retry_after:
            headers["retry-after"] = exchange.retry_after
        return Reply(status, told, headers)

    async def _settle(
        self,
        dispatched: Dispatched,
        ending: Ending,
        answered_ms: float | None,
        *,
        gone: bool,
        first_token_ms: float = 0.0,
    ) -> Receipt:
        admitted, started_ms = dispatched.admitted, dispatched.admitted.ask.started_ms
        settled = settlement(ending, admitted.bound, dispatched.grant.output_tokens, client_gone=gone)
        upstream_ms = (answered_ms or monotonic_ms()) - dispatched.sent_ms
        metrics.COMPLETIONS.labels(admitted.model.provider, settled.outcome).inc()
        report = Report(
            request_id=admitted.ask.request_id,
            agent_id=admitted.agent.id,
            settlement=settled,
            latency_ms=round(monotonic_ms() - started_ms),
            overhead_ms=round(monotonic_ms() - started_ms - upstream_ms),
            first_token_ms=round(first_token_ms - started_ms) if first_token_ms else 0,
            streamed=admitted.chat.stream,
        )
        charged, _ = await asyncio.gather(
            self._parts.ledger.settle(report), self._parts.rates.correct(admitted.taken, settled.usage.total)
        )
        latency_ms = monotonic_ms() - started_ms
        metrics.COMPLETION_SECONDS.observe(latency_ms / 1000)
        return Receipt(
            request_id=admitted.ask.request_id,
            charged_micros=charged.charged_micros,
            balance_micros=charged.balance_micros,
            latency_ms=latency_ms,
            overhead_ms=latency_ms - upstream_ms,
        )

    def _void(self, grant: Grant, admitted: Admitted, reason: str) -> None:
        self._parts.ledger.void(grant, reason)
        metrics.COMPLETIONS.labels(admitted.model.provider, "voided").inc()


def _place(admitted: Admitted, agent: Agent) -> Place:
    return Place(
        request_id=admitted.ask.request_id,
        agent_id=agent.id,
        path_version=agent.path_version,
        api_key_id=agent.api_key_id,
        provider=admitted.model.provider,
        model=admitted.model.name,
        input_tokens_max=admitted.bound.input_tokens_max,
        output_tokens_wanted=admitted.bound.output_tokens_wanted,
        output_tokens_min=admitted.bound.output_tokens_min,
        choices=admitted.bound.choices,
    )
