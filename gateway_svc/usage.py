"""What a provider says it used, as counts in disjoint classes. Prices are the ledger's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import orjson

from gateway_svc.chat import Json, JsonObject

TOKENS_MAX = 10**7  # the ledger prices no more; a larger figure is a broken provider's, not a completion's


class UsageSource(StrEnum):
    """What a provider's own figures were, in the ledger's words; only the first were charged as they came."""

    REPORTED = "reported"
    MISSING = "missing"
    ZERO = "zero"
    INVALID = "invalid"
    ABOVE_BOUND = "above_bound"


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one completion; no token is in two classes."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total(self) -> int:
        """Return all tokens, in and out."""
        written = self.output_tokens + self.reasoning_tokens
        return self.input_tokens + self.cached_input_tokens + self.cache_write_tokens + written


NOTHING = TokenUsage()


def of_openai(usage: Json) -> TokenUsage | None:
    """Read OpenAI's inclusive figures; None when they are missing or broken. Zero is a figure: nothing was used.

    `prompt_tokens` includes cached and cache-written tokens, `completion_tokens` the reasoning; some compatible
    servers count reasoning beside it, which their total tells.
    """
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if prompt is None or completion is None:
        return None
    cached = min(_detail(usage, "prompt_tokens_details", "cached_tokens"), prompt)
    cache_write = min(_detail(usage, "prompt_tokens_details", "cache_write_tokens"), prompt - cached)
    reasoning = _detail(usage, "completion_tokens_details", "reasoning_tokens")
    beside = reasoning > completion or (reasoning > 0 and usage.get("total_tokens") == prompt + completion + reasoning)
    return TokenUsage(
        input_tokens=prompt - cached - cache_write,
        cached_input_tokens=cached,
        cache_write_tokens=cache_write,
        output_tokens=completion if beside else completion - reasoning,
        reasoning_tokens=reasoning,
    )


def of_openai_body(body: bytes) -> TokenUsage | None:
    """Read the figures in a whole answer."""
    try:
        document: Json = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return of_openai(document.get("usage")) if isinstance(document, dict) else None


def _count(usage: JsonObject, name: str) -> int | None:
    value = usage.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOKENS_MAX:
        return None
    return value


def _detail(usage: JsonObject, group: str, name: str) -> int:
    details = usage.get(group)
    return (_count(details, name) or 0) if isinstance(details, dict) else 0
