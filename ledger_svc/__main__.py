"""Start the ledger."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ledger_svc import price_list, rollups, worker
from ledger_svc.commits import Commits
from ledger_svc.jobs import TableProcess
from ledger_svc.keys import LedgerKeys
from ledger_svc.price_book import PriceBook
from ledger_svc.price_list import BadPriceList
from ledger_svc.pricing import Price
from ledger_svc.service import Ledger
from ledger_svc.settings import LedgerSettings
from ledger_svc.signing import Signer
from ledger_svc.store import prices as price_store
from mesh import db, server, settings
from mesh.settings import SettingsError

PRICES = Path(__file__).parent / "prices.json"
PRICES_FILE = "MANDATE_LEDGER_PRICES_FILE"


def prices_of(own: LedgerSettings) -> list[Price]:
    """Read the shipped prices with the operator's own laid over them; SettingsError names the model that is wrong."""
    try:
        shipped = price_list.parse(PRICES.read_text(encoding="utf-8"), own.credits_per_usd)
    except BadPriceList as problem:
        raise SettingsError("MANDATE_CREDITS_PER_USD", f"{PRICES.name}: {problem}") from None
    if own.prices_file is None:
        return shipped
    try:
        text = own.prices_file.read_text(encoding="utf-8")
        return price_list.laid_over(shipped, price_list.parse(text, own.credits_per_usd))
    except OSError as error:
        raise SettingsError(PRICES_FILE, f"{own.prices_file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise SettingsError(PRICES_FILE, f"{own.prices_file} does not hold text in UTF-8") from None
    except BadPriceList as problem:
        raise SettingsError(PRICES_FILE, f"{own.prices_file}: {problem}") from None


async def main() -> None:
    """Run until told to stop."""
    runtime, own = settings.load(settings.Runtime), settings.load(LedgerSettings)
    listed = prices_of(own)
    server.prepare("ledger", runtime)
    async with db.connect(own.database_url, service="ledger", size_max=own.pool_size) as database:
        await price_store.put(database, listed)
        signer = Signer(database, own.audit_key_path(runtime), own.audit_sign_seconds)
        signer.check()
        prices = PriceBook(database)
        await prices.refresh()
        ledger = Ledger(database, Commits(database), prices)
        served = server.Server("ledger", runtime, ledger.registrations(), LedgerKeys(database), ledger.resolve)
        workers = (
            partial(worker.sweep, database, own.lease_ms),
            partial(worker.refresh_prices, prices),
            signer.run,
            partial(rollups.run, database),
            partial(worker.process, database, TableProcess(database)),
        )
        await server.serve(served, workers, before_stop=(ledger.end_streams,))
        await ledger.commits.drain()


if __name__ == "__main__":
    server.run(main())
