"""Prices: read them, and recompute what was charged at one."""

from __future__ import annotations

from typing import Any

import grpc

from ledger_svc import pricing
from ledger_svc.price_book import PriceBook
from ledger_svc.pricing import Price, Usage
from ledger_svc.store import prices as store
from mandate.ledger.v1 import prices_pb2 as pb
from mandate.ledger.v1 import prices_pb2_grpc as rpc
from mesh.db import Database, Row
from mesh.errors import NotFound

Context = grpc.aio.ServicerContext[Any, Any]
CLASSES = {
    "input": pb.TOKEN_CLASS_INPUT,
    "cached_input": pb.TOKEN_CLASS_CACHED_INPUT,
    "cache_write": pb.TOKEN_CLASS_CACHE_WRITE,
    "output": pb.TOKEN_CLASS_OUTPUT,
    "reasoning": pb.TOKEN_CLASS_REASONING,
}


class PriceServicer(rpc.PriceServiceServicer):
    """Implements mandate.ledger.v1.PriceService."""

    def __init__(self, db: Database, prices: PriceBook) -> None:
        self._db = db
        self._prices = prices

    async def ListPrices(self, request: pb.ListPricesRequest, context: Context) -> pb.ListPricesResponse:
        return pb.ListPricesResponse(prices=[packed(price) for price in self._prices.all()])

    async def RecomputeCharge(self, request: pb.RecomputeChargeRequest, context: Context) -> pb.Bill:
        row = await store.completion(self._db, request.organization_id, request.request_id)
        if row is None:
            raise NotFound("USAGE_NOT_FOUND", "no completion was settled under this id", field="request_id")
        return _bill(row, await self._prices.version(row["price_id"]))


def packed(price: Price) -> pb.Price:
    """Pack a price."""
    return pb.Price(
        id=price.id,
        provider=price.provider,
        model=price.model,
        input_micros_per_mtok=price.rates.input,
        cached_input_micros_per_mtok=price.rates.cached_input,
        cache_write_micros_per_mtok=price.rates.cache_write,
        output_micros_per_mtok=price.rates.output,
        reasoning_micros_per_mtok=price.rates.reasoning,
        request_micros=price.request_micros,
        context_tokens=price.context_tokens,
        longer_unpriced=price.longer_unpriced,
        output_tokens_max=price.output_tokens_max,
        source=price.source,
        source_date=price.source_date,
        tiers=[
            pb.PriceTier(
                above_tokens=tier.above_tokens,
                input_micros_per_mtok=tier.rates.input,
                cached_input_micros_per_mtok=tier.rates.cached_input,
                cache_write_micros_per_mtok=tier.rates.cache_write,
                output_micros_per_mtok=tier.rates.output,
                reasoning_micros_per_mtok=tier.rates.reasoning,
            )
            for tier in price.tiers
        ],
    )


def _bill(row: Row, price: Price) -> pb.Bill:
    usage = Usage(
        input_tokens=row["input_tokens"],
        cached_input_tokens=row["cached_input_tokens"],
        cache_write_tokens=row["cache_write_tokens"],
        output_tokens=row["output_tokens"],
        reasoning_tokens=row["reasoning_tokens"],
    )
    bill = pricing.bill(price, usage, row["outcome"])
    return pb.Bill(
        request_id=row["request_id"],
        provider=row["provider"],
        model=row["model"],
        price=packed(price),
        above_tokens=bill.above_tokens,
        lines=[
            pb.BillLine(
                token_class=CLASSES[line.kind], tokens=line.tokens, micros_per_mtok=line.rate, amount_picos=line.picos
            )
            for line in bill.lines
        ],
        request_micros=bill.request_micros,
        cost_micros=bill.cost_micros,
        charged_micros=row["charged_micros"],
        ceiling_micros=row["ceiling_micros"],
        overage_micros=max(0, row["charged_micros"] - row["ceiling_micros"]),
        breach_micros=row["breach_micros"],
        matches=bill.cost_micros == row["charged_micros"] + row["breach_micros"],
    )
