from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from ledger_svc.jobs import BACKOFF_MAX, Pace, TableProcess, backoff
from ledger_svc.processing import Job, UsageProcess
from ledger_svc.store import jobs
from mandate.ledger.v1 import jobs_pb2 as pb
from mandate.ledger.v1 import jobs_pb2_grpc as rpc
from mesh import caller
from mesh.client import call
from mesh.clock import monotonic_ms
from mesh.db import Database
from mesh.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from mesh.telemetry import metrics
from mesh.testing import TestIssuer
from tests.conftest import RunningLedger
from tests.services.jobs_running import MS, QUICK, a_kind, becomes, ends, running, state

Driver = Callable[[Database], UsageProcess]


def table(database: Database) -> UsageProcess:
    return TableProcess(database, QUICK)


every_driver = pytest.mark.parametrize("driver", [table])


@every_driver
async def test_a_job_is_done_when_it_is_due_and_not_before(ledger: RunningLedger, driver: Driver) -> None:
    process, job = driver(ledger.database), Job(a_kind(), "k", {"organization_id": "org_x"})
    seen: list[tuple[Job, float]] = []

    async def handler(found: Job) -> None:
        seen.append((found, monotonic_ms()))

    began_ms = monotonic_ms()
    assert await process.schedule(job, 300 * MS)
    async with running(process, {job.kind: handler}):
        await ends(ledger, job)
    assert [found for found, _ in seen] == [job]
    assert 300 <= seen[0][1] - began_ms < 2_000


@every_driver
async def test_a_key_is_scheduled_once_for_ever(ledger: RunningLedger, driver: Driver) -> None:
    process, job, done = driver(ledger.database), Job(a_kind(), "k", {}), Counter[str]()

    async def handler(found: Job) -> None:
        done[found.key] += 1

    assert await process.schedule(job)
    assert not await process.schedule(Job(job.kind, "k", {"other": "payload"}))
    last = Job(job.kind, "last", {})
    async with running(process, {job.kind: handler}):
        await ends(ledger, job)
        assert not await process.schedule(job)
        await process.schedule(last)
        await ends(ledger, last)
    assert done == {"k": 1, "last": 1}


@every_driver
async def test_a_job_that_fails_is_tried_again_and_stops_no_other(ledger: RunningLedger, driver: Driver) -> None:
    process, kind, tries = driver(ledger.database), a_kind(), Counter[str]()

    async def handler(found: Job) -> None:
        tries[found.key] += 1
        if found.key == "unlucky" and tries[found.key] < 3:
            raise Unavailable("DATABASE_UNAVAILABLE", "not now") if tries[found.key] == 1 else ValueError

    unlucky, other = Job(kind, "unlucky", {}), Job(kind, "other", {})
    await process.schedule(unlucky)
    await process.schedule(other)
    async with running(process, {kind: handler}):
        await ends(ledger, other)
        await ends(ledger, unlucky)
    assert tries == {"unlucky": 3, "other": 1}


@every_driver
async def test_a_job_that_asks_for_it_is_done_again(ledger: RunningLedger, driver: Driver) -> None:
    process, job, done = driver(ledger.database), Job(a_kind(), "k", {}), Counter[str]()

    async def handler(found: Job) -> timedelta | None:
        done[found.key] += 1
        return None if done[found.key] == 6 else 5 * MS  # more often than a job that fails is tried

    await process.schedule(job)
    async with running(process, {job.kind: handler}):
        await ends(ledger, job)
    assert done == {"k": 6}


@every_driver
async def test_a_kind_that_nobody_here_does_is_left(ledger: RunningLedger, driver: Driver) -> None:
    process, known, other = driver(ledger.database), Job(a_kind(), "k", {}), Job(a_kind(), "k", {})

    async def handler(_: Job) -> None:
        return

    await process.schedule(other)
    await process.schedule(known)
    async with running(process, {known.kind: handler}):
        await ends(ledger, known)
    assert await state(ledger, other) == "waits"


@every_driver
async def test_processes_share_the_work_and_do_each_job_once(ledger: RunningLedger, driver: Driver) -> None:
    kind, done = a_kind(), Counter[str]()

    async def handler(found: Job) -> None:
        done[found.key] += 1
        await asyncio.sleep(0.002)

    processes = [driver(ledger.database) for _ in range(3)]
    wanted = [Job(kind, f"{number}", {}) for number in range(60)]
    for job in wanted:
        await processes[0].schedule(job)
    async with AsyncExitStack() as stack:
        for process in processes:
            await stack.enter_async_context(running(process, {kind: handler}))
        for job in wanted:
            await ends(ledger, job)
    assert done == {job.key: 1 for job in wanted}


async def test_a_job_that_keeps_failing_is_given_up_listed_and_run_again(ledger: RunningLedger) -> None:
    process, job, healed = TableProcess(ledger.database, QUICK), Job(a_kind(), "k", {}), asyncio.Event()

    async def handler(_: Job) -> None:
        if not healed.is_set():
            raise ValueError("cpk_secret")

    async with ledger.house.channel("ledger", ledger.address, as_service="operator") as channel:
        stub: Any = rpc.JobServiceStub(channel)
        await process.schedule(job)
        retry = pb.RetryJobRequest(kind=job.kind, key=job.key)
        assert not (await call(stub.RetryJob, retry)).retried
        async with running(process, {job.kind: handler}):
            await ends(ledger, job, "dead: ValueError")
            mine = next(found for found in await dead(stub) if found.kind == job.kind)
            assert (mine.key, mine.attempts, mine.last_error) == ("k", 3, "ValueError")
            assert mine.HasField("dead_time")
            healed.set()
            assert (await call(stub.RetryJob, retry)).retried
            await ends(ledger, job)
        assert not (await call(stub.RetryJob, retry)).retried


async def dead(stub: Any) -> list[pb.DeadJob]:
    """Return what was given up, page by page."""
    listed: list[pb.DeadJob] = []
    token = ""
    while not listed or token:
        page = await call(stub.ListDeadJobs, pb.ListDeadJobsRequest(page_size=1, page_token=token))
        listed += page.jobs
        token = page.next_page_token
    return listed


async def test_only_the_operator_sees_jobs_and_names_one_that_is_there(
    ledger: RunningLedger, issuer: TestIssuer
) -> None:
    async with ledger.house.channel("ledger", ledger.address, as_service="operator") as channel:
        stub: Any = rpc.JobServiceStub(channel)
        with pytest.raises(NotFound):
            await call(stub.RetryJob, pb.RetryJobRequest(kind=a_kind(), key="k"))
        for request, field in (
            (pb.RetryJobRequest(kind="", key="k"), "kind"),
            (pb.RetryJobRequest(kind="k", key="\x00"), "key"),
        ):
            with pytest.raises(InvalidArgument) as refused:
                await call(stub.RetryJob, request)
            assert refused.value.details["field"] == field
    async with ledger.house.channel("ledger", ledger.address, as_service="edge") as channel:
        with caller.acting(issuer.person()), pytest.raises(PermissionDenied, match="edge may not call"):
            await call(rpc.JobServiceStub(channel).ListDeadJobs, pb.ListDeadJobsRequest())


async def test_a_claim_passes_over_what_another_process_is_claiming(ledger: RunningLedger) -> None:
    kind, query = a_kind(), "SELECT key FROM claim_jobs($1, 1, 60000)"
    for key in ("a", "b"):
        await TableProcess(ledger.database).schedule(Job(kind, key, {}))
    async with ledger.database.transaction() as tx, asyncio.timeout(5):
        first = await tx.fetchval(query, [kind])
        second = await jobs.claim(ledger.database, [kind], 10, 60_000 * MS)
    assert {first, *(job.key for job in second)} == {"a", "b"}
    assert len(second) == 1


async def test_only_who_claimed_a_job_last_says_how_it_ended(ledger: RunningLedger) -> None:
    job = Job(a_kind(), "k", {})
    await TableProcess(ledger.database).schedule(job)
    (slow,) = await jobs.claim(ledger.database, [job.kind], 1, timedelta())
    (quick,) = await jobs.claim(ledger.database, [job.kind], 1, 60_000 * MS)
    for answer in (
        jobs.renew(ledger.database, slow, timedelta()),
        jobs.again(ledger.database, slow, timedelta()),
        jobs.bury(ledger.database, slow, "X"),
        jobs.finish(ledger.database, slow),
    ):
        assert not await answer
    assert await jobs.finish(ledger.database, quick)


async def test_a_killed_process_loses_no_job(ledger: RunningLedger) -> None:
    process, job = TableProcess(ledger.database, QUICK), Job(a_kind(), "k", {})
    await process.schedule(job)
    (killed,) = await jobs.claim(ledger.database, [job.kind], 10, 200 * MS)
    assert await jobs.claim(ledger.database, [job.kind], 10, 200 * MS) == []
    done = Counter[str]()

    async def handler(found: Job) -> None:
        done[found.key] += 1

    async with running(process, {job.kind: handler}):
        await ends(ledger, job)
    assert done == {"k": 1}
    assert not await jobs.fail(ledger.database, killed, "late", timedelta()), "it was done by somebody else"


async def test_a_job_that_kills_its_process_is_given_up(ledger: RunningLedger) -> None:
    process, job, done = TableProcess(ledger.database, QUICK), Job(a_kind(), "k", {}), Counter[str]()

    async def handler(found: Job) -> None:
        done[found.key] += 1

    await process.schedule(job)
    for _ in range(QUICK.attempts_max):
        assert await jobs.claim(ledger.database, [job.kind], 1, timedelta())
    async with running(process, {job.kind: handler}):
        await ends(ledger, job, "dead: LEASE_LOST")
    assert not done


async def test_a_long_job_keeps_its_lease(ledger: RunningLedger) -> None:
    pace = Pace(poll=20 * MS, lease=300 * MS)
    job, done = Job(a_kind(), "k", {}), Counter[str]()

    async def handler(found: Job) -> None:
        done[found.key] += 1
        await asyncio.sleep(1)

    one, other = TableProcess(ledger.database, pace), TableProcess(ledger.database, pace)
    await one.schedule(job)
    async with running(one, {job.kind: handler}), running(other, {job.kind: handler}):
        await ends(ledger, job)
    assert done == {"k": 1}


async def test_a_job_whose_lease_is_lost_is_stopped(ledger: RunningLedger) -> None:
    process, job = TableProcess(ledger.database, Pace(poll=20 * MS, lease=300 * MS)), Job(a_kind(), "k", {})
    started, stopped = asyncio.Event(), asyncio.Event()

    async def handler(_: Job) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def counted() -> bool:
        labels = {"kind": job.kind, "outcome": "lost"}
        return metrics.REGISTRY.get_sample_value("mandate_jobs_total", labels) == 1

    await process.schedule(job)
    async with running(process, {job.kind: handler}), asyncio.timeout(5):
        await started.wait()
        taken = "UPDATE jobs SET claims = claims + 1, due_at = now() + interval '1 hour' WHERE kind = $1"
        await ledger.database.execute(taken, job.kind)
        await stopped.wait()
        await becomes(counted)
    assert await state(ledger, job) == "waits"


async def test_a_job_that_hangs_is_a_failure(ledger: RunningLedger) -> None:
    pace = Pace(poll=20 * MS, longest=50 * MS, attempts_max=1)
    process, job = TableProcess(ledger.database, pace), Job(a_kind(), "k", {})

    async def handler(_: Job) -> None:
        await asyncio.sleep(60)

    await process.schedule(job)
    async with running(process, {job.kind: handler}):
        await ends(ledger, job, "dead: TimeoutError")


@pytest.mark.parametrize(
    ("attempts", "chance", "after"),
    [
        (1, 1.0, timedelta(seconds=1)),
        (1, 0.0, timedelta(seconds=0.5)),
        (2, 1.0, timedelta(seconds=2)),
        (5, 0.5, timedelta(seconds=12)),
        (11, 1.0, BACKOFF_MAX),
        (10_000, 1.0, BACKOFF_MAX),
    ],
)
def test_failures_wait_longer_each_time(attempts: int, chance: float, after: timedelta) -> None:
    assert backoff(timedelta(seconds=1), attempts, chance) == after
