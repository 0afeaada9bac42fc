"""Events written in the transaction that they report, delivered after it: at least once, in order, by one worker.

A service's schema holds `outbox` (see `TABLE`), or another table of the same columns. What delivery means is the
caller's: a function that takes a run of payloads and raises MeshError when it could not deliver them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from mesh.db import Connection, Database
from mesh.errors import MeshError
from mesh.telemetry import logs, metrics

TABLE = """
CREATE TABLE outbox (
  id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  payload     bytea NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now()
);
"""
BATCH_MAX = 200
IDLE_SECONDS = 1.0
RETRY_SECONDS_MAX = 2.0

log = logs.get(__name__)
Deliver = Callable[[Sequence[bytes]], Awaitable[None]]


async def write(tx: Connection, payloads: Sequence[bytes]) -> None:
    """Record events in the caller's transaction."""
    await tx.execute("INSERT INTO outbox (payload) SELECT unnest($1::bytea[])", list(payloads))


class Outbox:
    """Delivers one service's events; any number of replicas may run it, one at a time delivers."""

    def __init__(self, db: Database, schema: str, deliver: Deliver, *, table: str = "outbox") -> None:
        self._db = db
        self._table = table
        self._name = schema if table == "outbox" else f"{schema}.{table}"
        self._deliver = deliver
        self._kicked = asyncio.Event()

    async def flush(self) -> None:
        """Deliver what is waiting, up to 10 batches; a MeshError leaves the rest for the worker."""
        for _ in range(10):
            if not await self._deliver_batch():
                return

    def kick(self) -> None:
        """Wake the worker now."""
        self._kicked.set()

    async def run(self) -> None:
        """Deliver for ever; failures are tried again with growing pauses up to 2 s."""
        pause_seconds = 0.0
        while True:
            try:
                delivered = await self._deliver_batch()
                pause_seconds = 0.0 if delivered else IDLE_SECONDS
            except MeshError as error:
                pause_seconds = min(max(pause_seconds, 0.05) * 2, RETRY_SECONDS_MAX)
                log.warn("outbox.delivery_failed", schema=self._name, reason=error.reason)
            if pause_seconds:
                await self._wait(pause_seconds)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._kicked.wait()
        except TimeoutError:
            return
        finally:
            self._kicked.clear()

    async def _deliver_batch(self) -> int:
        async with self._db.transaction() as tx:
            # One deliverer at a time keeps the order; the others wait here and then find nothing left.
            await tx.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 2))", f"outbox:{self._name}")
            rows = await tx.fetch(f"SELECT id, payload FROM {self._table} ORDER BY id LIMIT $1", BATCH_MAX)  # noqa: S608
            metrics.OUTBOX_WAITING.labels(self._name).set(len(rows))
            if rows:
                await self._deliver([row["payload"] for row in rows])
                await tx.execute(f"DELETE FROM {self._table} WHERE id = ANY($1)", [row["id"] for row in rows])  # noqa: S608
        return len(rows)
