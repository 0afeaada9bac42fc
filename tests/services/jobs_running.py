"""Running jobs as a test drives them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from ledger_svc.jobs import Pace
from ledger_svc.processing import Handler, Job, UsageProcess
from mesh import ids
from tests.conftest import RunningLedger

MS = timedelta(milliseconds=1)
QUICK = Pace(poll=20 * MS, lease=10_000 * MS, backoff=20 * MS, attempts_max=3)


def a_kind() -> str:
    """Return a kind of job that no other test has."""
    return f"test.{ids.new(ids.Kind.REQUEST)}"


@asynccontextmanager
async def running(process: UsageProcess, handlers: Mapping[str, Handler]) -> AsyncGenerator[None]:
    task = asyncio.create_task(process.run(handlers))
    try:
        yield
        assert not task.done(), task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def becomes(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await true():  # noqa: ASYNC110  # it is a database that is asked
            await asyncio.sleep(0.02)


async def state(ledger: RunningLedger, job: Job) -> str:
    row = await ledger.database.one(
        "SELECT done_at, dead_at, last_error FROM jobs WHERE kind = $1 AND key = $2", job.kind, job.key
    )
    return "done" if row["done_at"] else f"dead: {row['last_error']}" if row["dead_at"] else "waits"


async def ends(ledger: RunningLedger, job: Job, how: str = "done") -> None:
    async def ended() -> bool:
        return await state(ledger, job) == how

    await becomes(ended)
