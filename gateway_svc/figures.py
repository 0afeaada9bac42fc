"""What is told of completions: counted for Prometheus and, where traces are on, put on their spans.

Never a prompt, a key, or what a provider said. Labels are few: models by the names of the price list, statuses by class
but for those that mean something, and of all sets of labels no more than `tallies` keeps.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from gateway_svc import genai
from gateway_svc.choices import Choice
from gateway_svc.dialects import Dialect
from gateway_svc.holds import Report
from gateway_svc.providers import BrokenOff, Call, Exchange, NotSent, Provider
from gateway_svc.settlement import FIRST_ERROR_STATUS, Outcome
from gateway_svc.usage import TokenUsage
from mesh.clock import monotonic_ms
from mesh.telemetry import metrics, traces
from mesh.telemetry.tallies import OTHER, SERIES_MAX, Count, Observations

TOLD_STATUSES = frozenset({400, 401, 402, 403, 404, 408, 409, 413, 422, 425, 429, 500, 502, 503, 504, 529})
NOT_SENT, ABANDONED = "not_sent", "abandoned"
VOIDED = "voided"
INPUT, CACHED, WRITTEN, OUTPUT, REASONING = "input", "cached_input", "cache_write", "output", "reasoning"

Labels = TypeVar("Labels", bound=tuple[str, ...])
Series = TypeVar("Series")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Where completions of one kind are counted."""

    number: Count
    seconds: Observations
    first_token_seconds: Observations
    overhead_seconds: Observations
    input_tokens: Observations
    output_tokens: Observations
    input_class: Count
    cached_class: Count
    written_class: Count
    output_class: Count
    reasoning_class: Count

    def use(self, usage: TokenUsage) -> None:
        """Count tokens: all that went in and out, and each class on its own."""
        self.input_tokens.add(usage.input_total)
        self.output_tokens.add(usage.output_total)
        self.input_class.total += usage.input_tokens
        self.cached_class.total += usage.cached_input_tokens
        self.written_class.total += usage.cache_write_tokens
        self.output_class.total += usage.output_tokens
        self.reasoning_class.total += usage.reasoning_tokens


_kinds: dict[tuple[str, str, Dialect, str, str], _Kind] = {}
_attempts: dict[tuple[str, str, Dialect, str], Observations] = {}


class Attempt:
    """One call upstream: timed, counted by how it ended and, where traces are on, a span."""

    __slots__ = ("_choice", "_error_type", "_span", "_started_ms")

    def __init__(self, choice: Choice, output_tokens: int) -> None:
        self._choice = choice
        self._error_type = ABANDONED  # unless it ends some other way
        self._started_ms = monotonic_ms()
        self._span = _span(choice, output_tokens) if traces.enabled() else None

    def asking(self, provider: Provider, call: Call) -> AbstractAsyncContextManager[Exchange]:
        """Ask, so that all of it up to the answer's head is part of the span, if there is one."""
        if self._span is None:
            return provider.ask(call)
        with traces.within(self._span):
            return traces.Within(provider.ask(call), self._span)

    def answered(self, status: int) -> None:
        """Note the head of an answer."""
        self._error_type = "" if status < FIRST_ERROR_STATUS else told(status)
        if self._span is not None:
            self._span.set(genai.HTTP_STATUS, status)

    def failed(self, error: NotSent | BrokenOff) -> None:
        """Note that there was no answer, or not all of one."""
        self._error_type = NOT_SENT if isinstance(error, NotSent) else Outcome.UPSTREAM_CUT

    def settled(self, usage: TokenUsage, outcome: Outcome) -> None:
        """Note what it came to; does nothing once it has ended."""
        if outcome is Outcome.UPSTREAM_CUT and not self._error_type:
            self._error_type = outcome
        if self._span is not None:
            self._span.tell(genai.used(usage))

    def end(self) -> None:
        """Count it."""
        model = self._choice.model
        dialect = self._choice.far.request.dialect
        labels = (model.provider, _name(self._choice), dialect, self._error_type)
        series = _attempts.get(labels)
        if series is None:
            names = (genai.OPERATIONS[dialect], model.provider, _name(self._choice), self._error_type)
            series = _remember(_attempts, labels, metrics.UPSTREAM_SECONDS.of(*names))
        series.add((monotonic_ms() - self._started_ms) / 1000)
        span, self._span = self._span, None
        if span is not None:
            if self._error_type:
                span.failed(self._error_type)
            span.end()


def completed(choice: Choice, report: Report, attempt: Attempt | None, latency_ms: float, overhead_ms: float) -> None:
    """Count a completion that something was charged for, or might have been."""
    settled = report.settlement
    usage = settled.usage
    error = _error(settled.outcome, settled.http_status)
    kind = _kind(choice, report.dialect, settled.outcome, error)
    kind.number.total += 1
    kind.seconds.add(latency_ms / 1000)
    kind.overhead_seconds.add(overhead_ms / 1000)
    if report.first_token_ms:
        kind.first_token_seconds.add(report.first_token_ms / 1000)
    if usage.total:
        kind.use(usage)
    if attempt is not None:
        attempt.settled(usage, settled.outcome)
    if (span := traces.current()) is not None:
        asked = genai.asked(report.dialect, choice.model.provider, choice.model.name, stream=report.streamed)
        ours: dict[str, str | int] = {"mandate.outcome": settled.outcome, "mandate.attempts": report.attempts}
        span.tell(asked | genai.used(usage) | ours)
        if error:
            span.failed(error)


def voided(choice: Choice, dialect: Dialect) -> None:
    """Count a completion of which no byte went upstream."""
    metrics.COMPLETIONS.of(choice.model.provider, _name(choice), dialect, VOIDED).add()


def told(status: int) -> str:
    """Return what a label tells of a provider's status."""
    return str(status) if status in TOLD_STATUSES else f"{status // 100}xx"


def _error(outcome: Outcome, status: int) -> str:
    if outcome is Outcome.OK:
        return ""
    return told(status) if outcome is Outcome.UPSTREAM_ERROR else outcome


def _name(choice: Choice) -> str:
    return choice.model.name if choice.priced else OTHER


def _kind(choice: Choice, dialect: Dialect, outcome: Outcome, error: str) -> _Kind:
    provider, model = choice.model.provider, _name(choice)
    labels = (provider, model, dialect, outcome, error)
    kind = _kinds.get(labels)
    if kind is not None:
        return kind
    operation = (genai.OPERATIONS[dialect], provider, model)
    kind = _Kind(
        number=metrics.COMPLETIONS.of(provider, model, dialect, outcome),
        seconds=metrics.REQUEST_SECONDS.of(*operation, error),
        first_token_seconds=metrics.FIRST_TOKEN_SECONDS.of(*operation),
        overhead_seconds=metrics.OVERHEAD_SECONDS.of(dialect),
        input_tokens=metrics.TOKEN_USAGE.of(*operation, genai.INPUT),
        output_tokens=metrics.TOKEN_USAGE.of(*operation, genai.OUTPUT),
        input_class=metrics.TOKENS.of(provider, model, INPUT),
        cached_class=metrics.TOKENS.of(provider, model, CACHED),
        written_class=metrics.TOKENS.of(provider, model, WRITTEN),
        output_class=metrics.TOKENS.of(provider, model, OUTPUT),
        reasoning_class=metrics.TOKENS.of(provider, model, REASONING),
    )
    return _remember(_kinds, labels, kind)


def _remember(known: dict[Labels, Series], labels: Labels, series: Series) -> Series:
    if len(known) < SERIES_MAX:
        known[labels] = series
    return series


def _span(choice: Choice, output_tokens: int) -> traces.Span | None:
    request, model = choice.far.request, choice.model
    asked = genai.asked(request.dialect, model.provider, model.name, stream=request.stream)
    limited = genai.limited(output_tokens, request.choices) if request.generates else {}
    return traces.asking(f"{asked[genai.OPERATION_NAME]} {model.name}", asked | limited)
