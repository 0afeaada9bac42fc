"""The loop that keeps sums of usage close behind usage itself; any number of processes may run it."""

from __future__ import annotations

import asyncio

from ledger_svc.store import rollups
from mesh.db import Database
from mesh.errors import MeshError
from mesh.telemetry import logs

PAUSE_SECONDS = 1.0
BATCHES_MAX = 10  # of one organization in a round: the others wait for it
SWEEP_ROUNDS = 60
SWEEPS_MAX = 20

log = logs.get(__name__)


async def run(db: Database) -> None:
    """Add new usage to the sums, for ever."""
    rounds = 0
    while True:
        busy = False
        try:
            busy = await catch_up(db)
            if rounds % SWEEP_ROUNDS == 0:
                await _sweep(db)
        except MeshError as error:
            log.warn("rollups.failed", reason=error.reason)
        rounds += 1
        await asyncio.sleep(0 if busy else PAUSE_SECONDS)


async def catch_up(db: Database) -> bool:
    """Go through all organizations once; return whether one of them has more to add."""
    busy = False
    after: str | None = ""
    while after is not None:
        found = await rollups.behind(db, after)
        for organization_id in found.behind:
            busy = await _catch_up(db, organization_id) or busy
        after = found.next_after
    return busy


async def _catch_up(db: Database, organization_id: str) -> bool:
    for _ in range(BATCHES_MAX):
        if await rollups.roll_up(db, organization_id) < rollups.BATCH_ROWS:
            return False
    return True


async def _sweep(db: Database) -> None:
    for _ in range(SWEEPS_MAX):
        if not await rollups.sweep(db):
            return
