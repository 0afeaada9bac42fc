"""What is charged for a completion that went upstream, whichever way it ended. Pure; its cost is the ledger's word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from gateway_svc.bounds import Bound
from gateway_svc.usage import NOTHING, TokenUsage

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

    `usage` is what it said, `counted_tokens` the output that was seen to arrive, None where it was not counted;
    `complete` is false when it broke off.
    """

    status: int
    usage: TokenUsage | None
    counted_tokens: int | None
    complete: bool


@dataclass(frozen=True, slots=True)
class Settlement:
    """What to report to the ledger."""

    usage: TokenUsage
    estimated: bool
    outcome: Outcome
    http_status: int


def settlement(ending: Ending, bound: Bound, output_tokens: int, *, client_gone: bool) -> Settlement:
    """Settle on the provider's own figures, else on our count, else on all that was held; an error costs nothing."""
    if ending.complete and ending.status >= FIRST_ERROR_STATUS:
        return Settlement(
            ending.usage or NOTHING, estimated=False, outcome=Outcome.UPSTREAM_ERROR, http_status=ending.status
        )
    ended = Outcome.OK if ending.complete else Outcome.UPSTREAM_CUT
    outcome = Outcome.CLIENT_GONE if client_gone else ended
    held = ceiling(bound, output_tokens)
    if ending.usage is not None:
        return Settlement(ending.usage, estimated=False, outcome=outcome, http_status=ending.status)
    if not ending.complete and ending.counted_tokens is not None:
        held = replace(held, output_tokens=min(ending.counted_tokens, held.output_tokens))
    return Settlement(held, estimated=True, outcome=outcome, http_status=ending.status)


def ceiling(bound: Bound, output_tokens: int) -> TokenUsage:
    """Return all that a hold of so many output tokens for each choice covers."""
    return TokenUsage(input_tokens=bound.input_tokens_max, output_tokens=output_tokens * bound.choices)
