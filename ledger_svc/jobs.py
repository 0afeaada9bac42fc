"""The driver that comes with the ledger: jobs claimed from its own database, done in this process."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from ledger_svc.processing import Handler, Job
from ledger_svc.store import jobs
from ledger_svc.store.jobs import Claimed
from mesh.db import Database
from mesh.errors import MeshError
from mesh.telemetry import logs, metrics

BACKOFF_MAX = timedelta(minutes=10)

log = logs.get(__name__)


class LeaseLost(Exception):
    """Somebody else has claimed the job: what we still do of it may be done twice, so we stop."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How the driver goes about its work."""

    poll: timedelta = timedelta(milliseconds=500)
    lease: timedelta = timedelta(seconds=30)  # renewed three times in its length
    longest: timedelta = timedelta(minutes=5)  # of one job
    backoff: timedelta = timedelta(seconds=1)  # after the first failure; doubled with each more
    attempts_max: int = 12  # about 40 minutes
    at_once_max: int = 4


class TableProcess:
    """A UsageProcess over the table of jobs; any number of processes may run it."""

    def __init__(self, db: Database, pace: Pace | None = None) -> None:
        self._db = db
        self._pace = pace or Pace()

    async def schedule(self, job: Job, after: timedelta = timedelta()) -> bool:
        """Record a job to be done once `after` is over; False when its key was scheduled before."""
        return await jobs.schedule(self._db, job.kind, job.key, job.payload, after)

    async def run(self, handlers: Mapping[str, Handler]) -> None:
        """Do what becomes due, for ever."""
        running: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                claimed = await self._claim(list(handlers), self._pace.at_once_max - len(running))
                for job in claimed:
                    task = group.create_task(self._do(job, handlers[job.kind]))
                    running.add(task)
                    task.add_done_callback(running.discard)
                pause_seconds = self._pace.poll.total_seconds() * (0.5 + _chance() / 2)
                if running:
                    await asyncio.wait(set(running), timeout=pause_seconds, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(pause_seconds)

    async def _claim(self, kinds: list[str], free: int) -> list[Claimed]:
        try:
            return await jobs.claim(self._db, kinds, free, self._pace.lease) if free else []
        except MeshError as error:
            log.warn("jobs.not_claimed", reason=error.reason)
            return []

    async def _do(self, job: Claimed, handler: Handler) -> None:
        metrics.JOB_LATE.observe(job.late_ms / 1000)
        try:
            await self._try(job, handler)
        except MeshError as error:  # how it ended could not be written: it is done again when its lease ends
            log.warn("job.not_recorded", kind=job.kind, key=job.key, reason=error.reason)

    async def _try(self, job: Claimed, handler: Handler) -> None:
        if job.attempts > self._pace.attempts_max:  # it took its process with it each time
            await self._fail(job, "LEASE_LOST")
            return
        try:
            after = await self._held(job, handler)
        except LeaseLost:
            metrics.JOBS.labels(job.kind, "lost").inc()
            log.warn("job.lost", kind=job.kind, key=job.key)
        except MeshError as error:
            await self._fail(job, error.reason)
        except Exception as bug:  # noqa: BLE001  # a job that cannot be done must not stop the others
            log.error("job.bug", bug, kind=job.kind, key=job.key)
            await self._fail(job, type(bug).__name__)
        else:
            metrics.JOBS.labels(job.kind, "done").inc()
            await (jobs.finish(self._db, job) if after is None else jobs.again(self._db, job, after))

    async def _held(self, job: Claimed, handler: Handler) -> timedelta | None:
        """Run the handler while its lease is renewed."""
        doing = asyncio.ensure_future(handler(Job(job.kind, job.key, json.loads(job.payload))))
        renewing = asyncio.create_task(self._renew(job))
        try:
            async with asyncio.timeout(self._pace.longest.total_seconds()):
                await asyncio.wait({doing, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise LeaseLost
            return doing.result()
        finally:
            doing.cancel()
            renewing.cancel()
            await asyncio.gather(doing, renewing, return_exceptions=True)

    async def _renew(self, job: Claimed) -> None:
        """Extend the lease until it is lost; an outage shorter than the lease loses nothing."""
        while True:
            await asyncio.sleep(self._pace.lease.total_seconds() / 3)
            try:
                if not await jobs.renew(self._db, job, self._pace.lease):
                    return
            except MeshError as error:
                log.warn("job.not_renewed", kind=job.kind, key=job.key, reason=error.reason)

    async def _fail(self, job: Claimed, error: str) -> None:
        if job.attempts >= self._pace.attempts_max:
            metrics.JOBS.labels(job.kind, "dead").inc()
            log.warn("job.dead", kind=job.kind, key=job.key, attempts=job.attempts, reason=error)
            await jobs.bury(self._db, job, error)
        else:
            metrics.JOBS.labels(job.kind, "failed").inc()
            log.warn("job.failed", kind=job.kind, key=job.key, attempts=job.attempts, reason=error)
            await jobs.fail(self._db, job, error, backoff(self._pace.backoff, job.attempts, _chance()))


def backoff(first: timedelta, attempts: int, chance: float) -> timedelta:
    """Return how long to wait after a failure: doubled each time up to 10 minutes, half of it by chance (0 to 1)."""
    whole = min(first * 2 ** min(attempts - 1, 20), BACKOFF_MAX)
    return whole * (0.5 + chance / 2)


def _chance() -> float:
    return secrets.randbelow(1000) / 1000
