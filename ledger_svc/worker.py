"""The ledger's loops: lapse silent holders, keep the prices current, do the slow work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from functools import partial

from ledger_svc.price_book import PriceBook
from ledger_svc.processing import Handler, Job, UsageProcess
from ledger_svc.store import charges, events, grants, jobs, statements
from mesh.clock import SystemClock
from mesh.db import Database, StatementError
from mesh.errors import MeshError
from mesh.telemetry import logs, metrics

SWEEP_SECONDS = 1.0
REFRESH_SECONDS = 5.0
BATCHES_MAX = 20  # of one organization in a sweep: the others wait for it
RULE_GRACE = timedelta(seconds=60)  # in which a gateway that comes back may still settle what became uncertain
COVERED_PAUSE = timedelta(seconds=1)  # until expired credits that holds in flight counted on are looked at again
PRUNE_PAUSE = timedelta(hours=1)
THIN_AFTER = timedelta(hours=1)  # younger checkpoints are all kept
THIN_SECONDS = 60.0  # of one run
ORGANIZATIONS_AT_ONCE = 100

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
                try:
                    await _mark_uncertain(db, organization_id)
                except StatementError as error:  # the others' holds must not wait for it
                    log.error("sweep.refused", error, organization_id=organization_id)
        except MeshError as error:
            heard_again = True
            log.warn("sweep.failed", reason=error.reason)
        swept_at = now()
        await asyncio.sleep(SWEEP_SECONDS)


async def _mark_uncertain(db: Database, organization_id: str) -> None:
    for _ in range(BATCHES_MAX):
        count = await jobs.sweep_uncertain(db, organization_id, RULE_GRACE)
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


async def process(db: Database, driver: UsageProcess) -> None:
    """Schedule what is done again and again, then do what becomes due, for ever."""
    for kind in ("checkpoints.thin", "events.prune", "jobs.prune", "leases.prune"):
        await driver.schedule(Job(kind, "all", {}))
    await driver.run(handlers(db))


def handlers(db: Database, rule_grace: timedelta = RULE_GRACE) -> Mapping[str, Handler]:
    """Return who does which kind of job."""

    async def expire_grants(job: Job) -> timedelta | None:
        return COVERED_PAUSE if await grants.expire(db, job.payload["organization_id"]) else None

    async def resolve_holds(job: Job) -> timedelta | None:
        decided, waits = await jobs.resolve_by_rule(db, job.payload["organization_id"], rule_grace)
        if not waits:
            return None
        return timedelta() if decided == jobs.RESOLVED_MAX else rule_grace

    return {
        "checkpoints.thin": partial(_thin_checkpoints, db),
        "grants.expire": expire_grants,
        "holds.resolve": resolve_holds,
        "events.prune": _pruning(db, events.prune, events.PRUNED_MAX),
        "jobs.prune": _pruning(db, jobs.prune_done, jobs.JOBS_PRUNED_MAX),
        "leases.prune": _pruning(db, jobs.prune_leases, jobs.LEASES_PRUNED_MAX),
    }


async def _thin_checkpoints(db: Database, _: Job) -> timedelta:
    before, after = SystemClock().now() - THIN_AFTER, ""
    now = asyncio.get_running_loop().time
    until = now() + THIN_SECONDS
    while found := await statements.organizations_after(db, after, ORGANIZATIONS_AT_ONCE):
        for organization_id in found:
            try:
                while await statements.thin(db, organization_id, before):
                    if now() > until:
                        return timedelta()  # go on at once, as another run: one has but so long
            except (MeshError, StatementError) as error:  # the others' go on
                log.warn("checkpoints.not_thinned", organization_id=organization_id, error=type(error).__name__)
        after = found[-1]
    return PRUNE_PAUSE


def _pruning(db: Database, prune: Callable[[Database], Awaitable[int]], most: int) -> Handler:
    async def again(_: Job) -> timedelta:
        return timedelta() if await prune(db) == most else PRUNE_PAUSE

    return again
