"""What tokens cost: ceilings before, costs after. Pure integers; each request is rounded up once, to a micro-credit.

Where a vendor charges more for long prompts, the whole request has the rates of the tier that its input falls in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TOKENS_PER_MTOK = 1_000_000
TOKENS_MAX = 10_000_000  # of one class in one request
NUMERATOR_MAX = 9 * 10**18  # picos in 64 bits, with room to round up
RATE_MAX = NUMERATOR_MAX // TOKENS_MAX  # so that no class of tokens alone passes it
REQUEST_MICROS_MAX = 10**12
TIERS_MAX = 4
NAME_MAX = 100
SEPARATORS = frozenset(",#@")  # of routes and of price ids
UNBILLED = frozenset({"upstream_error"})


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens in disjoint classes."""

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """Return all tokens that went in, whatever a cache did with them: a tier goes by them."""
        return self.input_tokens + self.cached_input_tokens + self.cache_write_tokens

    @property
    def empty(self) -> bool:
        """Return whether nothing was used."""
        return not (self.prompt_tokens or self.output_tokens or self.reasoning_tokens)


@dataclass(frozen=True, slots=True)
class Rates:
    """Micro-credits for 1,000,000 tokens of each class, each up to RATE_MAX."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    reasoning: int

    @property
    def dearest_input(self) -> int:
        """Return the most that a token can cost that goes in."""
        return max(self.input, self.cached_input, self.cache_write)

    @property
    def dearest_output(self) -> int:
        """Return the most that a token can cost that comes out."""
        return max(self.output, self.reasoning)

    def picos(self, usage: Usage) -> int:
        """Return what tokens cost in millionths of a micro-credit, which is exact."""
        return (
            usage.input_tokens * self.input
            + usage.cached_input_tokens * self.cached_input
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
            + usage.reasoning_tokens * self.reasoning
        )


@dataclass(frozen=True, slots=True)
class Tier:
    """The rates of a whole request with more than so many tokens of input; above 0 for all but a price's first."""

    above_tokens: int
    rates: Rates


@dataclass(frozen=True, slots=True)
class Price:
    """One version of what one model costs; tiers by rising `above_tokens`, at most TIERS_MAX.

    `context_tokens` is what the model takes, or where `longer_unpriced` the longest prompt that these rates hold for.
    """

    id: str
    provider: str
    model: str
    rates: Rates
    request_micros: int
    context_tokens: int
    output_tokens_max: int
    source: str
    source_date: str
    tiers: tuple[Tier, ...] = ()
    longer_unpriced: bool = False

    @property
    def route(self) -> str:
        """Return the name that holds know it by."""
        return f"{self.provider}/{self.model}"

    def tier(self, prompt_tokens: int) -> Tier:
        """Return what a request with so many tokens of input is charged by."""
        *_, last = self.tiers_within(prompt_tokens)
        return last

    def tiers_within(self, prompt_tokens: int) -> Iterator[Tier]:
        """Return what a request with at most so many tokens of input may be charged by."""
        yield Tier(0, self.rates)
        yield from (tier for tier in self.tiers if tier.above_tokens < prompt_tokens)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a request may cost at most: input + output at a rate, in millionths of a micro-credit, and a flat part."""

    input_cost: int
    output_rate: int
    flat_micros: int

    def ceiling_micros(self, output_tokens: int) -> int:
        """Return the most that so many output tokens (of each choice) can cost, in micro-credits."""
        return _rounded_up(self.input_cost + output_tokens * self.output_rate) + self.flat_micros

    def output_within(self, cost_max_micros: int, wanted: int) -> int:
        """Return how many of the wanted output tokens can cost no more; below 0 where the request itself can."""
        left = (cost_max_micros - self.flat_micros) * TOKENS_PER_MTOK - self.input_cost
        if left < 0:
            return -1
        return min(wanted, left // self.output_rate) if self.output_rate else wanted


@dataclass(frozen=True, slots=True)
class Unpriceable:
    """The request is too large to be priced in 64 bits."""


@dataclass(frozen=True, slots=True)
class Line:
    """One class of tokens on a bill; `kind` is the name of its rate."""

    kind: str
    tokens: int
    rate: int

    @property
    def picos(self) -> int:
        """Return what it comes to before rounding, in millionths of a micro-credit; below 2^63."""
        return self.tokens * self.rate


@dataclass(frozen=True, slots=True)
class Bill:
    """How a cost comes about: the lines together, rounded up once, and what the request costs by itself."""

    above_tokens: int
    lines: tuple[Line, ...]
    request_micros: int

    @property
    def cost_micros(self) -> int:
        """Return the whole."""
        return _rounded_up(sum(line.picos for line in self.lines)) + self.request_micros


def bound(prices: Sequence[Price], input_tokens_max: int, output_tokens: int, choices: int) -> Bound | Unpriceable:
    """Bound a request over every route it may take and every tier it may reach: each part at the dearest of them."""
    rates = [tier.rates for price in prices for tier in price.tiers_within(input_tokens_max)]
    found = Bound(
        input_cost=input_tokens_max * max(each.dearest_input for each in rates),
        output_rate=max(each.dearest_output for each in rates) * choices,
        flat_micros=max(price.request_micros for price in prices),
    )
    if found.input_cost + output_tokens * found.output_rate > NUMERATOR_MAX:
        return Unpriceable()
    return found


def cost_micros(price: Price, usage: Usage, outcome: str) -> int:
    """Return what a completion cost, in micro-credits; a refusal by the provider that used nothing costs nothing."""
    if outcome in UNBILLED and usage.empty:
        return 0
    return _rounded_up(price.tier(usage.prompt_tokens).rates.picos(usage)) + price.request_micros


def bill(price: Price, usage: Usage, outcome: str) -> Bill:
    """Return how `cost_micros` comes about, line by line; classes without tokens have none."""
    tier = price.tier(usage.prompt_tokens)
    classes = (
        ("input", usage.input_tokens, tier.rates.input),
        ("cached_input", usage.cached_input_tokens, tier.rates.cached_input),
        ("cache_write", usage.cache_write_tokens, tier.rates.cache_write),
        ("output", usage.output_tokens, tier.rates.output),
        ("reasoning", usage.reasoning_tokens, tier.rates.reasoning),
    )
    lines = tuple(Line(kind, tokens, rate) for kind, tokens, rate in classes if tokens)
    free = outcome in UNBILLED and usage.empty
    return Bill(tier.above_tokens, lines, 0 if free else price.request_micros)


def is_route(provider: str, model: str) -> bool:
    """Return whether names can stand in a hold's list of routes, and so in a price."""
    return all(
        0 < len(name) <= NAME_MAX and name.isprintable() and " " not in name and not SEPARATORS & set(name)
        for name in (provider, model)
    ) and ("/" not in provider)


def _rounded_up(picos: int) -> int:
    return -(-picos // TOKENS_PER_MTOK)
