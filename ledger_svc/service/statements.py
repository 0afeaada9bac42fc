"""Balances and statements as of any moment, and the check of the books."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from ledger_svc import wire
from ledger_svc.accounts import KINDS
from ledger_svc.store import budgets, registry
from ledger_svc.store import statements as store
from mandate.ledger.v1 import statements_pb2 as pb
from mandate.ledger.v1 import statements_pb2_grpc as rpc
from mesh import ids
from mesh.db import Database
from mesh.errors import NotFound, Unavailable, invalid
from mesh.paging import page_of, token_of

PAGE_MAX = 500
CURSOR = re.compile(r"([0-9]{1,18}) ([0-9]{1,18})")
SEQ_MAX = 10**18
VERIFYING_MAX = 2  # at a time: each takes a connection for seconds, and charges need them
TICK = timedelta(microseconds=1)  # the grain of the ledger's time
Context = grpc.aio.ServicerContext[Any, Any]


class StatementServicer(rpc.StatementServiceServicer):
    """Implements mandate.ledger.v1.StatementService."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._verifying: set[str] = set()

    async def GetBalance(self, request: pb.GetBalanceRequest, context: Context) -> pb.Balance:
        organization_id, at, meant = request.organization_id, None, None
        if request.WhichOneof("as_of") == "seq":
            if not 0 <= request.seq <= SEQ_MAX:
                raise invalid("seq", f"must be 0 to {SEQ_MAX}")
            seq = min(request.seq, await store.seq_at(self._db, organization_id, None))
            at = await store.time_of(self._db, organization_id, seq)
        else:
            at = _moment("time", request, request.time)
            meant = at or store.NOW
            seq = await store.seq_at(self._db, organization_id, at)
        account = await self._account(organization_id, request.account, at)
        settled = await store.balance_at(self._db, organization_id, account, seq, meant) if account else 0
        return pb.Balance(organization_id=organization_id, account=request.account, settled_micros=settled, seq=seq)

    async def GetStatement(self, request: pb.GetStatementRequest, context: Context) -> pb.GetStatementResponse:
        page = page_of(request.page_size, request.page_token, size_max=PAGE_MAX)
        start = _moment("start_time", request, request.start_time)
        end = _moment("end_time", request, request.end_time)
        if start and end and end <= start:
            raise invalid("end_time", "must be after start_time")
        organization_id = request.organization_id
        account = await self._account(organization_id, request.account, start)
        if account is None:
            return pb.GetStatementResponse()
        first, last = await self._range(organization_id, start, end)
        after = first
        if page.after is not None:
            found = CURSOR.fullmatch(page.after)
            if found is None:
                raise invalid("page_token", "was not given out by this list")
            after, last = int(found[1]), int(found[2])  # the end of the first page stays the end
        until = min(last, after + store.LINES_SCANNED)
        rows = await store.lines(self._db, organization_id, account, after, until, page.size)
        meant = start if after == first else None
        balance = await store.balance_at(self._db, organization_id, account, after, meant)
        response = pb.GetStatementResponse(
            opening_micros=await store.balance_at(self._db, organization_id, account, first, start),
            closing_micros=await store.balance_at(self._db, organization_id, account, last, end or store.NOW),
        )
        for row in rows:
            balance += row["amount_micros"]
            response.lines.append(
                pb.StatementLine(
                    seq=row["seq"],
                    kind=row["kind"],
                    request_id=row["key"],
                    amount_micros=row["amount_micros"],
                    balance_micros=balance,
                    actor=row["actor"],
                    reason=row["reason"],
                    time=wire.stamp(row["posted_at"]),
                )
            )
        seen = rows[-1]["seq"] if len(rows) == page.size else until
        if seen < last:
            response.next_page_token = token_of(f"{seen} {last}")
        return response

    async def VerifyBooks(self, request: pb.VerifyBooksRequest, context: Context) -> pb.VerifyBooksResponse:
        organization_id = request.organization_id
        if organization_id in self._verifying or len(self._verifying) >= VERIFYING_MAX:
            raise Unavailable("OVERLOADED", "books are being checked already", retry_after_ms=5_000)
        self._verifying.add(organization_id)
        try:
            wrong, reached = await store.verify(self._db, organization_id)
        finally:
            self._verifying.discard(organization_id)
        return pb.VerifyBooksResponse(
            discrepancies=[pb.Discrepancy(**dict(row)) for row in wrong],
            transfer_seq=reached["transfers"],
            usage_seq=reached["usage"],
            audit_seq=reached["audit"],
        )

    async def RebuildDerived(self, request: pb.RebuildDerivedRequest, context: Context) -> pb.RebuildDerivedResponse:
        if await registry.organization_of(self._db, request.organization_id) != request.organization_id:
            raise NotFound("NOT_FOUND", f"no organization {request.organization_id!r}"[:200], field="organization_id")
        return pb.RebuildDerivedResponse(open_holds=await store.rebuild(self._db, request.organization_id))

    async def _range(self, organization_id: str, start: datetime | None, end: datetime | None) -> tuple[int, int]:
        first = await store.seq_at(self._db, organization_id, start - TICK) if start else 0
        last = await store.seq_at(self._db, organization_id, end - TICK if end else None)
        return first, last

    async def _account(self, organization_id: str, name: str, at: datetime | None) -> store.Account | None:
        if name not in KINDS and ids.kind_of(name) is not ids.Kind.BUDGET:
            raise invalid("account", f"must be a budget's id or one of {', '.join(sorted(KINDS))}")
        if name not in KINDS:
            budget = await budgets.get(self._db, name)
            if budget is None or budget["organization_id"] != organization_id:
                raise NotFound("NOT_FOUND", f"no budget {name!r}"[:200], field="account")
        return await store.account(self._db, organization_id, name, at)


def _moment(name: str, request: Any, stamp: Timestamp) -> datetime | None:
    if not request.HasField(name):
        return None
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid(name, "is no time between the years 1 and 9999") from None
