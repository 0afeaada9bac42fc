"""Prices: read them."""

from __future__ import annotations

from typing import Any

import grpc

from ledger_svc import wire
from ledger_svc.price_book import PriceBook
from mandate.ledger.v1 import prices_pb2 as pb
from mandate.ledger.v1 import prices_pb2_grpc as rpc

Context = grpc.aio.ServicerContext[Any, Any]


class PriceServicer(rpc.PriceServiceServicer):
    """Implements mandate.ledger.v1.PriceService."""

    def __init__(self, prices: PriceBook) -> None:
        self._prices = prices

    async def ListPrices(self, request: pb.ListPricesRequest, context: Context) -> pb.ListPricesResponse:
        return pb.ListPricesResponse(prices=[wire.price(price) for price in self._prices.all()])
