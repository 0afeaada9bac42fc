"""The prices in force, in memory: refreshed from the table, and every version ever used by its id."""

from __future__ import annotations

from ledger_svc.pricing import Price
from ledger_svc.store import registry
from mesh.db import Database
from mesh.errors import Unavailable

VERSIONS_MAX = 10_000


class PriceBook:
    """Looks prices up; `refresh` must have run once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._in_force: dict[str, Price] = {}
        self._by_id: dict[str, Price] = {}

    async def refresh(self) -> None:
        """Read the prices in force again."""
        prices = await registry.prices_in_force(self._db)
        self._in_force = {price.route: price for price in prices}
        for price in prices:
            self._remember(price)

    def in_force(self, provider: str, model: str) -> Price | None:
        """Return the price of a route as of the last refresh."""
        return self._in_force.get(f"{provider}/{model}")

    def all(self) -> list[Price]:
        """Return every price in force."""
        return list(self._in_force.values())

    async def version(self, price_id: str) -> Price:
        """Return the price that a hold was made at."""
        price = self._by_id.get(price_id)
        if price is None:
            price = await registry.price_of(self._db, price_id)
            if price is None:
                raise Unavailable("PRICE_UNREADABLE", f"the price {price_id} cannot be read")
            self._remember(price)
        return price

    def _remember(self, price: Price) -> None:
        if len(self._by_id) >= VERSIONS_MAX:
            self._by_id.clear()
        self._by_id[price.id] = price
