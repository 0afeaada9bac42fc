"""The audit chain: export, reading, signed heads and proofs."""

from __future__ import annotations

from datetime import datetime

import strawberry

from graphql_edge.operation import Operation
from graphql_edge.schema.errors import invalid
from graphql_edge.schema.pages import Connection, connection, size_of
from graphql_edge.schema.scalars import Int64, stamp_of, time_of
from mandate.ledger.v1 import audit_pb2 as pb

LINES_DEFAULT, LINES_MAX = 500, 1_000


@strawberry.type
class AuditExport:
    """Lines for `mandate verify`, each a JSON object. Go on with `lastSeq` as the next page's `afterSeq`."""

    lines: list[str]
    has_more: bool
    last_seq: Int64


@strawberry.type
class AuditEntry:
    """One entry of the audit chain; `detail` is a JSON object as text."""

    seq: Int64
    time: datetime
    actor: str
    action: str
    subject: str
    detail: str
    source: str
    source_seq: Int64


@strawberry.type
class AuditHead:
    """A signed head; keep `line` where the mesh's operators cannot change it."""

    seq: Int64
    time: datetime
    key_id: str
    line: str


@strawberry.type
class AuditProof:
    """The lines of a file for `mandate verify --proof`."""

    lines: list[str]


@strawberry.input
class AuditFilter:
    """Which entries to list; `action` is one action, or all that begin alike: `agent.*`."""

    actor: str = ""
    action: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None


def entry_of(message: pb.AuditEntry) -> AuditEntry:
    """Read an entry from the contract's message."""
    return AuditEntry(
        seq=Int64(message.seq),
        time=time_of(message.time),
        actor=message.actor,
        action=message.action,
        subject=message.subject,
        detail=message.detail,
        source=message.source,
        source_seq=Int64(message.source_seq),
    )


async def export(operation: Operation, organization_id: str, first: int, after_seq: int) -> AuditExport:
    """Read one page of an organization's chain."""
    if not 1 <= first <= LINES_MAX:
        raise invalid("first", f"must be 1 to {LINES_MAX}")
    request = pb.ExportAuditRequest(organization_id=organization_id, after_seq=after_seq, page_size=first)
    answer = await operation.call(operation.stubs.audit.ExportAudit, request)
    return AuditExport(lines=list(answer.lines), has_more=answer.more, last_seq=Int64(answer.last_seq))


async def entries(
    operation: Operation, organization_id: str, where: AuditFilter, first: int, after: str | None
) -> Connection[AuditEntry]:
    """Read one page of the entries that a filter lets through."""
    request = pb.ListAuditRequest(
        organization_id=organization_id,
        actor=where.actor,
        action=where.action,
        page_size=size_of(first),
        page_token=after or "",
    )
    if where.start_time is not None:
        request.start_time.CopyFrom(stamp_of("startTime", where.start_time))
    if where.end_time is not None:
        request.end_time.CopyFrom(stamp_of("endTime", where.end_time))
    answer = await operation.call(operation.stubs.audit.ListAudit, request)
    return connection(entry_of, answer.entries, answer.next_page_token)


async def head(operation: Operation, organization_id: str) -> AuditHead:
    """Read the newest signed head."""
    request = pb.GetAuditHeadRequest(organization_id=organization_id)
    answer = await operation.call(operation.stubs.audit.GetAuditHead, request)
    return AuditHead(seq=Int64(answer.seq), time=time_of(answer.time), key_id=answer.key_id, line=answer.line)


async def proof(operation: Operation, organization_id: str, seq: int) -> AuditProof:
    """Read the proof of one entry."""
    request = pb.ProveAuditEntryRequest(organization_id=organization_id, seq=seq)
    answer = await operation.call(operation.stubs.audit.ProveAuditEntry, request)
    return AuditProof(lines=list(answer.lines))
