"""Start the ledger."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ledger_svc import price_list, worker
from ledger_svc.commits import Commits
from ledger_svc.keys import LedgerKeys
from ledger_svc.price_book import PriceBook
from ledger_svc.service import Ledger
from ledger_svc.settings import LedgerSettings
from ledger_svc.store import registry
from mesh import db, server, settings

PRICES = Path(__file__).parent / "prices.json"


async def main() -> None:
    """Run until told to stop."""
    runtime, own = settings.load(settings.Runtime), settings.load(LedgerSettings)
    server.prepare("ledger", runtime)
    async with db.connect(own.database_url, service="ledger", size_max=own.pool_size) as database:
        await registry.put_prices(database, price_list.parse(PRICES.read_text(), own.credits_per_usd))
        prices = PriceBook(database)
        await prices.refresh()
        ledger = Ledger(database, Commits(database), prices)
        served = server.Server("ledger", runtime, ledger.registrations(), LedgerKeys(database), ledger.resolve)
        workers = (partial(worker.sweep, database, own.lease_ms), partial(worker.refresh_prices, prices))
        await server.serve(served, workers)
        await ledger.commits.drain()


if __name__ == "__main__":
    server.run(main())
