"""The prices in force, in memory: refreshed from the table, and every version ever used by its id."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from ledger_svc.pricing import Price, is_route
from ledger_svc.store import prices as store
from mesh.db import Database
from mesh.errors import Unavailable

VERSIONS_MAX = 10_000
DEFAULTS_MAX = 10_000  # organizations whose rule is remembered until the next refresh


class PriceBook:
    """Looks prices up; `refresh` must have run once."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._in_force: dict[str, Price] = {}
        self._by_id: dict[str, Price] = {}
        self._defaults: dict[str, str] = {}
        self._finding: dict[str, asyncio.Task[str]] = {}

    async def refresh(self) -> None:
        """Read the prices in force again; what organizations say of unknown models is asked anew."""
        prices = await store.in_force(self._db)
        self._in_force = {price.route: price for price in prices}
        self._defaults = {}
        for price in prices:
            self._remember(price)

    def in_force(self, provider: str, model: str) -> Price | None:
        """Return the price of a route as of the last refresh."""
        return self._in_force.get(f"{provider}/{model}")

    async def for_route(self, organization_id: str, provider: str, model: str) -> Price | None:
        """Return the price of a route, else the organization's default for unknown models under the route's own name.

        The id is then the default's. None where neither is in force.
        """
        price = self.in_force(provider, model)
        if price is not None or not is_route(provider, model):
            return price
        default = self._in_force.get(await self._default_of(organization_id))
        return replace(default, provider=provider, model=model) if default else None

    def all(self) -> list[Price]:
        """Return every price in force."""
        return list(self._in_force.values())

    async def version(self, price_id: str, route: str = "") -> Price:
        """Return the price that a hold was made at, under the name of the hold's own `route` where that is given."""
        price = self._by_id.get(price_id)
        if price is None:
            price = await store.version(self._db, price_id)
            if price is None:
                raise Unavailable("PRICE_UNREADABLE", f"the price {price_id} cannot be read")
            self._remember(price)
        if route in {"", price.route}:
            return price
        provider, _, model = route.partition("/")
        return replace(price, provider=provider, model=model)

    async def _default_of(self, organization_id: str) -> str:
        known = self._defaults.get(organization_id)
        if known is None:
            # One look-up serves everything that waits for it.
            finding = self._finding.get(organization_id)
            if finding is None:
                finding = self._finding[organization_id] = asyncio.create_task(self._find(organization_id))
            known = await asyncio.shield(finding)
        return known

    async def _find(self, organization_id: str) -> str:
        try:
            found = await store.default_route(self._db, organization_id)
        finally:
            del self._finding[organization_id]
        if len(self._defaults) >= DEFAULTS_MAX:
            self._defaults.clear()
        self._defaults[organization_id] = found
        return found

    def _remember(self, price: Price) -> None:
        if len(self._by_id) >= VERSIONS_MAX:
            self._by_id.clear()
        self._by_id[price.id] = price
