"""What is charged for a completion that went upstream, whichever way it ended. Pure; its cost is the ledger's word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from gateway_svc.bounds import Bound
from gateway_svc.usage import NOTHING, TokenUsage, UsageSource

FIRST_ERROR_STATUS = 300  # nobody follows a redirection: what answers so has done nothing


class Outcome(StrEnum):
    """How a completion ended, in the ledger's words."""

    OK = "ok"
    CLIENT_GONE = "client_gone"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_CUT = "upstream_cut"


@dataclass(frozen=True, slots=True)
class Ending:
    """How the provider's answer ended.

    `usage` is what it said, `usage_seen` whether it said anything at all; `counted_tokens` the output that was seen to
    arrive, None where it can't be counted; `complete` is false when it broke off. `told_input` is what it said of its
    input before it broke off, `wrote` whether anything of its output was seen to come.
    """

    status: int
    usage: TokenUsage | None
    counted_tokens: int | None
    complete: bool
    usage_seen: bool = False
    told_input: TokenUsage | None = None
    wrote: bool = True


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to report to the ledger."""

    usage: TokenUsage
    estimated: bool
    outcome: Outcome
    http_status: int
    source: UsageSource


def settlement(ending: Ending, bound: Bound, output_tokens: int, *, client_gone: bool) -> Settlement:
    """Settle on the provider's own figures, else on our count, else on all that was held; an error costs nothing."""
    if ending.complete and ending.status >= FIRST_ERROR_STATUS:
        source = UsageSource.REPORTED if ending.usage is not None else UsageSource.MISSING
        return Settlement(
            ending.usage or NOTHING,
            estimated=False,
            outcome=Outcome.UPSTREAM_ERROR,
            http_status=ending.status,
            source=source,
        )
    ended = Outcome.OK if ending.complete else Outcome.UPSTREAM_CUT
    outcome = Outcome.CLIENT_GONE if client_gone else ended
    held = ceiling(bound, output_tokens)
    if ending.usage is not None:
        source = _source(ending.usage, held)
        return Settlement(ending.usage, estimated=False, outcome=outcome, http_status=ending.status, source=source)
    if not ending.complete:
        held = _seen(ending, held)
    source = UsageSource.INVALID if ending.usage_seen else UsageSource.MISSING
    return Settlement(held, estimated=True, outcome=outcome, http_status=ending.status, source=source)


def _seen(ending: Ending, held: TokenUsage) -> TokenUsage:
    """Return what is known of a stream that broke off; where it is not, all that was held."""
    output_tokens = held.output_tokens
    if ending.counted_tokens is not None:
        output_tokens = min(ending.counted_tokens, output_tokens)
    if not ending.wrote:
        output_tokens = 0
    if ending.told_input is None:
        return replace(held, output_tokens=output_tokens)
    return replace(ending.told_input, output_tokens=output_tokens)


def ceiling(bound: Bound, output_tokens: int) -> TokenUsage:
    """Return all that a hold of so many output tokens for each choice covers."""
    return TokenUsage(input_tokens=bound.input_tokens_max, output_tokens=output_tokens * bound.choices)


def _source(usage: TokenUsage, held: TokenUsage) -> UsageSource:
    if usage.total == 0:
        return UsageSource.ZERO
    if usage.input_total > held.input_tokens or usage.output_total > held.output_tokens:
        return UsageSource.ABOVE_BOUND
    return UsageSource.REPORTED
