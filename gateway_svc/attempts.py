"""Steps 5 and 6 of a completion: ask one provider after another until one serves, as long as none has billed anything.

A failure that says nothing of what was billed (a time-out of ours or of a proxy's, a cut) ends it: it is never asked
again, anywhere. What a provider itself refuses (409, 425, 429, 5xx; our key; a model that it does not have) it does not
bill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gateway_svc import failures
from gateway_svc.breaker import Admitted as Leave
from gateway_svc.breaker import Circuits, Open
from gateway_svc.choices import Choice
from gateway_svc.credentials import Credentials
from gateway_svc.dialects.registry import limited
from gateway_svc.figures import Attempt
from gateway_svc.passage import Passage
from gateway_svc.providers import BrokenOff, Call, Exchange, NotSent, TooLarge
from gateway_svc.settlement import FIRST_ERROR_STATUS
from mesh import failpoints
from mesh.clock import monotonic_ms
from mesh.errors import MeshError, Unavailable
from mesh.telemetry import logs, metrics

ELSEWHERE = failures.WORTH_A_RETRY | {*failures.AUTH_STATUSES, 404}  # statuses after which another may do better
AMBIGUOUS = frozenset({408, 504, *range(520, 528)})  # somebody between us and the model gave up waiting for it
BAD_GATEWAY = 502  # the same, unless it is the provider's own word
LIMITED = 429
FIRST_SERVER_ERROR = 500
AGAIN_SECONDS = 0.1  # before the only provider that there is, which was not reached, is tried once more

Served = TypeVar("Served")

log = logs.get(__name__)


class Unserved(Exception):
    """No provider was reached: nothing can have been billed."""

    def __init__(self, error: MeshError) -> None:
        super().__init__(error.reason)
        self.error = error


@dataclass(frozen=True, slots=True)
class Refusal:
    """A provider's no, read to its end; of one that broke off nothing is left, but a no it is all the same."""

    route: int
    status: int
    body: bytes
    retry_after: str


class Attempts:
    """Asks providers, and remembers which of them are out of order."""

    def __init__(self, credentials: Credentials, circuits: Circuits) -> None:
        self._credentials = credentials
        self._circuits = circuits
        self._cooling = Circuits()  # which are tried last

    async def serve(self, passage: Passage, serving: Callable[[Exchange], Awaitable[Served]]) -> Served | Refusal:
        """Let the first answer that serves be served, else return the last refusal; Unserved where nobody was asked."""
        choices = passage.admitted.choices
        refusal: Refusal | None = None
        missed: MeshError | None = None
        for turn, route in enumerate(self._order(choices)):
            if turn and len(choices) == 1:
                await asyncio.sleep(AGAIN_SECONDS)
            try:
                served = await self._asked(passage, route, serving)
            except Unserved as passed:
                missed = missed or passed.error
                continue
            if not isinstance(served, Refusal):
                return served
            refusal = served
            if refusal.status not in ELSEWHERE or len(choices) == 1:
                break
        if refusal is None:
            raise Unserved(missed or failures.unreachable())
        passage.went(refusal.route)
        return refusal

    async def _asked(
        self, passage: Passage, route: int, serving: Callable[[Exchange], Awaitable[Served]]
    ) -> Served | Refusal:
        """Ask one provider, and tell its circuit how it did; that of one whose caller went away hears nothing.

        Unserved where it was not reached, or is not to be asked.
        """
        choice = passage.admitted.choices[route]
        call = call_of(passage, choice)
        leave = self._leave(passage, choice)
        attempt = Attempt(choice, call.output_tokens)
        passage.sent(route, attempt)
        try:
            failpoints.reach("gateway.dispatch.asking")
            async with attempt.asking(choice.provider, call) as exchange:
                failpoints.reach("gateway.dispatch.answered")
                attempt.answered(exchange.status)
                if exchange.status == LIMITED:
                    self._cool(choice, exchange.retry_after)
                if exchange.status < FIRST_ERROR_STATUS:
                    served = await serving(exchange)
                else:
                    served = await self._refusal(passage, route, exchange)
            self._judge(leave, failed=exchange.status >= FIRST_SERVER_ERROR)
        except (NotSent, BrokenOff) as error:
            attempt.failed(error)
            self._judge(leave, failed=not isinstance(error, TooLarge))
            if isinstance(error, BrokenOff):
                raise
            log.warn("upstream.unreachable", provider=choice.model.provider, error=str(error))
            raise Unserved(failures.unreachable()) from None
        finally:
            attempt.end()
            if leave is not None:
                self._circuits.abandoned(leave)
        return served

    def _order(self, choices: Sequence[Choice]) -> list[int]:
        """Put those last whose provider has just said that it takes no more of this model; they are tried all the same.

        Another request of fewer tokens may pass where one did not.
        """
        if len(choices) == 1:
            return [0, 0]  # a second time where it was not reached; whatever answered is not asked again
        return sorted(range(len(choices)), key=lambda route: self._is_cooling(choices[route]))

    def _is_cooling(self, choice: Choice) -> bool:
        if choice.circuit is None:
            return False
        leave = self._cooling.admit(choice.circuit, monotonic_ms())
        if isinstance(leave, Open):
            return True
        self._cooling.abandoned(leave)
        return False

    def _cool(self, choice: Choice, retry_after: str) -> None:
        """Remember for how long a model is to be tried last."""
        if choice.circuit is None:
            return
        now_ms = monotonic_ms()
        leave = self._cooling.admit(choice.circuit, now_ms)
        if not isinstance(leave, Open):
            self._cooling.limited(leave, failures.seconds_of(retry_after) * 1_000, now_ms)

    def _leave(self, passage: Passage, choice: Choice) -> Leave | None:
        """Return leave to ask, None where no circuit is kept; Unserved where it is open, or the lease is over."""
        if not passage.mine:
            raise Unserved(Unavailable("ACCOUNTING_UNAVAILABLE", "the ledger's lease ran out", retry_after_ms=500))
        circuit = choice.circuit
        leave = None if circuit is None else self._circuits.admit(circuit, monotonic_ms())
        if isinstance(leave, Open):
            text = f"the provider {choice.model.provider} fails too often and is not asked for a while"
            raise Unserved(Unavailable("UPSTREAM_CIRCUIT_OPEN", text, retry_after_ms=leave.retry_after_ms))
        return leave

    def _judge(self, leave: Leave | None, *, failed: bool) -> None:
        if leave is None:
            return
        if not failed:
            self._circuits.succeeded(leave, monotonic_ms())
            return
        opened = self._circuits.failed(leave, monotonic_ms())
        if opened is not None:
            provider = leave.key.provider
            metrics.CIRCUITS_OPENED.labels(provider).inc()
            log.warn("upstream.circuit_opened", provider=provider, retry_after_ms=opened.retry_after_ms)

    async def _refusal(self, passage: Passage, route: int, exchange: Exchange) -> Refusal:
        choice = passage.admitted.choices[route]
        try:
            body = await exchange.body()
        except BrokenOff:
            body = b""
        if exchange.status in failures.AUTH_STATUSES:
            self._credentials.forget(passage.admitted.agent.organization_id, choice.model.provider)
        log.event("upstream.refused", provider=choice.model.provider, model=choice.model.name, status=exchange.status)
        if exchange.status in AMBIGUOUS or (exchange.status == BAD_GATEWAY and not failures.is_an_error(body)):
            raise BrokenOff(f"answered {exchange.status}")
        return Refusal(route, exchange.status, body, exchange.retry_after)


def call_of(passage: Passage, choice: Choice) -> Call:
    """Build what goes upstream: the request in the provider's dialect, with the limit that is paid for."""
    tokens = min(passage.grant.output_tokens, choice.model.output_tokens_max or passage.grant.output_tokens)
    return Call(
        request_id=passage.admitted.ask.request_id,
        request=choice.far.request,
        document=limited(choice.far.request, choice.model.name, tokens),
        model=choice.model.name,
        output_tokens=tokens,
        credential=choice.credential,
        mock=passage.admitted.ask.mock,
    )
