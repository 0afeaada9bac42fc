"""What tokens cost: ceilings before, costs after. Pure integers; each request is rounded up once, to a micro-credit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOKENS_PER_MTOK = 1_000_000
TOKENS_MAX = 10_000_000  # of one class in one request; keeps every product inside 64 bits
NUMERATOR_MAX = 9 * 10**18
UNBILLED = frozenset({"upstream_error"})


@dataclass(frozen=True, slots=True)
class Price:
    """One version of what one model costs; rates in micro-credits for 1,000,000 tokens."""

    id: str
    provider: str
    model: str
    input_rate: int
    cached_input_rate: int
    cache_write_rate: int
    output_rate: int
    reasoning_rate: int
    request_micros: int
    context_tokens: int
    output_tokens_max: int
    source: str
    source_date: str

    @property
    def route(self) -> str:
        """Return the name that holds know it by."""
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in disjoint classes."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def empty(self) -> bool:
        """Return whether nothing was used."""
        return not any(
            (
                self.input_tokens,
                self.cached_input_tokens,
                self.cache_write_tokens,
                self.output_tokens,
                self.reasoning_tokens,
            )
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """What a request may cost at most: input + output at a rate, in millionths of a micro-credit, and a flat part."""

    input_cost: int
    output_rate: int
    flat_micros: int

    def ceiling_micros(self, output_tokens: int) -> int:
        """Return the most that so many output tokens (of each choice) can cost, in micro-credits."""
        return -(-(self.input_cost + output_tokens * self.output_rate) // TOKENS_PER_MTOK) + self.flat_micros


@dataclass(frozen=True, slots=True)
class Unpriceable:
    """The request is too large to be priced in 64 bits."""


def bound(prices: Sequence[Price], input_tokens_max: int, output_tokens: int, choices: int) -> Bound | Unpriceable:
    """Bound a request over every route it may take: each part at the dearest of them."""
    dearest_input = max(max(price.input_rate, price.cached_input_rate, price.cache_write_rate) for price in prices)
    dearest_output = max(max(price.output_rate, price.reasoning_rate) for price in prices)
    found = Bound(
        input_cost=input_tokens_max * dearest_input,
        output_rate=dearest_output * choices,
        flat_micros=max(price.request_micros for price in prices),
    )
    if found.input_cost + output_tokens * found.output_rate > NUMERATOR_MAX:
        return Unpriceable()
    return found


def cost_micros(price: Price, usage: Usage, outcome: str) -> int:
    """Return what a completion cost, in micro-credits; a refusal by the provider that used nothing costs nothing."""
    if outcome in UNBILLED and usage.empty:
        return 0
    numerator = (
        usage.input_tokens * price.input_rate
        + usage.cached_input_tokens * price.cached_input_rate
        + usage.cache_write_tokens * price.cache_write_rate
        + usage.output_tokens * price.output_rate
        + usage.reasoning_tokens * price.reasoning_rate
    )
    return -(-numerator // TOKENS_PER_MTOK) + price.request_micros
