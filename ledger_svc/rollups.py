"""The loop that keeps sums of usage close behind usage itself; any number of processes may run it."""

from __future__ import annotations

import asyncio

from ledger_svc.store import rollups
from mesh.db import Database, StatementError
from mesh.errors import MeshError
from mesh.telemetry import logs

PAUSE_SECONDS = 5.0  # reports add what is new themselves; the more at once, the less a row costs
BATCHES_MAX = 10  # of one organization in a round: the others wait for it
ROWS_MIN = 500
SWEEP_ROUNDS = 60
SWEEPS_MAX = 20

log = logs.get(__name__)


async def run(db: Database) -> None:
    """Add new usage to the sums, for ever."""
    rounds, rows = 0, rollups.BATCH_ROWS
    while True:
        busy = failed = False
        try:
            busy = await catch_up(db, rows)
            if rounds % SWEEP_ROUNDS == 0:
                await _sweep(db)
        except MeshError as error:
            failed = True
            log.warn("rollups.failed", reason=error.reason, batch_rows=rows)
        rounds, rows = rounds + 1, paced(rows, failed=failed)
        await asyncio.sleep(0 if busy else PAUSE_SECONDS)


def paced(rows: int, *, failed: bool) -> int:
    """Return how many rows to take next: fewer after a failure, for a slow server may not have managed them in time."""
    return max(rows // 4, ROWS_MIN) if failed else min(rows * 2, rollups.BATCH_ROWS)


async def catch_up(db: Database, batch_rows: int = rollups.BATCH_ROWS) -> bool:
    """Go through all organizations once; return whether one of them has more to add."""
    busy = False
    after: str | None = ""
    while after is not None:
        found = await rollups.behind(db, after)
        for organization_id in found.behind:
            try:
                busy = await _catch_up(db, organization_id, batch_rows) or busy
            except StatementError as error:  # the others' sums must not wait for it
                log.error("rollups.refused", error, organization_id=organization_id)
        after = found.next_after
    return busy


async def _catch_up(db: Database, organization_id: str, batch_rows: int) -> bool:
    for _ in range(BATCHES_MAX):
        if await rollups.roll_up(db, organization_id, batch_rows) < batch_rows:
            return False
    return True


async def _sweep(db: Database) -> None:
    for _ in range(SWEEPS_MAX):
        if not await rollups.sweep(db):
            return
