"""One completion between its hold and its settle: once bytes have gone upstream it is settled exactly once."""

from __future__ import annotations

from gateway_svc import figures
from gateway_svc.admission import Admission, Admitted
from gateway_svc.charging import Ledger
from gateway_svc.choices import Choice
from gateway_svc.figures import Attempt
from gateway_svc.holds import Grant, Report
from gateway_svc.receipt import Receipt
from gateway_svc.settlement import Ending, ceiling, settlement
from gateway_svc.tellings.registry import TELLINGS
from mesh.clock import monotonic_ms
from mesh.telemetry import logs

BROKEN_OFF = Ending(status=502, usage=None, counted_tokens=None, complete=False)

log = logs.get(__name__)


class Passage:
    """A granted hold on its way to being settled or given back."""

    def __init__(self, admitted: Admitted, grant: Grant, ledger: Ledger, admission: Admission) -> None:
        self.admitted = admitted
        self.grant = grant
        self.first_token_ms = 0.0
        self._ledger = ledger
        self._admission = admission
        self._sent_ms = 0.0
        self._answered_ms = 0.0
        self._attempts = 0
        self._attempt: Attempt | None = None
        self._route = 0
        self._closed = False

    @property
    def headers(self) -> dict[str, str]:
        """Return what the client is told however it ends."""
        headers = TELLINGS[self.admitted.ask.dialect].rates(self.admitted.taken)
        request = self.admitted.request
        if request.generates and self.grant.output_tokens != request.max_tokens:
            headers["x-mandate-max-tokens"] = str(self.grant.output_tokens)
        if (model := self.choice.model).name != request.model:
            headers["x-mandate-model"] = f"{model.provider}/{model.name}"
        return headers

    @property
    def mine(self) -> bool:
        """Return whether the hold may still be dispatched."""
        return self._ledger.may_dispatch(self.grant)

    @property
    def choice(self) -> Choice:
        """Return the way that was gone last."""
        return self.admitted.choices[self._route]

    def sent(self, route: int, attempt: Attempt) -> None:
        """Note that bytes go upstream from now on, and which way."""
        self._route = route
        self._attempt = attempt
        self._attempts += 1
        self._sent_ms = self._sent_ms or monotonic_ms()

    def went(self, route: int) -> None:
        """Note which of the ways that were gone the answer came from."""
        self._route = route

    def answered(self) -> None:
        """Note that the provider has finished."""
        self._answered_ms = monotonic_ms()

    async def void(self, reason: str) -> None:
        """Give back the hold, and the tokens that were taken of the rates; only where no byte went upstream."""
        if self._closed:
            return
        self._closed = True
        self._ledger.void(self.grant, reason)
        figures.voided(self.choice, self.admitted.request.dialect)
        self._admission.correct(self.admitted, 0)

    async def settle(self, ending: Ending, *, client_gone: bool) -> Receipt:
        """Charge what was used and wait for the commit; SETTLEMENT_PENDING when it does not come in 30 s."""
        report = self._report(ending, client_gone=client_gone)
        self._closed = True
        charging = self._ledger.settle(report)
        self._admission.correct(self.admitted, report.settlement.usage.total)
        try:
            charged = await charging
        finally:
            latency_ms = monotonic_ms() - self.admitted.ask.started_ms
            overhead_ms = max(0.0, latency_ms - self._upstream_ms)
            figures.completed(self.choice, report, self._attempt, latency_ms, overhead_ms)
        return Receipt(
            request_id=report.request_id,
            charged_micros=charged.charged_micros,
            balance_micros=charged.balance_micros,
            latency_ms=latency_ms,
            overhead_ms=overhead_ms,
        )

    def abandon(self) -> None:
        """Settle on everything that was held, without waiting, where nobody is left to know better."""
        if not self._closed:
            self._closed = True
            log.warn("completion.abandoned", request_id=self.admitted.ask.request_id)
            report = self._report(BROKEN_OFF, client_gone=False)
            self._ledger.settle_later(report)
            figures.completed(self.choice, report, self._attempt, report.latency_ms, report.overhead_ms)

    @property
    def _upstream_ms(self) -> float:
        return (self._answered_ms or monotonic_ms()) - self._sent_ms

    def _report(self, ending: Ending, *, client_gone: bool) -> Report:
        settled = settlement(ending, self.admitted.bound, self.grant.output_tokens, client_gone=client_gone)
        started_ms = self.admitted.ask.started_ms
        latency_ms = monotonic_ms() - started_ms
        return Report(
            request_id=self.admitted.ask.request_id,
            agent_id=self.admitted.agent.id,
            settlement=settled,
            ceiling=ceiling(self.admitted.bound, self.grant.output_tokens),
            latency_ms=round(latency_ms),
            overhead_ms=max(0, round(latency_ms - self._upstream_ms)),
            first_token_ms=round(self.first_token_ms - started_ms) if self.first_token_ms else 0,
            streamed=self.admitted.request.stream,
            route=self._route,
            attempts=self._attempts,
            dialect=self.admitted.request.dialect,
        )
