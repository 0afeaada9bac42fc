"""The ledger's loops: lapse silent holders, keep the prices current."""

from __future__ import annotations

import asyncio

from ledger_svc.price_book import PriceBook
from ledger_svc.store import charges
from mesh.db import Database
from mesh.errors import MeshError
from mesh.telemetry import logs, metrics

SWEEP_SECONDS = 1.0
REFRESH_SECONDS = 5.0
BATCHES_MAX = 20  # of one organization in a sweep: the others wait for it

log = logs.get(__name__)


async def sweep(db: Database, lease_ms: int) -> None:
    """Make the holds of lapsed holders uncertain, for ever.

    After a start, an outage of the database or a pause of this process, holders could not be heard: their silence
    counts from then on.
    """
    heard_again = True
    now = asyncio.get_running_loop().time
    swept_at = now()
    while True:
        heard_again = heard_again or now() - swept_at > SWEEP_SECONDS + lease_ms / 2000
        try:
            if heard_again:
                await charges.forgive_silence(db)
                heard_again = False
            for organization_id in await charges.lapse_holders(db, lease_ms):
                await _mark_uncertain(db, organization_id)
        except MeshError as error:
            heard_again = True
            log.warn("sweep.failed", reason=error.reason)
        swept_at = now()
        await asyncio.sleep(SWEEP_SECONDS)


async def _mark_uncertain(db: Database, organization_id: str) -> None:
    for _ in range(BATCHES_MAX):
        count = await charges.mark_uncertain(db, organization_id)
        if count:
            metrics.HOLDS_UNCERTAIN.inc(count)
            log.warn("hold.uncertain", organization_id=organization_id, count=count)
        if count < charges.UNCERTAIN_MAX:
            return


async def refresh_prices(prices: PriceBook) -> None:
    """Read the prices in force again and again."""
    while True:
        await asyncio.sleep(REFRESH_SECONDS)
        try:
            await prices.refresh()
        except MeshError as error:
            log.warn("prices.not_refreshed", reason=error.reason)
