"""Prices, and the bill of one completion: how its charge came about."""

from __future__ import annotations

from enum import Enum

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.fields import Info, field
from graphql_edge.schema.pages import SIZE_DEFAULT, Connection, connection, size_of
from graphql_edge.schema.scalars import Int64, Micros
from mandate.ledger.v1 import prices_pb2 as pb
from mesh.errors import Unauthenticated


@strawberry.enum
class TokenClass(Enum):
    """A class of tokens that has a rate of its own; a token is in one class."""

    INPUT = pb.TOKEN_CLASS_INPUT
    CACHED_INPUT = pb.TOKEN_CLASS_CACHED_INPUT
    CACHE_WRITE = pb.TOKEN_CLASS_CACHE_WRITE
    OUTPUT = pb.TOKEN_CLASS_OUTPUT
    REASONING = pb.TOKEN_CLASS_REASONING


@strawberry.type
class PriceTier:
    """What a whole request costs whose input is more than `aboveTokens` tokens; rates are for 1,000,000 tokens."""

    above_tokens: int
    input_micros_per_mtok: Micros
    cached_input_micros_per_mtok: Micros
    cache_write_micros_per_mtok: Micros
    output_micros_per_mtok: Micros
    reasoning_micros_per_mtok: Micros


@strawberry.type
class Price:
    """One version of what one model costs; rates are for 1,000,000 tokens. `sourceDate` is when it was read there.

    `contextTokens` is the most tokens, in and out, that the model takes; where `longerUnpriced` it takes longer prompts
    at rates that are not known, and `contextTokens` is the longest that these rates hold for.
    """

    id: strawberry.ID
    provider: str
    model: str
    input_micros_per_mtok: Micros
    cached_input_micros_per_mtok: Micros
    cache_write_micros_per_mtok: Micros
    output_micros_per_mtok: Micros
    reasoning_micros_per_mtok: Micros
    tiers: list[PriceTier]
    request_micros: Micros
    context_tokens: int
    longer_unpriced: bool
    output_tokens_max: int
    source: str
    source_date: str


@strawberry.type
class BillLine:
    """What one class of tokens comes to, before rounding: 1,000,000 picos are a micro-credit."""

    token_class: TokenClass
    tokens: int
    micros_per_mtok: Micros
    amount_picos: Int64


@strawberry.type
class Bill:
    """How a charge came about, recomputed from what was used and from the price version that it was charged at.

    The lines together, rounded up once, and `requestMicros` are `costMicros`. Of that the organization paid
    `chargedMicros` (`overageMicros` of it above what was held) and the platform `breachMicros`; `matches` says that
    both are the whole. `aboveTokens` is 0 where the price's own rates applied and no tier's.
    """

    provider: str
    model: str
    price: Price
    above_tokens: int
    lines: list[BillLine]
    request_micros: Micros
    cost_micros: Micros
    charged_micros: Micros
    ceiling_micros: Micros
    overage_micros: Micros
    breach_micros: Micros
    matches: bool


def price_of(message: pb.Price) -> Price:
    """Read a price from the contract's message."""
    return Price(
        id=strawberry.ID(message.id),
        provider=message.provider,
        model=message.model,
        input_micros_per_mtok=Micros(message.input_micros_per_mtok),
        cached_input_micros_per_mtok=Micros(message.cached_input_micros_per_mtok),
        cache_write_micros_per_mtok=Micros(message.cache_write_micros_per_mtok),
        output_micros_per_mtok=Micros(message.output_micros_per_mtok),
        reasoning_micros_per_mtok=Micros(message.reasoning_micros_per_mtok),
        tiers=[_tier(tier) for tier in message.tiers],
        request_micros=Micros(message.request_micros),
        context_tokens=message.context_tokens,
        longer_unpriced=message.longer_unpriced,
        output_tokens_max=message.output_tokens_max,
        source=message.source,
        source_date=message.source_date,
    )


async def bill(operation: Operation, organization_id: str, request_id: str) -> Bill:
    """Recompute one completion's charge."""
    request = pb.RecomputeChargeRequest(organization_id=organization_id, request_id=request_id)
    found = await operation.call(operation.stubs.prices.RecomputeCharge, request)
    return Bill(
        provider=found.provider,
        model=found.model,
        price=price_of(found.price),
        above_tokens=found.above_tokens,
        lines=[_line(line) for line in found.lines],
        request_micros=Micros(found.request_micros),
        cost_micros=Micros(found.cost_micros),
        charged_micros=Micros(found.charged_micros),
        ceiling_micros=Micros(found.ceiling_micros),
        overage_micros=Micros(found.overage_micros),
        breach_micros=Micros(found.breach_micros),
        matches=found.matches,
    )


def _tier(message: pb.PriceTier) -> PriceTier:
    return PriceTier(
        above_tokens=message.above_tokens,
        input_micros_per_mtok=Micros(message.input_micros_per_mtok),
        cached_input_micros_per_mtok=Micros(message.cached_input_micros_per_mtok),
        cache_write_micros_per_mtok=Micros(message.cache_write_micros_per_mtok),
        output_micros_per_mtok=Micros(message.output_micros_per_mtok),
        reasoning_micros_per_mtok=Micros(message.reasoning_micros_per_mtok),
    )


def _line(message: pb.BillLine) -> BillLine:
    return BillLine(
        token_class=TokenClass(message.token_class),
        tokens=message.tokens,
        micros_per_mtok=Micros(message.micros_per_mtok),
        amount_picos=Int64(message.amount_picos),
    )


@strawberry.type
class PriceQueries:
    """What models cost."""

    @field
    async def prices(self, info: Info, first: int = SIZE_DEFAULT, after: str | None = None) -> Connection[Price] | None:
        """Page through the prices in force, by provider and model."""
        size = size_of(first)
        if info.context.who.person is None:  # the mesh tells them to the edge itself, for whoever is logged in
            raise Unauthenticated("NOT_LOGGED_IN", "nobody is logged in")
        answer = await info.context.call(info.context.stubs.prices.ListPrices, pb.ListPricesRequest())
        found = {f"{price.provider}/{price.model}": price for price in answer.prices}
        routes = sorted(route for route in found if after is None or route > after)
        page = routes[:size]
        return connection(price_of, [found[route] for route in page], page[-1] if len(routes) > size else "")
