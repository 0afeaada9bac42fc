"""Jobs that were given up: list them, let them run again."""

from __future__ import annotations

from typing import Any

import grpc

from ledger_svc import wire
from ledger_svc.store import jobs
from mandate.ledger.v1 import jobs_pb2 as pb
from mandate.ledger.v1 import jobs_pb2_grpc as rpc
from mesh.db import Database
from mesh.errors import NotFound, invalid
from mesh.paging import next_token, page_of

NAME_MAX = 200
Context = grpc.aio.ServicerContext[Any, Any]


class JobServicer(rpc.JobServiceServicer):
    """Implements mandate.ledger.v1.JobService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ListDeadJobs(self, request: pb.ListDeadJobsRequest, context: Context) -> pb.ListDeadJobsResponse:
        page = page_of(request.page_size, request.page_token)
        kind, _, key = (page.after or "").partition(" ")
        rows = await jobs.dead(self._db, (kind, key), page.size + 1)
        dead = [
            pb.DeadJob(
                kind=row["kind"],
                key=row["key"],
                attempts=row["attempts"],
                last_error=row["last_error"],
                schedule_time=wire.stamp(row["scheduled_at"]),
                dead_time=wire.stamp(row["dead_at"]),
            )
            for row in rows[: page.size]
        ]
        return pb.ListDeadJobsResponse(
            jobs=dead, next_page_token=next_token(page, [f"{row['kind']} {row['key']}" for row in rows])
        )

    async def RetryJob(self, request: pb.RetryJobRequest, context: Context) -> pb.RetryJobResponse:
        for field in ("kind", "key"):
            name = str(getattr(request, field))
            if not 1 <= len(name) <= NAME_MAX or not name.isprintable():
                raise invalid(field, f"must have 1 to {NAME_MAX} characters that can be printed")
        retried = await jobs.revive(self._db, request.kind, request.key)
        if not retried and not await jobs.exists(self._db, request.kind, request.key):
            raise NotFound("JOB_NOT_FOUND", "no such job", field="key")
        return pb.RetryJobResponse(retried=retried)
