"""Which models there are, as the ledger's price list says, read anew every few seconds."""

from __future__ import annotations

import asyncio

import grpc

from gateway_svc.bounds import Model
from mandate.ledger.v1 import prices_pb2, prices_pb2_grpc
from mesh import client
from mesh.errors import MeshError, NotFound, Unavailable
from mesh.telemetry import logs

READ_EVERY_SECONDS = 2.0
RETRY_SECONDS = 0.2

log = logs.get(__name__)


class Catalog:
    """The models that have a price, by name."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ledger = prices_pb2_grpc.PriceServiceStub(channel)
        self._models: dict[str, Model] | None = None

    @property
    def loaded(self) -> bool:
        """Return whether a price list has ever been read."""
        return self._models is not None

    def models(self) -> list[Model]:
        """Return every model in the order of its name; ACCOUNTING_UNAVAILABLE before the first list has come."""
        return sorted(self._listed().values(), key=lambda model: model.name)

    def model(self, name: str) -> Model:
        """Return a model; MODEL_NOT_FOUND when it has no price."""
        found = self._listed().get(name)
        if found is None:
            raise NotFound("MODEL_NOT_FOUND", f"there is no model {name!r}", field="model")
        return found

    def find(self, provider: str, name: str) -> Model | None:
        """Return a provider's model; None when it has no price."""
        found = self._listed().get(name)
        return found if found is not None and found.provider == provider else None

    async def run(self) -> None:
        """Keep the list current for ever."""
        while True:
            try:
                await self._read()
            except MeshError as error:
                log.warn("prices.unavailable", reason=error.reason)
            await asyncio.sleep(READ_EVERY_SECONDS if self.loaded else RETRY_SECONDS)

    async def _read(self) -> None:
        answer = await client.call(self._ledger.ListPrices, prices_pb2.ListPricesRequest())
        self._models = {
            price.model: Model(
                provider=price.provider,
                name=price.model,
                context_tokens=price.context_tokens,
                output_tokens_max=price.output_tokens_max,
                longer_unpriced=price.longer_unpriced,
            )
            for price in answer.prices
        }

    def _listed(self) -> dict[str, Model]:
        if self._models is None:
            raise Unavailable("ACCOUNTING_UNAVAILABLE", "the price list has not been read yet", retry_after_ms=500)
        return self._models
