"""One completion from its first byte to its last: who, policy, bound, hold, credential, dispatch, settle, reply."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from gateway_svc import failures, receipt
from gateway_svc.admission import Admission, Admitted, Ask
from gateway_svc.charging import Ledger
from gateway_svc.credentials import Credentials
from gateway_svc.holds import Grant, Place, Refused, Route
from gateway_svc.passage import BROKEN_OFF, Passage
from gateway_svc.providers import BrokenOff, Call, Exchange, NotSent, Provider
from gateway_svc.relay import Client, Relay
from gateway_svc.settlement import FIRST_ERROR_STATUS, Ending
from gateway_svc.usage import of_openai_body
from gateway_svc.who import Agent
from mesh.clock import monotonic_ms
from mesh.errors import Aborted, MeshError, Unavailable
from mesh.secret import Secret
from mesh.telemetry import logs

OK = 200
STALE_PATH_MS_MAX = 1_000
STALE_PATH_PAUSE_SECONDS = 0.05

log = logs.get(__name__)


class ClientLeft(Exception):
    """The client went away before anything was dispatched."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Completions:
    """The whole path of a completion."""

    def __init__(
        self, admission: Admission, ledger: Ledger, credentials: Credentials, providers: Mapping[str, Provider]
    ) -> None:
        self._admission = admission
        self._ledger = ledger
        self._credentials = credentials
        self._providers = providers

    async def recognize(self, key: Secret | None) -> Agent:
        """Return who asks, known before anything more is read of a request."""
        return await self._admission.agent(key)

    async def run(self, ask: Ask, client: Client) -> Reply | None:
        """Serve one completion; None when it was streamed to the client."""
        admitted = await self._admission.admit(ask)  # 1 who, 2 policy, 3 bound
        provider = self._provider(admitted)
        grant = await self._hold(admitted)  # 4
        passage = Passage(admitted, grant, self._ledger, self._admission)
        try:
            call = await self._prepare(passage, provider, client)  # 5
        except BaseException:
            await passage.void("not dispatched")
            raise
        try:
            return await self._dispatch(passage, provider, call, client)  # 6, 7, 8
        finally:
            passage.abandon()  # does nothing where it was settled or given back

    def _provider(self, admitted: Admitted) -> Provider:
        provider = self._providers.get(admitted.model.provider)
        if provider is None:
            raise Unavailable("PROVIDER_NOT_CONFIGURED", f"the provider {admitted.model.provider} is not known here")
        return provider

    async def _hold(self, admitted: Admitted) -> Grant:
        try:
            outcome = await self._ask_ledger(admitted)
            if isinstance(outcome, Refused):
                raise outcome.error()
        except MeshError:
            await self._admission.correct(admitted, 0)
            raise
        return outcome

    async def _ask_ledger(self, admitted: Admitted) -> Grant | Refused:
        """Ask again for up to a second where the ledger has heard of another path than identity told us."""
        patience_ms = monotonic_ms() + STALE_PATH_MS_MAX
        agent = admitted.agent
        while True:
            try:
                return await self._ledger.hold(_place(admitted, agent))
            except Aborted as stale:
                if stale.reason != "STALE_PATH":
                    raise
                if monotonic_ms() > patience_ms:
                    raise Unavailable("ACCOUNTING_UNAVAILABLE", stale.message, retry_after_ms=500) from None
            await asyncio.sleep(STALE_PATH_PAUSE_SECONDS)
            agent = await self._admission.agent_anew(admitted.ask.key)

    async def _prepare(self, passage: Passage, provider: Provider, client: Client) -> Call:
        """Fetch the credential, and see that somebody still waits and that the hold is still ours."""
        admitted = passage.admitted
        credential = None
        if provider.needs_credential:
            credential = await self._credentials.of(admitted.agent.organization_id, admitted.model.provider)
        call = Call(
            request_id=admitted.ask.request_id,
            chat=admitted.chat,
            model=admitted.model,
            output_tokens=passage.grant.output_tokens,
            credential=credential,
            mock=admitted.ask.mock,
        )
        provider.check(call)
        if client.gone():
            raise ClientLeft
        if not passage.mine:
            raise Unavailable("ACCOUNTING_UNAVAILABLE", "the ledger's lease ran out", retry_after_ms=500)
        return call

    async def _dispatch(self, passage: Passage, provider: Provider, call: Call, client: Client) -> Reply | None:
        passage.sent()
        try:
            async with provider.ask(call) as exchange:
                if call.chat.stream and exchange.status < FIRST_ERROR_STATUS:
                    await self._stream(passage, call, exchange, client)
                    return None
                return await self._whole(passage, call, exchange, client)
        except NotSent as error:
            await passage.void("not sent")
            log.warn("upstream.unreachable", provider=call.model.provider, error=str(error))
            raise failures.unreachable() from None
        except BrokenOff as error:
            log.warn("upstream.cut", provider=call.model.provider, error=str(error))
            await passage.settle(BROKEN_OFF, client_gone=client.gone())
            raise failures.cut() from None

    async def _whole(self, passage: Passage, call: Call, exchange: Exchange, client: Client) -> Reply:
        body = await _body_of(exchange)
        passage.answered()
        ending = Ending(exchange.status, of_openai_body(body), counted_tokens=None, complete=True)
        settled = await passage.settle(ending, client_gone=client.gone())
        if exchange.status < FIRST_ERROR_STATUS:
            return Reply(OK, receipt.in_body(body, settled), passage.headers)
        headers = passage.headers
        if exchange.status in failures.AUTH_STATUSES:
            self._credentials.forget(passage.admitted.agent.organization_id, call.model.provider)
        if exchange.status not in failures.WORTH_A_RETRY:
            headers["x-should-retry"] = "false"
        status, told = failures.told(exchange.status, body, call.secret)
        if after := failures.retry_after(exchange.retry_after):
            headers["retry-after"] = after
        return Reply(status, told, headers)

    async def _stream(self, passage: Passage, call: Call, exchange: Exchange, client: Client) -> None:
        await client.begin(passage.headers)
        relay = Relay(client)
        ending = await relay.run(exchange)
        passage.answered()
        passage.first_token_ms = relay.first_token_at_ms
        try:
            settled = await passage.settle(ending, client_gone=client.gone())
        except MeshError as error:
            await client.write(failures.event(error))
            return
        if not ending.complete:
            log.warn("upstream.cut", provider=call.model.provider, request_id=call.request_id)
            await client.write(failures.stream_failure(relay.failure, call.secret))
            return
        wanted = relay.transcript.usage_chunk if call.chat.usage_wanted else None
        await client.write(receipt.at_end(wanted, settled))


async def _body_of(exchange: Exchange) -> bytes:
    """Read a whole answer; what is left of an error that broke off is nothing, but an error all the same."""
    try:
        return await exchange.body()
    except BrokenOff:
        if exchange.status < FIRST_ERROR_STATUS:
            raise
        return b""


def _place(admitted: Admitted, agent: Agent) -> Place:
    return Place(
        request_id=admitted.ask.request_id,
        agent_id=agent.id,
        path_version=agent.path_version,
        api_key_id=agent.api_key_id,
        routes=(Route(admitted.model.provider, admitted.model.name),),
        input_tokens_max=admitted.bound.input_tokens_max,
        output_tokens_wanted=admitted.bound.output_tokens_wanted,
        output_tokens_min=admitted.bound.output_tokens_min,
        choices=admitted.bound.choices,
        end_user=admitted.chat.end_user,
    )
